"""The table over all benchmarks: a row per method, a column per measure, the best of each marked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from featkit.report.content import Cell, Configuration, Headline, Item, Link, Report, Section, Table
from featkit.report.tables import decimals_for, format_cell

BEST = " *"
ARROWS = {"high": "↑", "low": "↓"}


@dataclass(frozen=True)
class Ranked:
    """One number of one method. measure: what it is and of which data, with the unit. better: the higher or the lower.

    None and NaN: the method has no such number.
    """

    method: str
    measure: str
    value: float | None
    better: Literal["high", "low"]


def ranking_table(ranking: Sequence[Ranked], methods: Sequence[str]) -> Table:
    """Rows in the order of `methods`, columns in the order of appearance; of equals all are marked."""
    kinds = {one.measure: one.better for one in ranking}
    values = {(one.method, one.measure): one.value for one in ranking}
    columns = [[_known(values.get((method, measure))) for method in methods] for measure in kinds]
    marked = [_marked(column, better) for column, better in zip(columns, kinds.values(), strict=True)]
    rows: list[list[Cell]] = [[method, *(column[row] for column in marked)] for row, method in enumerate(methods)]
    heads = [f"{measure} {ARROWS[better]}" for measure, better in kinds.items()]
    return Table("All benchmarks", ["method", *heads], rows, "↑ higher is better, ↓ lower; * the best of its column.")


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _marked(column: Sequence[float | None], better: str) -> list[Cell]:
    """The column with the best marked; as it is when there is nothing to choose from."""
    known = [value for value in column if value is not None]
    if len(known) < 2:
        return list(column)
    best = max(known) if better == "high" else min(known)
    decimals = decimals_for(known)
    return [format_cell(v, decimals) + BEST if v == best else v for v in column]


# ----------------------------------------------------------------------------------------------------------------------
# The page of `featkit eval all`: the table over all benchmarks, then each benchmark with its curves and pictures.


@dataclass(frozen=True)
class BenchmarkPage:
    """What one benchmark came to. page: its own, at `address` (relative to this page); None: it has tables only."""

    title: str
    page: Report | None
    tables: Sequence[Table]
    address: str = ""


def all_report(
    summary: Table, pages: Sequence[BenchmarkPage], failed: Mapping[str, str], described: Mapping[str, Any]
) -> Report:
    """One page of all. failed: messages by benchmark. described: configurations of the methods by name."""
    links: list[list[Cell]] = [[Link(one.title, one.address) if one.address else one.title] for one in pages]
    overview: list[Item] = [summary, Table("", ["benchmark, with its own page"], links)]
    if failed:
        overview.append(failed_table(failed))
    return Report(
        title="All benchmarks",
        headlines=[Headline("methods", len(described)), Headline("benchmarks", len(pages))],
        sections=[
            Section("Overview", items=overview),
            *(Section(one.title, items=_items(one)) for one in pages),
            Section(
                "Methods",
                items=[Configuration(name, json.dumps(values, indent=1)) for name, values in described.items()],
            ),
        ],
    )


def failed_table(failed: Mapping[str, str]) -> Table:
    """What did not run, and why."""
    rows = [[name, message] for name, message in failed.items()]
    return Table("Failed", ["benchmark", "because"], rows, highlight=set(range(len(rows))))


def _items(one: BenchmarkPage) -> list[Item]:
    """Everything of its page but the methods' configurations, which stand at the end; or its tables."""
    if one.page is None:
        return list(one.tables)
    return [
        item
        for section in one.page.sections
        for item in section.items
        if not isinstance(item, Configuration) or item.title == "benchmark"
    ]
