"""Robust estimators of relative pose behind one signature, and the scores of what they find. A new one is a class and a
field here."""

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
from featkit.evaluation.metrics import RelativePose, error_auc

# ----------------------------------------------------------------------------------------------------------------------
# What every estimator of relative pose takes and gives.


MIN_MATCHES_ESSENTIAL = 5  # matches that an essential matrix takes (Nistér 2004)


@dataclass(frozen=True)
class RayMatches:
    """Matches of two calibrated views, lens distortion taken out.

    points0, points1: where the rays of the matching keypoints meet the planes at depth 1; finite. focal_px: mean focal
    lengths of both cameras, in the pixels that an estimator's threshold is counted in.
    """

    points0: Float[np.ndarray, "m 2"]
    points1: Float[np.ndarray, "m 2"]
    focal_px: tuple[float, float]

    def __len__(self) -> int:
        return len(self.points0)


@dataclass(frozen=True)
class EstimatedPose:
    """A pose, its translation of any length, and the matches that agree with it."""

    pose: RelativePose
    inlier: Bool[np.ndarray, " m"]


class PoseEstimator(Config):
    """An estimator is its configuration. The same matches and the same seed give the same pose."""

    def estimate(self, matches: RayMatches, seed: int) -> EstimatedPose | None:
        """The pose of camera 1 as seen from camera 0; None where there is none."""
        raise NotImplementedError


# ----------------------------------------------------------------------------------------------------------------------
# OpenCV: an essential matrix by RANSAC, then of its four poses the one with most points in front of both cameras.


FAR = 1e9  # baselines: points up to this depth count as in front (SuperGlue, LoFTR)


