"""Compares a map with ground-truth cameras: similarity alignment of the centres, then centre and rotation errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import pycolmap
from jaxtyping import Bool, Float

from featkit.core.config import Config, Factor, Metres, PositiveShare, Trials
from featkit.core.errors import BadInputError, EmptyResultError
from featkit.core.types import Pose
from featkit.geometry.poses import camera_centre, quaternion, rotation_angle_deg, rotation_matrix
from featkit.mapping.cameras import to_pose

LOGGER = logging.getLogger(__name__)
MIN_COMMON = 3  # a similarity takes three centres that are not on one line


@dataclass(frozen=True)
class PoseErrors:
    """Errors per image after alignment: centres in the ground truth's units, rotations in degrees."""

    names: list[str]
    centre: Float[np.ndarray, " n"]
    rotation_deg: Float[np.ndarray, " n"]
    truth_from_map: Float[np.ndarray, "3 4"]
    """The similarity that was applied: s R | t."""


def compare_with_truth(model: pycolmap.Reconstruction, truth: dict[str, Pose], align: bool = True) -> PoseErrors:
    """Camera errors of a model, with rotations compared after the same similarity.

    align: False if the model is already in the ground truth's frame. Raises BadInputError when fewer than three
    registered images have a ground-truth pose.
    """
    images = sorted((i for i in model.images.values() if i.has_pose and i.name in truth), key=lambda i: i.name)
    if len(images) < MIN_COMMON:
        raise BadInputError(f"only {len(images)} images of the map have a true pose; {MIN_COMMON} are needed")
    poses = [to_pose(image.cam_from_world()) for image in images]
    true_centres = np.array([camera_centre(truth[image.name]) for image in images])
    similarity = truth_from_map(model, truth) if align else np.eye(4)[:3]
    scale = float(np.cbrt(np.linalg.det(similarity[:, :3])))
    rotation = similarity[:, :3] / scale
    centres = np.array([camera_centre(pose) for pose in poses]) @ similarity[:, :3].T + similarity[:, 3]
    angles = [
        rotation_angle_deg(rotation_matrix(truth[image.name].qvec), rotation_matrix(pose.qvec) @ rotation.T)
        for image, pose in zip(images, poses, strict=True)
    ]
    errors = np.linalg.norm(centres - true_centres, axis=1)
    return PoseErrors([image.name for image in images], errors, np.array(angles), similarity)


def similarity_to_truth(model: pycolmap.Reconstruction, truth: dict[str, Pose]) -> Float[np.ndarray, "3 4"]:
    """`truth_from_map` if enough images of the map have a ground-truth pose, else the identity with a warning."""
    common = sum(image.has_pose and image.name in truth for image in model.images.values())
    if common >= MIN_COMMON:
        return truth_from_map(model, truth)
    LOGGER.warning("the truth has only %d images of the map: the map is not aligned to it", common)
    return np.eye(3, 4)


def truth_from_map(model: pycolmap.Reconstruction, truth: dict[str, Pose]) -> Float[np.ndarray, "3 4"]:
    """Least-squares similarity from the map's camera centres to the true ones (Umeyama 1991, by pycolmap)."""
    images = [i for i in model.images.values() if i.has_pose and i.name in truth]
    source = np.array([camera_centre(to_pose(i.cam_from_world())) for i in images])
    target = np.array([camera_centre(truth[i.name]) for i in images])
    similarity = pycolmap.estimate_sim3d(source, target)
    if similarity is None:
        raise BadInputError("the map's cameras and the true ones cannot be aligned: their centres are on one line")
    return np.asarray(similarity.matrix())


def transform_pose(pose: Pose, similarity: Float[np.ndarray, "3 4"]) -> Pose:
    """A world-to-camera pose after the world has been transformed by `similarity` (s R | t)."""
    scale = float(np.cbrt(np.linalg.det(similarity[:, :3])))
    rotation = rotation_matrix(pose.qvec) @ (similarity[:, :3] / scale).T
    centre = similarity[:, :3] @ camera_centre(pose) + similarity[:, 3]
    return Pose(quaternion(rotation), -rotation @ centre)


# ----------------------------------------------------------------------------------------------------------------------
# Robust similarity between two sets of positions, some of which may be wrong, with its uncertainty.
#
# Sources: least squares by Umeyama (PAMI 1991, by pycolmap). Outliers: least median of squares, with the order
# statistic and the small-sample factor of Rousseeuw and Leroy (Robust Regression and Outlier Detection, 1987, sections
# 3.4 and 5.1), so that the GPS accuracy need not be known; or LO-RANSAC (pycolmap) if the largest error is given.


