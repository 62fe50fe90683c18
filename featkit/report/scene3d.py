"""A reconstruction as a plotly 3D scatter: coloured points, camera frusta per group."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from featkit.core.content import Camera3D, Scene3D
from featkit.report.tables import Detail, format_float, format_integer, plotly_text, spread

# Readable on light and dark backgrounds, and distinguishable for most colour-blind readers.
GROUP_COLOURS = {"map": "#2f7ed8", "query": "#e8701a", "truth": "#2a9d6f", "uncertain query": "#d9a514"}
OTHER_COLOURS = ("#9b59d0", "#c23b75", "#8a8f2a", "#3aa6b9")
NEUTRAL = "#8a94a3"  # points of a model without colours


@dataclass(frozen=True)
class Key:
    """What a colour of a chart stands for. colour: css. repeated: of a colour used before, now dashed or pale."""

    colour: str
    text: str
    repeated: bool = False


@dataclass(frozen=True)
class Figure:
    """A plotly figure as plain json values, its caption, and its key, which the page shows above it."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    caption: str
    key: tuple[Key, ...] = ()


def base64_array(values: np.ndarray) -> dict[str, str]:
    """A 1-D float array as plotly's base64 typed array; float32 is precise enough for any screen."""
    little = np.ascontiguousarray(values, dtype="<f4")
    return {"dtype": "f4", "bdata": base64.b64encode(little.tobytes()).decode("ascii")}


def scene_figure(scene: Scene3D, detail: Detail) -> Figure:
    """The scene with at most `detail.points` points; the same input gives the same figure.

    Everything is rotated upright (see `upright_rotation`) and centred, which also keeps float32 precise for
    georeferenced worlds. Raises ValueError for arrays of wrong shape.
    """
    cameras = [camera for camera in scene.cameras if _drawable(camera)]
    points, colours = _finite(scene)
    turn = upright_rotation(cameras)
    centres = np.array([camera.centre for camera in cameras]).reshape(-1, 3)
    points = points @ turn.T
    box = view_box(points, centres @ turn.T)
    shown_points, shown_colours = _visible(points, colours, box, detail.points)
    shown = [cameras[i] for i in spread(len(cameras), detail.cameras)]
    data = _point_traces(shown_points - box.middle, shown_colours) if len(shown_points) else []
    depth = frustum_depth(centres, box)
    data += _camera_traces(shown, turn, box, depth)
    caption = _caption(len(scene.points), len(shown_points), len(scene.cameras), len(shown))
    drawn = [np.vstack([frustum_corners(camera, depth), camera.centre]) for camera in shown]
    views = first_views(shown_points, np.concatenate([np.zeros((0, 3)), *drawn]) @ turn.T, box)
    return Figure(data, _layout(box, views), caption)


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
    """The points inside the box (plotly clips the rest anyway), subsampled evenly."""
    inside = np.flatnonzero(box.contains(points))
    kept = inside[spread(len(inside), limit)]
    return points[kept], colours[kept]


def _point_traces(points: Float[np.ndarray, "k 3"], colours: UInt8[np.ndarray, "k 3"]) -> list[dict[str, Any]]:
    """The points, and an empty trace with a neutral colour for the legend."""
    marker: dict[str, Any] = {"size": 2.2 if len(points) < 20_000 else 1.6, "line": {"width": 0}}
    common = {"type": "scatter3d", "mode": "markers", "name": "points", "legendgroup": "points", "hoverinfo": "skip"}
    trace = common | {"marker": marker, "showlegend": False} | _xyz(points)
    if (colours == colours[0]).all():
        marker["color"] = NEUTRAL
    else:  # three bytes per point, which the page's script turns into plotly's colours
        trace["meta"] = {"rgb": base64.b64encode(np.ascontiguousarray(colours).tobytes()).decode("ascii")}
    stand_in: dict[str, Any] = {"marker": {"color": NEUTRAL, "size": 4}, "x": [None], "y": [None], "z": [None]}
    return [trace, common | stand_in]


