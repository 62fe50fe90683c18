"""Tables and the report of `featkit eval pose`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featkit.evaluation.pose import GroupScore, PairScore, PoseScore, RelativePoseConfig, read_matched, threshold_side
from featkit.evaluation.pose_pairs import PosedScene, ScenePairs
from featkit.images.read import DecodeConfig, decode
from featkit.io.features import open_features
from featkit.io.matches import open_matches
from featkit.report.content import (
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

TITLES = {"poselib": "PoseLib", "opencv": "OpenCV"}
CURVE_STEPS = 200
PICTURED_METHODS = 4
PICTURE_MAX_PX = 1000
PROTOCOL = (
    "AUC of the larger of the errors of rotation and of translation's direction; a pair without a pose is"
    " infinitely wrong. Precision: matches that fit the true epipolar geometry."
)


def auc_table(scores: Sequence[PoseScore], config: RelativePoseConfig) -> Table:
    """A row per method: keypoints, matches and precision, AUC by every estimator over all pairs; in %."""
    rows: list[list[Cell]] = []
    for score in scores:
        whole = score.overall
        rows.append([score.name, round(whole.keypoints), *_cells(whole)])
    columns = ["method", "keypoints", *_columns(scores, config)]
    return Table(f"Relative pose, {scores[0].overall.pairs} pairs: AUC, %", columns, rows, PROTOCOL)


def scene_table(scores: Sequence[PoseScore], config: RelativePoseConfig) -> Table:
    """The same, a row per scene and method."""
    rows: list[list[Cell]] = [
        [name, score.name, score.scenes[name].pairs, *_cells(score.scenes[name])]
        for name in scores[0].scenes
        for score in scores
    ]
    return Table("Relative pose by scene: AUC, %", ["scene", "method", "pairs", *_columns(scores, config)], rows)


def error_table(scores: Sequence[PoseScore]) -> Table:
    """A row per method and estimator: median errors in degrees, inliers, pairs without a pose."""
    rows: list[list[Cell]] = []
    for score in scores:
        for name, one in score.overall.estimators.items():
            medians = (one.median_deg, one.median_rotation_deg, one.median_translation_deg)
            cells = [value if np.isfinite(value) else None for value in medians]
            rows.append([score.name, _title(name), *cells, round(one.inliers), one.failed])
    columns = ["method", "estimator", "median error", "of rotation", "of translation", "inliers", "without a pose"]
    return Table("Median errors, degrees", columns, rows, "Median over all pairs; '-' where half of them have no pose.")


def pairs_table(scenes: Sequence[PosedScene], chosen: Mapping[str, ScenePairs]) -> Table:
    """Which pairs of each scene are measured, and how they were chosen."""
    rows: list[list[Cell]] = []
    for scene in scenes:
        pairs = chosen[scene.name]
        drawn = "; ".join(f"{label}: {pairs.drawn[label]} of {count}" for label, count in pairs.found.items())
        rows.append([scene.name, scene.truth.name, len(scene.calibrations), len(pairs.pairs), pairs.rule, drawn or "-"])
    return Table("Pairs", ["scene", "true poses", "images", "pairs", "chosen by", "drawn"], rows)


def pose_ranking(scores: Sequence[PoseScore], config: RelativePoseConfig) -> list[Ranked]:
    """AUC in % up to the middle threshold over all pairs, by every estimator."""
    middle = len(config.thresholds_deg) // 2
    measure = f"pose AUC {config.thresholds_deg[middle]:g} deg"
    return [
        Ranked(score.name, f"{measure}, {_title(name)}, %", 100 * one.auc[middle], "high")
        for score in scores
        for name, one in score.overall.estimators.items()
    ]


def pose_report(
    scenes: Sequence[PosedScene],
    chosen: Mapping[str, ScenePairs],
    scores: Sequence[PoseScore],
    config: RelativePoseConfig,
    described: dict[str, Any],
) -> Report:
    """The page. described: title -> plain values."""
    by_scene = [Section("Scenes", items=[scene_table(scores, config)])] if len(scenes) > 1 else []
    count = f"{len(scenes)} {'scene' if len(scenes) == 1 else 'scenes'}, {scores[0].overall.pairs} pairs"
    return Report(
        title="Relative pose",
        subtitle=f"{', '.join(scene.name for scene in scenes)}: {count}",
        headlines=_headlines(scores, config),
        sections=[
            Section("Scores", items=[auc_table(scores, config), error_table(scores)]),
            *by_scene,
            Section("Share of pairs by error", _curves_text(config), _charts(scores, config)),
            Section("Worst and best pairs", _pictures_text(scores), _pictures(scenes, scores, config)),
            Section("Pairs", items=[pairs_table(scenes, chosen)]),
            Section("Configuration", items=[_configuration(title, values) for title, values in described.items()]),
        ],
    )


def _columns(scores: Sequence[PoseScore], config: RelativePoseConfig) -> list[str]:
    estimators = scores[0].overall.estimators
    aucs = [f"{_title(name)} {degrees:g}°" for name in estimators for degrees in config.thresholds_deg]
    return ["matches", "precision", *aucs]


def _cells(group: GroupScore) -> list[Cell]:
    aucs = [100 * value for one in group.estimators.values() for value in one.auc]
    return [round(group.matches), 100 * group.precision, *aucs]


def _title(estimator: str) -> str:
    return TITLES.get(estimator, estimator)


def _headlines(scores: Sequence[PoseScore], config: RelativePoseConfig) -> list[Headline]:
    lines = []
    for name in scores[0].overall.estimators:
        best = max(scores, key=lambda score: score.overall.estimators[name].auc)
        value = 100 * best.overall.estimators[name].auc[0]
        lines.append(Headline(f"best AUC {config.thresholds_deg[0]:g}°, {_title(name)}", value, "%", best.name))
    return lines


def _curves_text(config: RelativePoseConfig) -> str:
    return f"Share of the pairs with an error up to the one on the axis, to {max(config.thresholds_deg):g} degrees."


def _charts(scores: Sequence[PoseScore], config: RelativePoseConfig) -> list[Item]:
    """Over all scenes, and for each where there are several."""
    names = list(scores[0].scenes)
    charts: list[Item] = [_chart("All pairs", scores, config, names)]
    if len(names) > 1:
        charts += [_chart(name, scores, config, [name]) for name in names]
    return charts


def _chart(title: str, scores: Sequence[PoseScore], config: RelativePoseConfig, scenes: Sequence[str]) -> Curves:
    degrees = np.linspace(0, max(config.thresholds_deg), CURVE_STEPS + 1)
    curves = []
    for score in scores:
        of_it = [pair for pair in score.pairs if pair.scene in scenes]
        for name in score.overall.estimators:
            errors = np.sort([pair.errors[name].deg for pair in of_it])
            share = np.searchsorted(errors, degrees, side="right") / len(errors)
            curves.append(Curve(f"{score.name}, {_title(name)}", degrees, 100 * share))
    return Curves(title, "error, degrees", "pairs, %", curves)


def _pictures_text(scores: Sequence[PoseScore]) -> str:
    left_out = len(scores) - PICTURED_METHODS
    more = f" The first {PICTURED_METHODS} methods are shown." if left_out > 0 else ""
    first = next(iter(scores[0].overall.estimators))
    return f"By the error of {_title(first)}, whose inliers are drawn as right.{more}"


def _pictures(scenes: Sequence[PosedScene], scores: Sequence[PoseScore], config: RelativePoseConfig) -> list[Item]:
    by_name = {scene.name: scene for scene in scenes}
    first = next(iter(scores[0].overall.estimators))
    pictures: list[Item] = []
    for score in scores[:PICTURED_METHODS]:
        order = sorted(score.pairs, key=lambda pair: pair.errors[first].deg)
        for kind, pair in (("worst", order[-1]), ("best", order[0]))[: len(order)]:
            pictures.append(_picture(kind, pair, by_name[pair.scene], score, first, config))
    return pictures


def _picture(
    kind: str, pair: PairScore, scene: PosedScene, score: PoseScore, estimator: str, config: RelativePoseConfig
) -> MatchPicture:
    """The estimate is made again: the same seed gives the same inliers."""
    one = score.predictions[scene.name]
    assert one.matches is not None
    with open_features(one.features) as features, open_matches(one.matches, features) as matches:
        matched = read_matched(scene, pair.pair, features, matches, threshold_side(one, config))
    found = matched.estimate(dict(config.estimators.named())[estimator], config.seed)
    names = (pair.pair.name0, pair.pair.name1)
    images = [decode(scene.images / name, DecodeConfig(resize_max=PICTURE_MAX_PX), colour=True) for name in names]
    points = [image.pixels_from_file(of_it) for image, of_it in zip(images, matched.keypoints, strict=True)]
    error = pair.errors[estimator].deg
    told = f"{error:.2f} degrees" if np.isfinite(error) else "no pose"
    title = f"{score.name}, {kind}: {scene.name}, {names[0]} and {names[1]}, {told}"
    inlier = np.zeros(len(points[0]), bool) if found is None else found.inlier
    return MatchPicture(title, images[0].pixels, images[1].pixels, points[0], points[1], inlier)


def _configuration(title: str, values: Any) -> Configuration:
    return Configuration(title, json.dumps(values, indent=1))