MIN_POSITIONS = 3  # a similarity has 7 unknowns; three positions that are not on one line give 9 equations
UNKNOWNS = 7
MAX_ROUNDS = 20
CHI3_MEDIAN = 1.5382  # median length of a vector of three standard normal numbers


class SimilarityConfig(Config):
    """Which positions are outliers, and how many must fit."""

    max_error_m: Metres | None = None
    """Positions with a larger error are not used, m. None: estimated from the residuals."""
    outlier_sigmas: Factor = 4.0
    """Outlier threshold when `max_error_m` is None, in standard deviations per axis (from the median residual). 4 keeps
    99.9 % of normally distributed positions in three dimensions.
    """
    max_samples: Trials = 1000
    """Maximum number of triples tried; all if there are fewer. With 40 % outliers, 1,000 fail once in 10^100."""
    min_share: PositiveShare = 0.5
    """Fraction of the positions that must fit; with fewer there is no result."""
    min_width: PositiveShare = 1e-3
    """Smallest ratio of the second extent to the first; narrower positions count as collinear."""


@dataclass(frozen=True)
class SimilarityFit:
    """target_from_source: s R | t. offsets: transformed source minus target. used: False for outliers.

    orientation_std_deg: standard deviation about the least certain axis. scale_std: relative to the scale. Both are
    computed from the residuals of the positions used.
    """

    target_from_source: Float[np.ndarray, "3 4"]
    offsets: Float[np.ndarray, "n 3"]
    used: Bool[np.ndarray, " n"]
    orientation_std_deg: float
    scale_std: float

    @property
    def scale(self) -> float:
        """Target units per source unit."""
        return scale_of(self.target_from_source)

    @property
    def residuals(self) -> Float[np.ndarray, " n"]:
        """Lengths of the offsets."""
        return np.linalg.norm(self.offsets, axis=1)


def fit_similarity(
    source: Float[np.ndarray, "n 3"], target: Float[np.ndarray, "n 3"], config: SimilarityConfig, seed: int
) -> SimilarityFit:
    """The similarity from `source` to `target`, estimated from the inliers; deterministic for a given seed.

    Raises BadInputError for fewer than three positions or collinear ones, EmptyResultError when too few fit.
    """
    if len(source) < MIN_POSITIONS:
        raise BadInputError(f"{len(source)} positions; {MIN_POSITIONS} that are not on one line are needed")
    _refuse_collinear(source, target, config)
    if config.max_error_m is not None:
        used = _inliers_by_ransac(source, target, config.max_error_m, config.min_share, seed)
    else:
        used = _inliers_by_least_median(source, target, config, np.random.default_rng(seed))
    if used.sum() < max(MIN_POSITIONS, config.min_share * len(used)):
        raise EmptyResultError(
            f"only {used.sum()} of {len(used)} positions agree with the model's shape"
            + (f" within {config.max_error_m:g} m; a larger --max-error" if config.max_error_m is not None else "")
            + "; check that names and positions belong together"
        )
    _refuse_collinear(source[used], target[used], config)
    similarity = _fit_least_squares(source[used], target[used])
    if similarity is None:
        raise BadInputError("the positions are on one line, so the rotation about it is not determined")
    offsets = _offsets(similarity, source, target)
    return SimilarityFit(similarity, offsets, used, *_uncertainty(similarity, source[used], offsets[used]))


def scale_of(similarity: Float[np.ndarray, "3 4"]) -> float:
    """The scale s of s R | t."""
    return float(np.cbrt(np.linalg.det(similarity[:, :3])))


def _inliers_by_ransac(
    source: np.ndarray, target: np.ndarray, max_error: float, min_share: float, seed: int
) -> Bool[np.ndarray, " n"]:
    options = pycolmap.RANSACOptions()
    options.max_error, options.random_seed = max_error, seed
    options.min_inlier_ratio = min_share  # limits the number of trials
    found = pycolmap.estimate_sim3d_robust(source, target, options)
    if found is None:
        return np.zeros(len(source), bool)
    similarity = found["tgt_from_src"] if isinstance(found, dict) else found  # the stubs declare only the similarity
    return _refine_inliers(source, target, np.asarray(similarity.matrix()), lambda residuals: max_error)


