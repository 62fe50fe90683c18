"""The page of `featkit eval all`: the table over all benchmarks, then each benchmark with its curves and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featkit.report.content import Cell, Configuration, Headline, Item, Link, Report, Section, Table


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
