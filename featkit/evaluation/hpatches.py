"""Image matching on sequences with known homographies: the protocol of D2-Net, which SCFeat follows (section IV-B).

Features of image 1 are matched with those of each other image (mutual nearest neighbours). Metrics: MMA at 1 to 10 px,
and for the homography estimated from the matches the AUC of its error and the share of pairs with a small error. A
group's numbers are means over its pairs; its number of features is a mean over its images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from featkit.core.config import Config, Pixels
from featkit.core.content import Bars, Cell, Curve, Curves, Headline, Item, MatchPicture, Section, Table
from featkit.core.log import progress
from featkit.core.registry import Method
from featkit.evaluation.benchmark import Plain, Predictions, Ranked, Result, Work, matcher_named, plain
from featkit.evaluation.metrics import (
    THRESHOLDS_PX,
    HomographyConfig,
    accuracy,
    corner_error,
    error_auc,
    estimate_homography,
    mma_score,
    transfer_errors,
)
from featkit.evaluation.pictures import match_picture
from featkit.evaluation.published import published, published_curves, published_tables
from featkit.evaluation.sequences import SequenceBenchmark, SequencePair, SequenceSet
from featkit.features.base import Extractor
from featkit.io.features import FeatureStore, open_features
from featkit.io.matches import MatchStore, open_matches

OVERALL = "overall"
SHOWN_MMA_PX = (1.0, 3.0, 5.0, 10.0)  # table columns
CORRECT_PX = 3.0  # largest error of a match drawn as inlier
EXTREMES = 2  # worst and best pairs shown per method
PICTURED_METHODS = 4
MOST_GROUPS = 20  # bars in one chart
ELSEWHERE = "Measured on HPatches, not on these sequences: the numbers do not compare."


class MatchingConfig(Config):
    """What is measured."""

    thresholds_px: tuple[Pixels, ...] = THRESHOLDS_PX
    """Thresholds of MMA, in pixels of image N; SCFeat, eq. 24."""
    homography: HomographyConfig = HomographyConfig()
    """How a homography is estimated from the matches."""


@dataclass(frozen=True)
class PairScore(Plain):
    """One pair. image: number of the second image, from 2. features: of both images. mma: per threshold."""

    sequence: str
    image: int
    features: tuple[int, int]
    matches: int
    mma: Float[np.ndarray, " t"]
    corner_error_px: float


@dataclass(frozen=True)
class GroupScore(Plain):
    """Means over the pairs of a group. features: mean over its images. Fractions in [0, 1], one per threshold."""

    pairs: int
    features: float
    matches: float
    mma: Float[np.ndarray, " t"]
    mma_score: float
    homography_auc: tuple[float, ...]
    homography_found: tuple[float, ...]
    """Fraction of pairs whose homography error is at most each of `correct_within_px`."""


@dataclass(frozen=True)
class MethodScore:
    """A method on all sequences. groups: "illumination" and "viewpoint" for HPatches, and "overall"."""

    predictions: Predictions
    pairs: tuple[PairScore, ...]
    groups: dict[str, GroupScore]
    sequences: dict[str, GroupScore]

    @property
    def name(self) -> str:
        return self.predictions.method.name

    def as_json(self) -> dict[str, Any]:
        return {
            **self.predictions.described(),
            **plain({"groups": self.groups, "sequences": self.sequences, "pairs": self.pairs}),
        }


def evaluate_matching(data: SequenceSet, predictions: Predictions, config: MatchingConfig | None = None) -> MethodScore:
    """Measure the matches of a method. One pair is in memory at a time. Raises BadInputError for damaged stores."""
    config = config or MatchingConfig()
    assert predictions.matches is not None, "matching is measured on matches"
    sequence_pairs = data.pairs()
    scores = []
    with (
        open_features(predictions.features) as features,
        open_matches(predictions.matches, features) as matches,
        progress("measure", len(sequence_pairs), "pairs") as advance,
    ):
        for pair in sequence_pairs:
            scores.append(_score_pair(pair, features, matches, config))
            advance(1)
    groups: dict[str, list[PairScore]] = {}
    sequences: dict[str, list[PairScore]] = {}
    for pair, score in zip(sequence_pairs, scores, strict=True):
        if pair.sequence.type:
            groups.setdefault(pair.sequence.type, []).append(score)
        sequences.setdefault(pair.sequence.name, []).append(score)
    groups[OVERALL] = scores
    return MethodScore(
        predictions,
        tuple(scores),
        {name: _group_score(groups[name], config) for name in sorted(groups, key=_group_order)},
        {name: _group_score(of_it, config) for name, of_it in sequences.items()},
    )


def _group_order(group: str) -> int:
    return ("illumination", "viewpoint", OVERALL).index(group)


def _score_pair(pair: SequencePair, features: FeatureStore, matches: MatchStore, config: MatchingConfig) -> PairScore:
    """MMA and homography of one pair."""
    names = pair.pair
    keypoints0, keypoints1 = features.keypoints(names.name0), features.keypoints(names.name1)
    pair_matches = matches.read(names)
    errors = transfer_errors(keypoints0, keypoints1, pair_matches, pair.homography)
    index = pair_matches.as_index_pairs()
    estimated_homography = estimate_homography(keypoints0[index[:, 0]], keypoints1[index[:, 1]], config.homography)
    return PairScore(
        sequence=pair.sequence.name,
        image=pair.number,
        features=(len(keypoints0), len(keypoints1)),
        matches=len(errors),
        mma=accuracy(errors, config.thresholds_px),
        corner_error_px=corner_error(estimated_homography, pair.homography, features.image_size(names.name0)),
    )


def _group_score(pairs: Sequence[PairScore], config: MatchingConfig) -> GroupScore:
    """Means over pairs, at least one."""
    counts: dict[tuple[str, int], int] = {}
    for pair in pairs:  # image 1 is in every pair but is counted once
        counts[pair.sequence, 1], counts[pair.sequence, pair.image] = pair.features
    curve = np.mean([pair.mma for pair in pairs], axis=0)
    errors = [pair.corner_error_px for pair in pairs]
    return GroupScore(
        pairs=len(pairs),
        features=float(np.mean(list(counts.values()))),
        matches=float(np.mean([pair.matches for pair in pairs])),
        mma=curve,
        mma_score=mma_score(curve, config.thresholds_px),
        homography_auc=error_auc(errors, config.homography.thresholds_px),
        homography_found=tuple(float(np.mean(np.array(errors) <= px)) for px in config.homography.correct_within_px),
    )


# ----------------------------------------------------------------------------------------------------------------------
# The benchmark: tables, curves compared with published ones, pictures of the worst and best pairs.


@dataclass(kw_only=True)
class Hpatches(SequenceBenchmark):
    """matcher: a name or yaml file. ratio: overrides its ratio test."""

    name = "hpatches"
    Config = MatchingConfig

    matcher: str = "mutual-nn"
    ratio: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.by = matcher_named(self.matcher, self.ratio, self.device)

    def run(self, data: SequenceSet, methods: Sequence[Method[Extractor]], work: Work) -> Result:
        config: MatchingConfig = self.config
        scores = [evaluate_matching(data, self.predictions(data, method, work, self.by), config) for method in methods]
        published_results = published("hpatches_mma")
        best = max(scores, key=lambda score: score.groups[OVERALL].mma_score)
        table, by_sequence, printed = _score_table(scores, data, config), sequence_table(scores), printed_tables(data)
        text = f"Worst and best by MMAScore; a match is correct up to {CORRECT_PX:g} px."
        if len(scores) > PICTURED_METHODS:
            text += f" The first {PICTURED_METHODS} methods are shown."
        return Result(
            "Image matching: mean matching accuracy",
            subtitle=f"{data.root.name}: {table.note}",
            numbers={
                **data.described(),
                "methods": [score.as_json() for score in scores],
                "published": {"on_these_pairs": data.is_hpatches, **published_results.model_dump(mode="json")},
            },
            tables=[table, by_sequence, printed[0]],
            ranking=_ranked(scores, data, config),
            headlines=[Headline("best MMAScore", 100 * best.groups[OVERALL].mma_score, "%", best.name)],
            sections=[
                Section("Scores", items=[table]),
                Section("Accuracy over the error", items=accuracy_charts(scores, data, config)),
                Section("Sequences", items=[by_sequence, *bars_by_sequence(by_sequence, "MMAScore")]),
                Section("Worst and best pairs", text, _extreme_pairs(scores[:PICTURED_METHODS], data, config)),
                Section("As published", items=printed),
            ],
        )


def _score_table(scores: Sequence[MethodScore], data: SequenceSet, config: MatchingConfig) -> Table:
    """A row per method: features, matches, MMAScore of the groups, MMA and homographies over all pairs; in %."""
    groups = list(scores[0].groups)
    shown = [px for px in SHOWN_MMA_PX if px in config.thresholds_px]
    columns = ["method", "features", "matches"]
    columns += [f"MMAScore {group}" if len(groups) > 1 else "MMAScore" for group in groups]
    columns += [f"MMA {px:g} px" for px in shown] + [f"AUC {px:g} px" for px in config.homography.thresholds_px]
    columns += [f"H within {px:g} px" for px in config.homography.correct_within_px]
    rows: list[list[Cell]] = []
    for score in scores:
        overall = score.groups[OVERALL]
        curve = dict(zip(config.thresholds_px, overall.mma.tolist(), strict=True))
        values = [score.groups[group].mma_score for group in groups]
        values += [curve[px] for px in shown] + list(overall.homography_auc) + list(overall.homography_found)
        rows.append([score.name, round(overall.features), round(overall.matches), *(100 * value for value in values)])
    note = f"{data.counted}; a pair without matches counts as MMA 0."
    if data.left_out:
        note += f" Left out as too large, as D2-Net does: {', '.join(data.left_out)}."
    return Table("Image matching, %", columns, rows, note)


def sequence_table(scores: Sequence[MethodScore]) -> Table:
    """MMAScore in %, one row per sequence and one column per method."""
    rows: list[list[Cell]] = [
        [name, *(100 * score.sequences[name].mma_score for score in scores)] for name in scores[0].sequences
    ]
    return Table("MMAScore by sequence, %", ["sequence", *(score.name for score in scores)], rows)


def bars_by_sequence(table: Table, measure: str) -> list[Item]:
    """A table of sequences as a bar chart, unless there are too many bars to read."""
    series = {name: [row[i] for row in table.rows] for i, name in enumerate(table.columns) if i}
    names = [str(row[0]) for row in table.rows]
    return [Bars(table.title.removesuffix(", %"), f"{measure}, %", names, series)] if len(names) <= MOST_GROUPS else []  # type: ignore[arg-type]


def printed_tables(data: SequenceSet) -> list[Table]:
    """Published results: SCFeat's tables II and III."""
    tables = published_tables("hpatches_mma", "Published on HPatches: {}, %", "" if data.is_hpatches else ELSEWHERE)
    heads = [
        name if name in ("as published", "features", "matches") else f"MMAScore {name}" for name in tables[0].columns
    ]
    return [
        Table(table.title, heads, [[row[0], *map(round, row[1:3]), *row[3:]] for row in table.rows], table.note)  # type: ignore[arg-type]
        for table in tables
    ]


