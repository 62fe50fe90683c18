"""A reconstruction as a plotly 3D scatter: coloured points, camera frusta per group."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from featkit.report.content import Camera3D, Scene3D
from featkit.report.detail import Detail, spread
from featkit.report.escaping import for_plotly
from featkit.report.formatting import format_float, format_integer
from featkit.report.frusta import EYE, LOOK_AT, ViewBox, centre_of, frustum_depth, frustum_path, upright, view_box

# Readable on a light and on a dark ground, and apart for most colour-blind readers.
GROUP_COLOURS = {"map": "#2f7ed8", "query": "#e8701a", "truth": "#2a9d6f"}
OTHER_COLOURS = ("#9b59d0", "#c23b75", "#8a8f2a", "#3aa6b9")
NEUTRAL = "#8a94a3"  # points of a model without colours


@dataclass(frozen=True)
class Figure:
    """What plotly draws, as plain json values, and the line below it."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    caption: str


def packed(values: np.ndarray) -> dict[str, str]:
    """A 1-D float array as plotly's base64 typed array; float32 is finer than any screen."""
    little = np.ascontiguousarray(values, dtype="<f4")
    return {"dtype": "f4", "bdata": base64.b64encode(little.tobytes()).decode("ascii")}


def scene_figure(scene: Scene3D, detail: Detail) -> Figure:
    """The scene with at most `detail.points` points; the same input gives the same figure.

    Everything is turned upright (see `frusta.upright`) and moved to the middle of the view, which also keeps
    float32 exact for georeferenced worlds. Raises ValueError on arrays of wrong shape.
    """
    cameras = [camera for camera in scene.cameras if _drawable(camera)]
    points, colours = _finite(scene)
    turn = upright(cameras)
    centres = np.array([centre_of(camera) for camera in cameras]).reshape(-1, 3)
    points = points @ turn.T
    box = view_box(points, centres @ turn.T)
    shown_points, shown_colours = _visible(points, colours, box, detail.points)
    shown = [cameras[i] for i in spread(len(cameras), detail.cameras)]
    data = _point_traces(shown_points - box.middle, shown_colours) if len(shown_points) else []
    data += _camera_traces(shown, turn, box, frustum_depth(centres, box))
    caption = _caption(len(scene.points), len(shown_points), len(scene.cameras), len(shown))
    return Figure(data, _layout(box), caption)


def _drawable(camera: Camera3D) -> bool:
    finite = np.isfinite(camera.rotation).all() and np.isfinite(camera.translation).all()
    return bool(finite and camera.focal_px > 0 and np.isfinite(camera.focal_px))


def _finite(scene: Scene3D) -> tuple[Float[np.ndarray, "n 3"], UInt8[np.ndarray, "n 3"]]:
    points = np.asarray(scene.points, dtype=np.float64).reshape(-1, 3)
    colours = np.asarray(scene.colours, dtype=np.uint8).reshape(-1, 3)
    if len(points) != len(colours):
        raise ValueError(f"{len(points)} points but {len(colours)} colours")
    good = np.isfinite(points).all(axis=1)
    return (points, colours) if good.all() else (points[good], colours[good])


def _visible(
    points: Float[np.ndarray, "n 3"], colours: UInt8[np.ndarray, "n 3"], box: ViewBox, limit: int
) -> tuple[Float[np.ndarray, "k 3"], UInt8[np.ndarray, "k 3"]]:
    """What lies in the box (plotly clips the rest anyway), thinned out evenly."""
    inside = np.flatnonzero(box.contains(points))
    kept = inside[spread(len(inside), limit)]
    return points[kept], colours[kept]


