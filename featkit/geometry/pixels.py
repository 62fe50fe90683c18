"""The one pixel convention: the centre of the top-left pixel is (0, 0).

COLMAP puts the top-left *corner* of that pixel at (0, 0), so its coordinates are larger by one half. Whoever goes from
one to the other adds or takes away `COLMAP_ORIGIN`: points below, intrinsics in homography.py, and what works with
COLMAP's intrinsics pixel by pixel (data/undistort.py, data/raycast.py).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

COLMAP_ORIGIN = 0.5  # px: where COLMAP sees the centre of the top-left pixel


def to_colmap(keypoints: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """featkit pixels -> COLMAP pixels."""
    return keypoints + np.asarray(COLMAP_ORIGIN, dtype=keypoints.dtype)


def from_colmap(keypoints: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """COLMAP pixels -> featkit pixels."""
    return keypoints - np.asarray(COLMAP_ORIGIN, dtype=keypoints.dtype)


def resize_affine(from_size: tuple[int, int], to_size: tuple[int, int]) -> Float[np.ndarray, "2 3"]:
    """Affine map of pixels of an image of `from_size` (width, height) onto the same image resized to `to_size`.

    Centres keep their place relative to the image's corners: x' = (x + 0.5) * s - 0.5, per axis.
    """
    scale = np.asarray(to_size, dtype=np.float64) / np.asarray(from_size, dtype=np.float64)
    return np.array([[scale[0], 0.0, 0.5 * scale[0] - 0.5], [0.0, scale[1], 0.5 * scale[1] - 0.5]])


def apply_affine(affine: Float[np.ndarray, "2 3"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Points mapped by a 2 x 3 affine matrix; computed in float64, returned in the type of `points`."""
    return (points @ affine[:, :2].T + affine[:, 2]).astype(points.dtype)


def compose(second: Float[np.ndarray, "2 3"], first: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "2 3"]:
    """The affine map that applies `first`, then `second`."""
    linear = second[:, :2] @ first[:, :2]
    offset = second[:, :2] @ first[:, 2] + second[:, 2]
    return np.concatenate([linear, offset[:, None]], axis=1)
