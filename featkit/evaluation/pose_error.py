"""Relative pose of two views: its errors in degrees, and what it says of matches.

The protocol of SuperGlue (Sarlin et al., CVPR 2020) and LoFTR (Sun et al., CVPR 2021), MegaDepth-1500's: an error is
the larger of the angle of the rotation between the rotations and the angle between the directions of the translations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from featkit.geometry.epipolar import SAME_PLACE, epipolar_distances
from featkit.geometry.poses import rotation_angle_deg, rotation_matrix
from featkit.types import Pose


@dataclass(frozen=True)
class RelativePose:
    """x1 = rotation x0 + translation takes points of camera 0's frame to camera 1's."""

    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]

    def inverse(self) -> RelativePose:
        """From camera 1 to camera 0."""
        return RelativePose(self.rotation.T, -self.rotation.T @ self.translation)

    @property
    def essential(self) -> Float[np.ndarray, "3 3"]:
        """E with x1^T E x0 = 0, for a translation of length 1; 0 for two cameras at one place."""
        length = float(np.linalg.norm(self.translation))
        x, y, z = self.translation / length if length > 0 else np.zeros(3)
        return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ self.rotation


def relative_pose(pose0: Pose, pose1: Pose) -> RelativePose:
    """Of two world-to-camera poses. Of two cameras at one place the translation is 0."""
    rotation = rotation_matrix(pose1.qvec) @ rotation_matrix(pose0.qvec).T
    translation = np.asarray(pose1.tvec, np.float64) - rotation @ np.asarray(pose0.tvec, np.float64)
    reach = np.linalg.norm(pose0.tvec) + np.linalg.norm(pose1.tvec)
    if np.linalg.norm(translation) <= SAME_PLACE * reach:
        translation = np.zeros(3)
    return RelativePose(rotation, translation)


def direction_angle_deg(a: Float[np.ndarray, "3"], b: Float[np.ndarray, "3"]) -> float:
    """Angle between two directions, 0 to 180 degrees, exact for small angles too; 0 if a vector is 0."""
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), np.dot(a, b)))) if np.any(a) and np.any(b) else 0


def pose_errors_deg(found: RelativePose | None, truth: RelativePose, signed: bool = False) -> tuple[float, float]:
    """(rotation, translation) error in degrees, infinite without a pose.

    signed: whether a translation that points the opposite way is wrong by 180 degrees, or by 0. Where the true
    translation is 0 it has no direction and no error.
    """
    if found is None:
        return float("inf"), float("inf")
    angle = direction_angle_deg(found.translation, truth.translation)
    return rotation_angle_deg(found.rotation, truth.rotation), angle if signed else min(angle, 180.0 - angle)


def symmetric_epipolar_errors(
    truth: RelativePose, points0: Float[np.ndarray, "m 2"], points1: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, " m"]:
    """Sum of the squared distances of two matching points to each other's epipolar lines, in normalised units.

    points: of depth 1, without lens. SuperGlue's and LoFTR's "symmetric epipolar distance" is this one, without a root.
    """
    distance0, distance1 = epipolar_distances(truth.essential, points0, points1)
    return distance0**2 + distance1**2