def _ranked(scores: Sequence[MethodScore], data: SequenceSet, config: MatchingConfig) -> list[Ranked]:
    """MMAScore and the share of pairs with a correct homography, in %."""
    name = data.root.resolve().name
    ranking = [Ranked(score.name, f"MMAScore {name}, %", 100 * score.groups[OVERALL].mma_score) for score in scores]
    for number, px in enumerate(config.homography.correct_within_px):
        measure = f"H within {px:g} px {name}, %"
        ranking += [
            Ranked(score.name, measure, 100 * score.groups[OVERALL].homography_found[number]) for score in scores
        ]
    return ranking


def accuracy_charts(scores: Sequence[MethodScore], data: SequenceSet, config: MatchingConfig) -> list[Item]:
    """MMA over the threshold, ours and published; in one chart if measured on the same pairs."""
    published_mma, px = published_curves(), np.array(config.thresholds_px)
    charts: list[Item] = []
    for group in scores[0].groups:
        ours = [Curve(score.name, px, 100 * score.groups[group].mma) for score in scores]
        theirs = [
            Curve(
                published_curve.name, np.array(published_mma.thresholds_px), np.array(published_curve.of(group)), True
            )
            for published_curve in published_mma.curves
        ]
        shown = {f"MMA, {group}": ours}
        if data.is_hpatches:
            shown = {f"MMA, {group}, and as published": [*theirs, *ours]}
        elif group == OVERALL:
            shown["MMA here, and as published on HPatches (other images)"] = [*theirs, *ours]
        charts += [Curves(title, "threshold, px", "MMA, %", curves) for title, curves in shown.items()]
    return charts


