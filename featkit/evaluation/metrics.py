"""The measures: areas under curves, errors of poses, recalls, matching accuracy, average precision."""

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
# Area under the curve of errors: the share of cases with an error of at most e, over e from 0 to a threshold.


def error_auc(errors: Iterable[float], thresholds: Iterable[float]) -> tuple[float, ...]:
    """Per threshold the area in [0, 1]; 0 without any case. An error of infinity or NaN is a failure.

    The rule of SuperGlue's evaluation (Sarlin et al., CVPR 2020), which later papers keep: straight lines join the
    points (sorted error, share of cases up to it), from (0, 0) on; the last share holds up to the threshold.
    """
    listed = np.asarray(list(errors), dtype=np.float64)
    listed = np.sort(np.where(np.isfinite(listed), listed, np.inf))
    share = np.arange(1, len(listed) + 1) / max(len(listed), 1)
    areas = []
    for threshold in thresholds:
        within = int(np.searchsorted(listed, threshold))
        x = np.concatenate([[0.0], listed[:within], [threshold]])
        y = np.concatenate([[0.0], share[:within], share[within - 1 : within]])
        if within == 0:
            areas.append(0.0)
            continue
        areas.append(float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / threshold))
    return tuple(areas)


# ----------------------------------------------------------------------------------------------------------------------
# Relative pose of two views: its errors in degrees, and what it says of matches.
#
# The protocol of SuperGlue (Sarlin et al., CVPR 2020) and LoFTR (Sun et al., CVPR 2021), MegaDepth-1500's: an error is
# the larger of the angle of the rotation between the rotations and the angle between the directions of the
# translations.


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


# ----------------------------------------------------------------------------------------------------------------------
# Recall of localization: the share of queries within a distance and an angle of their true poses.
#
# Thresholds of the long-term visual localization benchmark (Sattler et al., CVPR 2018, section 4). A query without a
# pose counts as wrong at every threshold.


THRESHOLDS = ((0.25, 2.0), (0.5, 5.0), (5.0, 10.0))  # metres, degrees


@dataclass(frozen=True)
class LocalizationScore:
    """recall: share in [0, 1] per threshold (metres, degrees). Medians are over localized queries, NaN without one."""

    queries: int
    localized: int
    thresholds: tuple[tuple[float, float], ...]
    recall: tuple[float, ...]
    median_m: float
    median_deg: float
    errors: dict[str, tuple[float, float]]
    """Per localized query: centre error (unit of the truth), rotation error (degrees)."""


def score_localization(
    poses: Mapping[str, Pose],
    truth: Mapping[str, Pose],
    queries: Sequence[str],
    thresholds: Sequence[tuple[float, float]] = THRESHOLDS,
) -> LocalizationScore:
    """Score estimated poses of `queries`; those without a true pose are left out of the count.

    Raises BadInputError when not one query has a true pose.
    """
    judged = [name for name in queries if name in truth]
    if not judged:
        raise BadInputError("the truth names none of the queries; names are relative to the folder of the queries")
    errors = {name: pose_error(poses[name], truth[name]) for name in judged if name in poses}
    recall = tuple(
        sum(centre <= metres and angle <= degrees for centre, angle in errors.values()) / len(judged)
        for metres, degrees in thresholds
    )
    table = np.array(list(errors.values())).reshape(-1, 2)
    median = np.median(table, axis=0) if len(table) else np.full(2, np.nan)
    return LocalizationScore(
        len(judged), len(errors), tuple(thresholds), recall, float(median[0]), float(median[1]), errors
    )


def pose_error(pose: Pose, truth: Pose) -> tuple[float, float]:
    """Distance of the camera centres, and angle between the rotations in degrees."""
    distance = float(np.linalg.norm(camera_centre(pose) - camera_centre(truth)))
    return distance, rotation_angle_deg(rotation_matrix(pose.qvec), rotation_matrix(truth.qvec))


# ----------------------------------------------------------------------------------------------------------------------
# Mean matching accuracy (MMA): the share of matches whose reprojection error is at most a threshold.
#
# The error of a match is the distance, in pixels of image N, between the keypoint of image 1 mapped by the true
# homography and the keypoint it is matched with (D2-Net, Dusmanu et al., CVPR 2019; SCFeat, section IV-B). A pair
# without matches has accuracy 0 at every threshold. MMAScore is SCFeat's eq. 24.


