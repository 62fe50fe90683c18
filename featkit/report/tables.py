"""Tables as html, and how numbers and users' text are written on a page."""

from __future__ import annotations

import html
import json
import math
import numbers
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Int

from featkit.report.content import Cell, Link, Table

# ----------------------------------------------------------------------------------------------------------------------
# Tables as html: numbers to the right, one number of decimals per column, sortable by their headers.


def table_html(table: Table, detail: Detail) -> str:
    """The table with at most `detail.rows` rows. Raises ValueError when a row has not one cell per column."""
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ValueError(f"{table.title}: a row of {len(row)} cells under {len(table.columns)} columns")
    cells = [[row[i] for row in table.rows] for i in range(len(table.columns))]
    numeric = [_numeric(column) for column in cells]
    decimals = [decimals_for(column) for column in cells]
    head = "".join(_header(str(name), numeric[i]) for i, name in enumerate(table.columns))
    body = "".join(
        _row(row, numeric, decimals, number in table.highlight) for number, row in enumerate(table.rows[: detail.rows])
    )
    if not table.rows:
        body = f'<tr><td class="empty" colspan="{max(len(table.columns), 1)}">nothing to list</td></tr>'
    grid = f'<div class="grid"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    title = f"<h3>{for_html(table.title)}</h3>" if table.title else ""
    return f'<figure class="item">{title}{grid}{_note(table, detail)}</figure>'


def _numeric(column: Sequence[Cell]) -> bool:
    """Whether a column holds numbers or percentages, and perhaps gaps."""
    known = [cell for cell in column if cell is not None]
    return bool(known) and all(number_in(cell) is not None for cell in known)


def _header(name: str, numeric: bool) -> str:
    kind = ' class="number"' if numeric else ""
    return f'<th{kind} aria-sort="none"><button type="button">{for_html(name)}</button></th>'


def _row(row: Sequence[Cell], numeric: Sequence[bool], decimals: Sequence[int], highlighted: bool) -> str:
    cells = []
    for i, cell in enumerate(row):
        text = for_html(format_cell(cell, decimals[i]))
        if isinstance(cell, Link):
            text = f'<a href="{for_html(quote(cell.address))}">{text}</a>'
        kind = ' class="number"' if numeric[i] else ""
        key = _sort_key(cell) if numeric[i] or not isinstance(cell, str) else ""
        cells.append(f"<td{kind}{key}>{text}</td>")
    kind = ' class="highlight"' if highlighted else ""
    return f"<tr{kind}>{''.join(cells)}</tr>"


def _sort_key(cell: Cell) -> str:
    """The full number for the page's script; text sorts by what is shown, gaps come last."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ' data-sort=""'
    value = number_in(cell)
    if value is not None:
        return f' data-sort="{int(value) if value.is_integer() else repr(value).replace("inf", "Infinity")}"'
    return ""


def _note(table: Table, detail: Detail) -> str:
    parts = [table.note] if table.note else []
    if len(table.rows) > detail.rows:
        parts.append(f"The first {format_integer(detail.rows)} of {format_integer(len(table.rows))} rows are shown.")
    return f"<figcaption>{for_html(' '.join(parts))}</figcaption>" if parts else ""


# ----------------------------------------------------------------------------------------------------------------------
# Numbers as a reader wants them: few digits, the same number of decimals down a column.


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


# ----------------------------------------------------------------------------------------------------------------------
# User text on its way into html, into json inside a script element, and into plotly's labels.
#
# Image names are file names: they may hold markup, quotes, or bytes that were no UTF-8 (lone surrogates in Python).


def writable(text: str) -> str:
    """The text with every character that UTF-8 cannot encode replaced by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def for_html(text: object) -> str:
    """Text for an element or a quoted attribute."""
    return html.escape(writable(str(text)))


def for_plotly(text: str) -> str:
    """Text for a plotly label, which understands a few tags and entities."""
    return html.escape(writable(text), quote=False)


def for_script(value: Any) -> str:
    """Json that cannot end the script element it stands in: pure ASCII, without <, > and &."""
    dumped = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return dumped.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ----------------------------------------------------------------------------------------------------------------------
# How much of a report's content goes on the page: full detail first, then less until the page is small enough.


@dataclass(frozen=True)
class Detail:
    """Upper bounds. Points, cameras: per scene; lines: per picture; pictures: on the whole page."""

    points: int
    cameras: int
    pictures: int
    picture_width_px: int
    jpeg_quality: int
    lines: int
    rows: int
    text_characters: int


# Every level takes roughly half the bytes of the one before it.
LEVELS = (
    Detail(120_000, 4000, 60, 1200, 84, 180, 5000, 200_000),
    Detail(80_000, 3000, 40, 1100, 76, 180, 3000, 100_000),
    Detail(50_000, 2000, 30, 1000, 66, 150, 2000, 60_000),
    Detail(30_000, 1000, 20, 800, 58, 120, 1000, 30_000),
    Detail(15_000, 600, 12, 700, 50, 100, 500, 15_000),
    Detail(6_000, 300, 6, 560, 42, 80, 200, 8_000),
    Detail(2_000, 150, 2, 400, 34, 60, 60, 4_000),
)


def spread(count: int, limit: int) -> Int[np.ndarray, " k"]:
    """At most `limit` indices out of `count`, evenly spread and always the same."""
    if count <= limit:
        return np.arange(count)
    return np.arange(limit, dtype=np.int64) * count // max(limit, 1)