def _extreme_pairs(scores: Sequence[MethodScore], data: SequenceSet, config: MatchingConfig) -> list[Item]:
    """Pictures of every method's worst and best pairs."""
    sequence_pairs = data.pairs()
    pictures: list[Item] = []
    for score in scores:
        values = [mma_score(pair.mma, config.thresholds_px) for pair in score.pairs]
        order = np.argsort(values, kind="stable").tolist()
        worst = order[:EXTREMES]
        best = [index for index in order[::-1][:EXTREMES] if index not in worst]
        for index in (*worst, *best):
            pair, kind = score.pairs[index], "worst" if index in worst else "best"
            description = f"{pair.sequence}, image 1 and {pair.image}, MMAScore {100 * values[index]:.1f} %"
            pictures.append(
                _draw_pair(f"{score.name}, {kind}: {description}", sequence_pairs[index], data, score.predictions)
            )
    return pictures


def _draw_pair(title: str, pair: SequencePair, data: SequenceSet, predictions: Predictions) -> MatchPicture:
    names = pair.pair
    assert predictions.matches is not None
    with open_features(predictions.features) as store, open_matches(predictions.matches, store) as matches:
        keypoints = [store.keypoints(name) for name in (names.name0, names.name1)]
        pair_matches = matches.read(names)
    errors = transfer_errors(keypoints[0], keypoints[1], pair_matches, pair.homography)
    index = pair_matches.as_index_pairs()
    points = [keypoints[side][index[:, side]] for side in (0, 1)]
    return match_picture(title, data.root, names, points, errors <= CORRECT_PX)
