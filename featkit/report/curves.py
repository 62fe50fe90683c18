"""Curves over a common axis as a plotly line chart."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from featkit.report.content import Curve, Curves
from featkit.report.escaping import for_plotly
from featkit.report.formatting import format_cell, format_integer
from featkit.report.scene3d import GROUP_COLOURS, NEUTRAL, OTHER_COLOURS, Figure, packed

MOST_POINTS = 1500  # of one curve on the page; more are averaged in neighbouring groups
COLOURS = (*GROUP_COLOURS.values(), *OTHER_COLOURS)


def curves_figure(curves: Curves) -> Figure:
    """One line per curve, values that are not finite left out. Raises ValueError on arrays of unequal length."""
    layout = {
        "xaxis": {"title": {"text": for_plotly(curves.x_label)}, "zeroline": False},
        "yaxis": {
            "title": {"text": for_plotly(curves.y_label)},
            "type": "log" if curves.log_y else "linear",
            "zeroline": False,
        },
        "margin": {"l": 64, "r": 12, "t": 8, "b": 48},
        "legend": {"orientation": "h", "y": 1.12},
        "showlegend": sum(not curve.faint for curve in curves.curves) > 1,
        "dragmode": False,
    }
    data, coloured = [], 0
    for curve in sorted(curves.curves, key=lambda curve: not curve.faint):  # plotly draws the last one on top
        x, y = _shown(curve, curves.log_y)
        drawn = (
            {"color": NEUTRAL, "width": 1} if curve.faint else {"color": COLOURS[coloured % len(COLOURS)], "width": 2}
        )
        coloured += not curve.faint
        line = {
            "type": "scatter",
            "mode": "lines+markers" if len(x) <= 30 and not curve.faint else "lines",
            "name": for_plotly(curve.name),
            "line": drawn,
            "showlegend": not curve.faint,
        }
        data.append(line | {"x": packed(x), "y": packed(y)})
    return Figure(data, layout, _caption(curves))


def _shown(curve: Curve, positive: bool) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """What is drawn of a curve: finite (and positive, on a logarithmic axis), not more than the page can show."""
    x, y = np.asarray(curve.x, np.float64), np.asarray(curve.y, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"curve {curve.name!r}: x has shape {x.shape}, y {y.shape}")
    keep = np.isfinite(x) & np.isfinite(y)
    if positive:
        keep &= y > 0
    x, y = x[keep], y[keep]
    if len(x) <= MOST_POINTS:
        return x, y
    groups = np.array_split(np.arange(len(x)), MOST_POINTS)
    return np.array([x[g].mean() for g in groups]), np.array([y[g].mean() for g in groups])


def _caption(curves: Curves) -> str:
    ends = []
    for curve in curves.curves:
        finite = np.asarray(curve.y, np.float64)[np.isfinite(curve.y)]
        if len(finite) and not curve.faint:
            ends.append(f"{curve.name}: {format_integer(len(finite))} values, last {format_cell(float(finite[-1]))}")
    text = "; ".join(ends) + "." if ends else "No values."
    faint = [curve.name for curve in curves.curves if curve.faint]
    return f"{text} Thin grey lines: {', '.join(faint)}." if faint else text
