"""Image matching on sequences with known homographies: the protocol of D2-Net, which SCFeat follows (section IV-B).

Features of image 1 are matched with those of each other image (mutual nearest neighbours). Per pair: MMA at 1 to 10 px
and the error of the homography estimated from the matches: its AUC, and the share of pairs in which it is small enough
to count as found. A group's numbers are means over its pairs; its number of features is a mean over its images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from featkit.core.config import Config, Pixels
from featkit.core.log import progress
from featkit.evaluation.metrics import (
    THRESHOLDS_PX,
    HomographyConfig,
    accuracy,
    corner_error,
    error_auc,
    estimate_homography,
    mma_score,
    reprojection_errors,
)
from featkit.evaluation.predictions import Predictions
from featkit.evaluation.sequences import SequencePair, SequenceSet
from featkit.io.features import FeatureStore, open_features
from featkit.io.matches import MatchStore, open_matches

OVERALL = "overall"


class MatchingConfig(Config):
    """What is measured."""

    thresholds_px: tuple[Pixels, ...] = THRESHOLDS_PX
    """Of MMA, in pixels of image N; SCFeat, eq. 24."""
    homography: HomographyConfig = HomographyConfig()
    """How a homography is estimated from the matches."""


@dataclass(frozen=True)
class PairScore:
    """One pair. image: its number, from 2. features: of image 1 and of it. accuracy: MMA at each threshold."""

    sequence: str
    image: int
    features: tuple[int, int]
    matches: int
    accuracy: Float[np.ndarray, " t"]
    corner_error_px: float

    def as_json(self) -> dict[str, Any]:
        """Plain values; no error where there is no homography."""
        found = bool(np.isfinite(self.corner_error_px))
        return {
            "sequence": self.sequence,
            "image": self.image,
            "features": list(self.features),
            "matches": self.matches,
            "mma": _rounded(self.accuracy),
            "corner_error_px": round(self.corner_error_px, 4) if found else None,
        }


@dataclass(frozen=True)
class GroupScore:
    """Means over the pairs of a group; features: over its images. Shares in [0, 1], one per threshold."""

    name: str
    pairs: int
    features: float
    matches: float
    accuracy: Float[np.ndarray, " t"]
    mma_score: float
    homography_auc: tuple[float, ...]
    homography_found: tuple[float, ...]
    """Share of the pairs whose homography is right within each of `correct_within_px`."""

    def as_json(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "features": round(self.features, 2),
            "matches": round(self.matches, 2),
            "mma": _rounded(self.accuracy),
            "mma_score": round(self.mma_score, 6),
            "homography_auc": _rounded(self.homography_auc),
            "homography_found": _rounded(self.homography_found),
        }


@dataclass(frozen=True)
class MethodScore:
    """A method on all sequences. groups: "illumination", "viewpoint" where HPatches has them, and "overall"."""

    predictions: Predictions
    pairs: tuple[PairScore, ...]
    groups: dict[str, GroupScore]
    sequences: dict[str, GroupScore]

    @property
    def name(self) -> str:
        return self.predictions.method.name

    def as_json(self) -> dict[str, Any]:
        return {
            **self.predictions.method.described(),
            "seconds": {stage: round(value, 3) for stage, value in self.predictions.seconds.items()},
            "groups": {name: group.as_json() for name, group in self.groups.items()},
            "sequences": {name: group.as_json() for name, group in self.sequences.items()},
            "pairs": [pair.as_json() for pair in self.pairs],
        }


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 6) for value in values]


def evaluate_matching(data: SequenceSet, predictions: Predictions, config: MatchingConfig | None = None) -> MethodScore:
    """Measure the matches of a method. One pair is in memory at a time. Raises BadInputError for damaged stores."""
    config = config or MatchingConfig()
    assert predictions.matches is not None, "matching is measured on matches"
    wanted = data.pairs()
    scores = []
    with (
        open_features(predictions.features) as features,
        open_matches(predictions.matches) as matches,
        progress("measure", len(wanted), "pairs") as advance,
    ):
        for pair in wanted:
            scores.append(score_pair(pair, features, matches, config))
            advance(1)
    groups: dict[str, list[PairScore]] = {}
    sequences: dict[str, list[PairScore]] = {}
    for pair, score in zip(wanted, scores, strict=True):
        if pair.sequence.type:
            groups.setdefault(pair.sequence.type, []).append(score)
        sequences.setdefault(pair.sequence.name, []).append(score)
    groups[OVERALL] = scores
    return MethodScore(
        predictions,
        tuple(scores),
        {name: group_score(name, groups[name], config) for name in sorted(groups, key=_order)},
        {name: group_score(name, of_it, config) for name, of_it in sequences.items()},
    )


def _order(group: str) -> int:
    return ("illumination", "viewpoint", OVERALL).index(group)


def score_pair(pair: SequencePair, features: FeatureStore, matches: MatchStore, config: MatchingConfig) -> PairScore:
    """MMA and homography of one pair."""
    names = pair.pair
    keypoints0, keypoints1 = features.keypoints(names.name0), features.keypoints(names.name1)
    found = matches.read(names)
    errors = reprojection_errors(keypoints0, keypoints1, found, pair.homography)
    index = found.as_index_pairs()
    estimated = estimate_homography(keypoints0[index[:, 0]], keypoints1[index[:, 1]], config.homography)
    return PairScore(
        sequence=pair.sequence.name,
        image=pair.number,
        features=(len(keypoints0), len(keypoints1)),
        matches=len(errors),
        accuracy=accuracy(errors, config.thresholds_px),
        corner_error_px=corner_error(estimated, pair.homography, features.image_size(names.name0)),
    )


def group_score(name: str, pairs: Sequence[PairScore], config: MatchingConfig) -> GroupScore:
    """Means over some pairs, at least one."""
    counts: dict[tuple[str, int], int] = {}
    for pair in pairs:  # image 1 is in every pair and counts once
        counts[pair.sequence, 1], counts[pair.sequence, pair.image] = pair.features
    curve = np.mean([pair.accuracy for pair in pairs], axis=0)
    errors = [pair.corner_error_px for pair in pairs]
    return GroupScore(
        name=name,
        pairs=len(pairs),
        features=float(np.mean(list(counts.values()))),
        matches=float(np.mean([pair.matches for pair in pairs])),
        accuracy=curve,
        mma_score=mma_score(curve, config.thresholds_px),
        homography_auc=error_auc(errors, config.homography.thresholds_px),
        homography_found=tuple(float(np.mean(np.array(errors) <= px)) for px in config.homography.correct_within_px),
    )
