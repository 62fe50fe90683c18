"""Curves, bars and histograms as plotly charts."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from featkit.core.content import Bars, Curve, Curves, Histogram
from featkit.report.scene3d import GROUP_COLOURS, NEUTRAL, OTHER_COLOURS, Figure, Key, base64_array
from featkit.report.tables import format_cell, format_integer, plotly_text

# ----------------------------------------------------------------------------------------------------------------------
# Curves over a common axis as a plotly line chart.


MOST_POINTS = 1500  # maximum points of one curve; longer curves are averaged in groups of neighbours
COLOURS = (*(GROUP_COLOURS[group] for group in ("map", "query", "truth")), *OTHER_COLOURS)


def curves_figure(curves: Curves) -> Figure:
    """One line per curve, without NaN or infinite values. Raises ValueError for arrays of unequal length."""
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": plotly_text(curves.x_label)}, "zeroline": False},
        "yaxis": {
            "title": {"text": plotly_text(curves.y_label)},
            "type": "log" if curves.log_y else "linear",
            "zeroline": False,
        },
        "margin": {"l": 64, "r": 12, "t": 28, "b": 48},
        "showlegend": False,  # the page's key wraps, plotly's would cover the curves
        "hoverlabel": {"namelength": -1},
        "dragmode": False,
    }
    data: list[dict[str, Any]] = []
    heights: list[np.ndarray] = []
    faint = [curve for curve in curves.curves if curve.faint]
    for curve in faint:  # first, since plotly draws later curves on top
        x, y = _drawn_points(curve, curves.log_y)
        data.append(_line(curve, x, y, {"color": NEUTRAL, "width": 1}))
        heights.append(y)
    key = [Key(NEUTRAL, ", ".join(curve.name for curve in faint))] if faint else []
    for number, curve in enumerate(curve for curve in curves.curves if not curve.faint):
        x, y = _drawn_points(curve, curves.log_y)
        colour, repeated = COLOURS[number % len(COLOURS)], number >= len(COLOURS)
        data.append(_line(curve, x, y, {"color": colour, "width": 2, "dash": "dash" if repeated else "solid"}))
        heights.append(y)
        key.insert(number, Key(colour, _last_value(curve), repeated))
    level = _constant_value(heights)
    if level is not None:
        layout["yaxis"] |= _axis_around(level, curves.log_y)
    if len(curves.curves) > 1:
        return Figure(data, layout, "" if any(map(len, heights)) else "No values.", tuple(key))
    return Figure(data, layout, f"{key[0].text}." if any(map(len, heights)) else "No values.")


def _line(curve: Curve, x: Float[np.ndarray, " k"], y: Float[np.ndarray, " k"], pen: dict[str, Any]) -> dict[str, Any]:
    name = plotly_text(curve.name)
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(x) <= 30 and not curve.faint else "lines",
        "name": name,
        "line": pen,
        "hovertemplate": f"%{{x}}, %{{y}}<extra>{name}</extra>",
        "x": base64_array(x),
        "y": base64_array(y),
    }


def _constant_value(heights: list[np.ndarray]) -> float | None:
    """The value of the curves if all are constant and equal; else None."""
    joined = np.concatenate(heights) if heights else np.zeros(0)
    return float(joined[0]) if len(joined) and np.ptp(joined) <= 1e-9 * abs(float(joined[0])) else None


def _axis_around(level: float, log: bool) -> dict[str, Any]:
    """An axis with a constant line in its middle, and its value as the only tick."""
    reach = 0.5 * abs(level) or 1.0
    ends = [float(np.log10(level / 2)), float(np.log10(level * 2))] if log else [level - reach, level + reach]
    return {"range": ends, "tickvals": [level], "ticktext": [format_cell(level)]}


def _drawn_points(curve: Curve, positive: bool) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """The drawn points of a curve: finite (and positive, on a logarithmic axis), at most `MOST_POINTS`."""
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


def _last_value(curve: Curve) -> str:
    finite = np.asarray(curve.y, np.float64)[np.isfinite(curve.y)]
    return f"{curve.name}: last {format_cell(float(finite[-1]))}" if len(finite) else f"{curve.name}: no values"


# ----------------------------------------------------------------------------------------------------------------------
# Grouped bars as a plotly chart: a group per category, a bar per series.


def bars_figure(bars: Bars) -> Figure:
    """NaN and infinite values have no bar. Raises ValueError for a series with a wrong number of values."""
    groups = [plotly_text(group) for group in bars.groups]
    layout = {
        "xaxis": {"type": "category"},
        "yaxis": {"title": {"text": plotly_text(bars.y_label)}, "rangemode": "tozero", "zeroline": False},
        "margin": {"l": 56, "r": 12, "t": 28, "b": 48},
        "barmode": "group",
        "showlegend": False,
        "dragmode": False,
    }
    data, key = [], []
    for number, (name, values) in enumerate(bars.series.items()):
        heights = np.array(values, dtype=np.float64)
        if len(heights) != len(groups):
            raise ValueError(f"{bars.title}: {name} has {len(heights)} values for {len(groups)} groups")
        colour, repeated = COLOURS[number % len(COLOURS)], number >= len(COLOURS)
        mean = f": mean {format_cell(float(np.nanmean(heights)))}" if np.isfinite(heights).any() else ": no values"
        key.append(Key(colour, name + mean, repeated))
        data.append(
            {
                "type": "bar",
                "name": plotly_text(name),
                "marker": {"color": colour, "opacity": 0.5 if repeated else 1},
                "x": groups,
                "y": base64_array(np.nan_to_num(heights)),
            }
        )
    if len(key) > 1:
        return Figure(data, layout, "", tuple(key))
    has_values = any(np.isfinite(values).any() for values in bars.series.values())
    return Figure(data, layout, f"{key[0].text}." if has_values else "No values.")


# ----------------------------------------------------------------------------------------------------------------------
# A histogram as a plotly bar chart.


SINGLE_BAR_MARGIN = 6  # bar widths that the axis extends to either side of a single bar


def histogram_figure(histogram: Histogram) -> Figure:
    """Counts per bin; binned here, so that the page stores bins and not values."""
    values = np.asarray(histogram.values, dtype=np.float64).ravel()
    finite = values[np.isfinite(values)]
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": plotly_text(histogram.x_label)}, "zeroline": False},
        "yaxis": {"title": {"text": "count"}, "rangemode": "tozero", "zeroline": False},
        "margin": {"l": 56, "r": 12, "t": 28, "b": 48},
        "bargap": 0.04,
        "showlegend": False,
        "dragmode": False,
    }
    data = []
    if len(finite):
        counts, edges = np.histogram(finite, bins=_edges(finite, max(histogram.bins, 1)))
        labels = [
            f"{_bin_label(float(low), float(high))}: {format_integer(int(count))}"
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ]
        bar: dict[str, Any] = {"type": "bar", "hoverinfo": "text", "hovertext": labels, "textposition": "none"}
        if len(counts) == 1:  # keep a single bar from filling the chart, and put its value below it
            middle, width = 0.5 * float(edges[0] + edges[1]), float(edges[1] - edges[0])
            value = float(finite[0]) if np.ptp(finite) == 0 else middle
            ends = [middle - SINGLE_BAR_MARGIN * width, middle + SINGLE_BAR_MARGIN * width]
            layout["xaxis"] |= {"range": ends, "tickvals": [middle], "ticktext": [format_cell(value)]}
            bar["width"] = [width]
        data.append(bar | {"x": base64_array(0.5 * (edges[:-1] + edges[1:])), "y": base64_array(counts)})
    return Figure(data, layout, _histogram_caption(finite, len(values) - len(finite)))


def _edges(finite: Float[np.ndarray, " n"], bins: int) -> Float[np.ndarray, " e"]:
    """Edges of at most `bins` bins; integers get bins of integer width centred on them, to avoid aliasing."""
    low, high = float(finite.min()), float(finite.max())
    if (finite == np.round(finite)).all() and high - low < 2**31:
        width = int((high - low) // bins) + 1
        return np.arange(low - 0.5, high + width, width)
    if high - low <= 4 * bins * np.spacing(
        max(abs(low), abs(high))
    ):  # the bins would be below floating-point resolution
        return np.array([low - 0.5, high + 0.5])
    return np.histogram_bin_edges(finite, bins=bins)


def _bin_label(low: float, high: float) -> str:
    return format_cell(low + 0.5) if high - low == 1.0 else f"{format_cell(low)} to {format_cell(high)}"


def _histogram_caption(finite: np.ndarray, left_out: int) -> str:
    if not len(finite):
        text = "No values"
    else:
        text = (
            f"{format_integer(len(finite))} values, median {format_cell(float(np.median(finite)))}, "
            f"mean {format_cell(float(finite.mean()))}, largest {format_cell(float(finite.max()))}"
        )
    return text + (f"; {format_integer(left_out)} not finite and left out." if left_out else ".")
