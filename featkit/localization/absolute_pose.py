"""2D-3D matches -> camera pose with its uncertainty (LO-RANSAC and refinement by pycolmap)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import pycolmap
from jaxtyping import Bool, Float, Int
from pydantic import Field

from featkit.core.config import Confidence, Config, Factor, Later, Pixels, Seed, Trials
from featkit.core.errors import BadInputError
from featkit.core.types import Matches, Pair, Pose
from featkit.geometry.pixels import to_colmap
from featkit.geometry.poses import rotation_matrix
from featkit.io.camera_models import camera_models
from featkit.io.features import FeatureStore
from featkit.mapping.cameras import squared_distances, to_pose
from featkit.mapping.model import point_ids

# Ceres' quaternion tangent is half a rotation vector: pycolmap's rotation block is a quarter of the covariance.
ROTATION_VECTOR_PER_TANGENT = 2.0
UNBOUNDED_PX = 1e9  # with a loss scale this large: plain least squares


class PoseConfig(Config):
    """Robust absolute pose of one query."""

    max_error_px: Pixels = 12.0
    """RANSAC threshold, px (hloc's value)."""
    min_inliers: int = Field(12, ge=3, le=10**9)
    """Minimum number of inliers; a pose with fewer is reported as a failure. The default is twice the 6 unknowns."""
    confidence: Confidence = 0.99999
    """Probability of having drawn an outlier-free sample, at which RANSAC stops."""
    max_trials: Trials = 10_000
    """Maximum number of RANSAC iterations."""
    seed: Seed = 0
    """Random seed of RANSAC."""
    uncertain_ratio: Factor = 3.0
    """Ratio of median inlier residuals, query over map, above which a pose is marked uncertain. Large residuals are a
    sign of wrong intrinsics or of a similar-looking place. Those of a map are smaller than those of the best query,
    because its points were fitted to them: with the right camera the ratio is 0.9 to 2.2 (docs/localization.md)."""
    focal_ratio: Later[Factor] = 1.25
    """Ratio of median inlier residuals, with the given focal length over with a refined one, above which a pose is
    marked uncertain: the focal length is wrong. It is at most 1.1 with the right one."""


@dataclass(frozen=True)
class PoseEstimate:
    """centre_std: standard deviation of the camera centre, in map units (square root of the covariance's trace).

    rotation_std_deg: the same for the rotation vector, degrees. Both are computed from the inliers' residuals.
    residual_px: RMS residual per coordinate; median_px: median distance. refined_px: the same with the focal length
    refined together with the pose, and refined_focal_px: that focal length; both as they were where it was refined
    anyway, or is none.
    """

    pose: Pose
    inlier: Bool[np.ndarray, " n"]
    residual_px: float
    median_px: float
    centre_std: float
    rotation_std_deg: float
    camera: pycolmap.Camera
    refined_px: float
    refined_focal_px: float


def estimate_pose(
    points2d: Float[np.ndarray, "n 2"],
    points3d: Float[np.ndarray, "n 3"],
    camera: pycolmap.Camera,
    config: PoseConfig,
    refine_focal: bool = False,
) -> PoseEstimate | None:
    """Pose of a camera that sees points3d at points2d (COLMAP pixels), or None if RANSAC finds none."""
    camera = pycolmap.Camera(camera.todict())  # refinement modifies it
    estimation = pycolmap.AbsolutePoseEstimationOptions()
    estimation.estimate_focal_length = refine_focal and not camera_models()[camera.model_name].is_fisheye
    estimation.ransac.max_error = config.max_error_px
    estimation.ransac.confidence = config.confidence
    estimation.ransac.max_num_trials = config.max_trials
    estimation.ransac.random_seed = config.seed
    refinement = pycolmap.AbsolutePoseRefinementOptions()
    refinement.refine_focal_length = refine_focal
    answer = pycolmap.estimate_and_refine_absolute_pose(points2d, points3d, camera, estimation, refinement)
    if answer is None:
        return None
    inlier = np.asarray(answer["inlier_mask"], dtype=bool)
    return assess_pose(answer["cam_from_world"], camera, points2d, points3d, inlier, refinement)


def assess_pose(
    rigid: pycolmap.Rigid3d,
    camera: pycolmap.Camera,
    points2d: Float[np.ndarray, "n 2"],
    points3d: Float[np.ndarray, "n 3"],
    inlier: Bool[np.ndarray, " n"],
    refinement: pycolmap.AbsolutePoseRefinementOptions,
) -> PoseEstimate:
    """A refined pose with its residuals and uncertainty. refinement: the options it was refined with."""
    pose = to_pose(rigid)
    squared = squared_residuals(rigid, camera, points2d[inlier], points3d[inlier])
    freedom = max(1, 2 * len(squared) - 6)  # six parameters of the pose
    residual = float(np.sqrt(squared.sum() / freedom))
    noise = _effective_noise_px(squared, refinement.loss_function_scale)
    is_free = refinement.refine_focal_length or not has_focal(camera)
    covariance = _covariance(rigid, points2d, points3d, inlier, camera, refinement)
    centre_std, rotation_std = _uncertainty(pose, covariance, noise)
    median = float(np.sqrt(np.median(squared))) if len(squared) else float("inf")
    given = (median, camera.mean_focal_length() if has_focal(camera) else 0.0)
    refined = given if is_free or not len(squared) else _with_focal_refined(rigid, camera, points2d, points3d, inlier)
    return PoseEstimate(pose, inlier, residual, median, centre_std, rotation_std, camera, *(refined or given))


def has_focal(camera: pycolmap.Camera) -> bool:
    """Whether a camera has a focal length: a panorama has none."""
    return not camera_models()[camera.model_name].is_spherical


def _with_focal_refined(
    rigid: pycolmap.Rigid3d, camera: pycolmap.Camera, points2d: np.ndarray, points3d: np.ndarray, inlier: np.ndarray
) -> tuple[float, float] | None:
    """Median residual of the inliers and focal length, px, when that is refined with the pose; None: it fails."""
    camera, options = pycolmap.Camera(camera.todict()), pycolmap.AbsolutePoseRefinementOptions()
    options.refine_focal_length = True
    answer = pycolmap.refine_absolute_pose(rigid, points2d, points3d, inlier, camera, options)
    if answer is None:
        return None
    squared = squared_residuals(answer["cam_from_world"], camera, points2d[inlier], points3d[inlier])
    found = (float(np.sqrt(np.median(squared))), float(camera.mean_focal_length()))
    return found if np.isfinite(found).all() else None


def squared_residuals(
    rigid: pycolmap.Rigid3d, camera: pycolmap.Camera, points2d: np.ndarray, points3d: np.ndarray
) -> Float[np.ndarray, " n"]:
    """Squared distances, px^2, between points2d and the projections of points3d (COLMAP pixels)."""
    return squared_distances(camera, camera.img_from_cam(rigid * points3d), points2d)


def _effective_noise_px(squared: Float[np.ndarray, " n"], loss_scale_px: float) -> float:
    """Noise per coordinate, px, for which plain least squares has the same scatter as pycolmap's robust pose.

    Variance of an M-estimate, E[psi^2] / E[psi']^2 (Huber, Robust Statistics, 1981, section 7.6), for the Cauchy loss
    of image distances: its weight is w = 1 / (1 + d^2 / scale^2), and psi' averaged over directions is w^2.
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
    """Covariance of (rotation tangent, translation) for least squares with noise of 1 px: (J^T J)^-1 at the pose."""
    refinement.loss_function_scale = UNBOUNDED_PX
    refinement.max_num_iterations = 0  # keeps the pose
    answer = pycolmap.refine_absolute_pose(
        rigid, points2d, points3d, inlier, pycolmap.Camera(camera.todict()), refinement, return_covariance=True
    )
    if answer is None or answer.get("covariance") is None:
        return np.full((6, 6), np.inf)
    return np.asarray(answer["covariance"])[:6, :6]


def _uncertainty(pose: Pose, covariance: Float[np.ndarray, "6 6"], noise_px: float) -> tuple[float, float]:
    """Standard deviations of the centre and of the rotation (degrees), for keypoint noise of `noise_px`.

    covariance: of (rotation tangent, translation) of the world-to-camera pose, for noise of 1 px. With a left
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


# ----------------------------------------------------------------------------------------------------------------------
# The map as localization uses it: the 3D point of each keypoint of each map image.


CACHED_IMAGES = 512
SAMPLED_IMAGES = 32  # map images from which the reprojection error is estimated
SMALLEST_PX = 0.1  # lower limit of a map's residual: with an exact map no pose would be certain
MAX_KEYPOINT_SHIFT_PX = 0.1


class MatchSource(Protocol):
    """Source of matches of pairs: a MatchStore, or memory."""

    def read(self, pair: Pair) -> Matches: ...


class MapPoints:
    """A model and the features it was built from."""

    def __init__(self, model: pycolmap.Reconstruction, features: FeatureStore):
        self.model = model
        self._images = {image.name: image for image in model.images.values() if image.has_pose}
        if not self._images:
            raise BadInputError("no image of the map has a pose; nothing can be localized in it")
        self._points_of = lru_cache(CACHED_IMAGES)(self._read_points)
        self._check_same_keypoints(features)

    def names(self) -> list[str]:
        """Registered images, sorted."""
        return sorted(self._images)

    def point_ids(self, name: str) -> Int[np.ndarray, " n"]:
        """3D point id of each keypoint of a registered image, or -1."""
        return self._points_of(name)

    def uncertain(self, estimate: PoseEstimate, config: PoseConfig) -> str:
        """Why a pose is unreliable; empty if its residuals are similar to the map's, and its focal length fits.

        config: the largest allowed ratios. That to the map is scaled up for a query larger than the map's images, whose
        keypoints are less precise in pixels.
        """
        if estimate.median_px > config.focal_ratio * max(estimate.refined_px, SMALLEST_PX):
            return (
                f"its points have a median residual of {estimate.median_px:.2f} px, and {estimate.refined_px:.2f} px"
                f" with a focal length of {estimate.refined_focal_px:.0f} px instead of"
                f" {estimate.camera.mean_focal_length():.0f} px; are its intrinsics correct?"
            )
        median_px, longer = self.reprojection
        larger = max(1.0, max(estimate.camera.width, estimate.camera.height) / longer)
        limit = config.uncertain_ratio * larger * max(median_px, SMALLEST_PX)
        if estimate.median_px <= limit:
            return ""
        return (
            f"its points have a median residual of {estimate.median_px:.2f} px, those of the map {median_px:.2f} px;"
            " are its intrinsics correct?"
        )

    @cached_property
    def reprojection(self) -> tuple[float, float]:
        """Median reprojection error of the map's keypoints, px, and median of the longer side of its images, px."""
        names = self.names()
        squared, longer = [np.zeros(0)], []
        for position in np.unique(np.linspace(0, len(names) - 1, SAMPLED_IMAGES).round().astype(int)):
            image = self._images[names[position]]
            camera, points = self.model.cameras[image.camera_id], image.points2D
            observed = [points[index] for index in image.get_observation_point2D_idxs()]
            longer.append(max(camera.width, camera.height))
            if observed:
                points2d, ids = np.array([p.xy for p in observed]), np.array([p.point3D_id for p in observed])
                squared.append(squared_residuals(image.cam_from_world(), camera, points2d, self.xyz(ids)))
        errors = np.concatenate(squared)
        return float(np.sqrt(np.median(errors))) if len(errors) else 0.0, float(np.median(longer))

    def _read_points(self, name: str) -> Int[np.ndarray, " n"]:
        return point_ids(self._images[name])

    def _check_same_keypoints(self, features: FeatureStore) -> None:
        """Matches refer to keypoints by index, so the model and the features must have the same ones."""
        for name in self.names():
            image, stored = self._images[name], features.keypoints(name)
            if len(stored) != image.num_points2D():
                raise BadInputError(
                    f"{features.path}: {name!r} has {len(stored)} keypoints, the map's image has"
                    f" {image.num_points2D()}; localize with the features that the map was made from"
                )
            if len(stored) and np.abs(to_colmap(stored)[0] - image.points2D[0].xy).max() > MAX_KEYPOINT_SHIFT_PX:
                raise BadInputError(f"{features.path}: {name!r} has different keypoints from the map; see --features")

    def correspondences(
        self, query: str, keypoints: Float[np.ndarray, "n 2"], partners: list[str], matches: MatchSource
    ) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
        """Distinct 2D-3D matches of a query from its matches with map images: keypoint indices and point ids."""
        by_partner = [match.seen for match in partner_matches(query, partners, matches, self._points_of)]
        unique = np.unique(np.concatenate([np.zeros((0, 2), np.int64), *by_partner]), axis=0)
        return unique[:, 0], unique[:, 1]

    def xyz(self, ids: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m 3"]:
        """Coordinates of points, in map units."""
        points = self.model.points3D
        return np.array([points[int(i)].xyz for i in ids], dtype=np.float64).reshape(-1, 3)


@dataclass(frozen=True)
class PartnerMatches:
    """Matches of a query with keypoints of one map image that see points.

    seen: keypoint of the query and id of the point. of_map: keypoint of the map image.
    """

    name: str
    seen: Int[np.ndarray, "m 2"]
    of_map: Int[np.ndarray, " m"]


def partner_matches(
    query: str, partners: Sequence[str], matches: MatchSource, points_of: Callable[[str], Int[np.ndarray, " n"]]
) -> list[PartnerMatches]:
    """Matches of a query with each of its map images. points_of: for every keypoint of an image its point, or -1."""
    by_partner = []
    for name in partners:
        pairs = matches.read(Pair(query, name)).as_index_pairs().astype(np.int64)
        ids = points_of(name)[pairs[:, 1]]
        has_point = ids >= 0
        by_partner.append(
            PartnerMatches(name, np.stack([pairs[has_point, 0], ids[has_point]], axis=1), pairs[has_point, 1])
        )
    return by_partner
