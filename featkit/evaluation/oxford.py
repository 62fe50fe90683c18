"""Matching mAP on image sequences with known homographies: DOAP's section 5.4 and Fig. 6, for any features.

The paper: Harris-Affine frames, descriptors of patches 3 times as large, nearest neighbour matching, "mean Average
Precision (mAP), computed as the area under the precision-recall curve", by VLBenchmarks. It does not define a correct
match or the total that recall refers to. Here: any detector, the same in both images; only features whose positions
are inside both images; every such feature of image 1 is matched with its nearest neighbour in image N; matches are
ranked by distance and scored by `average_precision_of_matches`. Correct matches are defined by two rules, each with
its own mAP: "overlap" of the described regions (Mikolajczyk and Schmid, PAMI 2005), for features with a scale, and
"distance", for all features. Recall is relative to the features of image 1 that have a correct partner. A pair without
correspondences scores 0. Descriptors of rotated images (`Features.turns`) are compared at the rotation that the
matcher finds for the pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field

from featkit.core.config import Config, Factor, Pixels
from featkit.core.content import Cell, Section, Table
from featkit.core.log import progress
from featkit.core.registry import Method
from featkit.core.types import Features
from featkit.evaluation.benchmark import Plain, Predictions, Ranked, Result, Work, plain
from featkit.evaluation.hpatches import bars_by_sequence
from featkit.evaluation.metrics import pair_distances
from featkit.evaluation.sequences import SequenceBenchmark, SequencePair, SequenceSet
from featkit.features.base import Extractor, is_packed, unpack_signs
from featkit.geometry.pixels import apply_homography
from featkit.io.features import FeatureStore, open_features
from featkit.matching.nearest import nearest_two, rolled, rotation_of_pair, rows_of

# ----------------------------------------------------------------------------------------------------------------------
# Matching the descriptors of two images, and the precision-recall curve of the matches ranked by distance.
#
# nearest: every feature of image 0 with its nearest neighbour in image 1 (Mikolajczyk and Schmid, PAMI 2005, "nearest
# neighbor matching"). one_to_one: greedy; the closest pair of all, then the closest of the remaining features, and so
# on, so that no feature of image 1 is matched twice (VLBenchmarks uses the same name).


MatchingRule = Literal["nearest", "one_to_one"]


@dataclass(frozen=True)
class Ranking:
    """Matches with their descriptor distances (Euclidean, or Hamming for packed bits)."""

    index0: Int[np.ndarray, " m"]
    index1: Int[np.ndarray, " m"]
    distances: Float[np.ndarray, " m"]


@dataclass(frozen=True)
class Correspondences:
    """All correct pairs of features, each with its error (smaller is better)."""

    index0: Int[np.ndarray, " k"]
    index1: Int[np.ndarray, " k"]
    error: Float[np.ndarray, " k"]

    def num_correspondences(self, rule: MatchingRule) -> int:
        """Maximum number of correct matches under a rule, at which recall is 1.

        nearest: features of image 0 with a correct partner. one_to_one: pairs chosen greedily in order of their error,
        each feature used once (VLBenchmarks).
        """
        if rule == "nearest":
            return len(np.unique(self.index0))
        free0 = np.ones(int(self.index0.max(initial=-1)) + 1, bool)
        free1 = np.ones(int(self.index1.max(initial=-1)) + 1, bool)
        order = np.argsort(self.error, kind="stable")
        for i, j in zip(self.index0[order].tolist(), self.index1[order].tolist(), strict=True):
            if free0[i] and free1[j]:
                free0[i] = free1[j] = False
        return int(np.count_nonzero(~free0))

    def hold(self, ranking: Ranking) -> Bool[np.ndarray, " m"]:
        """Which matches are correct."""
        width = int(max(self.index1.max(initial=0), ranking.index1.max(initial=0))) + 1
        return np.isin(ranking.index0 * width + ranking.index1, self.index0 * width + self.index1)


def rank_matches(
    descriptors0: Shaped[np.ndarray, "n d"], descriptors1: Shaped[np.ndarray, "m d"], rule: MatchingRule
) -> Ranking:
    """Match by a rule. Rows are unit vectors or packed bits; the first of several equally close ones is taken."""
    nothing = np.zeros(0, np.int64)
    if not len(descriptors0) or not len(descriptors1):
        return Ranking(nothing, nothing, np.zeros(0))
    rows0, rows1 = _as_tensor(descriptors0), _as_tensor(descriptors1)
    if rule == "nearest":
        index0, index1 = np.arange(len(rows0)), nearest_two(rows_of(rows0), rows_of(rows1)).index.numpy()
    else:
        index0, index1 = _match_greedily(rows0, rows1)
    return Ranking(index0, index1, pair_distances(descriptors0[index0], descriptors1[index1]))


def align_rotations(first: Features, second: Features) -> Features:
    """`second` with its descriptors of rotated images (`Features.turns`) rolled to fit those of `first`.

    Call it with all features of both images, before any are removed. Raises BadInputError if their turns differ.
    """
    places = rotation_of_pair(first, second, _as_tensor(first.descriptors), _as_tensor(second.descriptors))
    if places == 0:
        return second
    rows = torch.from_numpy(np.ascontiguousarray(second.descriptors))
    return replace(second, descriptors=rolled(rows, second.turns, places).numpy())


def _as_tensor(descriptors: np.ndarray) -> torch.Tensor:
    rows = unpack_signs(descriptors) if is_packed(descriptors) else descriptors.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(rows))


def _match_greedily(rows0: torch.Tensor, rows1: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Greedy matching: mutual nearest neighbours are always chosen by it, so take them all at once and repeat."""
    free0, free1 = torch.arange(len(rows0)), torch.arange(len(rows1))
    chosen: list[tuple[torch.Tensor, torch.Tensor]] = []
    while len(free0) and len(free1):
        left0, left1 = rows_of(rows0[free0]), rows_of(rows1[free1])
        forward, backward = nearest_two(left0, left1), nearest_two(left1, left0)
        mutual = backward.index[forward.index] == torch.arange(len(free0))
        if not mutual.any():  # equal descriptors, whose products are rounded differently: take the closest
            mutual[forward.best.argmax()] = True
        chosen.append((free0[mutual], free1[forward.index[mutual]]))
        used = torch.zeros(len(free1), dtype=torch.bool)
        used[forward.index[mutual]] = True
        free0, free1 = free0[~mutual], free1[~used]
    return torch.cat([i for i, _ in chosen]).numpy(), torch.cat([j for _, j in chosen]).numpy()


