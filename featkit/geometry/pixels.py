"""The one pixel convention, and homographies in it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

# ----------------------------------------------------------------------------------------------------------------------
# The one pixel convention: the centre of the top-left pixel is (0, 0).
#
# COLMAP puts the top-left *corner* of that pixel at (0, 0), so its coordinates are larger by one half. Conversions add
# or subtract `COLMAP_ORIGIN`: points below, intrinsics further down, and code that uses COLMAP's intrinsics pixel by
# pixel (data/undistort.py, demo/render.py).


COLMAP_ORIGIN = 0.5  # px: COLMAP's coordinates of the centre of the top-left pixel


def to_colmap(keypoints: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """featkit pixels -> COLMAP pixels."""
    return keypoints + np.asarray(COLMAP_ORIGIN, dtype=keypoints.dtype)


def from_colmap(keypoints: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """COLMAP pixels -> featkit pixels."""
    return keypoints - np.asarray(COLMAP_ORIGIN, dtype=keypoints.dtype)


def resize_affine(from_size: tuple[int, int], to_size: tuple[int, int]) -> Float[np.ndarray, "2 3"]:
    """Affine map from pixels of an image of `from_size` (width, height) to those of the image resized to `to_size`.

    The image's corners are preserved: x' = (x + 0.5) * s - 0.5, per axis.
    """
    scale = np.asarray(to_size, dtype=np.float64) / np.asarray(from_size, dtype=np.float64)
    return np.array([[scale[0], 0.0, 0.5 * scale[0] - 0.5], [0.0, scale[1], 0.5 * scale[1] - 0.5]])


def apply_affine(affine: Float[np.ndarray, "2 3"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Points mapped by a 2 x 3 affine matrix; computed in float64, returned with the dtype of `points`."""
    return (points @ affine[:, :2].T + affine[:, 2]).astype(points.dtype)


def compose(second: Float[np.ndarray, "2 3"], first: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "2 3"]:
    """The affine map that applies `first`, then `second`."""
    linear = second[:, :2] @ first[:, :2]
    offset = second[:, :2] @ first[:, 2] + second[:, 2]
    return np.concatenate([linear, offset[:, None]], axis=1)


# ----------------------------------------------------------------------------------------------------------------------
# Homographies between images, all in featkit pixels, and their effect on intrinsics and fundamental matrices.


def intrinsics_from_colmap(intrinsics: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 3 3"]:
    """K for COLMAP's pixels (origin at the image's corner) -> K for featkit's: the principal point moves by -0.5."""
    shifted = np.array(intrinsics, dtype=np.float64)
    shifted[..., :2, 2] -= COLMAP_ORIGIN
    return shifted


def intrinsics_to_colmap(intrinsics: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 3 3"]:
    """Inverse of `intrinsics_from_colmap`."""
    shifted = np.array(intrinsics, dtype=np.float64)
    shifted[..., :2, 2] += COLMAP_ORIGIN
    return shifted


def as_homography(affine: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "3 3"]:
    """A 2 x 3 affine map as a homography."""
    return np.concatenate([affine, [[0.0, 0.0, 1.0]]])


def apply_homography(
    homography: Float[np.ndarray, "3 3"], points: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 2"]:
    """Points mapped by a homography; NaN for points mapped to infinity or behind the camera.

    The sign of the last entry means "in front", so the pixel (0, 0) is always mapped to the front.
    """
    mapped = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ homography.T
    depth = mapped[:, 2] * np.sign(homography[2, 2])
    with np.errstate(divide="ignore", invalid="ignore"):
        points_mapped = mapped[:, :2] / mapped[:, 2:]
    points_mapped[depth <= 0] = np.nan
    return points_mapped


def warped_fundamental(
    fundamental01: Float[np.ndarray, "3 3"],
    homography0: Float[np.ndarray, "3 3"],
    homography1: Float[np.ndarray, "3 3"],
) -> Float[np.ndarray, "3 3"]:
    """F' = H1^-T F H0^-1 after each image is warped by its homography; of Frobenius norm 1."""
    fundamental = np.linalg.inv(homography1).T @ fundamental01 @ np.linalg.inv(homography0)
    return fundamental / np.linalg.norm(fundamental)


def local_scale(homography: Float[np.ndarray, "3 3"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    """Local scale of a homography at points: the square root of its Jacobian's determinant."""
    depth = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ homography[2]
    return np.sqrt(np.abs(np.linalg.det(homography) / depth**3))
