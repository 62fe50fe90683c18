"""Relative pose of image pairs with known cameras, following MegaDepth-1500's protocol.

For each pair: matches -> undistorted rays -> a pose from each estimator -> its error, the larger of the rotation error
and the angle between the translation directions (SuperGlue, CVPR 2020; LoFTR, CVPR 2021). Scores are the AUC of these
errors at 5, 10 and 20 degrees, where a pair without a pose has an infinite error, and the precision of the matches
under the true epipolar geometry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from featkit.core.config import Config, Degrees, Factor, Seed
from featkit.core.content import Cell, Curves, Headline, Item, MatchPicture, Section, Table
from featkit.core.errors import UsageError
from featkit.core.log import progress
from featkit.core.registry import Method
from featkit.core.types import Pair
from featkit.evaluation.benchmark import ImageBenchmark, Predictions, Ranked, Result, Work, matcher_named, plain
from featkit.evaluation.metrics import pose_errors_deg, symmetric_epipolar_errors
from featkit.evaluation.pictures import match_picture, share_curve
from featkit.evaluation.pose_estimators import (
    EstimatedPose,
    EstimatorError,
    PoseEstimator,
    PoseEstimators,
    PoseGroupScore,
    PosePairScore,
    RayMatches,
    group_score,
)
from featkit.evaluation.pose_pairs import (
    PosedScene,
    PosePairsConfig,
    ScenePairs,
    choose_pairs,
    read_scenes,
    write_chosen_pairs,
)
from featkit.features.base import Extractor
from featkit.io.features import FeatureStore, open_features
from featkit.io.matches import MatchStore, open_matches

TITLES = {"poselib": "PoseLib", "opencv": "OpenCV"}
CURVE_STEPS = 200
PICTURED_METHODS = 4
PROTOCOL = (
    "AUC of the larger of the errors of rotation and of translation direction; a pair without a pose has an"
    " infinite error. Precision: share of matches that fit the true epipolar geometry."
)


class RelativePoseConfig(Config):
    """What is measured, on which pairs and with which estimators."""

    pairs: PosePairsConfig = PosePairsConfig()
    """Selection of image pairs."""
    estimators: PoseEstimators = PoseEstimators()
    """The estimators that every method is evaluated with."""
    seed: Seed = 0
    """Random seed of the pair selection and of the estimators."""
    threshold_pixels: Literal["resized", "original"] = "resized"
    """Image size that the estimators' pixel thresholds refer to. resized: the image as it was resized for feature
    extraction (SuperGlue, glue-factory); original: the file (LoFTR)."""
    signed_translation: bool = False
    """Whether a translation in the opposite direction has an error of 180 degrees. SuperGlue, LoFTR and glue-factory
    count it as correct, because an essential matrix determines translation only up to sign."""
    thresholds_deg: tuple[Degrees, ...] = (5.0, 10.0, 20.0)
    """Error thresholds of the AUC, degrees (SuperGlue, LoFTR)."""
    max_epipolar_error: Factor = 1e-4
    """Largest symmetric epipolar error of a correct match: sum of the squared distances to the true epipolar lines, in
    normalised image units; LoFTR's for MegaDepth."""


@dataclass(frozen=True)
class MatchedPair:
    """Matches of a pair: their keypoints (featkit pixels of the files), rays and symmetric epipolar errors.

    usable: matches whose keypoints can be undistorted; the rays of others are NaN. focal_px: focal lengths, in the
    pixels of the estimators' thresholds. counts: number of keypoints in each image.
    """

    keypoints: tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2"]]
    rays: tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2"]]
    usable: Bool[np.ndarray, " m"]
    epipolar_errors: Float[np.ndarray, " m"]
    focal_px: tuple[float, float]
    counts: tuple[int, int]

    def estimate(self, estimator: PoseEstimator, seed: int) -> EstimatedPose | None:
        """A pose, and which of all matches are its inliers."""
        points0, points1 = (points[self.usable] for points in self.rays)
        estimated = estimator.estimate(RayMatches(points0, points1, self.focal_px), seed)
        if estimated is None:
            return None
        inlier = np.zeros(len(self.usable), bool)
        inlier[self.usable] = estimated.inlier
        return EstimatedPose(estimated.pose, inlier)


