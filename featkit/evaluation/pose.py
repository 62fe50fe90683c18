"""Relative pose of image pairs with known cameras, in the way of MegaDepth-1500.

Of each pair: matches -> rays without lens -> a pose by every estimator -> its error, the larger of the angles between
rotations and between directions of translation (SuperGlue, CVPR 2020; LoFTR, CVPR 2021). Scores are the AUC of these
errors at 5, 10 and 20 degrees, a pair without a pose counting as infinitely wrong, and the precision of the matches
by the true epipolar geometry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from featkit.core.config import Config, Degrees, Factor, Seed
from featkit.core.log import progress
from featkit.core.registry import Method
from featkit.core.types import Pair
from featkit.evaluation.metrics import error_auc, pose_errors_deg, symmetric_epipolar_errors
from featkit.evaluation.pose_estimators import EstimatedPose, PoseEstimator, PoseEstimators, RayMatches
from featkit.evaluation.pose_pairs import PosedScene, PosePairsConfig
from featkit.evaluation.predictions import Predictions
from featkit.io.features import FeatureStore, open_features
from featkit.io.matches import MatchStore, open_matches


class RelativePoseConfig(Config):
    """What is measured, on which pairs and with which estimators."""

    pairs: PosePairsConfig = PosePairsConfig()
    """Which pairs of images are taken."""
    estimators: PoseEstimators = PoseEstimators()
    """The estimators that every method is measured with."""
    seed: Seed = 0
    """Of the pairs that are drawn, and of the estimators' draws."""
    threshold_pixels: Literal["resized", "original"] = "resized"
    """Whose pixels the estimators' thresholds are counted in. resized: of the image as features were taken from it
    (SuperGlue, glue-factory); original: of the file (LoFTR)."""
    signed_translation: bool = False
    """Whether a translation that points the opposite way is wrong by 180 degrees. SuperGlue, LoFTR and glue-factory
    take it for right, since an essential matrix alone has no sign."""
    thresholds_deg: tuple[Degrees, ...] = (5.0, 10.0, 20.0)
    """Of the AUC, degrees (SuperGlue, LoFTR)."""
    max_epipolar_error: Factor = 1e-4
    """Largest symmetric epipolar error of a right match: squared distances to the true epipolar lines, added, in
    normalised image units; LoFTR's for MegaDepth."""


@dataclass(frozen=True)
class MatchedPair:
    """Matches of a pair: their keypoints (featkit pixels of the files), rays and symmetric epipolar errors.

    usable: matches whose keypoints the lens can undo; rays of the others are NaN. focal_px: in the pixels of the
    estimators' thresholds. counts: keypoints of both images.
    """

    keypoints: tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2"]]
    rays: tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2"]]
    usable: Bool[np.ndarray, " m"]
    epipolar_errors: Float[np.ndarray, " m"]
    focal_px: tuple[float, float]
    counts: tuple[int, int]

    def estimate(self, estimator: PoseEstimator, seed: int) -> EstimatedPose | None:
        """A pose and, of all matches, its inliers."""
        points0, points1 = (points[self.usable] for points in self.rays)
        found = estimator.estimate(RayMatches(points0, points1, self.focal_px), seed)
        if found is None:
            return None
        inlier = np.zeros(len(self.usable), bool)
        inlier[self.usable] = found.inlier
        return EstimatedPose(found.pose, inlier)


def evaluate_poses(
    scenes: Sequence[PosedScene],
    pairs: Mapping[str, Sequence[Pair]],
    predictions: Mapping[str, Predictions],
    config: RelativePoseConfig | None = None,
) -> PoseScore:
    """Measure a method. One pair is in memory at a time. Raises BadInputError for damaged stores.

    pairs, predictions: by the name of the scene, at least one pair each.
    """
    config = config or RelativePoseConfig()
    scores: list[PairScore] = []
    with progress("measure", sum(len(pairs[scene.name]) for scene in scenes), "pairs") as advance:
        for scene in scenes:
            one = predictions[scene.name]
            assert one.matches is not None, "poses are measured on matches"
            with open_features(one.features) as features, open_matches(one.matches) as matches:
                for pair in pairs[scene.name]:
                    matched = read_matched(scene, pair, features, matches, threshold_side(one, config))
                    scores.append(score_pair(scene, pair, matched, config))
                    advance(1)
    groups = {
        scene.name: group_score([score for score in scores if score.scene == scene.name], config.thresholds_deg)
        for scene in scenes
    }
    method = predictions[scenes[0].name].method
    return PoseScore(method, dict(predictions), tuple(scores), groups, group_score(scores, config.thresholds_deg))


def threshold_side(predictions: Predictions, config: RelativePoseConfig) -> int | None:
    """Longer side that images are reduced to before thresholds are counted in their pixels; None: not reduced."""
    return predictions.method.config.decode.resize_max if config.threshold_pixels == "resized" else None


