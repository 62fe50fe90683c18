"""Robust estimators of relative pose with a common interface, and their scores. A new one is a class and a field."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float

from featkit.core.config import Confidence, Config, Pixels, Trials
from featkit.core.types import Pair
from featkit.evaluation.benchmark import Plain, plain
from featkit.evaluation.metrics import RelativePose, error_auc, magsac_parameters

# ----------------------------------------------------------------------------------------------------------------------
# Input and output of every estimator of relative pose.


MIN_MATCHES_ESSENTIAL = 5  # minimum number of matches for an essential matrix (Nistér 2004)


@dataclass(frozen=True)
class RayMatches:
    """Undistorted matches of two calibrated views.

    points0, points1: intersections of the keypoints' rays with the plane at depth 1; finite. focal_px: mean focal
    length of each camera, in the pixels of an estimator's threshold.
    """

    points0: Float[np.ndarray, "m 2"]
    points1: Float[np.ndarray, "m 2"]
    focal_px: tuple[float, float]

    def __len__(self) -> int:
        return len(self.points0)


@dataclass(frozen=True)
class EstimatedPose:
    """A pose with a translation of arbitrary length, and the matches that agree with it."""

    pose: RelativePose
    inlier: Bool[np.ndarray, " m"]


class PoseEstimator(Config):
    """An estimator, which is also its configuration. The same matches and seed give the same pose."""

    def estimate(self, matches: RayMatches, seed: int) -> EstimatedPose | None:
        """The pose of camera 1 relative to camera 0; None if estimation fails."""
        raise NotImplementedError


# ----------------------------------------------------------------------------------------------------------------------
# OpenCV: an essential matrix by RANSAC, then the one of its four poses with the most points in front of both cameras.


FAR = 1e9  # in baselines: largest depth of points counted as in front (SuperGlue, LoFTR)


class OpencvEstimator(PoseEstimator):
    """`cv2.findEssentialMat` and `cv2.recoverPose`: the protocol of SuperGlue and LoFTR."""

    method: Literal["ransac", "magsac"] = "ransac"
    """Robust estimation method. ransac: OpenCV's plain RANSAC, used for published results on MegaDepth-1500. magsac:
    USAC with MAGSAC++ scoring and local optimisation."""
    max_error_px: Pixels = 0.5
    """Largest distance of an inlier from its epipolar line, px; LoFTR and glue-factory: 0.5, SuperGlue: 1."""
    confidence: Confidence = 0.99999
    """Probability of having drawn an outlier-free sample, at which sampling stops (SuperGlue, LoFTR)."""
    max_iterations: Trials = 1000
    """Maximum number of samples; OpenCV's default, which those protocols use."""

    def estimate(self, matches: RayMatches, seed: int) -> EstimatedPose | None:
        """Estimate the pose. The seed only affects magsac: OpenCV's plain RANSAC has a fixed one."""
        if len(matches) < MIN_MATCHES_ESSENTIAL:
            return None
        focal = float(np.mean(matches.focal_px))
        points0, points1 = (np.ascontiguousarray(p, np.float64) for p in (matches.points0, matches.points1))
        try:
            if self.method == "ransac":
                essential, mask = cv2.findEssentialMat(
                    points0,
                    points1,
                    np.eye(3),
                    method=cv2.RANSAC,
                    prob=self.confidence,
                    threshold=self.max_error_px / focal,
                    maxIters=self.max_iterations,
                )
            else:
                camera = np.diag([focal, focal, 1.0])
                essential, mask = cv2.findEssentialMat(
                    focal * points0,
                    focal * points1,
                    camera,
                    camera,
                    np.zeros(4),
                    np.zeros(4),
                    magsac_parameters(seed, self.max_error_px, self.confidence, self.max_iterations),
                )
            if essential is None or mask is None or not np.isfinite(essential).all():
                return None
            return _best_pose(essential, mask, points0, points1)
        except cv2.error:  # degenerate points
            return None