def _point_traces(points: Float[np.ndarray, "k 3"], colours: UInt8[np.ndarray, "k 3"]) -> list[dict[str, Any]]:
    """The points, and an empty stand-in with a neutral colour for the legend."""
    marker: dict[str, Any] = {"size": 2.2 if len(points) < 20_000 else 1.6, "line": {"width": 0}}
    common = {"type": "scatter3d", "mode": "markers", "name": "points", "legendgroup": "points", "hoverinfo": "skip"}
    trace = common | {"marker": marker, "showlegend": False} | _xyz(points)
    if (colours == colours[0]).all():
        marker["color"] = NEUTRAL
    else:  # three bytes a point; the page's script makes plotly's colours of them
        trace["meta"] = {"rgb": base64.b64encode(np.ascontiguousarray(colours).tobytes()).decode("ascii")}
    stand_in: dict[str, Any] = {"marker": {"color": NEUTRAL, "size": 4}, "x": [None], "y": [None], "z": [None]}
    return [trace, common | stand_in]


def _camera_traces(
    cameras: Sequence[Camera3D], turn: Float[np.ndarray, "3 3"], box: ViewBox, depth: float
) -> list[dict[str, Any]]:
    """Per group one line for all frusta, which the legend shows, and the centres, which the pointer finds."""
    traces: list[dict[str, Any]] = []
    others = 0
    for group in dict.fromkeys(camera.group for camera in cameras):
        colour = GROUP_COLOURS.get(group)
        if colour is None:
            colour = OTHER_COLOURS[others % len(OTHER_COLOURS)]
            others += 1
        members = [camera for camera in cameras if camera.group == group]
        lines = np.concatenate([frustum_path(camera, depth) for camera in members]) @ turn.T - box.middle
        centres = np.array([centre_of(camera) for camera in members]) @ turn.T - box.middle
        common: dict[str, Any] = {"type": "scatter3d", "legendgroup": for_plotly(group)}
        common |= {"name": f"{for_plotly(group)} cameras ({len(members)})"}
        pen = {"mode": "lines", "hoverinfo": "skip", "line": {"color": colour, "width": 2.5}}
        dots: dict[str, Any] = {"mode": "markers", "hoverinfo": "text", "showlegend": False}
        dots |= {"hovertext": [_hover(camera) for camera in members]}
        dots |= {"marker": {"color": colour, "size": 3.5, "line": {"width": 0}}}
        traces += [common | pen | _xyz(lines), common | dots | _xyz(centres)]
    return traces


def _xyz(points: Float[np.ndarray, "n 3"]) -> dict[str, Any]:
    return {axis: packed(points[:, i]) for i, axis in enumerate("xyz")}


def _hover(camera: Camera3D) -> str:
    x, y, z = (format_float(float(value), 3) for value in centre_of(camera))
    return (
        f"<b>{for_plotly(camera.name)}</b><br>{for_plotly(camera.group)}, {camera.width} × {camera.height} px, "
        f"f = {format_float(camera.focal_px, 1)} px<br>centre {x}, {y}, {z}"
    )


def _xyz_of(place: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip("xyz", place, strict=True))


def _layout(box: ViewBox) -> dict[str, Any]:
    reach = 0.5 * box.side
    axis = {"visible": False, "range": [-reach, reach], "autorange": False}
    scene = {
        "xaxis": dict(axis),
        "yaxis": dict(axis),
        "zaxis": dict(axis),
        "aspectmode": "cube",  # the ranges are equal; "data" would take the aspect from what the traces extend to
        "dragmode": "turntable",
        "camera": {"eye": _xyz_of(EYE), "up": {"x": 0, "y": 0, "z": 1}, "center": _xyz_of(LOOK_AT)},
    }
    legend = {"x": 0.01, "y": 0.99, "xanchor": "left", "yanchor": "top", "itemsizing": "constant"}
    margin = {"l": 0, "r": 0, "t": 0, "b": 0}
    return {"scene": scene, "legend": legend, "showlegend": True, "margin": margin}


def _caption(points: int, shown_points: int, cameras: int, shown_cameras: int) -> str:
    parts = [_shown(points, shown_points, "points"), _shown(cameras, shown_cameras, "cameras")]
    return "; ".join(parts) + ". Drag to turn, scroll to zoom, click the legend to hide a group."


def _shown(total: int, shown: int, what: str) -> str:
    if total == 0:
        return f"No {what}"
    if shown == total:
        return f"{format_integer(total)} {what}"
    return f"{format_integer(shown)} of {format_integer(total)} {what} shown"
