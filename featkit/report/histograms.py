"""A histogram as a plotly bar chart."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from featkit.report.content import Histogram
from featkit.report.escaping import for_plotly
from featkit.report.formatting import format_cell, format_integer
from featkit.report.scene3d import Figure, packed


def histogram_figure(histogram: Histogram) -> Figure:
    """Counts per bin; the binning is done here, so that the page carries bins and not values."""
    values = np.asarray(histogram.values, dtype=np.float64).ravel()
    finite = values[np.isfinite(values)]
    layout = {
        "xaxis": {"title": {"text": for_plotly(histogram.x_label)}, "zeroline": False},
        "yaxis": {"title": {"text": "count"}, "rangemode": "tozero", "zeroline": False},
        "margin": {"l": 56, "r": 12, "t": 8, "b": 48},
        "bargap": 0.04,
        "showlegend": False,
        "dragmode": False,
    }
    data = []
    if len(finite):
        counts, edges = np.histogram(finite, bins=_edges(finite, max(histogram.bins, 1)))
        labels = [
            f"{_span(float(low), float(high))}: {format_integer(int(count))}"
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ]
        bar = {"type": "bar", "hoverinfo": "text", "hovertext": labels, "textposition": "none"}
        data.append(bar | {"x": packed(0.5 * (edges[:-1] + edges[1:])), "y": packed(counts)})
    return Figure(data, layout, _caption(finite, len(values) - len(finite)))


def _edges(finite: Float[np.ndarray, " n"], bins: int) -> Float[np.ndarray, " e"]:
    """Edges of at most `bins` bins; whole numbers get bins of a whole width around them, or they would beat."""
    low, high = float(finite.min()), float(finite.max())
    if (finite == np.round(finite)).all() and high - low < 2**31:
        width = int((high - low) // bins) + 1
        return np.arange(low - 0.5, high + width, width)
    if high - low <= 4 * bins * np.spacing(max(abs(low), abs(high))):  # floats cannot tell the bins apart
        return np.array([low - 0.5, high + 0.5])
    return np.histogram_bin_edges(finite, bins=bins)


def _span(low: float, high: float) -> str:
    return format_cell(low + 0.5) if high - low == 1.0 else f"{format_cell(low)} to {format_cell(high)}"


def _caption(finite: np.ndarray, left_out: int) -> str:
    if not len(finite):
        text = "No values"
    else:
        text = (
            f"{format_integer(len(finite))} values, median {format_cell(float(np.median(finite)))}, "
            f"mean {format_cell(float(finite.mean()))}, largest {format_cell(float(finite.max()))}"
        )
    return text + (f"; {format_integer(left_out)} not finite and left out." if left_out else ".")
