"""A photograph of any lens -> the picture of a pinhole camera at the same place: upright, reduced, resampled once.

The pinhole's picture is the largest upright rectangle around which nothing is missing. Each of its pixels is the mean
of k x k readings of the photograph, k the reduction rounded up: lens, EXIF orientation and reduction are one step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from featkit.data.tracks import Projector
from featkit.geometry.pixels import COLMAP_ORIGIN
from featkit.images.read import DecodedImage

BORDER_POINTS = 65  # per side of the photograph, to find the rectangle inside of its undistorted border
STEP = 1e-4  # of the depth, to measure the focal length by
STRETCH_MAX = 2.0  # a lens that widens or narrows the picture by more is no usable estimate
STRIP_ROWS = 64  # rows of the picture at a time: of a large photograph the readings would not fit into memory
WHOLE = 1e-6  # a reduction this little above a whole number is that number


@dataclass(frozen=True)
class Pinhole:
    """size: width, height. intrinsics: COLMAP's pixels, origin at the corner. turn: from the file's camera frame to
    that of the upright picture; so its pose is turn R, turn t."""

    size: tuple[int, int]
    intrinsics: Float[np.ndarray, "3 3"]
    turn: Float[np.ndarray, "3 3"]


@dataclass(frozen=True)
class ResizedProjector:
    """The camera of a photograph that was resized. factors: of its width and of its height."""

    projector: Projector
    factors: tuple[float, float]

    def project(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
        """Points of the camera's frame -> pixels of the resized file, NaN where the camera cannot see."""
        return (self.projector.project(points) + COLMAP_ORIGIN) * self.factors - COLMAP_ORIGIN

    def rays(self, pixels: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
        """Pixels of the resized file -> points of the camera's frame at depth 1."""
        return self.projector.rays((pixels + COLMAP_ORIGIN) / self.factors - COLMAP_ORIGIN)


def pinhole_of(
    projector: Projector, upright_size: tuple[int, int], stored_from_upright: Float[np.ndarray, "2 3"], max_side: int
) -> Pinhole:
    """The pinhole camera for a photograph, its longer side at most `max_side`.

    stored_from_upright: a rotation, not a mirroring. Raises ValueError for a lens that no photograph is taken with.
    """
    linear, offset = stored_from_upright[:, :2], stored_from_upright[:, 2]
    edges = np.array(upright_size, dtype=np.float64)
    share = np.linspace(0, 1, BORDER_POINTS)[:, None] * edges - 0.5
    low, high = np.full(2, -0.5), edges - 0.5
    inner = []
    for axis in (0, 1):
        sides = []
        for value in (low[axis], high[axis]):
            points = share.copy()
            points[:, axis] = value
            sides.append((projector.rays(points @ linear.T + offset)[:, :2] @ linear)[:, axis])
        inner.append((sides[0].max(), sides[1].min()))
    (left, right), (top, bottom) = inner
    focal = _focal(projector)
    ideal = focal * np.array([right - left, bottom - top])
    if not np.all((ideal > edges / STRETCH_MAX) & (ideal < edges * STRETCH_MAX)):
        raise ValueError("its lens distortion is not one of a photograph")
    scale = min(1.0, max_side / ideal.max())
    width, height = (max(1, round(side * scale)) for side in ideal)
    fx, fy = width / (right - left), height / (bottom - top)
    turn = np.eye(3)
    turn[:2, :2] = linear.T
    return Pinhole((width, height), np.array([[fx, 0, -left * fx], [0, fy, -top * fy], [0, 0, 1]]), turn)


def _focal(projector: Projector) -> float:
    """Focal length in the middle, px: the root of fx fy."""
    rays = np.array([[STEP, 0, 1], [-STEP, 0, 1], [0, STEP, 1], [0, -STEP, 1]])
    right, left, down, up = projector.project(rays)
    jacobian = np.stack([right - left, down - up]) / (2 * STEP)
    return float(np.sqrt(np.abs(np.linalg.det(jacobian))))


def pinhole_picture(image: DecodedImage, projector: Projector, pinhole: Pinhole) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of the pinhole camera, out of the whole upright photograph. Raises ValueError for a folding lens."""
    width, height = pinhole.size
    focal = _focal(projector)
    samples = max(1, math.ceil(focal / min(pinhole.intrinsics[0, 0], pinhole.intrinsics[1, 1]) - WHOLE))
    places = _places(image, projector, pinhole)
    if not np.isfinite(places).all():
        raise ValueError("its lens distortion folds the image")
    how = cv2.INTER_CUBIC if samples == 1 else cv2.INTER_LINEAR
    picture = np.empty((height, width, 3), image.pixels.dtype)
    for first in range(0, height, STRIP_ROWS):
        rows = min(STRIP_ROWS, height - first)
        around = places[first : first + rows + 2]
        dense = cv2.resize(around, ((width + 2) * samples, (rows + 2) * samples), interpolation=cv2.INTER_LINEAR)
        dense = dense[samples:-samples, samples:-samples]
        read = cv2.remap(image.pixels, dense[..., 0], dense[..., 1], how, borderMode=cv2.BORDER_REPLICATE)
        picture[first : first + rows] = cv2.resize(read, (width, rows), interpolation=cv2.INTER_AREA)
    return picture


def _places(image: DecodedImage, projector: Projector, pinhole: Pinhole) -> Float[np.ndarray, "h w 2"]:
    """Where the photograph shows what each pixel of the picture sees, and each of one more row and column around it."""
    width, height = pinhole.size
    u, v = np.meshgrid(np.arange(-1, width + 1) + COLMAP_ORIGIN, np.arange(-1, height + 1) + COLMAP_ORIGIN)
    pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)], axis=1)
    rays = pixels @ np.linalg.inv(pinhole.intrinsics).T @ pinhole.turn  # turn^-1 of each ray
    stored = projector.project(rays)
    return image.pixels_from_file(stored).reshape(height + 2, width + 2, 2).astype(np.float32)
