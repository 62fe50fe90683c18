"""Epipolar geometry of two calibrated views."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from featkit.core.types import Pose
from featkit.geometry.poses import rotation_matrix

SAME_PLACE = 1e-12  # of the translations' lengths: a shorter baseline is rounding
SAME_PLACE_READ = 1e-9  # the same for poses that were written as text


def essential_matrix(pose0: Pose, pose1: Pose) -> Float[np.ndarray, "3 3"]:
    """E with x1^T E x0 = 0 for normalised image points (Hartley and Zisserman, 9.6)."""
    rotation0, rotation1 = rotation_matrix(pose0.qvec), rotation_matrix(pose1.qvec)
    rotation = rotation1 @ rotation0.T
    x, y, z = pose1.tvec - rotation @ pose0.tvec
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ rotation


def fundamental_matrix(
    intrinsics0: Float[np.ndarray, "*b 3 3"],
    rotation0: Float[np.ndarray, "*b 3 3"],
    translation0: Float[np.ndarray, "*b 3"],
    intrinsics1: Float[np.ndarray, "*b 3 3"],
    rotation1: Float[np.ndarray, "*b 3 3"],
    translation1: Float[np.ndarray, "*b 3"],
) -> Float[np.ndarray, "*b 3 3"]:
    """F01 with x1^T F01 x0 = 0, so that F01 x0 is the line of x0 in image 1; of Frobenius norm 1.

    F01 = K1^-T [t]x R K0^-1 of the relative pose R, t (Hartley and Zisserman, 9.2). Poses are world to camera, points
    are in the pixels of the intrinsics (featkit's: see `intrinsics_from_colmap`). Raises ValueError for two cameras at
    the same place, which have no epipolar lines.
    """
    rotation = rotation1 @ np.swapaxes(rotation0, -1, -2)
    baseline = translation1 - np.einsum("...ij,...j->...i", rotation, translation0)
    reach = np.linalg.norm(translation0, axis=-1) + np.linalg.norm(translation1, axis=-1)
    if not np.all(np.linalg.norm(baseline, axis=-1) > SAME_PLACE * reach):
        raise ValueError("two cameras at the same place have no fundamental matrix")
    x, y, z = np.moveaxis(baseline, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)
    fundamental = np.swapaxes(np.linalg.inv(intrinsics1), -1, -2) @ cross @ rotation @ np.linalg.inv(intrinsics0)
    return fundamental / np.linalg.norm(fundamental, axis=(-2, -1), keepdims=True)


def epipolar_distances(
    essential: Float[np.ndarray, "3 3"], points0: Float[np.ndarray, "n 2"], points1: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Distance of each point to the line of its partner, in image 0 and in image 1, in normalised units.

    With a fundamental instead of an essential matrix, points and distances are in pixels.
    """
    x0 = np.concatenate([points0, np.ones((len(points0), 1))], axis=1)
    x1 = np.concatenate([points1, np.ones((len(points1), 1))], axis=1)
    lines1, lines0 = x0 @ essential.T, x1 @ essential
    algebraic = np.abs(np.sum(x1 * lines1, axis=1))
    norm0 = np.maximum(np.linalg.norm(lines0[:, :2], axis=1), 1e-12)
    norm1 = np.maximum(np.linalg.norm(lines1[:, :2], axis=1), 1e-12)
    return algebraic / norm0, algebraic / norm1


def epipolar_inliers(
    essential: Float[np.ndarray, "3 3"],
    points0: Float[np.ndarray, "n 2"],
    points1: Float[np.ndarray, "n 2"],
    threshold0: float,
    threshold1: float,
) -> Bool[np.ndarray, " n"]:
    """Matches within the thresholds (normalised units) of their epipolar lines in both images."""
    distance0, distance1 = epipolar_distances(essential, points0, points1)
    return (distance0 <= threshold0) & (distance1 <= threshold1)


def is_turn(pose0: Pose, pose1: Pose) -> bool:
    """Whether two cameras are at the same place, so that their views have no epipolar lines."""
    rotation = rotation_matrix(pose1.qvec) @ rotation_matrix(pose0.qvec).T
    reach = np.linalg.norm(pose0.tvec) + np.linalg.norm(pose1.tvec)
    return bool(np.linalg.norm(pose1.tvec - rotation @ pose0.tvec) <= SAME_PLACE_READ * reach)


def turn_inliers(
    pose0: Pose, pose1: Pose, rays0: Float[np.ndarray, "n 3"], rays1: Float[np.ndarray, "n 3"], threshold: float
) -> Bool[np.ndarray, " n"]:
    """Matches whose unit rays point in the same direction of the world, within the threshold (radians)."""
    turned = rays0 @ (rotation_matrix(pose1.qvec) @ rotation_matrix(pose0.qvec).T).T
    return np.asarray(np.linalg.norm(np.cross(turned, rays1), axis=1) <= np.sin(threshold)) & (
        np.sum(turned * rays1, axis=1) > 0
    )


def epipolar_inliers_of_rays(
    essential: Float[np.ndarray, "3 3"],
    rays0: Float[np.ndarray, "n 3"],
    rays1: Float[np.ndarray, "n 3"],
    threshold0: float,
    threshold1: float,
) -> Bool[np.ndarray, " n"]:
    """Matches whose unit rays are within the thresholds (radians) of their epipolar planes, in any direction."""
    planes1, planes0 = rays0 @ essential.T, rays1 @ essential
    algebraic = np.abs(np.sum(rays1 * planes1, axis=1))
    norms = [np.maximum(np.linalg.norm(planes, axis=1), 1e-12) for planes in (planes0, planes1)]
    return (algebraic <= np.sin(threshold0) * norms[0]) & (algebraic <= np.sin(threshold1) * norms[1])