def evaluate_poses(
    scenes: Sequence[PosedScene],
    pairs: Mapping[str, Sequence[Pair]],
    predictions: Mapping[str, Predictions],
    config: RelativePoseConfig | None = None,
) -> PoseScore:
    """Evaluate a method, with one pair in memory at a time. Raises BadInputError for damaged stores.

    pairs, predictions: by scene name, at least one pair each.
    """
    config = config or RelativePoseConfig()
    scores: list[PosePairScore] = []
    with progress("measure", sum(len(pairs[scene.name]) for scene in scenes), "pairs") as advance:
        for scene in scenes:
            scene_predictions = predictions[scene.name]
            assert scene_predictions.matches is not None, "poses are measured on matches"
            with (
                open_features(scene_predictions.features) as features,
                open_matches(scene_predictions.matches, features) as matches,
            ):
                for pair in pairs[scene.name]:
                    matched = read_matched(scene, pair, features, matches, threshold_side(scene_predictions, config))
                    scores.append(_score_pair(scene, pair, matched, config))
                    advance(1)
    groups = {
        scene.name: group_score([score for score in scores if score.scene == scene.name], config.thresholds_deg)
        for scene in scenes
    }
    method = predictions[scenes[0].name].method
    return PoseScore(method, dict(predictions), tuple(scores), groups, group_score(scores, config.thresholds_deg))


def threshold_side(predictions: Predictions, config: RelativePoseConfig) -> int | None:
    """Longer side of the images that pixel thresholds refer to; None: the original size."""
    return predictions.method.config.decode.resize_max if config.threshold_pixels == "resized" else None


def read_matched(
    scene: PosedScene, pair: Pair, features: FeatureStore, matches: MatchStore, longer_side: int | None = None
) -> MatchedPair:
    """The matches of a pair as rays. longer_side: see `threshold_side`; smaller images are not enlarged."""
    names = (pair.name0, pair.name1)
    cameras = [scene.calibrations[name] for name in names]
    all_keypoints = [features.keypoints(name) for name in names]
    index = matches.read(pair).as_index_pairs()
    keypoints = [points[index[:, side]] for side, points in enumerate(all_keypoints)]
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
        (len(all_keypoints[0]), len(all_keypoints[1])),
    )


def _score_pair(scene: PosedScene, pair: Pair, matched: MatchedPair, config: RelativePoseConfig) -> PosePairScore:
    """Precision of the matches, and the error of each estimator."""
    truth = scene.relative(pair)
    errors = {}
    for name, estimator in config.estimators.named():
        estimated = matched.estimate(estimator, config.seed)
        angles = pose_errors_deg(None if estimated is None else estimated.pose, truth, config.signed_translation)
        errors[name] = EstimatorError(*angles, 0 if estimated is None else int(estimated.inlier.sum()))
    correct = matched.epipolar_errors < config.max_epipolar_error
    return PosePairScore(
        scene=scene.name,
        pair=pair,
        keypoints=matched.counts,
        matches=len(correct),
        precision=float(correct.mean()) if len(correct) else 0.0,
        errors=errors,
    )


