"""Evaluation metrics: areas under curves, pose errors, recall, matching accuracy, average precision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from featkit.core.config import Confidence, Config, Pixels, Seed, Trials
from featkit.core.errors import BadInputError
from featkit.core.types import Matches, Pose
from featkit.geometry.epipolar import SAME_PLACE, epipolar_distances
from featkit.geometry.pixels import apply_homography
from featkit.geometry.poses import camera_centre, rotation_angle_deg, rotation_matrix

# ----------------------------------------------------------------------------------------------------------------------
# Area under the cumulative error curve: the share of cases with an error of at most e, for e from 0 to a threshold.


def error_auc(errors: Iterable[float], thresholds: Iterable[float]) -> tuple[float, ...]:
    """Area in [0, 1] for each threshold; 0 if there are no cases. An infinite or NaN error counts as a failure.

    Computed as in SuperGlue's evaluation (Sarlin et al., CVPR 2020) and later papers: linear interpolation between the
    points (sorted error, share of cases up to it), starting at (0, 0); the last share extends to the threshold.
    """
    sorted_errors = np.asarray(list(errors), dtype=np.float64)
    sorted_errors = np.sort(np.where(np.isfinite(sorted_errors), sorted_errors, np.inf))
    share = np.arange(1, len(sorted_errors) + 1) / max(len(sorted_errors), 1)
    areas = []
    for threshold in thresholds:
        within = int(np.searchsorted(sorted_errors, threshold))
        x = np.concatenate([[0.0], sorted_errors[:within], [threshold]])
        y = np.concatenate([[0.0], share[:within], share[within - 1 : within]])
        if within == 0:
            areas.append(0.0)
            continue
        areas.append(float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / threshold))
    return tuple(areas)


# ----------------------------------------------------------------------------------------------------------------------
# Relative pose of two views: its errors in degrees, and the epipolar errors of matches.
#
# The protocol of SuperGlue (Sarlin et al., CVPR 2020), LoFTR (Sun et al., CVPR 2021) and MegaDepth-1500: the pose error
# is the larger of the rotation error (angle between the two rotations) and the translation error (angle between the
# two directions).


@dataclass(frozen=True)
class RelativePose:
    """x1 = rotation x0 + translation maps points from camera 0's frame to camera 1's."""

    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]

    def inverse(self) -> RelativePose:
        """The transform from camera 1 to camera 0."""
        return RelativePose(self.rotation.T, -self.rotation.T @ self.translation)

    @property
    def essential(self) -> Float[np.ndarray, "3 3"]:
        """E with x1^T E x0 = 0, for a translation of unit length; 0 if both camera centres coincide."""
        length = float(np.linalg.norm(self.translation))
        x, y, z = self.translation / length if length > 0 else np.zeros(3)
        return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ self.rotation


def relative_pose(pose0: Pose, pose1: Pose) -> RelativePose:
    """Relative pose of two world-to-camera poses; the translation is exactly 0 if the camera centres coincide."""
    rotation = rotation_matrix(pose1.qvec) @ rotation_matrix(pose0.qvec).T
    translation = np.asarray(pose1.tvec, np.float64) - rotation @ np.asarray(pose0.tvec, np.float64)
    reach = np.linalg.norm(pose0.tvec) + np.linalg.norm(pose1.tvec)
    if np.linalg.norm(translation) <= SAME_PLACE * reach:
        translation = np.zeros(3)
    return RelativePose(rotation, translation)


def direction_angle_deg(a: Float[np.ndarray, "3"], b: Float[np.ndarray, "3"]) -> float:
    """Angle between two directions, 0 to 180 degrees, accurate for small angles too; 0 if either vector is 0."""
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), np.dot(a, b)))) if np.any(a) and np.any(b) else 0


def pose_errors_deg(estimate: RelativePose | None, truth: RelativePose, signed: bool = False) -> tuple[float, float]:
    """(rotation, translation) error in degrees; infinite without a pose.

    signed: whether a translation in the opposite direction has an error of 180 degrees or of 0. A true translation of
    0 has no direction; its error is 0.
    """
    if estimate is None:
        return float("inf"), float("inf")
    angle = direction_angle_deg(estimate.translation, truth.translation)
    return rotation_angle_deg(estimate.rotation, truth.rotation), angle if signed else min(angle, 180.0 - angle)


def symmetric_epipolar_errors(
    truth: RelativePose, points0: Float[np.ndarray, "m 2"], points1: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, " m"]:
    """Sum of the squared distances of two matching points to each other's epipolar lines, in normalised units.

    points: undistorted, at depth 1. The "symmetric epipolar distance" of SuperGlue and LoFTR is also this sum, without
    a square root.
    """
    distance0, distance1 = epipolar_distances(truth.essential, points0, points1)
    return distance0**2 + distance1**2


# ----------------------------------------------------------------------------------------------------------------------
# Recall of localization: the share of queries within a distance and an angle of their true pose.
#
# Thresholds of the long-term visual localization benchmark (Sattler et al., CVPR 2018, section 4). A query without a
# pose counts as wrong at every threshold.


THRESHOLDS = ((0.25, 2.0), (0.5, 5.0), (5.0, 10.0))  # metres, degrees


@dataclass(frozen=True)
class LocalizationScore:
    """recall: share in [0, 1] per threshold (metres, degrees). Medians: over localized queries, NaN without any."""

    queries: int
    localized: int
    thresholds: tuple[tuple[float, float], ...]
    recall: tuple[float, ...]
    median_m: float
    median_deg: float
    errors: dict[str, tuple[float, float]]
    """Per localized query: error of the camera centre (units of the ground truth) and of the rotation (degrees)."""


def score_localization(
    poses: Mapping[str, Pose],
    truth: Mapping[str, Pose],
    queries: Sequence[str],
    thresholds: Sequence[tuple[float, float]] = THRESHOLDS,
) -> LocalizationScore:
    """Score the estimated poses of `queries`; queries without a true pose are not counted.

    Raises BadInputError if no query has a true pose.
    """
    with_truth = [name for name in queries if name in truth]
    if not with_truth:
        raise BadInputError(
            "the ground truth names none of the queries; names are relative to the folder of the queries"
        )
    errors = {name: pose_error(poses[name], truth[name]) for name in with_truth if name in poses}
    recall = tuple(
        sum(centre <= metres and angle <= degrees for centre, angle in errors.values()) / len(with_truth)
        for metres, degrees in thresholds
    )
    table = np.array(list(errors.values())).reshape(-1, 2)
    median = np.median(table, axis=0) if len(table) else np.full(2, np.nan)
    return LocalizationScore(
        len(with_truth), len(errors), tuple(thresholds), recall, float(median[0]), float(median[1]), errors
    )


def pose_error(pose: Pose, truth: Pose) -> tuple[float, float]:
    """Distance between the camera centres, and angle between the rotations in degrees."""
    distance = float(np.linalg.norm(camera_centre(pose) - camera_centre(truth)))
    return distance, rotation_angle_deg(rotation_matrix(pose.qvec), rotation_matrix(truth.qvec))


# ----------------------------------------------------------------------------------------------------------------------
# Mean matching accuracy (MMA): the share of matches whose reprojection error is at most a threshold.
#
# The error of a match is the distance, in pixels of image N, between the matched keypoint and the keypoint of image 1
# mapped by the true homography (D2-Net, Dusmanu et al., CVPR 2019; SCFeat, section IV-B). A pair without matches has
# accuracy 0 at every threshold. MMAScore is SCFeat's eq. 24.


SCORE_AT_0, SCORE_SLOPE = 2.0, 0.1  # eq. 24: the weight of threshold t px is 2 - 0.1 t
THRESHOLDS_PX = tuple(float(t) for t in range(1, 11))


def transfer_errors(
    keypoints0: Float[np.ndarray, "n0 2"],
    keypoints1: Float[np.ndarray, "n1 2"],
    matches: Matches,
    homography: Float[np.ndarray, "3 3"],
) -> Float[np.ndarray, " m"]:
    """Error of each match in pixels of image 1; infinite where the homography maps a point behind the camera.

    homography: image 0 -> image 1.
    """
    index = matches.as_index_pairs()
    mapped = apply_homography(homography, keypoints0[index[:, 0]].astype(np.float64))
    errors = np.linalg.norm(mapped - keypoints1[index[:, 1]], axis=1)
    return np.where(np.isnan(errors), np.inf, errors)


def accuracy(errors: Float[np.ndarray, " m"], thresholds_px: Sequence[float] = THRESHOLDS_PX) -> np.ndarray:
    """Share of the errors up to each threshold, float64; all 0 if there are no matches."""
    if len(errors) == 0:
        return np.zeros(len(thresholds_px))
    return (errors[None] <= np.asarray(thresholds_px)[:, None]).mean(axis=1)


def mma_score(curve: Float[np.ndarray, " t"], thresholds_px: Sequence[float] = THRESHOLDS_PX) -> float:
    """Eq. 24: mean of MMA over the thresholds, weighted by 2 - 0.1 t."""
    weights = SCORE_AT_0 - SCORE_SLOPE * np.asarray(thresholds_px)
    return float(np.sum(weights * curve) / np.sum(weights))


# ----------------------------------------------------------------------------------------------------------------------
# Patch verification: do two patches match? Curves over a threshold on the distance, and FPR95.
#
# FPR95 is UBC's measure (Winder et al., CVPR 2009): the share of non-matching pairs accepted by the threshold that
# accepts 95 % of the matching pairs. Curves follow the pairs in order of distance; pairs of equal distance form one
# step, so that the result does not depend on the order of the list (binary descriptors have many ties).


RECALL = 0.95  # UBC's operating point
ROUNDING = 1e-9  # 0.95 n must not be rounded up to the next integer


@dataclass(frozen=True)
class CumulativeCounts:
    """Matches and non-matches up to each distinct distance, ascending; the first row is (-inf, 0, 0)."""

    distance: Float[np.ndarray, " k"]
    true_positives: Float[np.ndarray, " k"]
    false_positives: Float[np.ndarray, " k"]

    @property
    def recall(self) -> Float[np.ndarray, " k"]:
        """Share of the matches that are accepted; also the true positive rate."""
        return self.true_positives / self.true_positives[-1]

    @property
    def false_positive_rate(self) -> Float[np.ndarray, " k"]:
        return self.false_positives / self.false_positives[-1]

    @property
    def precision(self) -> Float[np.ndarray, " k"]:
        """Share of matches among the accepted pairs; 1 if none is accepted."""
        accepted = self.true_positives + self.false_positives
        return np.divide(self.true_positives, accepted, out=np.ones_like(accepted), where=accepted > 0)

    @property
    def auc(self) -> float:
        """Area under the ROC curve: the probability that a match is closer than a non-match; a tie counts one half."""
        x, y = self.false_positive_rate, self.recall
        return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def fpr95(
    distances: Float[np.ndarray, " n"],
    match: Bool[np.ndarray, " n"],
    recall: float = RECALL,
    rule: Literal["rank", "index"] = "rank",
) -> float:
    """Share in [0, 1] of the non-matches within the distance at which `recall` of the matches are accepted.

    rule: "rank" (HardNet, SDGMNet) takes the distance of the first match at which the recall is reached, the
    ceil(0.95 m)-th of m; "index" (HyNet) that of the next one. Under both, non-matches at exactly that distance are
    accepted. Raises BadInputError without matches, without non-matches, and for distances that are NaN or infinite.
    """
    distances, match = _check_pairs(distances, match)
    matching = distances[match]
    needed = math.ceil(recall * len(matching) - ROUNDING)
    rank = needed - 1 if rule == "rank" else needed
    rank = min(max(rank, 0), len(matching) - 1)
    threshold = np.partition(matching, rank)[rank]
    return float(np.mean(distances[~match] <= threshold))


def cumulative_counts(distances: Float[np.ndarray, " n"], match: Bool[np.ndarray, " n"]) -> CumulativeCounts:
    """All thresholds at once, for ROC and precision-recall plots. Raises BadInputError as `fpr95` does."""
    distances, match = _check_pairs(distances, match)
    order = np.argsort(distances, kind="stable")
    distances, match = distances[order], match[order]
    last = np.flatnonzero(np.r_[distances[1:] != distances[:-1], True])
    true = np.cumsum(match)[last]
    return CumulativeCounts(
        np.r_[-np.inf, distances[last]],
        np.r_[0.0, true],
        np.r_[0.0, last + 1 - true],
    )


def _check_pairs(distances: np.ndarray, match: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distances, match = np.asarray(distances).reshape(-1), np.asarray(match).reshape(-1).astype(bool)
    if len(distances) != len(match):
        raise ValueError(f"{len(distances)} distances for {len(match)} pairs")
    broken = int(np.count_nonzero(~np.isfinite(distances)))
    if broken:
        raise BadInputError(f"{broken} of {len(distances)} distances are not finite; the descriptors are broken")
    matches = int(np.count_nonzero(match))
    if matches in {0, len(match)}:
        raise BadInputError(f"{matches} of {len(match)} test pairs match; verification needs both kinds")
    return distances, match


# ----------------------------------------------------------------------------------------------------------------------
# Average precision of a ranking.
#
# Two definitions of the area under the precision-recall curve are in use: "trapezoid" interpolates linearly between the
# points of the curve, starting at (recall 0, precision 1) (scripts of HPatches and RomePatches); "precision" is the
# mean of the precisions at the relevant items (DOAP, eq. 2).


ApRule = Literal["trapezoid", "precision"]


def average_precision(
    distances: Float[np.ndarray, " n"],
    relevant: Bool[np.ndarray, " n"],
    num_relevant: int | None = None,
    rule: ApRule = "trapezoid",
) -> float:
    """AP in [0, 1] of items ranked by distance; items of equal distance keep their order in the list.

    num_relevant: total number of relevant items, if some are missing from the list; those count as never found.
    """
    ranked = np.asarray(relevant, bool)[np.argsort(distances, kind="stable")]
    ranks = np.flatnonzero(ranked)
    before = ranks - np.arange(len(ranks))
    return float(ap_of_counts(before, len(ranks) if num_relevant is None else num_relevant, rule))


def ap_of_counts(
    before: Int[np.ndarray, "*b r"], num_relevant: int | None = None, rule: ApRule = "trapezoid"
) -> Float[np.ndarray, "*b"]:
    """AP from the number of irrelevant items ranked before each relevant one, ascending along the last axis."""
    num_ranked = before.shape[-1]
    total = num_ranked if num_relevant is None else num_relevant
    if total == 0:
        return np.zeros(before.shape[:-1])
    rank = np.arange(1, num_ranked + 1)
    precision = rank / (rank + before)
    if rule == "trapezoid":
        ahead = rank - 1 + before  # number of items ranked before this one
        previous = np.divide(rank - 1, ahead, out=np.ones_like(precision), where=ahead > 0)
        precision = (precision + previous) / 2
    return precision.sum(axis=-1) / total


# ----------------------------------------------------------------------------------------------------------------------
# Homography estimation: a homography from the matches, and the error of the corners of image 1 under it.
#
# Error of a pair: mean distance, over the four corner pixels of image 1, between their true and their estimated
# positions in image N (SuperPoint, DeTone et al. 2018; AUC as reported by SuperGlue and LoFTR).


MIN_MATCHES_HOMOGRAPHY = 4  # minimum number of matches for a homography


class HomographyConfig(Config):
    """How a homography is estimated (by OpenCV) and evaluated."""

    estimator: Literal["magsac", "ransac"] = "magsac"
    """magsac: USAC with MAGSAC++ scoring and local optimisation; ransac: OpenCV's plain RANSAC with its refinement.
    Both sample uniformly. Results depend on the estimator, so compare only numbers from the same one."""
    max_error_px: Pixels = 3.0
    """Largest error of an inlier, in pixels of image N; 3 in SuperGlue's and LoFTR's evaluations."""
    confidence: Confidence = 0.9999
    """Probability of having drawn an outlier-free sample, at which sampling stops."""
    max_iterations: Trials = 10_000
    """Maximum number of samples. With 10 % inliers the confidence would need 92,000; OpenCV's default is 2,000."""
    seed: Seed = 0
    """Random seed of magsac. OpenCV's plain RANSAC uses a fixed seed."""
    thresholds_px: tuple[Pixels, ...] = (1.0, 3.0, 5.0)
    """Error thresholds of the AUC, in pixels of image N."""
    correct_within_px: tuple[Pixels, ...] = (10.0,)
    """Largest errors at which a homography counts as correct, in pixels of image N. The share of pairs with a correct
    one is reported for each. SuperPoint uses 1, 3 and 5 on HPatches at 480 x 640; 10 suits the full-size images and
    extreme viewpoints of EVD."""


