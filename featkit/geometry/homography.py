"""Homographies between images, all in featkit pixels; and what they do to intrinsics and fundamental matrices."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from featkit.geometry.pixels import COLMAP_ORIGIN


def intrinsics_from_colmap(intrinsics: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 3 3"]:
    """K for COLMAP's pixels (origin at the image's corner) -> K for featkit's: the principal point moves by -0.5."""
    moved = np.array(intrinsics, dtype=np.float64)
    moved[..., :2, 2] -= COLMAP_ORIGIN
    return moved


def intrinsics_to_colmap(intrinsics: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 3 3"]:
    """The way back from `intrinsics_from_colmap`."""
    moved = np.array(intrinsics, dtype=np.float64)
    moved[..., :2, 2] += COLMAP_ORIGIN
    return moved


def as_homography(affine: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "3 3"]:
    """A 2 x 3 affine map as a homography."""
    return np.concatenate([affine, [[0.0, 0.0, 1.0]]])


def apply_homography(
    homography: Float[np.ndarray, "3 3"], points: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 2"]:
    """Points mapped by a homography; NaN for points that it sends to infinity or behind the camera.

    The sign that means "in front" is that of the last entry, so a homography maps the pixel (0, 0) to the front.
    """
    mapped = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ homography.T
    depth = mapped[:, 2] * np.sign(homography[2, 2])
    with np.errstate(divide="ignore", invalid="ignore"):
        found = mapped[:, :2] / mapped[:, 2:]
    found[depth <= 0] = np.nan
    return found


def warped_fundamental(
    fundamental01: Float[np.ndarray, "3 3"],
    homography0: Float[np.ndarray, "3 3"],
    homography1: Float[np.ndarray, "3 3"],
) -> Float[np.ndarray, "3 3"]:
    """F' = H1^-T F H0^-1 of the images after each was warped by its own homography; of Frobenius norm 1."""
    found = np.linalg.inv(homography1).T @ fundamental01 @ np.linalg.inv(homography0)
    return found / np.linalg.norm(found)


def local_scale(homography: Float[np.ndarray, "3 3"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    """By how much a homography magnifies lengths around points: the root of its Jacobian's determinant."""
    depth = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ homography[2]
    return np.sqrt(np.abs(np.linalg.det(homography) / depth**3))