@dataclass(frozen=True)
class PoseScore:
    """A method on all scenes. predictions: by scene. overall: over the pairs of all scenes together."""

    method: Method
    predictions: dict[str, Predictions]
    pairs: tuple[PosePairScore, ...]
    scenes: dict[str, PoseGroupScore]
    overall: PoseGroupScore

    @property
    def name(self) -> str:
        return self.method.name

    def as_json(self) -> dict[str, Any]:
        stages = {stage for predictions_of_scene in self.predictions.values() for stage in predictions_of_scene.seconds}
        return {
            **self.method.described(),
            "seconds": {
                stage: round(
                    sum(
                        predictions_of_scene.seconds.get(stage, 0.0)
                        for predictions_of_scene in self.predictions.values()
                    ),
                    3,
                )
                for stage in sorted(stages)
            },
            "overall": self.overall.as_json(),
            "scenes": plain(self.scenes),
            "pairs": [pair.as_json() for pair in self.pairs],
        }


# ----------------------------------------------------------------------------------------------------------------------
# The benchmark: the same pairs for all methods; tables, curves, pictures of the worst and best pairs.


@dataclass(frozen=True)
class ChosenPairs:
    """Scenes, and by scene name the pairs to evaluate."""

    scenes: Sequence[PosedScene]
    chosen: Mapping[str, ScenePairs]

    @property
    def pairs(self) -> dict[str, Sequence[Pair]]:
        return {name: scene_pairs.pairs for name, scene_pairs in self.chosen.items()}

    def described(self) -> list[dict[str, Any]]:
        """Plain values for each scene."""
        return [
            {
                "name": scene.name,
                "images": str(scene.images),
                "truth": str(scene.truth),
                "pairs": len(scene_pairs.pairs),
                "chosen_by": scene_pairs.rule,
                "found": scene_pairs.found,
                "drawn": scene_pairs.drawn,
            }
            for scene, scene_pairs in ((scene, self.chosen[scene.name]) for scene in self.scenes)
        ]


@dataclass(kw_only=True)
class RelativePoses(ImageBenchmark[ChosenPairs]):
    """matcher: name or yaml file. ratio: of its ratio test, if not the default. pairs: file of the pairs to evaluate.

    max_pairs: drawn per scene, if not the configured number.
    """

    name = "pose"
    Config = RelativePoseConfig
    several = True
    resize_max = 1600

    matcher: str = "mutual-nn"
    ratio: float | None = None
    pairs: Path | None = None
    max_pairs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.changed(pairs={} if self.max_pairs is None else {"max_pairs": self.max_pairs})
        self.by = matcher_named(self.matcher, self.ratio, self.device)

    @staticmethod
    def seeded(seed: int) -> dict[str, Any]:
        return {"seed": seed}

    def find(self, roots: Sequence[Path]) -> ChosenPairs:
        if self.pairs is not None and len(roots) > 1:
            raise UsageError(f"--pairs goes with one --root, not with {len(roots)}")
        scenes, config = read_scenes(roots), self.config
        chosen = {scene.name: choose_pairs(scene, config.pairs, config.seed, self.pairs) for scene in scenes}
        return ChosenPairs(scenes, chosen)

    def run(self, data: ChosenPairs, methods: Sequence[Method[Extractor]], work: Work) -> Result:
        config: RelativePoseConfig = self.config
        for name, scene_pairs in data.chosen.items():
            write_chosen_pairs(scene_pairs, config.pairs, config.seed, work.folder / "predictions" / name)
        scores = [
            evaluate_poses(data.scenes, data.pairs, self.predictions(data, method, work), config) for method in methods
        ]
        tables = [pairs_table(data), auc_table(scores, config), error_table(scores)]
        by_scene = [scene_table(scores, config)] if len(data.scenes) > 1 else []
        first = next(iter(scores[0].overall.estimators))
        text = f"By the error of {_estimator_title(first)}, whose inliers are drawn as correct."
        if len(scores) > PICTURED_METHODS:
            text += f" The first {PICTURED_METHODS} methods are shown."
        axis_note = (
            f"Share of the pairs with at most the error on the axis, up to {max(config.thresholds_deg):g} degrees."
        )
        count = f"{len(data.scenes)} {'scene' if len(data.scenes) == 1 else 'scenes'}, {scores[0].overall.pairs} pairs"
        return Result(
            "Relative pose",
            subtitle=f"{', '.join(scene.name for scene in data.scenes)}: {count}",
            numbers={
                "scenes": data.described(),
                "methods": [score.as_json() for score in scores],
            },
            tables=[*tables, *by_scene],
            ranking=_ranked(scores, config),
            headlines=best_methods(scores, config),
            sections=[
                Section("Scores", items=tables[1:]),
                *(Section("Scenes", items=[table]) for table in by_scene),
                Section("Share of pairs by error", axis_note, error_charts(scores, config)),
                Section("Worst and best pairs", text, _extreme_pairs(data, scores[:PICTURED_METHODS], first, config)),
                Section("Pairs", items=tables[:1]),
            ],
        )

    def predictions(self, data: ChosenPairs, method: Method[Extractor], work: Work) -> dict[str, Predictions]:
        """By scene: features of the images in its pairs, and matches of the pairs."""
        by_scene = {}
        for scene in data.scenes:
            pairs = data.pairs[scene.name]
            names = sorted({name for pair in pairs for name in (pair.name0, pair.name1)})
            by_scene[scene.name] = work.predict(method, scene.images, names, self.by, pairs, scene=scene.name)
        return by_scene


