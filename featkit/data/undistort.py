"""Undistort a photograph to a pinhole camera at the same position: upright, reduced, resampled once.

The pinhole image is the largest upright rectangle without empty pixels at its border. Each of its pixels is the mean of
k x k samples of the photograph, where k is the reduction rounded up: undistortion, EXIF orientation and reduction are
one step.
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
STEP = 1e-4  # fraction of the depth, for the finite differences that give the focal length
STRETCH_MAX = 2.0  # a lens model that stretches or shrinks the image by more is considered invalid
STRIP_ROWS = 64  # rows processed at a time: the samples of a large photograph would not fit into memory
WHOLE = 1e-6  # tolerance for rounding up the reduction: this little above an integer is that integer


@dataclass(frozen=True)
class Pinhole:
    """size: width, height. intrinsics: in COLMAP pixels, origin at the corner. turn: rotation from the camera frame of
    the file to that of the upright image, whose pose is therefore turn R, turn t."""

    size: tuple[int, int]
    intrinsics: Float[np.ndarray, "3 3"]
    turn: Float[np.ndarray, "3 3"]


@dataclass(frozen=True)
class ResizedProjector:
    """The camera of a resized photograph. factors: of width and height."""

    projector: Projector
    factors: tuple[float, float]

    def project(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
        """Points in the camera frame -> pixels of the resized file, NaN where the camera cannot see."""
        return (self.projector.project(points) + COLMAP_ORIGIN) * self.factors - COLMAP_ORIGIN

    def rays(self, pixels: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
        """Pixels of the resized file -> points in the camera frame at depth 1."""
        return self.projector.rays((pixels + COLMAP_ORIGIN) / self.factors - COLMAP_ORIGIN)


def pinhole_of(
    projector: Projector, upright_size: tuple[int, int], stored_from_upright: Float[np.ndarray, "2 3"], max_side: int
) -> Pinhole:
    """The pinhole camera for a photograph, with a longer side of at most `max_side`.

    stored_from_upright: a rotation, without mirroring. Raises ValueError for an implausible lens.
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
    focal = _focal_length(projector)
    ideal = focal * np.array([right - left, bottom - top])
    if not np.all((ideal > edges / STRETCH_MAX) & (ideal < edges * STRETCH_MAX)):
        raise ValueError("its lens distortion is implausible")
    scale = min(1.0, max_side / ideal.max())
    width, height = (max(1, round(side * scale)) for side in ideal)
    fx, fy = width / (right - left), height / (bottom - top)
    turn = np.eye(3)
    turn[:2, :2] = linear.T
    return Pinhole((width, height), np.array([[fx, 0, -left * fx], [0, fy, -top * fy], [0, 0, 1]]), turn)


def _focal_length(projector: Projector) -> float:
    """Focal length at the principal point, px: the square root of fx fy."""
    rays = np.array([[STEP, 0, 1], [-STEP, 0, 1], [0, STEP, 1], [0, -STEP, 1]])
    right, left, down, up = projector.project(rays)
    jacobian = np.stack([right - left, down - up]) / (2 * STEP)
    return float(np.sqrt(np.abs(np.linalg.det(jacobian))))


def pinhole_picture(image: DecodedImage, projector: Projector, pinhole: Pinhole) -> UInt8[np.ndarray, "h w 3"]:
    """The image of the pinhole camera, from the upright photograph. Raises ValueError for a folding lens."""
    width, height = pinhole.size
    focal = _focal_length(projector)
    samples = max(1, math.ceil(focal / min(pinhole.intrinsics[0, 0], pinhole.intrinsics[1, 1]) - WHOLE))
    positions = _source_positions(image, projector, pinhole)
    if not np.isfinite(positions).all():
        raise ValueError("its lens distortion folds the image")
    how = cv2.INTER_CUBIC if samples == 1 else cv2.INTER_LINEAR
    picture = np.empty((height, width, 3), image.pixels.dtype)
    for first in range(0, height, STRIP_ROWS):
        rows = min(STRIP_ROWS, height - first)
        around = positions[first : first + rows + 2]
        dense = cv2.resize(around, ((width + 2) * samples, (rows + 2) * samples), interpolation=cv2.INTER_LINEAR)
        dense = dense[samples:-samples, samples:-samples]
        sampled = cv2.remap(image.pixels, dense[..., 0], dense[..., 1], how, borderMode=cv2.BORDER_REPLICATE)
        picture[first : first + rows] = cv2.resize(sampled, (width, rows), interpolation=cv2.INTER_AREA)
    return picture


def _source_positions(image: DecodedImage, projector: Projector, pinhole: Pinhole) -> Float[np.ndarray, "h w 2"]:
    """The position in the photograph of every pixel of the pinhole image, which is padded by one pixel on each side."""
    width, height = pinhole.size
    u, v = np.meshgrid(np.arange(-1, width + 1) + COLMAP_ORIGIN, np.arange(-1, height + 1) + COLMAP_ORIGIN)
    pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)], axis=1)
    rays = pixels @ np.linalg.inv(pinhole.intrinsics).T @ pinhole.turn  # turn^-1 of each ray
    stored = projector.project(rays)
    return image.pixels_from_file(stored).reshape(height + 2, width + 2, 2).astype(np.float32)