def average_precision_of_matches(
    distances: Float[np.ndarray, " m"], correct: Bool[np.ndarray, " m"], num_correspondences: int
) -> float:
    """Area in [0, 1] under the precision-recall curve of matches ranked by distance; 0 if `num_correspondences` is 0.

    Linear interpolation between the points of the curve, starting at (recall 0, precision 1) (vl_pr's `auc`). Matches
    of equal distance form one step, so that their order does not matter: binary descriptors have many.
    """
    if num_correspondences == 0 or len(distances) == 0:
        return 0.0
    order = np.argsort(distances, kind="stable")
    distances, correct = distances[order], np.asarray(correct, bool)[order]
    last = np.flatnonzero(np.append(distances[1:] != distances[:-1], True))
    true = np.cumsum(correct)[last]
    precision = np.concatenate([[1.0], true / (last + 1)])
    recall = np.concatenate([[0.0], true / num_correspondences])
    return float(np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2))


# ----------------------------------------------------------------------------------------------------------------------
# The benchmark.


RULES = ("overlap", "distance")


class OxfordConfig(Config):
    """How features are matched, and which matches are correct."""

    matching: MatchingRule = "nearest"
    """Matching rule. nearest: as in the paper; one_to_one: as in VLBenchmarks."""
    max_overlap_error: float = Field(0.5, gt=0, le=0.5)
    """Largest overlap error of a correct match (Mikolajczyk and Schmid 2005; VLBenchmarks' documentation)."""
    magnification: Factor = 3.0
    """Ratio of the radius of the described region to the feature's scale (DOAP, 5.4; Mikolajczyk and Schmid 2005)."""
    region_radius_px: Pixels | None = None
    """Radius to which the regions of image 1 are scaled, about fixed centres, before their overlap is computed. None:
    they keep their size. VLBenchmarks' default for detector repeatability is 30, which accepts neighbours within about
    16 px; thousands of features then have a correct partner by chance."""
    max_error_px: Pixels = 3.0
    """Rule "distance": largest reprojection error of a correct match, in pixels of image N."""


@dataclass(frozen=True)
class PairPrecision(Plain):
    """One pair. features_in_both: in each image, the features inside both images. ap: by rule, in [0, 1]; no "overlap"
    without scales."""

    sequence: str
    image: int
    features_in_both: tuple[int, int]
    matches: int
    correspondences: dict[str, int]
    right: dict[str, int]
    ap: dict[str, float]


