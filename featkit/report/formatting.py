"""Numbers as a reader wants them: few digits, the same number of decimals down a column."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterable

from featkit.report.content import Cell, Link

NOTHING = "–"
PLAIN_BELOW = 1e7  # floats from here on are written with an exponent

SIGNED = re.compile(r"[-−]?\d[\d,]*(\.\d+)?\s?[%*]", re.ASCII)


def is_number(cell: Cell) -> bool:
    """True of ints and floats (numpy's too), not of booleans."""
    return isinstance(cell, numbers.Real) and not isinstance(cell, bool)


def number_in(cell: Cell) -> float | None:
    """The number a cell stands for: itself, or that before the sign of a text like "93.3 %" or "93.3 *"; else None."""
    if isinstance(cell, str):
        text = cell.strip()
        return float(text[:-1].replace(",", "").replace("−", "-")) if SIGNED.fullmatch(text) else None
    return None if cell is None or isinstance(cell, Link) or not is_number(cell) else float(cell)


def decimals_for(values: Iterable[Cell]) -> int:
    """Decimals that give the largest of the floats about four digits."""
    largest = 0.0
    for value in values:
        if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
            size = abs(float(value))
            largest = max(largest, size) if math.isfinite(size) else largest
    if largest == 0.0:
        return 2
    return min(max(3 - math.floor(math.log10(largest)), 1), 4)


def format_integer(value: int) -> str:
    """Thousands are parted from five digits on: 1234, 12,345."""
    return f"{value:,}" if abs(value) >= 10_000 else str(value)


def format_float(value: float, decimals: int) -> str:
    """A float with so many decimals; one that would read as zero, or is huge, gets an exponent or more digits."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= PLAIN_BELOW or 0 < size < 1e-4:
        text = f"{value:.2e}"
    elif 0 < size < 0.5 * 10.0**-decimals:
        text = f"{value:.2g}"
    else:
        text = f"{value:,.{decimals}f}" if size >= 10_000 else f"{value:.{decimals}f}"
    return text.replace("-", "−", 1) if value < 0 else text


def format_headline(value: str | int | float) -> str:
    """A number that stands alone and large: one digit less than in a table."""
    return format_cell(value, max(decimals_for([value]) - 1, 1) if not _whole(value) else None)


def format_cell(cell: Cell, decimals: int | None = None) -> str:
    """A cell as text (not escaped). decimals: of its column; by default what suits the number alone."""
    if cell is None:
        return NOTHING
    if isinstance(cell, numbers.Integral) and not isinstance(cell, bool):
        return format_integer(int(cell))
    if isinstance(cell, numbers.Real) and not isinstance(cell, bool):
        if decimals is None and _whole(cell):
            return format_integer(int(cell))
        return format_float(float(cell), decimals_for([cell]) if decimals is None else decimals)
    return str(cell)


def _whole(cell: Cell) -> bool:
    """True of numbers without a fraction that are short enough to be written out."""
    if not isinstance(cell, numbers.Real) or isinstance(cell, bool):
        return False
    value = float(cell)
    return value.is_integer() and abs(value) < PLAIN_BELOW
