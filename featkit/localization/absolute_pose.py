"""2D-3D matches -> camera pose with its uncertainty (LO-RANSAC and refinement by pycolmap)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pycolmap
from jaxtyping import Bool, Float

from featkit.config import Config
from featkit.geometry.poses import rotation_matrix
from featkit.mapping.verify import to_pose
from featkit.types import Pose

# Ceres' quaternion tangent is half a rotation vector, so pycolmap's rotation block is a quarter of the covariance.
ROTATION_VECTOR_PER_TANGENT = 2.0


class PoseConfig(Config):
    """Robust absolute pose of one query."""

    max_error_px: float = 12.0
    """RANSAC threshold (hloc's value)."""
    min_inliers: int = 12
    """A pose with fewer is reported as a failure: 6 unknowns, and twice as many points to trust them."""
    confidence: float = 0.99999
    max_trials: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class PoseEstimate:
    """centre_std: standard deviation of the camera centre, in map units (root of the covariance's trace).

    rotation_std_deg: the same of the rotation vector. Both scale with the inliers' residual (residual_px, RMS).
    """

    pose: Pose
    inlier: Bool[np.ndarray, " n"]
    residual_px: float
    centre_std: float
    rotation_std_deg: float
    camera: pycolmap.Camera


def estimate_pose(
    points2d: Float[np.ndarray, "n 2"],
    points3d: Float[np.ndarray, "n 3"],
    camera: pycolmap.Camera,
    config: PoseConfig,
    refine_focal: bool = False,
) -> PoseEstimate | None:
    """Pose of a camera that sees points3d at points2d (COLMAP pixels), or None when RANSAC finds none."""
    camera = pycolmap.Camera(camera.todict())  # refinement writes into it
    estimation = pycolmap.AbsolutePoseEstimationOptions()
    estimation.estimate_focal_length = refine_focal
    estimation.ransac.max_error = config.max_error_px
    estimation.ransac.confidence = config.confidence
    estimation.ransac.max_num_trials = config.max_trials
    estimation.ransac.random_seed = config.seed
    refinement = pycolmap.AbsolutePoseRefinementOptions()
    refinement.refine_focal_length = refine_focal
    answer = pycolmap.estimate_and_refine_absolute_pose(
        points2d, points3d, camera, estimation, refinement, return_covariance=True
    )
    if answer is None:
        return None
    pose = to_pose(answer["cam_from_world"])
    inlier = np.asarray(answer["inlier_mask"], dtype=bool)
    residual = _residual_px(answer["cam_from_world"], camera, points2d[inlier], points3d[inlier])
    centre_std, rotation_std = _uncertainty(pose, np.asarray(answer["covariance"])[:6, :6], residual)
    return PoseEstimate(pose, inlier, residual, centre_std, rotation_std, camera)


def _residual_px(rigid: pycolmap.Rigid3d, camera: pycolmap.Camera, points2d: np.ndarray, points3d: np.ndarray) -> float:
    """RMS per coordinate, px, with the six parameters of the pose taken off the degrees of freedom."""
    projected = np.asarray(camera.img_from_cam(rigid * points3d))
    freedom = max(1, 2 * len(points2d) - 6)
    return float(np.sqrt(np.sum((projected - points2d) ** 2) / freedom))


def _uncertainty(pose: Pose, covariance: Float[np.ndarray, "6 6"], residual_px: float) -> tuple[float, float]:
    """Standard deviations of the centre and of the rotation (deg), for keypoint noise of `residual_px`.

    covariance: of (rotation tangent, translation) of the world-to-camera pose for noise of 1 px. With a left
    perturbation w of the rotation, the centre -R^T t moves by -R^T dt - R^T [t]x w.
    """
    if not np.all(np.isfinite(covariance)):
        return float("inf"), float("inf")
    scale = np.diag([ROTATION_VECTOR_PER_TANGENT] * 3 + [1.0] * 3)
    covariance = scale @ covariance @ scale * residual_px**2
    rotation = rotation_matrix(pose.qvec)
    x, y, z = pose.tvec
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    jacobian = np.concatenate([-rotation.T @ cross, -rotation.T], axis=1)
    centre = jacobian @ covariance @ jacobian.T
    rotation_deg = np.degrees(np.sqrt(max(0.0, np.trace(covariance[:3, :3]))))
    return float(np.sqrt(max(0.0, np.trace(centre)))), float(rotation_deg)