def estimate_homography(
    points0: Float[np.ndarray, "m 2"], points1: Float[np.ndarray, "m 2"], config: HomographyConfig
) -> Float[np.ndarray, "3 3"] | None:
    """Homography that maps image 0 to image 1, or None if there is none. Deterministic."""
    if len(points0) < MIN_MATCHES_HOMOGRAPHY:
        return None
    first, second = (np.ascontiguousarray(points, np.float64) for points in (points0, points1))
    try:
        if config.estimator == "magsac":
            parameters = magsac_parameters(config.seed, config.max_error_px, config.confidence, config.max_iterations)
            homography, _ = cv2.findHomography(first, second, parameters)
        else:
            homography, _ = cv2.findHomography(
                first, second, cv2.RANSAC, config.max_error_px, None, config.max_iterations, config.confidence
            )
    except cv2.error:  # all points are collinear or coincide
        return None
    return homography if homography is not None and np.isfinite(homography).all() and homography[2, 2] != 0 else None


def magsac_parameters(seed: int, max_error: float, confidence: float, max_iterations: int) -> cv2.UsacParams:
    """OpenCV's settings of MAGSAC++ in one thread, since parallel sampling would not be deterministic.

    max_error: in the unit of the points. Source: Barath et al., MAGSAC++, CVPR 2020.
    """
    params = cv2.UsacParams()
    params.score, params.sampler = cv2.SCORE_METHOD_MAGSAC, cv2.SAMPLING_UNIFORM
    params.loMethod, params.final_polisher = cv2.LOCAL_OPTIM_SIGMA, cv2.MAGSAC
    params.isParallel, params.randomGeneratorState = False, seed
    params.threshold, params.confidence, params.maxIterations = max_error, confidence, max_iterations
    return params


