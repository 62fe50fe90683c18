"""Grouped bars as a plotly chart: a group per category, a bar per series."""

from __future__ import annotations

import numpy as np

from featkit.report.content import Bars
from featkit.report.curves import COLOURS
from featkit.report.escaping import for_plotly
from featkit.report.formatting import format_cell
from featkit.report.scene3d import Figure, packed


def bars_figure(bars: Bars) -> Figure:
    """Values that are not finite have no bar. Raises ValueError for a series with another number of values."""
    groups = [for_plotly(group) for group in bars.groups]
    layout = {
        "xaxis": {"type": "category"},
        "yaxis": {"title": {"text": for_plotly(bars.y_label)}, "rangemode": "tozero", "zeroline": False},
        "margin": {"l": 56, "r": 12, "t": 8, "b": 48},
        "barmode": "group",
        "legend": {"orientation": "h", "y": 1.12},
        "showlegend": len(bars.series) > 1,
        "dragmode": False,
    }
    data = []
    for number, (name, values) in enumerate(bars.series.items()):
        heights = np.array(values, dtype=np.float64)
        if len(heights) != len(groups):
            raise ValueError(f"{bars.title}: {name} has {len(heights)} values for {len(groups)} groups")
        colour = {"color": COLOURS[number % len(COLOURS)]}
        data.append(
            {
                "type": "bar",
                "name": for_plotly(name),
                "marker": colour,
                "x": groups,
                "y": packed(np.nan_to_num(heights)),
            }
        )
    means = [
        f"{name} {format_cell(float(np.nanmean(values)))}"
        for name, values in bars.series.items()
        if np.isfinite(values).any()
    ]
    return Figure(data, layout, f"Means: {', '.join(means)}." if means else "No values.")