def auc_table(scores: Sequence[PoseScore], config: RelativePoseConfig) -> Table:
    """A row per method: keypoints, matches and precision, and the AUC of each estimator over all pairs, in %."""
    rows: list[list[Cell]] = [
        [score.name, round(score.overall.keypoints), *_score_cells(score.overall)] for score in scores
    ]
    columns = ["method", "keypoints", *_score_columns(scores, config)]
    return Table(f"Relative pose, {scores[0].overall.pairs} pairs: AUC, %", columns, rows, PROTOCOL)


def scene_table(scores: Sequence[PoseScore], config: RelativePoseConfig) -> Table:
    """The same, with a row per scene and method."""
    rows: list[list[Cell]] = [
        [name, score.name, score.scenes[name].pairs, *_score_cells(score.scenes[name])]
        for name in scores[0].scenes
        for score in scores
    ]
    return Table("Relative pose by scene: AUC, %", ["scene", "method", "pairs", *_score_columns(scores, config)], rows)


def _score_columns(scores: Sequence[PoseScore], config: RelativePoseConfig) -> list[str]:
    estimators = scores[0].overall.estimators
    aucs = [f"{_estimator_title(name)} {degrees:g}°" for name in estimators for degrees in config.thresholds_deg]
    return ["matches", "precision", *aucs]


def _score_cells(group: PoseGroupScore) -> list[Cell]:
    aucs = [100 * value for score in group.estimators.values() for value in score.auc]
    return [round(group.matches), 100 * group.precision, *aucs]


def _estimator_title(estimator: str) -> str:
    return TITLES.get(estimator, estimator)


def error_table(scores: Sequence[PoseScore]) -> Table:
    """A row per method and estimator: median errors in degrees, inliers, pairs without a pose."""
    rows: list[list[Cell]] = []
    for score in scores:
        for name, estimator_score in score.overall.estimators.items():
            medians = (
                estimator_score.median_deg,
                estimator_score.median_rotation_deg,
                estimator_score.median_translation_deg,
            )
            cells = [value if np.isfinite(value) else None for value in medians]
            rows.append(
                [score.name, _estimator_title(name), *cells, round(estimator_score.inliers), estimator_score.failed]
            )
    columns = ["method", "estimator", "median error", "of rotation", "of translation", "inliers", "without a pose"]
    return Table("Median errors, degrees", columns, rows, "Median over all pairs; '-' where half of them have no pose.")


