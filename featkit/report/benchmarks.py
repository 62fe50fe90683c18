"""Output of the benchmarks, individually and on one page: results.json and report.html."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featkit.core.content import Cell, Headline, Item, Link, Report, Section, Table
from featkit.evaluation.benchmark import Ranked, Result, configurations
from featkit.io.artifact import write_text
from featkit.io.atomic import refuse_foreign
from featkit.report.page import write_report
from featkit.report.tables import decimals_for, format_cell


@dataclass(frozen=True)
class BenchmarkFiles:
    """Output files of one benchmark, or of all; None: not requested."""

    numbers: Path | None
    report: Path | None

    @staticmethod
    def in_folder(folder: Path) -> BenchmarkFiles:
        """Both files, in a folder."""
        return BenchmarkFiles(folder / "results.json", folder / "report.html")

    def refuse_foreign(self) -> None:
        """Raises BadInputError, before any work, if a foreign file would be replaced."""
        refuse_foreign(*(path for path in (self.numbers, self.report) if path is not None))

    def write(self, numbers: dict[str, Any], page: Report) -> list[str]:
        """Write the files and return a message for each. Raises NotWritableError."""
        lines = []
        if self.numbers is not None:
            write_text(self.numbers, json.dumps(numbers, indent=1) + "\n")
            lines.append(f"{self.numbers}: all numbers")
        if self.report is not None:
            lines.append(f"{write_report(page, self.report)}: curves and pictures")
        return lines


# ----------------------------------------------------------------------------------------------------------------------
# The table over all benchmarks: a row per method, a column per measure, with the best marked.


BEST = " *"
ARROWS = {"high": "↑", "low": "↓"}


def ranking_table(ranking: Sequence[Ranked], methods: Sequence[str]) -> Table:
    """Rows in the order of `methods`, columns in the order of appearance; ties are all marked."""
    kinds = {one.measure: one.better for one in ranking}
    values = {(one.method, one.measure): one.value for one in ranking}
    columns = [[_number_or_none(values.get((method, measure))) for method in methods] for measure in kinds]
    marked = [_with_best_marked(column, better) for column, better in zip(columns, kinds.values(), strict=True)]
    rows: list[list[Cell]] = [[method, *(column[row] for column in marked)] for row, method in enumerate(methods)]
    heads = [f"{measure} {ARROWS[better]}" for measure, better in kinds.items()]
    return Table("All benchmarks", ["method", *heads], rows, "↑ higher is better, ↓ lower is better; * best in column.")


def _number_or_none(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _with_best_marked(column: Sequence[float | None], better: str) -> list[Cell]:
    """The column with the best value marked; unchanged if there is nothing to compare."""
    known = [value for value in column if value is not None]
    if len(known) < 2:
        return list(column)
    best = max(known) if better == "high" else min(known)
    decimals = decimals_for(known)
    return [format_cell(v, decimals) + BEST if v == best else v for v in column]


# ----------------------------------------------------------------------------------------------------------------------
# The page of `featkit eval all`: the table over all benchmarks, then each benchmark with its curves and pictures.


@dataclass(frozen=True)
class PagePart:
    """One benchmark on the page. address: link to its own page, relative to this page."""

    title: str
    result: Result
    address: str


def all_report(
    summary: Table, shown: Sequence[PagePart], failed: Mapping[str, str], methods: Mapping[str, Any]
) -> Report:
    """One page for all benchmarks. failed: messages by benchmark. methods: their configurations by name."""
    links: list[list[Cell]] = [[Link(one.title, one.address)] for one in shown]
    overview: list[Item] = [summary, Table("", ["pages of the benchmarks"], links)]
    if failed:
        overview.append(failed_table(failed))
    return Report(
        title="All benchmarks",
        headlines=[Headline("methods", len(methods)), Headline("benchmarks", len(shown))],
        sections=[
            Section("Overview", items=overview),
            *(Section(one.title, items=_items(one.result)) for one in shown),
            Section("Methods", items=configurations(methods)),
        ],
    )


def failed_table(failed: Mapping[str, str]) -> Table:
    """The benchmarks that failed, with their error messages."""
    rows = [[name, message] for name, message in failed.items()]
    return Table("Failed", ["benchmark", "error"], rows, highlight=set(range(len(rows))))


def _items(result: Result) -> list[Item]:
    """A benchmark's page without the methods' configurations, which are at the end; or only its tables."""
    items = [item for section in result.sections for item in section.items] or list(result.tables)
    return [*items, *configurations(result.settings)]
