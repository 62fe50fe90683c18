"""The table over all benchmarks."""

from __future__ import annotations

from featkit.core.content import Report, Section
from featkit.evaluation.benchmark import Ranked
from featkit.report.benchmarks import ranking_table
from featkit.report.page import render
from featkit.report.tables import LEVELS


def test_a_row_per_method_a_column_per_measure() -> None:
    ranking = [
        Ranked("a", "MMA", 40.0, "high"),
        Ranked("b", "MMA", 50.5, "high"),
        Ranked("a", "error, px", 0.25, "low"),
        Ranked("b", "error, px", 0.5, "low"),
        Ranked("c", "error, px", 0.25, "low"),
        Ranked("b", "alone", 7.0, "high"),
        Ranked("a", "alone", float("nan"), "high"),
    ]
    table = ranking_table(ranking, ["c", "a", "b"])
    assert list(table.columns) == ["method", "MMA ↑", "error, px ↓", "alone ↑"]
    assert [list(row) for row in table.rows] == [
        ["c", None, "0.2500 *", None],
        ["a", 40.0, "0.2500 *", None],
        ["b", "50.50 *", 0.5, 7.0],
    ]
    assert '<td class="number" data-sort="50.5">50.50 *</td>' in render(
        Report("r", sections=[Section("s", "", [table])]), LEVELS[0]
    )