def pairs_table(data: ChosenPairs) -> Table:
    """The pairs of each scene, and how they were chosen."""
    rows: list[list[Cell]] = []
    for scene in data.scenes:
        pairs = data.chosen[scene.name]
        drawn = "; ".join(f"{label}: {pairs.drawn[label]} of {count}" for label, count in pairs.found.items())
        rows.append([scene.name, scene.truth.name, len(scene.calibrations), len(pairs.pairs), pairs.rule, drawn or "-"])
    return Table("Pairs", ["scene", "true poses", "images", "pairs", "chosen by", "drawn"], rows)


def _ranked(scores: Sequence[PoseScore], config: RelativePoseConfig) -> list[Ranked]:
    """AUC in % at the middle threshold over all pairs, by estimator."""
    middle = len(config.thresholds_deg) // 2
    measure = f"pose AUC {config.thresholds_deg[middle]:g} deg"
    return [
        Ranked(score.name, f"{measure}, {_estimator_title(name)}, %", 100 * estimator_score.auc[middle])
        for score in scores
        for name, estimator_score in score.overall.estimators.items()
    ]


def best_methods(scores: Sequence[PoseScore], config: RelativePoseConfig) -> list[Headline]:
    """The best AUC at the strictest threshold, by estimator."""
    lines = []
    for name in scores[0].overall.estimators:
        best = max(scores, key=lambda score: score.overall.estimators[name].auc)
        value = 100 * best.overall.estimators[name].auc[0]
        lines.append(
            Headline(f"best AUC {config.thresholds_deg[0]:g}°, {_estimator_title(name)}", value, "%", best.name)
        )
    return lines


def error_charts(scores: Sequence[PoseScore], config: RelativePoseConfig) -> list[Item]:
    """Share of the pairs up to each error: over all scenes, and for each scene if there are several."""
    names, degrees = list(scores[0].scenes), np.linspace(0, max(config.thresholds_deg), CURVE_STEPS + 1)
    charts: list[Item] = []
    for title, scene_names in {
        "All pairs": names,
        **({name: [name] for name in names} if len(names) > 1 else {}),
    }.items():
        curves = [
            share_curve(
                f"{score.name}, {_estimator_title(name)}",
                [pair.errors[name].deg for pair in score.pairs if pair.scene in scene_names],
                degrees,
            )
            for score in scores
            for name in score.overall.estimators
        ]
        charts.append(Curves(title, "error, degrees", "pairs, %", curves))
    return charts


def _extreme_pairs(
    data: ChosenPairs, scores: Sequence[PoseScore], estimator: str, config: RelativePoseConfig
) -> list[Item]:
    """Pictures of the worst and the best pair of each method."""
    pictures: list[Item] = []
    for score in scores:
        order = sorted(score.pairs, key=lambda pair: pair.errors[estimator].deg)
        for kind, pair in (("worst", order[-1]), ("best", order[0]))[: len(order)]:
            pictures.append(_draw_pair(kind, pair, data, score, estimator, config))
    return pictures


def _draw_pair(
    kind: str, pair: PosePairScore, data: ChosenPairs, score: PoseScore, estimator: str, config: RelativePoseConfig
) -> MatchPicture:
    """A picture of a pair; the pose is estimated again, with the same seed and so the same inliers."""
    scene = next(scene for scene in data.scenes if scene.name == pair.scene)
    scene_predictions = score.predictions[scene.name]
    assert scene_predictions.matches is not None
    with (
        open_features(scene_predictions.features) as features,
        open_matches(scene_predictions.matches, features) as matches,
    ):
        matched = read_matched(scene, pair.pair, features, matches, threshold_side(scene_predictions, config))
    estimated = matched.estimate(dict(config.estimators.named())[estimator], config.seed)
    error = pair.errors[estimator].deg
    outcome = f"{error:.2f} degrees" if np.isfinite(error) else "no pose"
    title = f"{score.name}, {kind}: {scene.name}, {pair.pair.name0} and {pair.pair.name1}, {outcome}"
    inlier = np.zeros(len(matched.usable), bool) if estimated is None else estimated.inlier
    return match_picture(title, scene.images, pair.pair, matched.keypoints, inlier)