SCORE_AT_0, SCORE_SLOPE = 2.0, 0.1  # of eq. 24: the weight of threshold t px is 2 - 0.1 t
THRESHOLDS_PX = tuple(float(t) for t in range(1, 11))


def reprojection_errors(
    keypoints0: Float[np.ndarray, "n0 2"],
    keypoints1: Float[np.ndarray, "n1 2"],
    matches: Matches,
    homography: Float[np.ndarray, "3 3"],
) -> Float[np.ndarray, " m"]:
    """Error of every match in pixels of image 1; infinite where the homography maps a point behind the camera.

    homography: image 0 -> image 1.
    """
    index = matches.as_index_pairs()
    mapped = apply_homography(homography, keypoints0[index[:, 0]].astype(np.float64))
    errors = np.linalg.norm(mapped - keypoints1[index[:, 1]], axis=1)
    return np.where(np.isnan(errors), np.inf, errors)


def accuracy(errors: Float[np.ndarray, " m"], thresholds_px: Sequence[float] = THRESHOLDS_PX) -> np.ndarray:
    """Share of the errors up to each threshold, float64; all 0 when there is no match."""
    if len(errors) == 0:
        return np.zeros(len(thresholds_px))
    return (errors[None] <= np.asarray(thresholds_px)[:, None]).mean(axis=1)


def mma_score(curve: Float[np.ndarray, " t"], thresholds_px: Sequence[float] = THRESHOLDS_PX) -> float:
    """Eq. 24: mean of MMA over the thresholds, weighted by 2 - 0.1 t."""
    weights = SCORE_AT_0 - SCORE_SLOPE * np.asarray(thresholds_px)
    return float(np.sum(weights * curve) / np.sum(weights))


# ----------------------------------------------------------------------------------------------------------------------
# Patch verification: is a pair of patches a match? Curves over a threshold on the distance, and FPR95.
#
# FPR95 is UBC's measure (Winder et al., CVPR 2009): the share of non-matching pairs that a threshold lets through when
# it keeps 95 % of the matching ones. Curves walk along the pairs in order of distance; pairs of equal distance are one
# step, so that nothing depends on the order in which the pairs are listed (binary descriptors have many ties).


RECALL = 0.95  # UBC's operating point
ROUNDING = 1e-9  # 0.95 n must not reach the next integer through rounding


@dataclass(frozen=True)
class Curve:
    """Counts of matches and non-matches within each distinct distance, ascending; the first row is (-inf, 0, 0)."""

    distance: Float[np.ndarray, " k"]
    true_positives: Float[np.ndarray, " k"]
    false_positives: Float[np.ndarray, " k"]

    @property
    def recall(self) -> Float[np.ndarray, " k"]:
        """Share of the matches found; also the true positive rate."""
        return self.true_positives / self.true_positives[-1]

    @property
    def false_positive_rate(self) -> Float[np.ndarray, " k"]:
        return self.false_positives / self.false_positives[-1]

    @property
    def precision(self) -> Float[np.ndarray, " k"]:
        """Share of matches among the pairs let through; 1 where none is."""
        found = self.true_positives + self.false_positives
        return np.divide(self.true_positives, found, out=np.ones_like(found), where=found > 0)

    @property
    def auc(self) -> float:
        """Area under the ROC curve: how often a match is nearer than a non-match, a tie counting one half."""
        x, y = self.false_positive_rate, self.recall
        return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def fpr95(
    distances: Float[np.ndarray, " n"],
    match: Bool[np.ndarray, " n"],
    recall: float = RECALL,
    rule: Literal["rank", "index"] = "rank",
) -> float:
    """Share in [0, 1] of the non-matches within the distance that holds `recall` of the matches.

    rule "rank" (HardNet, SDGMNet): the distance of the first match at which the recall is reached, the
    ceil(0.95 m)-th of m. "index" (HyNet): that of the one after it. Non-matches of just that distance count as let
    through under both. Raises BadInputError without matches, without non-matches, and for distances that are no
    numbers.
    """
    distances, match = _checked(distances, match)
    matching = distances[match]
    needed = math.ceil(recall * len(matching) - ROUNDING)
    rank = needed - 1 if rule == "rank" else needed
    rank = min(max(rank, 0), len(matching) - 1)
    threshold = np.partition(matching, rank)[rank]
    return float(np.mean(distances[~match] <= threshold))


