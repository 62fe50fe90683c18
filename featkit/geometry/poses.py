"""Rotations and world-to-camera poses as numpy arrays. Quaternions are (w, x, y, z)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from featkit.types import Pose


def rotation_matrix(qvec: Float[np.ndarray, "4"]) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix of a quaternion (w, x, y, z) of any non-zero length."""
    w, x, y, z = np.asarray(qvec, dtype=np.float64) / np.linalg.norm(qvec)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4"]:
    """Unit quaternion (w, x, y, z), w >= 0, of a rotation matrix (eigenvector method of Bar-Itzhack 2000)."""
    r = np.asarray(rotation, dtype=np.float64)
    k = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], 0, 0, 0],
            [r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], 0, 0],
            [r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1], 0],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], np.trace(r)],
        ]
    )
    vectors = np.linalg.eigh(k / 3.0, UPLO="L")[1]
    x, y, z, w = vectors[:, -1]
    q = np.array([w, x, y, z])
    return -q if w < 0 else q


def camera_centre(pose: Pose) -> Float[np.ndarray, "3"]:
    """Camera centre in world units: -R^T t."""
    return -rotation_matrix(pose.qvec).T @ np.asarray(pose.tvec, dtype=np.float64)


def rotation_angle_deg(a: Float[np.ndarray, "3 3"], b: Float[np.ndarray, "3 3"]) -> float:
    """Angle of the rotation that takes `a` to `b`, in degrees; exact down to rounding for small angles."""
    relative = a.T @ b
    vee = np.array([relative[2, 1] - relative[1, 2], relative[0, 2] - relative[2, 0], relative[1, 0] - relative[0, 1]])
    return float(np.degrees(np.arctan2(np.linalg.norm(vee), np.trace(relative) - 1.0)))


def look_at(centre: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"], up: Float[np.ndarray, "3"]) -> Pose:
    """World-to-camera pose of a camera at `centre` that looks at `target` (x right, y down, z forward)."""
    forward = np.asarray(target, dtype=np.float64) - centre
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, up)
    right = right / np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return Pose(qvec=quaternion(rotation), tvec=-rotation @ np.asarray(centre, dtype=np.float64))
