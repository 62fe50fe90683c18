"""Where things stand in the 3D scene: camera frusta, which way is up, and the box worth looking at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from featkit.report.content import Camera3D
from featkit.report.detail import spread

CANCELLED = 0.2  # a mean of unit vectors shorter than this says nothing about a direction
POINT_PERCENTILES = (1.0, 99.0)
ENOUGH_POINTS = 200_000  # for the percentiles: more would take seconds and move nothing
MARGIN = 1.12  # of the box, so that frusta at its border are whole
FAR_CAMERA = 5.0  # a camera this many times farther out than the median camera is left out of the box


def centre_of(camera: Camera3D) -> Float[np.ndarray, "3"]:
    """Camera centre in world units: -R^T t."""
    rotation = np.asarray(camera.rotation, dtype=np.float64)
    return -rotation.T @ np.asarray(camera.translation, dtype=np.float64)


def frustum_corners(camera: Camera3D, depth: float) -> Float[np.ndarray, "4 3"]:
    """World points at `depth` (world units along the axis) seen in the image's corners.

    Order: top left, top right, bottom right, bottom left. The corners of a w x h image are (-0.5, -0.5) and
    (w - 0.5, h - 0.5) in pixels, so they lie w / 2 and h / 2 from the principal point in its middle.
    """
    half_width = 0.5 * camera.width / camera.focal_px
    half_height = 0.5 * camera.height / camera.focal_px
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float64)
    rays = np.column_stack([signs * [half_width, half_height], np.ones(4)])
    rotation = np.asarray(camera.rotation, dtype=np.float64)
    return (depth * rays - np.asarray(camera.translation, dtype=np.float64)) @ rotation


def frustum_path(camera: Camera3D, depth: float) -> Float[np.ndarray, "12 3"]:
    """All eight edges of a frustum as one line, with a row of NaN where the pen is lifted."""
    a, b, c, d = frustum_corners(camera, depth)
    tip = centre_of(camera)
    gap = np.full(3, np.nan)
    return np.stack([a, b, c, d, a, tip, b, gap, c, tip, d, gap])


def upright(cameras: Sequence[Camera3D]) -> Float[np.ndarray, "3 3"]:
    """Rotation world -> display, where z is up and y is where the cameras look; identity without cameras.

    Up is the mean of the cameras' -y axes. When these cancel out (a drone looking straight down while turning),
    the opposite of the mean viewing direction takes their place.
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
    """A cube: its middle and the length of its sides, in world units."""

    middle: Float[np.ndarray, "3"]
    side: float

    def contains(self, points: Float[np.ndarray, "n 3"]) -> np.ndarray:
        """Which of the points lie inside, as booleans (n,)."""
        half = 0.5 * self.side
        inside = np.ones(len(points), dtype=bool)
        for axis in range(3):  # one axis at a time: half the time of one (n, 3) comparison
            inside &= np.abs(points[:, axis] - self.middle[axis]) <= half
        return inside


def view_box(points: Float[np.ndarray, "n 3"], centres: Float[np.ndarray, "c 3"]) -> ViewBox:
    """The cube with nearly all points and every camera that is not far off. All coordinates must be finite.

    A cube, because then one unit is equally long on all axes and a flat scene does not degenerate.
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


def frustum_depth(centres: Float[np.ndarray, "c 3"], box: ViewBox) -> float:
    """Depth at which frusta are drawn: about the spacing of the cameras, between 1.5 % and 6 % of the box."""
    if len(centres) < 2:
        return 0.06 * box.side
    some = centres[:300]  # the spacing need not be exact, and all distances of a large model are too many
    distance = np.linalg.norm(some[:, None] - some[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return float(np.clip(0.6 * np.median(distance.min(axis=1)), 0.015 * box.side, 0.06 * box.side))