@dataclass(frozen=True)
class MethodPrecision:
    """A method on all sequences. By rule, in [0, 1]: sequences: mean over pairs, by name; mean: over sequences."""

    predictions: Predictions
    pairs: tuple[PairPrecision, ...]
    sequences: dict[str, dict[str, float]]
    mean: dict[str, float]

    @property
    def name(self) -> str:
        return self.predictions.method.name

    def as_json(self) -> dict[str, Any]:
        return {
            **self.predictions.described(),
            **plain({"map": self.mean, "sequences": self.sequences, "pairs": self.pairs}),
        }


class Oxford(SequenceBenchmark):
    """mAP of any features; for those with scales, regions are compared too."""

    name = "oxford"
    Config = OxfordConfig
    default_features = "sift,rootsift"

    def run(self, data: SequenceSet, methods: Sequence[Method[Extractor]], work: Work) -> Result:
        scores = [evaluate_precision(data, self.predictions(data, method, work), self.config) for method in methods]
        table = precision_table(scores)
        names = list(scores[0].sequences)
        rows: list[list[Cell]] = [
            [name, *(100 * score.sequences[name]["distance"] for score in scores)] for name in names
        ]
        by_distance = Table("mAP by sequence, right by distance", ["", *(score.name for score in scores)], rows)
        return Result(
            "Image matching: mean average precision",
            subtitle=f"{data.root.name}: {data.counted}",
            numbers={
                **data.described(),
                "methods": [score.as_json() for score in scores],
            },
            tables=[table],
            # By distance: the only rule that applies to all features.
            ranking=[
                Ranked(score.name, f"mAP {data.root.resolve().name}, %", 100 * score.mean["distance"])
                for score in scores
            ],
            sections=[
                Section("Scores", items=[table, *bars_by_sequence(by_distance, "mAP")]),
                Section("Pairs", items=[pair_table(scores, rule) for rule in RULES]),
            ],
        )


def precision_table(scores: Sequence[MethodPrecision]) -> Table:
    """mAP in %: a row per method and rule, a column per sequence, and the mean."""
    rows: list[list[Cell]] = []
    for rule in RULES:
        for score in scores:
            values = (*(means.get(rule) for means in score.sequences.values()), score.mean.get(rule))
            rows.append([score.name, rule, *(None if value is None else 100 * value for value in values)])
    columns = ["method", "right by", *scores[0].sequences, "mean"]
    note = "The measure of DOAP's Fig. 6, whose bars have no numbers in its text. Without scales there is no overlap."
    return Table("Matching mAP, %", columns, rows, note)


def pair_table(scores: Sequence[MethodPrecision], rule: str) -> Table:
    """AP in %: a row per pair, a column per method."""
    rows: list[list[Cell]] = []
    for pairs in zip(*(score.pairs for score in scores), strict=True):
        cells = [None if rule not in pair.ap else 100 * pair.ap[rule] for pair in pairs]
        rows.append([pairs[0].sequence, pairs[0].image, *cells])
    return Table(f"AP by pair, right by {rule}, %", ["sequence", "image", *(score.name for score in scores)], rows)


def evaluate_precision(
    data: SequenceSet, predictions: Predictions, config: OxfordConfig | None = None
) -> MethodPrecision:
    """Evaluate a method's descriptors, with two images in memory at a time. Raises BadInputError."""
    config = config or OxfordConfig()
    sequence_pairs = data.pairs()
    pairs = []
    with open_features(predictions.features) as store, progress("measure", len(sequence_pairs), "pairs") as advance:
        for pair in sequence_pairs:
            pairs.append(precision_of_pair(pair, store, config))
            advance(1)
    sequences = {
        entry.name: _mean_by_rule([pair.ap for pair in pairs if pair.sequence == entry.name])
        for entry in data.sequences
    }
    return MethodPrecision(predictions, tuple(pairs), sequences, _mean_by_rule(list(sequences.values())))