def _camera_traces(
    cameras: Sequence[Camera3D], turn: Float[np.ndarray, "3 3"], box: ViewBox, depth: float
) -> list[dict[str, Any]]:
    """Per group one line trace with all frusta, for the legend, and the centres, for the hover labels."""
    traces: list[dict[str, Any]] = []
    others = 0
    for group in dict.fromkeys(camera.group for camera in cameras):
        colour = GROUP_COLOURS.get(group)
        if colour is None:
            colour = OTHER_COLOURS[others % len(OTHER_COLOURS)]
            others += 1
        members = [camera for camera in cameras if camera.group == group]
        lines = np.concatenate([frustum_path(camera, depth) for camera in members]) @ turn.T - box.middle
        centres = np.array([camera.centre for camera in members]) @ turn.T - box.middle
        common: dict[str, Any] = {"type": "scatter3d", "legendgroup": plotly_text(group)}
        common |= {"name": f"{plotly_text(group)} cameras ({len(members)})"}
        pen = {"mode": "lines", "hoverinfo": "skip", "line": {"color": colour, "width": 2.5}}
        dots: dict[str, Any] = {"mode": "markers", "hoverinfo": "text", "showlegend": False}
        dots |= {"hovertext": [_hover(camera) for camera in members]}
        dots |= {"marker": {"color": colour, "size": 3.5, "line": {"width": 0}}}
        traces += [common | pen | _xyz(lines), common | dots | _xyz(centres)]
    return traces


def _xyz(points: Float[np.ndarray, "n 3"]) -> dict[str, Any]:
    return {axis: base64_array(points[:, i]) for i, axis in enumerate("xyz")}


def _hover(camera: Camera3D) -> str:
    x, y, z = (format_float(float(value), 3) for value in camera.centre)
    return (
        f"<b>{plotly_text(camera.name)}</b><br>{plotly_text(camera.group)}, {camera.width} × {camera.height} px, "
        f"f = {format_float(camera.focal_px, 1)} px<br>centre {x}, {y}, {z}"
    )


def _xyz_dict(place: Float[np.ndarray, "3"]) -> dict[str, float]:
    return {axis: round(float(value), 5) for axis, value in zip("xyz", place, strict=True)}


def _layout(box: ViewBox, views: Sequence[FirstView]) -> dict[str, Any]:
    """Opens with the view for the usual aspect ratio; `meta` holds all views, from which the page's script chooses."""
    reach = 0.5 * box.side
    usual = min(views, key=lambda view: abs(view.aspect - USUAL_ASPECT))
    axis = {"visible": False, "range": [-reach, reach], "autorange": False}
    scene = {
        "xaxis": dict(axis),
        "yaxis": dict(axis),
        "zaxis": dict(axis),
        "aspectmode": "cube",  # the ranges are equal; "data" would take the aspect from what the traces extend to
        "dragmode": "turntable",
        "camera": {"eye": _xyz_dict(usual.eye), "up": {"x": 0, "y": 0, "z": 1}, "center": _xyz_dict(usual.centre)},
    }
    legend = {"x": 0.01, "y": 0.99, "xanchor": "left", "yanchor": "top", "itemsizing": "constant"}
    margin = {"l": 0, "r": 0, "t": 0, "b": 0}
    meta = {"views": [{"aspect": v.aspect, "eye": _xyz_dict(v.eye), "center": _xyz_dict(v.centre)} for v in views]}
    return {"scene": scene, "legend": legend, "showlegend": True, "margin": margin, "meta": meta}


def _caption(points: int, shown_points: int, cameras: int, shown_cameras: int) -> str:
    parts = [_count_text(points, shown_points, "points"), _count_text(cameras, shown_cameras, "cameras")]
    return "; ".join(parts) + ". Drag to turn, scroll to zoom, click the legend to hide a group."


def _count_text(total: int, shown: int, what: str) -> str:
    if total == 0:
        return f"No {what}"
    if shown == total:
        return f"{format_integer(total)} {what}"
    return f"{format_integer(shown)} of {format_integer(total)} {what} shown"


