"""What is said of relative poses: of one pair, of the pairs of a scene, of a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featkit.evaluation.error_auc import error_auc
from featkit.evaluation.predictions import Method, Predictions
from featkit.types import Pair


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
