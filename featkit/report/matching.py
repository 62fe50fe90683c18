"""Tables and reports of image matching with known homographies: `featkit eval hpatches` and `featkit eval oxford`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featkit.evaluation.hpatches import OVERALL, GroupScore, MatchingConfig, MethodScore, PairScore
from featkit.evaluation.metrics import mma_score, reprojection_errors
from featkit.evaluation.oxford import MethodPrecision
from featkit.evaluation.published import published, published_curves
from featkit.evaluation.sequences import SequencePair, SequenceSet
from featkit.images.read import DecodeConfig, decode
from featkit.io.features import open_features
from featkit.io.matches import open_matches
from featkit.report.content import (
    Bars,
    Cell,
    Configuration,
    Curve,
    Curves,
    Headline,
    Item,
    MatchPicture,
    Report,
    Section,
    Table,
)
from featkit.report.ranking import Ranked

SHOWN_MMA_PX = (1.0, 3.0, 5.0, 10.0)  # columns of the table
RIGHT_PX = 3.0  # a match is drawn as right up to this error
EXTREMES = 2  # worst pairs, and best pairs, of a method that are shown
PICTURED_METHODS = 4
PICTURE_MAX_PX = 1000
MOST_GROUPS = 20  # of bars in one chart
ELSEWHERE = "Measured on HPatches, not on these sequences: the numbers do not compare."


def score_table(scores: Sequence[MethodScore], data: SequenceSet, config: MatchingConfig) -> Table:
    """A row per method: features, matches, MMAScore of the groups, MMA and homographies over all pairs; in %."""
    groups = list(scores[0].groups)
    shown = [px for px in SHOWN_MMA_PX if px in config.thresholds_px]
    columns = ["method", "features", "matches"]
    columns += [f"MMAScore {group}" if len(groups) > 1 else "MMAScore" for group in groups]
    columns += [f"MMA {px:g} px" for px in shown] + [f"AUC {px:g} px" for px in config.homography.thresholds_px]
    columns += [f"H within {px:g} px" for px in config.homography.correct_within_px]
    rows: list[list[Cell]] = []
    for score in scores:
        whole = score.groups[OVERALL]
        curve = dict(zip(config.thresholds_px, whole.accuracy.tolist(), strict=True))
        values = [score.groups[group].mma_score for group in groups]
        values += [curve[px] for px in shown] + list(whole.homography_auc) + list(whole.homography_found)
        rows.append([score.name, round(whole.features), round(whole.matches), *(100 * value for value in values)])
    return Table("Image matching, %", columns, rows, _note(data))


def _note(data: SequenceSet) -> str:
    parts = [f"{_counted(data)}; a pair without matches counts as MMA 0."]
    if data.left_out:
        parts.append(f"Left out as too large, as D2-Net does: {', '.join(data.left_out)}.")
    return " ".join(parts)


def _counted(data: SequenceSet) -> str:
    count = len(data.sequences)
    return f"{count} {'sequence' if count == 1 else 'sequences'}, {len(data.pairs())} pairs"


def sequence_table(scores: Sequence[MethodScore]) -> Table:
    """MMAScore in %: a row per sequence, a column per method."""
    rows: list[list[Cell]] = [
        [name, *(100 * score.sequences[name].mma_score for score in scores)] for name in scores[0].sequences
    ]
    return Table("MMAScore by sequence, %", ["sequence", *(score.name for score in scores)], rows)


def matching_ranking(scores: Sequence[MethodScore], data: SequenceSet, config: MatchingConfig) -> list[Ranked]:
    """MMAScore, and the share of the pairs whose homography is found, in %."""
    name = data.root.resolve().name
    ranking = [
        Ranked(score.name, f"MMAScore {name}, %", 100 * score.groups[OVERALL].mma_score, "high") for score in scores
    ]
    for number, px in enumerate(config.homography.correct_within_px):
        ranking += [
            Ranked(
                score.name,
                f"H within {px:g} px {name}, %",
                100 * score.groups[OVERALL].homography_found[number],
                "high",
            )
            for score in scores
        ]
    return ranking


def precision_ranking(scores: Sequence[MethodPrecision], data: SequenceSet) -> list[Ranked]:
    """Mean of the sequences' mAP in %, right by distance: the rule that all features can be judged by."""
    measure = f"mAP {data.root.resolve().name}, %"
    return [Ranked(score.name, measure, 100 * score.mean["distance"], "high") for score in scores]