def read_matched(
    scene: PosedScene, pair: Pair, features: FeatureStore, matches: MatchStore, longer_side: int | None = None
) -> MatchedPair:
    """The matches of a pair as rays. longer_side: of images in whose pixels thresholds are; larger ones are reduced."""
    names = (pair.name0, pair.name1)
    cameras = [scene.calibrations[name] for name in names]
    everything = [features.keypoints(name) for name in names]
    index = matches.read(pair).as_index_pairs()
    keypoints = [points[index[:, side]] for side, points in enumerate(everything)]
    rays = [camera.rays(points) for camera, points in zip(cameras, keypoints, strict=True)]
    usable = np.isfinite(np.concatenate(rays, axis=1)).all(axis=1)
    errors = np.full(len(index), np.inf)
    errors[usable] = symmetric_epipolar_errors(scene.relative(pair), rays[0][usable], rays[1][usable])
    longest = [max(features.image_size(name)) for name in names]
    focal = [
        camera.focal_px * min(1.0, (longer_side or side) / side) for camera, side in zip(cameras, longest, strict=True)
    ]
    return MatchedPair(
        (keypoints[0], keypoints[1]),
        (rays[0], rays[1]),
        usable,
        errors,
        (focal[0], focal[1]),
        (len(everything[0]), len(everything[1])),
    )


def score_pair(scene: PosedScene, pair: Pair, matched: MatchedPair, config: RelativePoseConfig) -> PairScore:
    """Precision of the matches, and the error of every estimator."""
    truth = scene.relative(pair)
    errors = {}
    for name, estimator in config.estimators.named():
        found = matched.estimate(estimator, config.seed)
        angles = pose_errors_deg(None if found is None else found.pose, truth, config.signed_translation)
        errors[name] = EstimatorError(*angles, 0 if found is None else int(found.inlier.sum()))
    right = matched.epipolar_errors < config.max_epipolar_error
    return PairScore(
        scene=scene.name,
        pair=pair,
        keypoints=matched.counts,
        matches=len(right),
        precision=float(right.mean()) if len(right) else 0.0,
        errors=errors,
    )


# ----------------------------------------------------------------------------------------------------------------------
# What is said of relative poses: of one pair, of the pairs of a scene, of a method.


@dataclass(frozen=True)
class EstimatorError:
    """Errors of one estimated pose in degrees, infinite where there is none, and the matches that agree with it."""

    rotation_deg: float
    translation_deg: float
    inliers: int

    @property
    def deg(self) -> float:
        """The larger one."""
        return max(self.rotation_deg, self.translation_deg)

    def as_json(self) -> dict[str, Any]:
        """Plain values; no errors where there is no pose."""
        return {
            "rotation_deg": _finite(self.rotation_deg),
            "translation_deg": _finite(self.translation_deg),
            "inliers": self.inliers,
        }


@dataclass(frozen=True)
class PairScore:
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
            "precision": round(self.precision, 6),
            "estimators": {name: error.as_json() for name, error in self.errors.items()},
        }


@dataclass(frozen=True)
class EstimatorScore:
    """One estimator on some pairs. auc: in [0, 1], per threshold. Medians count failures as infinite."""

    auc: tuple[float, ...]
    median_deg: float
    median_rotation_deg: float
    median_translation_deg: float
    inliers: float
    failed: int

    def as_json(self) -> dict[str, Any]:
        return {
            "auc": [round(value, 6) for value in self.auc],
            "median_deg": _finite(self.median_deg),
            "median_rotation_deg": _finite(self.median_rotation_deg),
            "median_translation_deg": _finite(self.median_translation_deg),
            "inliers": round(self.inliers, 2),
            "failed": self.failed,
        }


@dataclass(frozen=True)
class GroupScore:
    """Means over some pairs. keypoints: over their images, each counted once."""

    pairs: int
    keypoints: float
    matches: float
    precision: float
    estimators: dict[str, EstimatorScore]

    def as_json(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "keypoints": round(self.keypoints, 2),
            "matches": round(self.matches, 2),
            "precision": round(self.precision, 6),
            "estimators": {name: score.as_json() for name, score in self.estimators.items()},
        }


@dataclass(frozen=True)
class PoseScore:
    """A method on all scenes. predictions: by scene. overall: over the pairs of all scenes together."""

    method: Method
    predictions: dict[str, Predictions]
    pairs: tuple[PairScore, ...]
    scenes: dict[str, GroupScore]
    overall: GroupScore

    @property
    def name(self) -> str:
        return self.method.name

    def as_json(self) -> dict[str, Any]:
        stages = {stage for one in self.predictions.values() for stage in one.seconds}
        return {
            **self.method.described(),
            "seconds": {
                stage: round(sum(one.seconds.get(stage, 0.0) for one in self.predictions.values()), 3)
                for stage in sorted(stages)
            },
            "overall": self.overall.as_json(),
            "scenes": {name: group.as_json() for name, group in self.scenes.items()},
            "pairs": [pair.as_json() for pair in self.pairs],
        }


def group_score(pairs: Sequence[PairScore], thresholds_deg: Sequence[float]) -> GroupScore:
    """Scores of some pairs, at least one."""
    keypoints: dict[tuple[str, str], int] = {}
    for pair in pairs:
        for name, count in zip((pair.pair.name0, pair.pair.name1), pair.keypoints, strict=True):
            keypoints[pair.scene, name] = count
    return GroupScore(
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


def _finite(value: float) -> float | None:
    return round(value, 6) if np.isfinite(value) else None