def curve(distances: Float[np.ndarray, " n"], match: Bool[np.ndarray, " n"]) -> Curve:
    """All thresholds at once, for ROC and precision-recall plots. Raises BadInputError as `fpr95` does."""
    distances, match = _checked(distances, match)
    order = np.argsort(distances, kind="stable")
    distances, match = distances[order], match[order]
    last = np.flatnonzero(np.r_[distances[1:] != distances[:-1], True])
    true = np.cumsum(match)[last]
    return Curve(
        np.r_[-np.inf, distances[last]],
        np.r_[0.0, true],
        np.r_[0.0, last + 1 - true],
    )


def _checked(distances: np.ndarray, match: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
# Two readings of the area under the precision-recall curve are in use: "trapezoid" joins the points of the curve by
# straight lines, the first one being (recall 0, precision 1) (HPatches' and RomePatches' scripts); "precision" is the
# mean of the precisions at the relevant items (DOAP, eq. 2).


ApRule = Literal["trapezoid", "precision"]


def average_precision(
    distances: Float[np.ndarray, " n"],
    relevant: Bool[np.ndarray, " n"],
    num_relevant: int | None = None,
    rule: ApRule = "trapezoid",
) -> float:
    """AP in [0, 1] of items ranked by distance; items of equal distance stay in the order of the list.

    num_relevant: how many there are to be found, when some of them are not in the list; they count as never found.
    """
    ranked = np.asarray(relevant, bool)[np.argsort(distances, kind="stable")]
    places = np.flatnonzero(ranked)
    before = places - np.arange(len(places))
    return float(ap_of_counts(before, len(places) if num_relevant is None else num_relevant, rule))


def ap_of_counts(
    before: Int[np.ndarray, "*b r"], num_relevant: int | None = None, rule: ApRule = "trapezoid"
) -> Float[np.ndarray, "*b"]:
    """AP from the number of irrelevant items ahead of each relevant one, ascending along the last axis."""
    found = before.shape[-1]
    total = found if num_relevant is None else num_relevant
    if total == 0:
        return np.zeros(before.shape[:-1])
    rank = np.arange(1, found + 1)
    precision = rank / (rank + before)
    if rule == "trapezoid":
        ahead = rank - 1 + before  # the items up to the one just before
        previous = np.divide(rank - 1, ahead, out=np.ones_like(precision), where=ahead > 0)
        precision = (precision + previous) / 2
    return precision.sum(axis=-1) / total


# ----------------------------------------------------------------------------------------------------------------------
# Homography estimation: a homography from the matches, and how far it carries the corners of image 1 from the truth.
#
# Error of a pair: mean distance, over the four corner pixels of image 1, between their true and their estimated place
# in image N (SuperPoint, DeTone et al. 2018; AUC as SuperGlue and LoFTR report it).


MIN_MATCHES_HOMOGRAPHY = 4  # matches that a homography takes


class HomographyConfig(Config):
    """How a homography is estimated and judged; OpenCV does the first."""

    estimator: Literal["magsac", "ransac"] = "magsac"
    """magsac: USAC with MAGSAC++'s score and local optimisation; ransac: OpenCV's plain RANSAC with its refinement.
    Both draw uniformly. The estimator moves results, so numbers compare only under the same one."""
    max_error_px: Pixels = 3.0
    """Largest error of an inlier, in pixels of image N; 3 in SuperGlue's and LoFTR's evaluations."""
    confidence: Confidence = 0.9999
    """Probability of a draw without outliers, after which drawing ends."""
    max_iterations: Trials = 10_000
    """Draws at most. At 10 % inliers the confidence would take 92,000; OpenCV's own default is 2,000."""
    seed: Seed = 0
    """Of magsac's draws. OpenCV's plain RANSAC has one fixed seed of its own."""
    thresholds_px: tuple[Pixels, ...] = (1.0, 3.0, 5.0)
    """Of the AUC, in pixels of image N."""
    correct_within_px: tuple[Pixels, ...] = (10.0,)
    """Errors up to which a homography counts as found, in pixels of image N, for the share of pairs that have one.
    SuperPoint takes 1, 3 and 5 on HPatches at 480 x 640; 10 suits whole photographs of extreme viewpoints (EVD)."""


def estimate_homography(
    points0: Float[np.ndarray, "m 2"], points1: Float[np.ndarray, "m 2"], config: HomographyConfig
) -> Float[np.ndarray, "3 3"] | None:
    """Homography that maps matching points 0 -> 1, None when there is none. The same points give the same matrix."""
    if len(points0) < MIN_MATCHES_HOMOGRAPHY:
        return None
    first, second = (np.ascontiguousarray(points, np.float64) for points in (points0, points1))
    try:
        if config.estimator == "magsac":
            found, _ = cv2.findHomography(first, second, _usac(config))
        else:
            found, _ = cv2.findHomography(
                first, second, cv2.RANSAC, config.max_error_px, None, config.max_iterations, config.confidence
            )
    except cv2.error:  # all points on one line, or in one place
        return None
    return found if found is not None and np.isfinite(found).all() and found[2, 2] != 0 else None


def _usac(config: HomographyConfig) -> cv2.UsacParams:
    params = cv2.UsacParams()
    params.score = cv2.SCORE_METHOD_MAGSAC
    params.loMethod = cv2.LOCAL_OPTIM_SIGMA
    params.final_polisher = cv2.MAGSAC
    params.sampler = cv2.SAMPLING_UNIFORM
    params.isParallel = False  # threads would draw in any order
    params.randomGeneratorState = config.seed
    params.threshold = config.max_error_px
    params.confidence = config.confidence
    params.maxIterations = config.max_iterations
    return params


def corner_error(
    estimated: Float[np.ndarray, "3 3"] | None, truth: Float[np.ndarray, "3 3"], image_size: tuple[int, int]
) -> float:
    """Mean error in pixels over the corners of image 1, infinite without an estimate.

    image_size: width, height of image 1. Corners are the centres of its corner pixels.
    """
    if estimated is None:
        return float("inf")
    right, bottom = image_size[0] - 1.0, image_size[1] - 1.0
    corners = np.array([[0.0, 0.0], [right, 0.0], [right, bottom], [0.0, bottom]])
    errors = np.linalg.norm(apply_homography(estimated, corners) - apply_homography(truth, corners), axis=1)
    return float(errors.mean()) if np.isfinite(errors).all() else float("inf")


# ----------------------------------------------------------------------------------------------------------------------
# How far two descriptors are apart: Euclidean for real values, Hamming for packed bits (uint8).


BITS_SET = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)  # of every byte
PAIRS_AT_ONCE = 65536  # 64 MiB of differences for 128 values