def corner_error(
    estimated: Float[np.ndarray, "3 3"] | None, truth: Float[np.ndarray, "3 3"], image_size: tuple[int, int]
) -> float:
    """Mean error in pixels over the corners of image 1; infinite without an estimate.

    image_size: width, height of image 1. Corners are the centres of its corner pixels.
    """
    if estimated is None:
        return float("inf")
    right, bottom = image_size[0] - 1.0, image_size[1] - 1.0
    corners = np.array([[0.0, 0.0], [right, 0.0], [right, bottom], [0.0, bottom]])
    errors = np.linalg.norm(apply_homography(estimated, corners) - apply_homography(truth, corners), axis=1)
    return float(errors.mean()) if np.isfinite(errors).all() else float("inf")


# ----------------------------------------------------------------------------------------------------------------------
# Distance of two descriptors: Euclidean for real values, Hamming for packed bits (uint8).


BITS_SET = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)  # number of set bits in each byte
PAIRS_AT_ONCE = 65536  # 64 MiB of differences for 128 values


def pair_distances(first: Shaped[np.ndarray, "n d"], second: Shaped[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Distance between corresponding rows."""
    if first.dtype == np.uint8:
        return BITS_SET[first ^ second].sum(axis=1, dtype=np.int64).astype(np.float64)
    difference = np.subtract(first, second, dtype=np.float64)
    return np.sqrt(np.einsum("nd,nd->n", difference, difference))


def indexed_distances(
    descriptors: Shaped[np.ndarray, "m d"], index0: np.ndarray, index1: np.ndarray
) -> Float[np.ndarray, " n"]:
    """Distances between pairs of rows of one array, without copying all of them at once."""
    parts = [
        pair_distances(
            descriptors[index0[start : start + PAIRS_AT_ONCE]], descriptors[index1[start : start + PAIRS_AT_ONCE]]
        )
        for start in range(0, len(index0), PAIRS_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def distance_matrix(first: Shaped[np.ndarray, "n d"], second: Shaped[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Distances between all rows of `first` and all rows of `second`, float64."""
    if first.dtype == np.uint8:  # Hamming = (bits - x . y) / 2 for x, y in {-1, 1}; exact in float32
        x, y = (1 - 2 * np.unpackbits(bits, axis=1).astype(np.float32) for bits in (first, second))
        return ((x.shape[1] - x @ y.T) / 2).astype(np.float64)
    a, b = first.astype(np.float64), second.astype(np.float64)
    squared = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2 * (a @ b.T)
    return np.sqrt(np.maximum(squared, 0, out=squared), out=squared)
