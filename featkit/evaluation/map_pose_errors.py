"""Errors of the relative poses of a map over all pairs of images, in degrees; no alignment is needed for them.

The error of a pair is the larger of two angles: between the found and the true relative rotation, and between the found
and the true direction of the relative translation, both seen from the second camera (Jin et al., IJCV 2021, "Image
Matching across Wide Baselines"; here with the sign of the translation, which a map knows). A pair with an image that is
not in the map has an infinite error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from featkit.geometry.epipolar import SAME_PLACE
from featkit.geometry.poses import camera_centre, rotation_matrix
from featkit.types import Pose


@dataclass(frozen=True)
class MapPoseErrors:
    """names: of the images with a true pose, sorted. index: pairs of them. error_deg: infinite where one is missing."""

    names: tuple[str, ...]
    index: Int[np.ndarray, "p 2"]
    error_deg: Float[np.ndarray, " p"]

    @property
    def failed(self) -> int:
        """Pairs with an image that is not in the map."""
        return int(np.isinf(self.error_deg).sum())


def map_pose_errors(found: Mapping[str, Pose], truth: Mapping[str, Pose]) -> MapPoseErrors:
    """Errors of all pairs of images with a true pose. found, truth: world-to-camera poses by name, in any two frames.

    Two true cameras in one place have no direction to compare: their rotation alone is judged. Found in one place
    although they are apart, a pair fails.
    """
    names = tuple(sorted(truth))
    true, ours = _Cameras.of(names, truth), _Cameras.of(names, found)
    pairs = [np.zeros((0, 2), np.int64)]
    errors = [np.zeros(0)]
    for first in range(len(names)):  # one row of pairs at a time
        others = np.arange(first + 1, len(names))
        rotation = _rotation_angles(true.relative_rotations(first, others), ours.relative_rotations(first, others))
        wanted, apart = true.directions(first, others)
        got, placed = ours.directions(first, others)
        direction = np.where(placed, _angles(wanted, got), np.inf)
        error = np.where(apart, np.fmax(rotation, direction), rotation)
        error[~(ours.known[first] & ours.known[others])] = np.inf
        pairs.append(np.stack([np.full(len(others), first), others], axis=1))
        errors.append(error)
    return MapPoseErrors(names, np.concatenate(pairs), np.concatenate(errors))


@dataclass(frozen=True)
class _Cameras:
    """World-to-camera rotations and centres; unknown ones stand at the origin."""

    rotations: Float[np.ndarray, "n 3 3"]
    centres: Float[np.ndarray, "n 3"]
    known: Bool[np.ndarray, " n"]

    @staticmethod
    def of(names: tuple[str, ...], poses: Mapping[str, Pose]) -> _Cameras:
        rotations, centres = np.tile(np.eye(3), (len(names), 1, 1)), np.zeros((len(names), 3))
        for row, name in enumerate(names):
            if name in poses:
                rotations[row], centres[row] = rotation_matrix(poses[name].qvec), camera_centre(poses[name])
        return _Cameras(rotations, centres, np.array([name in poses for name in names], dtype=bool))

    def relative_rotations(self, first: int, others: Int[np.ndarray, " k"]) -> Float[np.ndarray, "k 3 3"]:
        """From camera `first` to each of the others."""
        return self.rotations[others] @ self.rotations[first].T

    def directions(
        self, first: int, others: Int[np.ndarray, " k"]
    ) -> tuple[Float[np.ndarray, "k 3"], Bool[np.ndarray, " k"]]:
        """Relative translations, in the frames of the others, and which of them are long enough to have a direction."""
        baselines = self.centres[first] - self.centres[others]
        sizes = np.linalg.norm(self.centres[others], axis=1) + np.linalg.norm(self.centres[first])
        apart = np.linalg.norm(baselines, axis=1) > SAME_PLACE * sizes
        return np.einsum("kij,kj->ki", self.rotations[others], baselines), apart


def _rotation_angles(a: Float[np.ndarray, "k 3 3"], b: Float[np.ndarray, "k 3 3"]) -> Float[np.ndarray, " k"]:
    """Degrees; exact down to rounding for small angles, as `geometry.poses.rotation_angle_deg`."""
    relative = np.swapaxes(a, 1, 2) @ b
    vee = np.stack([relative[:, i, j] - relative[:, j, i] for i, j in ((2, 1), (0, 2), (1, 0))], axis=1)
    return np.degrees(np.arctan2(np.linalg.norm(vee, axis=1), np.trace(relative, axis1=1, axis2=2) - 1.0))


def _angles(a: Float[np.ndarray, "k 3"], b: Float[np.ndarray, "k 3"]) -> Float[np.ndarray, " k"]:
    """Degrees between vectors, 0 to 180."""
    across = np.linalg.norm(np.cross(a, b), axis=1)
    return np.degrees(np.arctan2(across, np.einsum("ki,ki->k", a, b)))