def published_tables(data: SequenceSet) -> list[Table]:
    """SCFeat's tables II and III."""
    known = published("hpatches_mma")
    heads = [str(column) if column in ("features", "matches") else f"MMAScore {column}" for column in known.columns]
    return [
        Table(
            f"Published on HPatches: {table.paper}, {table.where}, %",
            ["as published", *heads],
            [[row.name, *map(round, row.values[:2]), *row.values[2:]] for row in table.rows],
            "" if data.is_hpatches else ELSEWHERE,
        )
        for table in known.tables
    ]


def precision_table(scores: Sequence[MethodPrecision]) -> Table:
    """mAP in %: a row per method and rule, a column per sequence, and the mean."""
    rows: list[list[Cell]] = []
    for rule in ("overlap", "distance"):
        for score in scores:
            values = [score.sequences[name].get(rule) for name in score.sequences]
            cells = [None if value is None else 100 * value for value in (*values, score.mean.get(rule))]
            rows.append([score.name, rule, *cells])
    columns = ["method", "right by", *scores[0].sequences, "mean"]
    note = "The measure of DOAP's Fig. 6, whose bars have no numbers in its text. Without scales there is no overlap."
    return Table("Matching mAP, %", columns, rows, note)


def matching_report(
    data: SequenceSet, scores: Sequence[MethodScore], config: MatchingConfig, described: dict[str, Any]
) -> Report:
    """The page of `featkit eval hpatches`."""
    best = max(scores, key=lambda score: score.groups[OVERALL].mma_score)
    return Report(
        title="Image matching: mean matching accuracy",
        subtitle=f"{data.root.name}: {_note(data)}",
        headlines=[Headline("best MMAScore", 100 * best.groups[OVERALL].mma_score, "%", best.name)],
        sections=[
            Section("Scores", items=[score_table(scores, data, config)]),
            Section("Accuracy over the error", items=_charts(scores, data, config)),
            Section("Sequences", items=[sequence_table(scores), *_sequence_bars(scores)]),
            Section("Worst and best pairs", _pictures_text(scores), _pictures(scores, data, config)),
            Section("As published", items=published_tables(data)),
            Section("Configuration", items=_configurations(described)),
        ],
    )


def precision_report(data: SequenceSet, scores: Sequence[MethodPrecision], described: dict[str, Any]) -> Report:
    """The page of `featkit eval oxford`."""
    return Report(
        title="Image matching: mean average precision",
        subtitle=f"{data.root.name}: {_counted(data)}",
        sections=[
            Section("Scores", items=[precision_table(scores), *_precision_bars(scores)]),
            Section("Pairs", items=[_precision_pairs(scores, rule) for rule in ("overlap", "distance")]),
            Section("Configuration", items=_configurations(described)),
        ],
    )


def _sequence_bars(scores: Sequence[MethodScore]) -> list[Item]:
    """A group per sequence, as long as they can be read."""
    names = list(scores[0].sequences)
    series = {score.name: [100 * score.sequences[name].mma_score for name in names] for score in scores}
    return [Bars("MMAScore by sequence", "MMAScore, %", names, series)] if len(names) <= MOST_GROUPS else []


def _precision_bars(scores: Sequence[MethodPrecision]) -> list[Item]:
    """As DOAP's Fig. 6 has them."""
    names = list(scores[0].sequences)
    series = {score.name: [100 * score.sequences[name]["distance"] for name in names] for score in scores}
    return [Bars("mAP by sequence, right by distance", "mAP, %", names, series)] if len(names) <= MOST_GROUPS else []