class OpencvEstimator(PoseEstimator):
    """`cv2.findEssentialMat` and `cv2.recoverPose`: the protocol of SuperGlue and LoFTR."""

    method: Literal["ransac", "magsac"] = "ransac"
    """ransac: OpenCV's plain RANSAC, which published results on MegaDepth-1500 are made with. magsac: USAC with
    MAGSAC++'s score and local optimisation."""
    max_error_px: Pixels = 0.5
    """Largest distance of an inlier from its epipolar line, px; LoFTR and glue-factory: 0.5, SuperGlue: 1."""
    confidence: Confidence = 0.99999
    """Probability of a draw without outliers, after which drawing ends (SuperGlue, LoFTR)."""
    max_iterations: Trials = 1000
    """Draws at most; OpenCV's default, which those protocols leave as it is."""

    def estimate(self, matches: RayMatches, seed: int) -> EstimatedPose | None:
        """Plain RANSAC takes no seed: OpenCV's own is fixed."""
        if len(matches) < MIN_MATCHES_ESSENTIAL:
            return None
        focal = float(np.mean(matches.focal_px))
        points0, points1 = (np.ascontiguousarray(p, np.float64) for p in (matches.points0, matches.points1))
        try:
            if self.method == "ransac":
                found, mask = cv2.findEssentialMat(
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
                found, mask = cv2.findEssentialMat(
                    focal * points0, focal * points1, camera, camera, np.zeros(4), np.zeros(4), self._usac(seed)
                )
            if found is None or mask is None or not np.isfinite(found).all():
                return None
            return _best_pose(found, mask, points0, points1)
        except cv2.error:  # points that no essential matrix can be computed from
            return None

    def _usac(self, seed: int) -> cv2.UsacParams:
        params = cv2.UsacParams()
        params.score = cv2.SCORE_METHOD_MAGSAC
        params.loMethod = cv2.LOCAL_OPTIM_SIGMA
        params.final_polisher = cv2.MAGSAC
        params.sampler = cv2.SAMPLING_UNIFORM
        params.isParallel = False  # threads would draw in any order
        params.randomGeneratorState = seed
        params.threshold = self.max_error_px
        params.confidence = self.confidence
        params.maxIterations = self.max_iterations
        return params


def _best_pose(
    candidates: Float[np.ndarray, "k 3"],
    mask: Bool[np.ndarray, "m 1"],
    points0: Float[np.ndarray, "m 2"],
    points1: Float[np.ndarray, "m 2"],
) -> EstimatedPose | None:
    """Of one or more essential matrices, one above the other, the pose with most inliers in front of both cameras."""
    best: EstimatedPose | None = None
    for essential in np.split(candidates, len(candidates) // 3):
        # OpenCV writes into the mask it is given.
        count, rotation, translation, inlier, _ = cv2.recoverPose(
            essential, points0, points1, np.eye(3), distanceThresh=FAR, mask=mask.copy()
        )
        usable = count >= MIN_MATCHES_ESSENTIAL and np.isfinite(rotation).all() and np.isfinite(translation).all()
        if usable and (best is None or count > best.inlier.sum()):
            best = EstimatedPose(RelativePose(rotation, translation[:, 0]), inlier.ravel() > 0)
    return best


# ----------------------------------------------------------------------------------------------------------------------
# PoseLib's LO-RANSAC: five-point samples, local optimisation, a last refinement of the pose on its inliers.


class PoselibEstimator(PoseEstimator):
    """`poselib.estimate_relative_pose`; fields that are not here keep PoseLib's defaults."""

    max_error_px: Pixels = 1.0
    """Largest Sampson error of an inlier, px: PoseLib's default, and glue-factory's for MegaDepth-1500 in its first
    version. Its present one tries 0.5 to 3 and reports the best, which chooses on the test set."""
    confidence: Confidence = 0.9999
    """Probability of a draw without outliers, after which drawing ends; PoseLib's default."""
    min_iterations: Trials = 1000
    """Draws at least; PoseLib's default."""
    max_iterations: Trials = 100_000
    """Draws at most; PoseLib's default, some 4 s for a pair of 2,000 matches without a solution. With 10,000, RootSIFT
    loses 7 points of AUC at 5 degrees on castle-P19, where many pairs have 10 to 20 % right matches."""

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
        found, told = poselib.estimate_relative_pose(*scaled, *cameras, options)
        inlier = np.array(told["inliers"], dtype=bool)
        if inlier.sum() < MIN_MATCHES_ESSENTIAL or not (np.isfinite(found.R).all() and np.isfinite(found.t).all()):
            return None
        return EstimatedPose(RelativePose(np.array(found.R), np.array(found.t)), inlier)


# ----------------------------------------------------------------------------------------------------------------------
# The estimators that every pair is measured with. A new one is a file and a field here.


class PoseEstimators(Config):
    """By the names they have in tables."""

    poselib: PoselibEstimator = PoselibEstimator()
    """PoseLib's LO-RANSAC."""
    opencv: OpencvEstimator = OpencvEstimator()
    """OpenCV's estimator."""

    def named(self) -> Iterator[tuple[str, PoseEstimator]]:
        """Names and estimators."""
        for name in type(self).model_fields:
            yield name, getattr(self, name)


# ----------------------------------------------------------------------------------------------------------------------
# What estimated poses come to: errors of one pair, scores of many.


@dataclass(frozen=True)
class EstimatorError(Plain):
    """Errors of one estimated pose in degrees, infinite where there is none, and the matches that agree with it."""

    rotation_deg: float
    translation_deg: float
    inliers: int

    @property
    def deg(self) -> float:
        """The larger one."""
        return max(self.rotation_deg, self.translation_deg)


@dataclass(frozen=True)
class PosePairScore:
    """One pair. keypoints: of both images. precision: share of right matches, 0 without any. errors: by estimator."""

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
    """One estimator on some pairs. auc: in [0, 1], per threshold. Medians count failures as infinite."""

    auc: tuple[float, ...]
    median_deg: float
    median_rotation_deg: float
    median_translation_deg: float
    inliers: float
    failed: int


@dataclass(frozen=True)
class PoseGroupScore(Plain):
    """Means over some pairs. keypoints: over their images, each counted once."""

    pairs: int
    keypoints: float
    matches: float
    precision: float
    estimators: dict[str, EstimatorScore]


def group_score(pairs: Sequence[PosePairScore], thresholds_deg: Sequence[float]) -> PoseGroupScore:
    """Scores of some pairs, at least one."""
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
    def median(value: Callable[[EstimatorError], float]) -> float:
        """Of an even number of values the lower middle one: half a failure is no number."""
        return sorted(map(value, errors))[(len(errors) - 1) // 2]

    return EstimatorScore(
        auc=error_auc([error.deg for error in errors], thresholds_deg),
        median_deg=median(lambda error: error.deg),
        median_rotation_deg=median(lambda error: error.rotation_deg),
        median_translation_deg=median(lambda error: error.translation_deg),
        inliers=float(np.mean([error.inliers for error in errors])),
        failed=sum(not np.isfinite(error.deg) for error in errors),
    )
