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
UNBOUNDED_PX = 1e9  # a loss scale this large is plain least squares


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

    rotation_std_deg: the same of the rotation vector. Both follow from the inliers' residuals;
    residual_px is their RMS per coordinate.
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
    answer = pycolmap.estimate_and_refine_absolute_pose(points2d, points3d, camera, estimation, refinement)
    if answer is None:
        return None
    pose = to_pose(answer["cam_from_world"])
    inlier = np.asarray(answer["inlier_mask"], dtype=bool)
    squared = _squared_residuals(answer["cam_from_world"], camera, points2d[inlier], points3d[inlier])
    freedom = max(1, 2 * len(squared) - 6)  # six parameters of the pose
    residual = float(np.sqrt(squared.sum() / freedom))
    noise = _effective_noise_px(squared, refinement.loss_function_scale)
    covariance = _covariance(answer["cam_from_world"], points2d, points3d, inlier, camera, refinement)
    centre_std, rotation_std = _uncertainty(pose, covariance, noise)
    return PoseEstimate(pose, inlier, residual, centre_std, rotation_std, camera)


def _squared_residuals(
    rigid: pycolmap.Rigid3d, camera: pycolmap.Camera, points2d: np.ndarray, points3d: np.ndarray
) -> Float[np.ndarray, " n"]:
    return np.sum((np.asarray(camera.img_from_cam(rigid * points3d)) - points2d) ** 2, axis=1)


def _effective_noise_px(squared: Float[np.ndarray, " n"], loss_scale_px: float) -> float:
    """Noise per coordinate, px, that plain least squares would need for the scatter of pycolmap's robust pose.

    Variance of an M-estimate, E[psi^2] / E[psi']^2 (Huber, Robust Statistics, 1981, section 7.6), for the Cauchy loss
    of distances in the image: its weight is w = 1 / (1 + d^2 / scale^2), and psi' averaged over directions is w^2.
    """
    weights = 1.0 / (1.0 + squared / loss_scale_px**2)
    correction = len(squared) / max(1.0, len(squared) - 3.0)  # six parameters of 2 n coordinates
    return float(np.sqrt(correction * np.mean(weights**2 * squared) / 2.0) / np.mean(weights**2))


def _covariance(
    rigid: pycolmap.Rigid3d,
    points2d: np.ndarray,
    points3d: np.ndarray,
    inlier: np.ndarray,
    camera: pycolmap.Camera,
    refinement: pycolmap.AbsolutePoseRefinementOptions,
) -> Float[np.ndarray, "6 6"]:
    """Covariance of (rotation tangent, translation) for least squares and noise of 1 px: (J^T J)^-1 at the pose."""
    refinement.loss_function_scale = UNBOUNDED_PX
    refinement.max_num_iterations = 0  # the pose stays as it is
    answer = pycolmap.refine_absolute_pose(
        rigid, points2d, points3d, inlier, pycolmap.Camera(camera.todict()), refinement, return_covariance=True
    )
    if answer is None or answer.get("covariance") is None:
        return np.full((6, 6), np.inf)
    return np.asarray(answer["covariance"])[:6, :6]


def _uncertainty(pose: Pose, covariance: Float[np.ndarray, "6 6"], noise_px: float) -> tuple[float, float]:
    """Standard deviations of the centre and of the rotation (deg), for keypoint noise of `noise_px`.

    covariance: of (rotation tangent, translation) of the world-to-camera pose for noise of 1 px. With a left
    perturbation w of the rotation, the centre -R^T t moves by -R^T dt - R^T [t]x w.
    """
    if not np.all(np.isfinite(covariance)):
        return float("inf"), float("inf")
    scale = np.diag([ROTATION_VECTOR_PER_TANGENT] * 3 + [1.0] * 3)
    covariance = scale @ covariance @ scale * noise_px**2
    rotation = rotation_matrix(pose.qvec)
    x, y, z = pose.tvec
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    jacobian = np.concatenate([-rotation.T @ cross, -rotation.T], axis=1)
    centre = jacobian @ covariance @ jacobian.T
    rotation_deg = np.degrees(np.sqrt(max(0.0, np.trace(covariance[:3, :3]))))
    return float(np.sqrt(max(0.0, np.trace(centre)))), float(rotation_deg)