def _precision_pairs(scores: Sequence[MethodPrecision], rule: str) -> Table:
    """AP in %: a row per pair, a column per method."""
    rows: list[list[Cell]] = []
    for pairs in zip(*(score.pairs for score in scores), strict=True):
        cells = [None if rule not in pair.ap else 100 * pair.ap[rule] for pair in pairs]
        rows.append([pairs[0].sequence, pairs[0].image, *cells])
    return Table(f"AP by pair, right by {rule}, %", ["sequence", "image", *(score.name for score in scores)], rows)


def _charts(scores: Sequence[MethodScore], data: SequenceSet, config: MatchingConfig) -> list[Item]:
    """MMA over the threshold: ours, and the published ones; in one chart where they are of the same pairs."""
    known = published_curves()
    thresholds = np.array(known.thresholds_px)
    charts: list[Item] = []
    for group in scores[0].groups:
        ours = [_curve(score.name, score.groups[group], config) for score in scores]
        theirs = [Curve(one.name, thresholds, np.array(one.of(group)), True) for one in known.curves]
        title = f"MMA, {group}"
        if data.is_hpatches:
            title += ", and as published"
            charts.append(Curves(title, "threshold, px", "MMA, %", [*theirs, *ours]))
            continue
        charts.append(Curves(title, "threshold, px", "MMA, %", ours))
        if group == OVERALL:
            charts.append(
                Curves(
                    "MMA here, and as published on HPatches (other images)", "threshold, px", "MMA, %", [*theirs, *ours]
                )
            )
    return charts


def _curve(name: str, group: GroupScore, config: MatchingConfig) -> Curve:
    return Curve(name, np.array(config.thresholds_px), 100 * group.accuracy)


def _pictures_text(scores: Sequence[MethodScore]) -> str:
    left_out = len(scores) - PICTURED_METHODS
    more = f" The first {PICTURED_METHODS} methods are shown." if left_out > 0 else ""
    return f"Worst and best by MMAScore; a match is right up to {RIGHT_PX:g} px.{more}"


def _pictures(scores: Sequence[MethodScore], data: SequenceSet, config: MatchingConfig) -> list[Item]:
    wanted = data.pairs()
    pictures: list[Item] = []
    for score in scores[:PICTURED_METHODS]:
        values = [mma_score(pair.accuracy, config.thresholds_px) for pair in score.pairs]
        order = np.argsort(values, kind="stable").tolist()
        worst = order[:EXTREMES]
        best = [index for index in order[::-1][:EXTREMES] if index not in worst]
        for index in (*worst, *best):
            kind = "worst" if index in worst else "best"
            title = f"{score.name}, {kind}: {_pair_title(score.pairs[index], values[index])}"
            pictures.append(_picture(title, wanted[index], data.root, score))
    return pictures


def _pair_title(pair: PairScore, value: float) -> str:
    return f"{pair.sequence}, image 1 and {pair.image}, MMAScore {100 * value:.1f} %"


def _picture(title: str, pair: SequencePair, root: Path, score: MethodScore) -> MatchPicture:
    names = pair.pair
    assert score.predictions.matches is not None
    with open_features(score.predictions.features) as store, open_matches(score.predictions.matches, store) as matches:
        keypoints = [store.keypoints(name) for name in (names.name0, names.name1)]
        found = matches.read(names)
    errors = reprojection_errors(keypoints[0], keypoints[1], found, pair.homography)
    index = found.as_index_pairs()
    images = [
        decode(root / name, DecodeConfig(resize_max=PICTURE_MAX_PX), colour=True) for name in (names.name0, names.name1)
    ]
    points = [image.pixels_from_file(keypoints[side][index[:, side]]) for side, image in enumerate(images)]
    return MatchPicture(title, images[0].pixels, images[1].pixels, points[0], points[1], errors <= RIGHT_PX)


def _configurations(described: dict[str, Any]) -> list[Item]:
    """What was measured and how, as json. described: title -> plain values."""
    return [Configuration(title, json.dumps(values, indent=1)) for title, values in described.items()]
