"""Matching mAP on image sequences with known homographies: DOAP's section 5.4 and Fig. 6, for any features.

The paper: Harris-Affine frames, descriptors of patches 3 times as large, nearest neighbour matching, "mean Average
Precision (mAP), computed as the area under the precision-recall curve", by VLBenchmarks. It does not say when a match
is right nor what the recall is a share of. Here: any detector, the same in both images; only features that lie in both
images; every one of image 1 with its nearest neighbour in image N, ranked by distance; AP by
`average_precision_of_matches`. A match is right by either of two rules, each with an mAP of its own: "overlap" of the
described regions (Mikolajczyk and Schmid, PAMI 2005), for features with a scale, and "distance", for all. Recall is a
share of the features of image 1 that have a right partner. A pair in which nothing corresponds counts as 0. Descriptors
of turned images (`Features.turns`) are compared at the turn that the matcher finds for the pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from featkit.config import Config
from featkit.evaluation.descriptor_matching import (
    Correspondences,
    MatchingRule,
    average_precision_of_matches,
    rank_matches,
    turned_alike,
)
from featkit.evaluation.predictions import Predictions
from featkit.evaluation.region_overlap import inside, jacobians, near_pairs, near_regions, overlap_errors
from featkit.evaluation.sequences import SequencePair, SequenceSet
from featkit.geometry.homography import apply_homography
from featkit.log import progress
from featkit.store.features import FeatureStore, open_features
from featkit.types import Features

RULES = ("overlap", "distance")


class OxfordConfig(Config):
    """How matches are made and judged."""

    matching: MatchingRule = "nearest"
    """nearest: as the paper says; one_to_one: as VLBenchmarks does it."""
    max_overlap_error: float = Field(0.5, gt=0, le=0.5)
    """Largest overlap error of a right match (Mikolajczyk and Schmid 2005; VLBenchmarks' documentation)."""
    magnification: float = Field(3.0, gt=0)
    """Radius of the described region over a feature's scale (DOAP, 5.4; Mikolajczyk and Schmid 2005)."""
    region_radius_px: float | None = Field(None, gt=0)
    """Radius that regions of image 1 are magnified to before their overlap is taken, while the centres stay. None: they
    keep their size. VLBenchmarks' default for the repeatability of detectors is 30, which takes a neighbour within some
    16 px for right; thousands of features then have a right partner by chance."""
    max_error_px: float = Field(3.0, gt=0)
    """Rule "distance": largest reprojection error of a right match, in pixels of image N."""


@dataclass(frozen=True)
class PairPrecision:
    """One pair. features: those in both images. ap: by rule, in [0, 1]; "overlap" is missing without scales."""

    sequence: str
    image: int
    features: tuple[int, int]
    matches: int
    correspondences: dict[str, int]
    right: dict[str, int]
    ap: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return {
            "sequence": self.sequence,
            "image": self.image,
            "features_in_both": list(self.features),
            "matches": self.matches,
            "correspondences": self.correspondences,
            "right": self.right,
            "ap": {rule: round(value, 6) for rule, value in self.ap.items()},
        }


@dataclass(frozen=True)
class MethodPrecision:
    """A method on all sequences. sequences: by name the mean over pairs; mean: over sequences. By rule, in [0, 1]."""

    predictions: Predictions
    pairs: tuple[PairPrecision, ...]
    sequences: dict[str, dict[str, float]]
    mean: dict[str, float]

    @property
    def name(self) -> str:
        return self.predictions.method.name

    def as_json(self) -> dict[str, Any]:
        return {
            **self.predictions.method.described(),
            "seconds": {stage: round(value, 3) for stage, value in self.predictions.seconds.items()},
            "map": {rule: round(value, 6) for rule, value in self.mean.items()},
            "sequences": {
                name: {rule: round(value, 6) for rule, value in values.items()}
                for name, values in self.sequences.items()
            },
            "pairs": [pair.as_json() for pair in self.pairs],
        }


def evaluate_precision(
    data: SequenceSet, predictions: Predictions, config: OxfordConfig | None = None
) -> MethodPrecision:
    """Measure the descriptors of a method. Two images are in memory at a time. Raises BadInputError."""
    config = config or OxfordConfig()
    wanted = data.pairs()
    pairs = []
    with open_features(predictions.features) as store, progress("measure", len(wanted), "pairs") as advance:
        for pair in wanted:
            pairs.append(precision_of_pair(pair, store, config))
            advance(1)
    sequences = {one.name: _means([pair.ap for pair in pairs if pair.sequence == one.name]) for one in data.sequences}
    return MethodPrecision(predictions, tuple(pairs), sequences, _means(list(sequences.values())))


def _means(values: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean by rule; only of rules that all have."""
    return {rule: float(np.mean([one[rule] for one in values])) for rule in RULES if all(rule in one for one in values)}


def precision_of_pair(pair: SequencePair, store: FeatureStore, config: OxfordConfig) -> PairPrecision:
    """AP of one pair, by each rule that its features allow."""
    first, second = store.read(pair.pair.name0), store.read(pair.pair.name1)
    second = turned_alike(first, second)
    back = np.linalg.inv(pair.homography)
    sizes = first.image_size, second.image_size
    first = first.select(np.flatnonzero(inside(first.keypoints, pair.homography, sizes[1])))
    second = second.select(np.flatnonzero(inside(second.keypoints, back, sizes[0])))
    ranking = rank_matches(first.descriptors, second.descriptors, config.matching)
    judged = {"distance": by_distance(first, second, pair.homography, config)}
    if first.scales is not None and second.scales is not None:
        judged = {"overlap": by_overlap(first, second, back, config), **judged}
    right = {rule: found.hold(ranking) for rule, found in judged.items()}
    totals = {rule: found.to_be_found(config.matching) for rule, found in judged.items()}
    return PairPrecision(
        sequence=pair.sequence.name,
        image=pair.number,
        features=(len(first), len(second)),
        matches=len(ranking.distances),
        correspondences=totals,
        right={rule: int(np.count_nonzero(values)) for rule, values in right.items()},
        ap={
            rule: average_precision_of_matches(ranking.distances, values, totals[rule])
            for rule, values in right.items()
        },
    )


def by_distance(first: Features, second: Features, homography: np.ndarray, config: OxfordConfig) -> Correspondences:
    """Pairs whose reprojection error in image N is small. homography: image 1 -> N."""
    mapped = apply_homography(homography, first.keypoints.astype(np.float64))
    other = second.keypoints.astype(np.float64)
    index0, index1 = near_pairs(mapped, other, config.max_error_px)
    return Correspondences(index0, index1, np.linalg.norm(mapped[index0] - other[index1], axis=1))


def by_overlap(first: Features, second: Features, back: np.ndarray, config: OxfordConfig) -> Correspondences:
    """Pairs whose regions overlap in image 1. back: image N -> 1."""
    assert first.scales is not None
    assert second.scales is not None
    scales0, scales1 = first.scales.astype(np.float64), second.scales.astype(np.float64)
    centres, points = first.keypoints.astype(np.float64), second.keypoints.astype(np.float64)
    mapped, shapes = apply_homography(back, points), jacobians(back, points) * scales1[:, None, None]
    radii = (
        scales0 * config.magnification
        if config.region_radius_px is None
        else np.full(len(scales0), config.region_radius_px)
    )
    mean_scales = np.sqrt(np.abs(np.linalg.det(shapes)))
    index0, index1 = near_regions(centres, radii, scales0, mapped, mean_scales, config.max_overlap_error)
    offsets = (mapped[index1] - centres[index0]) / radii[index0, None]  # in radii of the circle
    errors = overlap_errors(offsets, shapes[index1] / scales0[index0, None, None], 1.0)
    fits = errors <= config.max_overlap_error
    return Correspondences(index0[fits], index1[fits], errors[fits])