def pair_distances(first: Shaped[np.ndarray, "n d"], second: Shaped[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Distance of row i of the one to row i of the other."""
    if first.dtype == np.uint8:
        return BITS_SET[first ^ second].sum(axis=1, dtype=np.int64).astype(np.float64)
    difference = np.subtract(first, second, dtype=np.float64)
    return np.sqrt(np.einsum("nd,nd->n", difference, difference))


def indexed_distances(
    descriptors: Shaped[np.ndarray, "m d"], index0: np.ndarray, index1: np.ndarray
) -> Float[np.ndarray, " n"]:
    """Distances of pairs of rows of one table, without a copy of all of them."""
    parts = [
        pair_distances(
            descriptors[index0[start : start + PAIRS_AT_ONCE]], descriptors[index1[start : start + PAIRS_AT_ONCE]]
        )
        for start in range(0, len(index0), PAIRS_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def distance_matrix(first: Shaped[np.ndarray, "n d"], second: Shaped[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Distances of all rows to all rows, in float64."""
    if first.dtype == np.uint8:  # Hamming = (bits - x . y) / 2 for x, y in {-1, 1}; exact in float32
        x, y = (1 - 2 * np.unpackbits(bits, axis=1).astype(np.float32) for bits in (first, second))
        return ((x.shape[1] - x @ y.T) / 2).astype(np.float64)
    a, b = first.astype(np.float64), second.astype(np.float64)
    squared = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2 * (a @ b.T)
    return np.sqrt(np.maximum(squared, 0, out=squared), out=squared)