# ----------------------------------------------------------------------------------------------------------------------
# Layout of the 3D scene: camera frusta, the up direction, and the displayed box.


CANCELLED = 0.2  # a mean of unit vectors shorter than this has no meaningful direction
POINT_PERCENTILES = (1.0, 99.0)
ENOUGH_POINTS = 200_000  # maximum for the percentiles: more would take seconds and change nothing
MARGIN = 1.2  # factor of the box, so that frusta at its border are complete
FAR_CAMERA = 5.0  # cameras this many times farther out than the median camera do not enlarge the box
# The view a scene opens with, in plotly's units: the box is a cube of side 1 around the origin.
VIEW_DIRECTION = (0.0, 0.85, -0.53)  # from behind and above the cameras
FIELD_OF_VIEW_DEG = 45.0  # vertical; plotly's own
ASPECTS = (0.45, 0.6, 0.75, 0.9, 1.1, 1.35, 1.6, 1.9, 2.3, 3.0)  # width / height of the view, phone to desktop
USUAL_ASPECT = 1.6
FILL = (0.94, 0.9)  # largest share of the view's width and height filled by the content
NEAREST = 0.3  # smallest distance from the eye to the centre of the view, in sides of the box
ENOUGH_SEEN = 2000  # number of points the view is fitted to


def frustum_corners(camera: Camera3D, depth: float) -> Float[np.ndarray, "4 3"]:
    """World points at `depth` (world units along the axis) seen in the image's corners.

    Order: top left, top right, bottom right, bottom left. The corners of a w x h image are (-0.5, -0.5) and
    (w - 0.5, h - 0.5) in pixels, so they are w / 2 and h / 2 from the principal point in its middle.
    """
    half_width = 0.5 * camera.width / camera.focal_px
    half_height = 0.5 * camera.height / camera.focal_px
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float64)
    rays = np.column_stack([signs * [half_width, half_height], np.ones(4)])
    rotation = np.asarray(camera.rotation, dtype=np.float64)
    return (depth * rays - np.asarray(camera.translation, dtype=np.float64)) @ rotation


def frustum_path(camera: Camera3D, depth: float) -> Float[np.ndarray, "12 3"]:
    """All eight edges of a frustum as one line, with a row of NaN at every break."""
    a, b, c, d = frustum_corners(camera, depth)
    tip = camera.centre
    gap = np.full(3, np.nan)
    return np.stack([a, b, c, d, a, tip, b, gap, c, tip, d, gap])


def upright_rotation(cameras: Sequence[Camera3D]) -> Float[np.ndarray, "3 3"]:
    """Rotation world -> display, where z is up and y is where the cameras look; identity without cameras.

    Up is the mean of the cameras' -y axes. If these cancel out (a drone looking straight down while turning), up is
    the opposite of the mean viewing direction.
    """
    if not cameras:
        return np.eye(3)
    rotations = np.stack([np.asarray(camera.rotation, dtype=np.float64) for camera in cameras])
    up, forward = -rotations[:, 1].mean(axis=0), rotations[:, 2].mean(axis=0)
    if np.linalg.norm(up) < CANCELLED:
        up = -forward if np.linalg.norm(forward) >= CANCELLED else -rotations[0, 1]
    up = up / np.linalg.norm(up)
    forward = forward - (forward @ up) * up
    if np.linalg.norm(forward) < CANCELLED:  # they look down, or all around: take any horizontal direction
        forward = np.cross(up, np.eye(3)[np.abs(up).argmin()])
    forward = forward / np.linalg.norm(forward)
    return np.stack([np.cross(forward, up), forward, up])