def _mean_by_rule(values: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean by rule, for the rules that all values have."""
    return {
        rule: float(np.mean([means[rule] for means in values]))
        for rule in RULES
        if all(rule in means for means in values)
    }


def precision_of_pair(pair: SequencePair, store: FeatureStore, config: OxfordConfig) -> PairPrecision:
    """AP of one pair, by each rule that its features support."""
    first, second = store.read(pair.pair.name0), store.read(pair.pair.name1)
    second = align_rotations(first, second)
    back = np.linalg.inv(pair.homography)
    sizes = first.image_size, second.image_size
    first = first.select(np.flatnonzero(maps_inside(first.keypoints, pair.homography, sizes[1])))
    second = second.select(np.flatnonzero(maps_inside(second.keypoints, back, sizes[0])))
    ranking = rank_matches(first.descriptors, second.descriptors, config.matching)
    correspondences_by_rule = {"distance": by_distance(first, second, pair.homography, config)}
    if first.scales is not None and second.scales is not None:
        correspondences_by_rule = {"overlap": by_overlap(first, second, back, config), **correspondences_by_rule}
    correct = {rule: of_rule.hold(ranking) for rule, of_rule in correspondences_by_rule.items()}
    totals = {rule: of_rule.num_correspondences(config.matching) for rule, of_rule in correspondences_by_rule.items()}
    return PairPrecision(
        sequence=pair.sequence.name,
        image=pair.number,
        features_in_both=(len(first), len(second)),
        matches=len(ranking.distances),
        correspondences=totals,
        right={rule: int(np.count_nonzero(values)) for rule, values in correct.items()},
        ap={
            rule: average_precision_of_matches(ranking.distances, values, totals[rule])
            for rule, values in correct.items()
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
    accepted = errors <= config.max_overlap_error
    return Correspondences(index0[accepted], index1[accepted], errors[accepted])


# ----------------------------------------------------------------------------------------------------------------------
# Which features of two images cover the same part of the scene, by overlap error of their regions or by distance.
#
# A feature's region is a circle around it. The circle of image 1 is compared with that of image N, mapped into image 1
# by the local affine approximation of the true homography (an ellipse). Overlap error: 1 - area of the intersection /
# area of the union (Mikolajczyk and Schmid, PAMI 2005).


NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)  # areas are exact to 1e-3 of the circle
CHUNK = 1024  # points, or pairs of regions, processed together: fits into the CPU cache


def jacobians(homography: Float[np.ndarray, "3 3"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2 2"]:
    """Jacobians of a homography at points: its local affine approximations."""
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ homography.T
    depth = homogeneous[:, 2, None, None]
    mapped = homogeneous[:, :2, None] / depth
    return (homography[None, :2, :2] - mapped * homography[None, 2:, :2]) / depth


def maps_inside(
    points: Float[np.ndarray, "n 2"], homography: Float[np.ndarray, "3 3"], image_size: tuple[int, int]
) -> Bool[np.ndarray, " n"]:
    """Which points the homography maps into an image of this (width, height)."""
    mapped = apply_homography(homography, points)
    with np.errstate(invalid="ignore"):  # NaN counts as outside
        return np.all((mapped >= -0.5) & (mapped < np.asarray(image_size) - 0.5), axis=1)


def near_pairs(
    points0: Float[np.ndarray, "n 2"], points1: Float[np.ndarray, "m 2"], radius_px: float
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Indices of all pairs within a distance. Points that are not finite have no neighbours."""
    finite0, finite1 = (np.flatnonzero(np.isfinite(points).all(axis=1)) for points in (points0, points1))
    if not len(finite0) or not len(finite1):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    cells0, cells1 = (np.floor(points / radius_px) for points in (points0[finite0], points1[finite1]))
    low = np.minimum(cells0.min(axis=0), cells1.min(axis=0)) - 1
    width = max(cells0[:, 0].max(), cells1[:, 0].max()) - low[0] + 2
    key0, key1 = ((cells - low) @ [1.0, width] for cells in (cells0, cells1))
    order = np.argsort(key1, kind="stable")
    key1, finite1 = key1[order], finite1[order]
    close_pairs = [
        _within_radius(points0, points1, finite0[index0], finite1[index1], radius_px)
        for step in (-width, 0.0, width)  # three rows of cells; three neighbouring cells of a row are contiguous
        for index0, index1 in _index_pairs_in_range(key1, key0 + step - 1, key0 + step + 1)
    ]
    return np.concatenate([pair[0] for pair in close_pairs]), np.concatenate([pair[1] for pair in close_pairs])


def near_regions(
    centres: Float[np.ndarray, "n 2"],
    radii: Float[np.ndarray, " n"],
    scales0: Float[np.ndarray, " n"],
    mapped: Float[np.ndarray, "m 2"],
    scales1: Float[np.ndarray, " m"],
    max_error: float,
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Pairs whose overlap error may be at most `max_error`, itself at most 0.5: all of those, and few others.

    centres, radii, scales0: of circles. mapped, scales1: of ellipses; a scale is the square root of an area, in the
    units of scales0. If the ellipse's centre is outside the circle, they share less than half of either, and the error
    is above 0.5; areas that differ by more than 1 - max_error cannot overlap enough.
    """
    min_ratio = np.sqrt(1 - max_error)
    found0, found1 = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    octaves = np.floor(np.log2(np.maximum(scales0, 1e-6)))
    for octave in np.unique(octaves):  # large regions have many neighbours, but are few
        circles = np.flatnonzero(octaves == octave)
        ellipses = np.flatnonzero((scales1 >= min_ratio * 2.0**octave) & (scales1 <= 2.0 ** (octave + 1) / min_ratio))
        index0, index1 = near_pairs(centres[circles], mapped[ellipses], float(radii[circles].max()))
        found0.append(circles[index0])
        found1.append(ellipses[index1])
    index0, index1 = np.concatenate(found0), np.concatenate(found1)
    ratio = scales1[index1] / scales0[index0]
    distance = np.linalg.norm(mapped[index1] - centres[index0], axis=1)
    keep = (distance <= radii[index0]) & (ratio >= min_ratio) & (ratio <= 1 / min_ratio)
    return index0[keep], index1[keep]


def _index_pairs_in_range(
    keys: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (i, j) with low[i] <= keys[j] <= high[i], in batches of i; keys ascending."""
    first, end = np.searchsorted(keys, low), np.searchsorted(keys, high, side="right")
    for start in range(0, len(low), CHUNK):
        part = slice(start, start + CHUNK)
        counts = end[part] - first[part]
        skipped = np.cumsum(counts) - counts - first[part]
        index0 = np.repeat(np.arange(start, start + len(counts)), counts)
        yield index0, np.arange(counts.sum()) - np.repeat(skipped, counts)


def _within_radius(
    points0: np.ndarray, points1: np.ndarray, index0: np.ndarray, index1: np.ndarray, radius_px: float
) -> tuple[np.ndarray, np.ndarray]:
    difference = points0[index0] - points1[index1]
    near = np.einsum("kd,kd->k", difference, difference) <= radius_px**2
    return index0[near], index1[near]


def overlap_errors(
    offsets: Float[np.ndarray, "k 2"], shapes: Float[np.ndarray, "k 2 2"], radius_px: float
) -> Float[np.ndarray, " k"]:
    """Overlap error in [0, 1] of a circle around the origin and an ellipse (an affine image of the unit circle).

    offsets: centre of the ellipse minus centre of the circle. shapes: matrices that map the unit circle to the ellipse.
    """
    errors = np.ones(len(offsets))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for start in range(0, len(offsets), CHUNK):
            part = slice(start, start + CHUNK)
            area = np.pi * np.abs(np.linalg.det(shapes[part]))
            shared = _intersection_area(offsets[part], shapes[part], radius_px)
            errors[part] = 1 - shared / (area + np.pi * radius_px**2 - shared)
    return np.where(np.isfinite(errors), np.clip(errors, 0, 1), 1.0)


def _intersection_area(offsets: np.ndarray, shapes: np.ndarray, radius_px: float) -> Float[np.ndarray, " k"]:
    """Area of intersection of circle and ellipse: integral over y of the length that lines of equal y have in both."""
    squared = shapes @ shapes.transpose(0, 2, 1)
    determinant = np.linalg.det(squared)[:, None]
    x0, y0 = offsets[:, 0, None], offsets[:, 1, None]
    # The ellipse is {d : a dx^2 + 2 b dx dy + c dy^2 <= 1} around its centre.
    a, b, c = (squared[:, row, column, None] / determinant for row, column in ((1, 1), (0, 1), (0, 0)))
    reach = np.sqrt(squared[:, 1, 1, None])  # extent of the ellipse in y
    low, high = np.maximum(y0 - reach, -radius_px), np.minimum(y0 + reach, radius_px)
    angle = NODES * np.pi / 2  # y = middle + span sin(angle): near the ends the length behaves like a square root
    span = np.maximum(high - low, 0) / 2
    y = (low + high) / 2 + span * np.sin(angle)
    half = np.sqrt(np.maximum(radius_px**2 - y**2, 0))
    dy = y - y0
    root = np.sqrt(np.maximum((b * dy) ** 2 - a * (c * dy**2 - 1), 0)) / a
    centre = x0 + b * dy / a
    length = np.minimum(centre + root, half) - np.maximum(centre - root, -half)
    return (np.maximum(length, 0) * span * np.cos(angle) * WEIGHTS * np.pi / 2).sum(axis=1)
