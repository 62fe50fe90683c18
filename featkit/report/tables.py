"""Tables of a report page, and the formatting of numbers."""

from __future__ import annotations

import html
import math
import numbers
import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
from jaxtyping import Int

from featkit.core.content import Cell, Link, Table

# ----------------------------------------------------------------------------------------------------------------------
# Tables of a page: numbers aligned right, the same number of decimals in a column, sortable by their headers.


@dataclass(frozen=True)
class ShownCell:
    """A cell. sort: the full number for the page's script, "" for a gap (sorted last), None for text, which is sorted
    as shown. address: percent-encoded target of a link."""

    text: str
    sort: str | None
    address: str = ""


@dataclass(frozen=True)
class ShownTable:
    """A table as text, before it is escaped. numeric: which columns hold numbers."""

    title: str
    columns: Sequence[str]
    numeric: Sequence[bool]
    rows: Sequence[Sequence[ShownCell]]
    highlight: AbstractSet[int]
    note: str
    kind = "table"


def shown_table(table: Table, detail: Detail) -> ShownTable:
    """The table with at most `detail.rows` rows. Raises ValueError if a row does not have one cell per column."""
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ValueError(f"{table.title}: a row of {len(row)} cells under {len(table.columns)} columns")
    columns = [[row[i] for row in table.rows] for i in range(len(table.columns))]
    numeric, decimals = [_numeric(cells) for cells in columns], [decimals_for(cells) for cells in columns]
    rows = [list(map(_shown_cell, row, numeric, decimals)) for row in table.rows[: detail.rows]]
    notes = [table.note] if table.note else []
    if len(table.rows) > detail.rows:
        notes.append(f"The first {format_integer(detail.rows)} of {format_integer(len(table.rows))} rows are shown.")
    return ShownTable(table.title, table.columns, numeric, rows, table.highlight, " ".join(notes))


def _numeric(column: Sequence[Cell]) -> bool:
    """Whether a column holds only numbers, percentages or gaps."""
    known = [cell for cell in column if cell is not None]
    return bool(known) and all(cell_number(cell) is not None for cell in known)


def _shown_cell(cell: Cell, numeric: bool, decimals: int) -> ShownCell:
    sort = _sort_key(cell) if numeric or not isinstance(cell, str) else None
    return ShownCell(format_cell(cell, decimals), sort, quote(cell.address) if isinstance(cell, Link) else "")


def _sort_key(cell: Cell) -> str | None:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    value = cell_number(cell)
    if value is None:
        return None
    return str(int(value)) if value.is_integer() else repr(value).replace("inf", "Infinity")


# ----------------------------------------------------------------------------------------------------------------------
# Readable numbers: few digits, the same number of decimals in a column.


MISSING = "–"
PLAIN_BELOW = 1e7  # larger floats are written with an exponent

SIGNED = re.compile(r"[-−]?\d[\d,]*(\.\d+)?\s?[%*]", re.ASCII)


def is_number(cell: Cell) -> bool:
    """True for ints and floats (also numpy's), False for booleans."""
    return isinstance(cell, numbers.Real) and not isinstance(cell, bool)


def cell_number(cell: Cell) -> float | None:
    """The number of a cell: itself, or the number in a text like "93.3 %" or "93.3 *"; else None."""
    if isinstance(cell, str):
        text = cell.strip()
        return float(text[:-1].replace(",", "").replace("−", "-")) if SIGNED.fullmatch(text) else None
    return None if cell is None or isinstance(cell, Link) or not is_number(cell) else float(cell)


def decimals_for(values: Iterable[Cell]) -> int:
    """Number of decimals that gives the largest float about four digits."""
    largest = 0.0
    for value in values:
        if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
            size = abs(float(value))
            largest = max(largest, size) if math.isfinite(size) else largest
    if largest == 0.0:
        return 2
    return min(max(3 - math.floor(math.log10(largest)), 1), 4)


def format_integer(value: int) -> str:
    """Thousands separators from five digits on: 1234, 12,345."""
    return f"{value:,}" if abs(value) >= 10_000 else str(value)


def format_float(value: float, decimals: int) -> str:
    """A float with `decimals` decimals; one that is huge or would round to zero gets an exponent or more digits."""
    if math.isnan(value):
        return MISSING
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
    """A number displayed alone in large type: one digit less than in a table."""
    return format_cell(value, max(decimals_for([value]) - 1, 1) if not _is_integral(value) else None)


def format_cell(cell: Cell, decimals: int | None = None) -> str:
    """A cell as text (not escaped). decimals: the column's; by default chosen for this number."""
    if cell is None:
        return MISSING
    if isinstance(cell, numbers.Integral) and not isinstance(cell, bool):
        return format_integer(int(cell))
    if isinstance(cell, numbers.Real) and not isinstance(cell, bool):
        if decimals is None and _is_integral(cell):
            return format_integer(int(cell))
        return format_float(float(cell), decimals_for([cell]) if decimals is None else decimals)
    return str(cell)


def _is_integral(cell: Cell) -> bool:
    """Whether a number is an integer and short enough to be written without an exponent."""
    if not isinstance(cell, numbers.Real) or isinstance(cell, bool):
        return False
    value = float(cell)
    return value.is_integer() and abs(value) < PLAIN_BELOW


# ----------------------------------------------------------------------------------------------------------------------
# Escaping of user text in plotly's labels; the template engine escapes everything else.
#
# Image names are file names: they may contain markup, quotes, or bytes that are not UTF-8 (lone surrogates in Python).


def encodable(text: str) -> str:
    """The text with every character that UTF-8 cannot encode replaced by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def plotly_text(text: str) -> str:
    """Text for a plotly label, which understands a few tags and entities."""
    return html.escape(encodable(text), quote=False)


# ----------------------------------------------------------------------------------------------------------------------
# Levels of detail of a page: full detail first, then less until the page is small enough.


@dataclass(frozen=True)
class Detail:
    """Upper bounds. points, cameras: per scene; lines: per picture; pictures, thumbnails: on the complete page."""

    points: int
    cameras: int
    pictures: int
    picture_width_px: int
    jpeg_quality: int
    lines: int
    rows: int
    text_characters: int
    thumbnails: int
    thumbnail_px: int


# Every level has roughly half the size of the previous one.
LEVELS = (
    Detail(120_000, 4000, 60, 1200, 84, 180, 5000, 200_000, 400, 280),
    Detail(80_000, 3000, 40, 1100, 76, 180, 3000, 100_000, 300, 240),
    Detail(50_000, 2000, 30, 1000, 66, 150, 2000, 60_000, 200, 220),
    Detail(30_000, 1000, 20, 800, 58, 120, 1000, 30_000, 120, 200),
    Detail(15_000, 600, 12, 700, 50, 100, 500, 15_000, 60, 180),
    Detail(6_000, 300, 6, 560, 42, 80, 200, 8_000, 30, 160),
    Detail(2_000, 150, 2, 400, 34, 60, 60, 4_000, 12, 120),
)


def spread(count: int, limit: int) -> Int[np.ndarray, " k"]:
    """At most `limit` indices out of `count`, evenly spread and deterministic."""
    if count <= limit:
        return np.arange(count)
    return np.arange(limit, dtype=np.int64) * count // max(limit, 1)