@dataclass(frozen=True)
class ViewBox:
    """A cube: its centre and the length of its sides, in world units."""

    middle: Float[np.ndarray, "3"]
    side: float

    def contains(self, points: Float[np.ndarray, "n 3"]) -> np.ndarray:
        """Which points are inside, as booleans (n,)."""
        half = 0.5 * self.side
        inside = np.ones(len(points), dtype=bool)
        for axis in range(3):  # one axis at a time: half the time of one (n, 3) comparison
            inside &= np.abs(points[:, axis] - self.middle[axis]) <= half
        return inside


def view_box(points: Float[np.ndarray, "n 3"], centres: Float[np.ndarray, "c 3"]) -> ViewBox:
    """A cube that contains nearly all points and all cameras that are not far away. Coordinates must be finite.

    In a cube, units are equally long on all axes and flat scenes do not degenerate. z is up.
    """
    corners: list[np.ndarray] = []
    if len(points):
        some = points[spread(len(points), ENOUGH_POINTS)]
        corners += [*np.percentile(some, POINT_PERCENTILES, axis=0)]
    if len(centres):
        distance = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
        size = np.linalg.norm(corners[1] - corners[0]) if corners else 0.0
        reach = max(FAR_CAMERA * float(np.median(distance)), float(size))
        near = centres[distance <= reach] if reach > 0 else centres
        corners += [near.min(axis=0), near.max(axis=0)]
    if not corners:
        return ViewBox(np.zeros(3), 1.0)
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    side = MARGIN * float((high - low).max())
    return ViewBox(0.5 * (low + high), side if side > 0 else 1.0)


@dataclass(frozen=True)
class FirstView:
    """Initial position of plotly's camera for an aspect ratio, and the point it looks at, in sides of the box."""

    aspect: float
    eye: Float[np.ndarray, "3"]
    centre: Float[np.ndarray, "3"]


def first_views(points: Float[np.ndarray, "n 3"], frusta: Float[np.ndarray, "f 3"], box: ViewBox) -> list[FirstView]:
    """For each of `ASPECTS`, the closest view that shows all points and frusta inside the box.

    frusta: their centres and corners.
    """
    seen = np.concatenate([points[spread(len(points), ENOUGH_SEEN)], frusta])
    seen = (seen[box.contains(seen)] - box.middle) / box.side
    return [_fit_view(seen if len(seen) else np.zeros((1, 3)), aspect) for aspect in ASPECTS]


def _fit_view(seen: Float[np.ndarray, "m 3"], aspect: float) -> FirstView:
    """Alternately centre the content and move as close as possible."""
    forward, right, up = _view_axes()
    half = np.tan(np.radians(0.5 * FIELD_OF_VIEW_DEG))
    slopes = np.array([FILL[0] * aspect * half, FILL[1] * half])
    centre, distance = np.zeros(3), 2.0
    for _ in range(12):
        x, y, z = (seen - centre) @ right, (seen - centre) @ up, (seen - centre) @ forward
        needed = max(NEAREST, float((np.abs(x) / slopes[0] - z).max()), float((np.abs(y) / slopes[1] - z).max()))
        depth = np.maximum(needed + z, 1e-3)
        middle = [0.5 * float((v / depth).min() + (v / depth).max()) for v in (x, y)]
        distance, last = needed, centre
        centre = centre + needed * (middle[0] * right + middle[1] * up)
    return FirstView(aspect, last - distance * forward, last)


def _view_axes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors of the initial view: forward, right, up."""
    forward = np.array(VIEW_DIRECTION) / np.linalg.norm(VIEW_DIRECTION)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right = right / np.linalg.norm(right)
    return forward, right, np.cross(right, forward)


def frustum_depth(centres: Float[np.ndarray, "c 3"], box: ViewBox) -> float:
    """Depth at which frusta are drawn: about the spacing of the cameras, between 1.5 % and 6 % of the box."""
    if len(centres) < 2:
        return 0.06 * box.side
    some = centres[:300]  # an approximate spacing is enough; a large model has too many distances
    distance = np.linalg.norm(some[:, None] - some[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return float(np.clip(0.6 * np.median(distance.min(axis=1)), 0.015 * box.side, 0.06 * box.side))
