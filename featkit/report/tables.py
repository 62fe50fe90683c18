"""Tables as html: numbers to the right, one number of decimals per column, sortable by their headers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from urllib.parse import quote

from featkit.report.content import Cell, Link, Table
from featkit.report.detail import Detail
from featkit.report.escaping import for_html
from featkit.report.formatting import decimals_for, format_cell, format_integer, number_in


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