def _best_pose(
    candidates: Float[np.ndarray, "k 3"],
    mask: Bool[np.ndarray, "m 1"],
    points0: Float[np.ndarray, "m 2"],
    points1: Float[np.ndarray, "m 2"],
) -> EstimatedPose | None:
    """From one or more stacked essential matrices, the pose with the most inliers in front of both cameras."""
    best: EstimatedPose | None = None
    for essential in np.split(candidates, len(candidates) // 3):
        # OpenCV writes into the mask passed to it.
        count, rotation, translation, inlier, _ = cv2.recoverPose(
            essential, points0, points1, np.eye(3), distanceThresh=FAR, mask=mask.copy()
        )
        usable = count >= MIN_MATCHES_ESSENTIAL and np.isfinite(rotation).all() and np.isfinite(translation).all()
        if usable and (best is None or count > best.inlier.sum()):
            best = EstimatedPose(RelativePose(rotation, translation[:, 0]), inlier.ravel() > 0)
    return best


# ----------------------------------------------------------------------------------------------------------------------
# PoseLib's LO-RANSAC: five-point samples, local optimisation, final refinement of the pose on its inliers.


class PoselibEstimator(PoseEstimator):
    """`poselib.estimate_relative_pose`; options that are not listed here keep PoseLib's defaults."""

    max_error_px: Pixels = 1.0
    """Largest Sampson error of an inlier, px: PoseLib's default, and glue-factory's for MegaDepth-1500 in its first
    version. The current version tries 0.5 to 3 and reports the best, which tunes it on the test set."""
    confidence: Confidence = 0.9999
    """Probability of having drawn an outlier-free sample, at which sampling stops; PoseLib's default."""
    min_iterations: Trials = 1000
    """Minimum number of samples; PoseLib's default."""
    max_iterations: Trials = 100_000
    """Maximum number of samples; PoseLib's default, about 4 s for a pair of 2,000 matches without a solution. With
    10,000, RootSIFT loses 7 points of AUC at 5 degrees on castle-P19, where many pairs have 10 to 20 % inliers."""

    def estimate(self, matches: RayMatches, seed: int) -> EstimatedPose | None:
        import poselib

        if len(matches) < MIN_MATCHES_ESSENTIAL:
            return None
        both = (matches.points0, matches.points1)
        scaled = [points * focal for points, focal in zip(both, matches.focal_px, strict=True)]
        cameras = [
            {"model": "SIMPLE_PINHOLE", "width": 0, "height": 0, "params": [focal, 0.0, 0.0]}
            for focal in matches.focal_px
        ]
        options = {
            "max_epipolar_error": self.max_error_px,
            "success_prob": self.confidence,
            "min_iterations": min(self.min_iterations, self.max_iterations),
            "max_iterations": self.max_iterations,
            "seed": seed,
        }
        pose, info = poselib.estimate_relative_pose(*scaled, *cameras, options)
        inlier = np.array(info["inliers"], dtype=bool)
        if inlier.sum() < MIN_MATCHES_ESSENTIAL or not (np.isfinite(pose.R).all() and np.isfinite(pose.t).all()):
            return None
        return EstimatedPose(RelativePose(np.array(pose.R), np.array(pose.t)), inlier)


# ----------------------------------------------------------------------------------------------------------------------
# The estimators that every pair is evaluated with. To add one, write a class above and a field here.


class PoseEstimators(Config):
    """The estimators, by their names in tables."""

    poselib: PoselibEstimator = PoselibEstimator()
    """PoseLib's LO-RANSAC."""
    opencv: OpencvEstimator = OpencvEstimator()
    """OpenCV's estimator."""

    def named(self) -> Iterator[tuple[str, PoseEstimator]]:
        """Names and estimators."""
        for name in type(self).model_fields:
            yield name, getattr(self, name)


# ----------------------------------------------------------------------------------------------------------------------
# Evaluation of estimated poses: errors of one pair, scores of many.


@dataclass(frozen=True)
class EstimatorError(Plain):
    """Errors of one estimated pose in degrees, infinite if estimation failed, and its number of inliers."""

    rotation_deg: float
    translation_deg: float
    inliers: int

    @property
    def deg(self) -> float:
        """The larger of the two errors."""
        return max(self.rotation_deg, self.translation_deg)


@dataclass(frozen=True)
class PosePairScore:
    """One pair. keypoints: of each image. precision: share of correct matches, 0 without any. errors: by estimator."""

    scene: str
    pair: Pair
    keypoints: tuple[int, int]
    matches: int
    precision: float
    errors: dict[str, EstimatorError]

    def as_json(self) -> dict[str, Any]:
        return {
            "scene": self.scene,
            "images": [self.pair.name0, self.pair.name1],
            "keypoints": list(self.keypoints),
            "matches": self.matches,
            **plain({"precision": self.precision, "estimators": self.errors}),
        }


@dataclass(frozen=True)
class EstimatorScore(Plain):
    """One estimator on several pairs. auc: in [0, 1], per threshold. Medians count failures as infinite errors."""

    auc: tuple[float, ...]
    median_deg: float
    median_rotation_deg: float
    median_translation_deg: float
    inliers: float
    failed: int


@dataclass(frozen=True)
class PoseGroupScore(Plain):
    """Means over several pairs. keypoints: mean over their images, each counted once."""

    pairs: int
    keypoints: float
    matches: float
    precision: float
    estimators: dict[str, EstimatorScore]


def group_score(pairs: Sequence[PosePairScore], thresholds_deg: Sequence[float]) -> PoseGroupScore:
    """Scores of one or more pairs."""
    keypoints: dict[tuple[str, str], int] = {}
    for pair in pairs:
        for name, count in zip((pair.pair.name0, pair.pair.name1), pair.keypoints, strict=True):
            keypoints[pair.scene, name] = count
    return PoseGroupScore(
        pairs=len(pairs),
        keypoints=float(np.mean(list(keypoints.values()))),
        matches=float(np.mean([pair.matches for pair in pairs])),
        precision=float(np.mean([pair.precision for pair in pairs])),
        estimators={
            name: _estimator_score([pair.errors[name] for pair in pairs], thresholds_deg) for name in pairs[0].errors
        },
    )


def _estimator_score(errors: Sequence[EstimatorError], thresholds_deg: Sequence[float]) -> EstimatorScore:
    def lower_median(value: Callable[[EstimatorError], float]) -> float:
        """Lower median: with an even number of values, the mean with an infinite error would be useless."""
        return sorted(map(value, errors))[(len(errors) - 1) // 2]

    return EstimatorScore(
        auc=error_auc([error.deg for error in errors], thresholds_deg),
        median_deg=lower_median(lambda error: error.deg),
        median_rotation_deg=lower_median(lambda error: error.rotation_deg),
        median_translation_deg=lower_median(lambda error: error.translation_deg),
        inliers=float(np.mean([error.inliers for error in errors])),
        failed=sum(not np.isfinite(error.deg) for error in errors),
    )
