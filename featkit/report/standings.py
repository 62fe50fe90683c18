"""The table over all benchmarks: a row per method, a column per measure, the best of each marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from featkit.report.content import Cell, Table
from featkit.report.formatting import decimals_for, format_cell

BEST = " *"
ARROWS = {"high": "↑", "low": "↓"}


@dataclass(frozen=True)
class Standing:
    """One number of one method. measure: what it is and of which data, with the unit. better: the higher or the lower.

    None and NaN: the method has no such number.
    """

    method: str
    measure: str
    value: float | None
    better: Literal["high", "low"]


def standings_table(standings: Sequence[Standing], methods: Sequence[str]) -> Table:
    """Rows in the order of `methods`, columns in the order of appearance; of equals all are marked."""
    kinds = {one.measure: one.better for one in standings}
    values = {(one.method, one.measure): one.value for one in standings}
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
