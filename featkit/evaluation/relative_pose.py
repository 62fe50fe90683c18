"""Relative pose of image pairs with known cameras, in the way of MegaDepth-1500.

Of each pair: matches -> rays without lens -> a pose by every estimator -> its error, the larger of the angles between
rotations and between directions of translation (SuperGlue, CVPR 2020; LoFTR, CVPR 2021). Scores are the AUC of these
errors at 5, 10 and 20 degrees, a pair without a pose counting as infinitely wrong, and the precision of the matches
by the true epipolar geometry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field

from featkit.config import Config
from featkit.evaluation.pose_error import pose_errors_deg, symmetric_epipolar_errors
from featkit.evaluation.pose_estimators.all import PoseEstimators
from featkit.evaluation.pose_estimators.base import EstimatedPose, PoseEstimator, RayMatches
from featkit.evaluation.pose_pairs import PosePairsConfig
from featkit.evaluation.pose_scenes import PosedScene
from featkit.evaluation.pose_scores import EstimatorError, PairScore, PoseScore, group_score
from featkit.evaluation.predictions import Predictions
from featkit.log import progress
from featkit.store.features import FeatureStore, open_features
from featkit.store.matches import MatchStore, open_matches
from featkit.types import Pair


class RelativePoseConfig(Config):
    """What is measured, on which pairs and with which estimators."""

    pairs: PosePairsConfig = PosePairsConfig()
    estimators: PoseEstimators = PoseEstimators()
    seed: int = Field(0, ge=0)
    """Of the pairs that are drawn, and of the estimators' draws."""
    threshold_pixels: Literal["resized", "original"] = "resized"
    """Whose pixels the estimators' thresholds are counted in. resized: of the image as features were taken from it
    (SuperGlue, glue-factory); original: of the file (LoFTR)."""
    signed_translation: bool = False
    """Whether a translation that points the opposite way is wrong by 180 degrees. SuperGlue, LoFTR and glue-factory
    take it for right, since an essential matrix alone has no sign."""
    thresholds_deg: tuple[float, ...] = (5.0, 10.0, 20.0)
    """Of the AUC, degrees (SuperGlue, LoFTR)."""
    max_epipolar_error: float = Field(1e-4, gt=0)
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
    return predictions.method.job.config.decode.resize_max if config.threshold_pixels == "resized" else None


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