def _inliers_by_least_median(
    source: np.ndarray, target: np.ndarray, config: SimilarityConfig, generator: np.random.Generator
) -> Bool[np.ndarray, " n"]:
    number = len(source)
    order = min(number // 2 + 2, number) - 1  # floor(n / 2) + floor((p + 1) / 2) residuals are minimised, p = 3
    best, best_similarity = np.inf, None
    for triple in _sample_triples(number, config.max_samples, generator):
        similarity = _fit_least_squares(source[triple], target[triple])
        if similarity is None:
            continue
        residual = float(np.partition(_residuals(similarity, source, target), order)[order])
        if residual < best:
            best, best_similarity = residual, similarity
    if best_similarity is None:
        return np.zeros(number, bool)
    rounding = 1e-6 * float(np.linalg.norm(target - target.mean(axis=0), axis=1).max())
    factor = config.outlier_sigmas * (1 + 5 / max(number - MIN_POSITIONS, 1)) / CHI3_MEDIAN

    def bound(residuals: np.ndarray) -> float:
        return max(factor * float(np.partition(residuals, order)[order]), rounding)

    return _refine_inliers(source, target, best_similarity, bound)


def _refine_inliers(
    source: np.ndarray, target: np.ndarray, similarity: np.ndarray, bound: Callable[[np.ndarray], float]
) -> Bool[np.ndarray, " n"]:
    """Fit to the positions within the bound and classify all of them again, until the set no longer changes."""
    residuals = _residuals(similarity, source, target)
    used = residuals <= bound(residuals)
    for _ in range(MAX_ROUNDS):
        refined = _fit_least_squares(source[used], target[used]) if used.sum() >= MIN_POSITIONS else None
        if refined is None:
            break
        residuals = _residuals(refined, source, target)
        again = residuals <= bound(residuals)
        if np.array_equal(again, used):
            break
        used = again
    return used


def _sample_triples(number: int, most: int, generator: np.random.Generator) -> Iterable[list[int]]:
    """All triples of indices, or `most` random ones if there are more."""
    if comb(number, MIN_POSITIONS) <= most:
        return (list(triple) for triple in combinations(range(number), MIN_POSITIONS))
    return (generator.choice(number, MIN_POSITIONS, replace=False).tolist() for _ in range(most))


def _fit_least_squares(source: np.ndarray, target: np.ndarray) -> Float[np.ndarray, "3 4"] | None:
    """The least-squares similarity; None for collinear positions."""
    found = pycolmap.estimate_sim3d(source, target)
    matrix = None if found is None else np.asarray(found.matrix())
    return matrix if matrix is not None and np.all(np.isfinite(matrix)) and scale_of(matrix) > 0 else None


def _offsets(similarity: np.ndarray, source: np.ndarray, target: np.ndarray) -> Float[np.ndarray, "n 3"]:
    return source @ similarity[:, :3].T + similarity[:, 3] - target


def _residuals(similarity: np.ndarray, source: np.ndarray, target: np.ndarray) -> Float[np.ndarray, " n"]:
    return np.linalg.norm(_offsets(similarity, source, target), axis=1)


def _extents(positions: np.ndarray) -> Float[np.ndarray, "3"]:
    """Square roots of the sums of squares along the principal axes, largest first."""
    return np.linalg.svd(positions - positions.mean(axis=0), compute_uv=False)


def _refuse_collinear(source: np.ndarray, target: np.ndarray, config: SimilarityConfig) -> None:
    for positions, whose in ((source, "the model's camera centres"), (target, "the given positions")):
        first, second, _ = _extents(positions)
        if second <= config.min_width * first:
            where = "at one place" if first == 0 else "on one line, so the rotation about it is not determined"
            raise BadInputError(f"{whose} of the {len(positions)} images are {where}; add images off that line")


def _uncertainty(similarity: np.ndarray, source: np.ndarray, offsets: np.ndarray) -> tuple[float, float]:
    """Standard deviations, to first order: orientation (degrees, worst axis) and scale (relative).

    A rotation about the longest principal axis moves positions by their distance from it; a change of scale moves them
    by their distance from the centroid.
    """
    sigma = np.sqrt((offsets**2).sum() / (offsets.size - UNKNOWNS))
    extents = _extents(source) * scale_of(similarity)
    return float(np.degrees(sigma / np.hypot(*extents[1:]))), float(sigma / np.linalg.norm(extents))
