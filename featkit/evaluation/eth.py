"""The ETH local-feature benchmark: features mapped by COLMAP's incremental mapper through featkit's stages.

    PREDICTIONS/SCENE/METHOD-FINGERPRINT/features.h5
        matches-FINGERPRINT/matches.h5
            map-FINGERPRINT/pairs.txt, database.db, sparse/

Each folder is named after everything that decides its content, so nothing is computed twice or measured when stale.
Metrics of a map: `eth_scores`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from featkit.core.config import Config, Count, Degrees, Seed, digest, merged_values
from featkit.core.content import Cell, Curves, Headline, Item, Scene3D, Section, Table
from featkit.core.errors import EmptyResultError
from featkit.core.log import timed
from featkit.core.registry import Method, resolve
from featkit.engine import stages
from featkit.evaluation.benchmark import Ranked, Result, SettingBenchmark, Work, names_in
from featkit.evaluation.eth_scenes import EthScene, SceneSet, find_scenes
from featkit.evaluation.eth_scores import SceneMap, SceneScore, measure
from featkit.evaluation.pictures import match_pictures, moved_scene, posed_camera, share_curve
from featkit.evaluation.published import published
from featkit.features.base import Extractor
from featkit.io.features import open_features
from featkit.io.lists import read_pairs
from featkit.mapping import stage as map_stage
from featkit.mapping.align import similarity_to_truth
from featkit.mapping.cameras import CameraConfig
from featkit.mapping.export import DenseConfig, dense_is_possible
from featkit.mapping.model import read_model
from featkit.mapping.stage import MapConfig
from featkit.mapping.verify import Verifier, build_database
from featkit.pairing import stage as pairing
from featkit.pairing.stage import AutoConfig, Pairing

LOGGER = logging.getLogger(__name__)
POSE_THRESHOLDS_DEG = (1.0, 3.0, 5.0, 10.0)
HEADS = {
    "registered": "registered",
    "points": "points",
    "observations": "observations",
    "track_length": "track",
    "observations_per_image": "obs./image",
    "reprojection_px": "reproj. px",
    "dense_points": "dense points",
    "inlier_pairs": "inlier pairs",
    "inlier_matches": "inlier matches",
    "centre_error_mm_mean": "centre mm",
    "centre_error_mm_max": "max mm",
    "rotation_error_deg_mean": "rotation deg",
    "rotation_error_deg_max": "max deg",
}
BENCHMARK = list(HEADS)[: list(HEADS).index("centre_error_mm_mean")]
CAMERAS = [column for column in HEADS if column not in BENCHMARK]
COUNTS = {"registered", "points", "observations", "dense_points", "inlier_pairs", "inlier_matches"}
SHOWN_3D = 4  # methods per scene whose maps and image pairs are drawn
CURVE_DEG = np.linspace(0.0, 10.0, 201)
WITHOUT_CUDA = "No dense points: this pycolmap has no CUDA."


class EthConfig(Config):
    """Everything that decides a map and its metrics."""

    extractors: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Overrides by extractor (sift, patches, scfeat). Other extractors keep their configuration."""
    matched_by: str = "mutual"
    """Matcher, by its name in configs/. The benchmark uses mutual nearest neighbours, ratio 0.8 (there one-sided)."""
    matching: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the matcher's configuration."""
    paired_by: str = "auto"
    """Pairing: auto, exhaustive, retrieval, or another by its name in configs/."""
    auto: AutoConfig = AutoConfig(exhaustive_up_to=1999)
    """When "auto" pairs exhaustively. The benchmark: all pairs below 2000 images."""
    retrieved: Count = 100
    """Number of most similar images that retrieval pairs with each image (the benchmark: 100, by a vocabulary tree)."""
    known_cameras: bool = True
    """Use the camera of a scene's camera.txt without refining it, as the reference rows do. False: `map.camera`."""
    map: MapConfig = MapConfig()
    """Cameras without camera.txt, verification (as the benchmark: 15 matches and inliers), mapping."""
    dense: DenseConfig | None = DenseConfig()
    """Dense reconstruction, if pycolmap has CUDA; null: none."""
    pose_thresholds_deg: tuple[Degrees, ...] = POSE_THRESHOLDS_DEG
    """Thresholds of the pose AUC over image pairs, degrees, if the truth is known."""
    seed: Seed = 0
    """Random seed of pairing by retrieval; verification and mapping have their own in `map`."""


@dataclass(kw_only=True)
class EthBenchmark(SettingBenchmark[SceneSet]):
    """scenes: comma-separated names; default: the benchmark's."""

    name = "eth"
    Config = EthConfig
    setting = "eth"

    scenes: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.config.paired_by != "auto":
            resolve("pairing", self.config.paired_by)  # fail early

    @staticmethod
    def seeded(seed: int) -> dict[str, Any]:
        return {"map": {"verify": {"seed": seed}, "seed": seed}, "seed": seed}

    def find(self, roots: Sequence[Path]) -> SceneSet:
        return find_scenes(roots[0], names_in(self.scenes))

    def method(
        self, name: str, label: str | None = None, changes: dict[str, Any] | None = None, **reading: Any
    ) -> Method[Extractor]:
        """Features by name, under this setting. changes: further overrides."""
        overrides = self.differences(name) or {}
        return super().method(
            name, label, merged_values(overrides, changes or {}), skip_broken=self.skip_broken, **reading
        )

    def run(self, data: SceneSet, methods: Sequence[Method[Extractor]], work: Work) -> Result:
        config: EthConfig = self.config
        scores = []
        for scene in data.scenes:
            for method in methods:
                mapped = self.map_scene(scene, method, work)
                scores.append(measure(mapped, config.dense, config.pose_thresholds_deg))
                registered = scores[-1].statistics.registered
                LOGGER.info("%s, %s: %d of %d images", scene.name, method.name, registered, len(scene.names))
        if all(score.model is None for score in scores):
            raise EmptyResultError(scores[0].map.reason)
        table, poses, beside = _score_table(scores), pose_table(scores, config), comparison_tables(data.scenes, scores)
        missing = ", ".join(f"{scene.name} ({scene.source})" for scene in data.missing)
        return Result(
            "ETH local-feature benchmark",
            subtitle=f"{data.root.name}: {', '.join(scene.name for scene in data.scenes)}",
            numbers={
                "root": str(data.root),
                "setting": self.setting,
                "pose_thresholds_deg": list(config.pose_thresholds_deg),
                "missing": {scene.name: scene.source for scene in data.missing},
                "rows": [score.as_json() for score in scores],
                "published": _published_rows(data.scenes),
            },
            tables=[table, *([poses] if poses else []), *beside],
            ranking=_ranked(scores),
            headlines=[best_map(of_scene(scores, scene.name)) for scene in data.scenes[:SHOWN_3D]],
            sections=[
                Section("Scores", items=[table]),
                *([Section("Cameras against the truth", items=[poses, *pose_charts(scores)])] if poses else []),
                *(scene_section(scene, of_scene(scores, scene.name)) for scene in data.scenes),
                Section("As published", origins(data.scenes) or "Nothing is.", beside),
            ],
            note=f"Scenes that are not here: {missing}." if missing else "",
        )

    def map_scene(self, scene: EthScene, method: Method[Extractor], work: Work) -> SceneMap:
        """Features, pairs, matches, verification, map; existing output is kept.

        Raises BadInputError for images that cannot be read or do not fit the camera.
        """
        predictions, overwrite = work.predict(method, scene.images, scene.names, scene=scene.name), work.overwrite
        chosen = self._pairing_for(len(scene.names))
        mapping, camera = self._mapping_config(scene)
        matched = predictions.features.parent / f"matches-{self.by.config.fingerprint()}"
        identity = (mapping.fingerprint(), chosen.config.fingerprint(), chosen.name, str(self.config.seed))
        place = matched / f"map-{digest(*identity)}"
        seconds = dict(predictions.seconds)
        with open_features(predictions.features) as store:  # without broken ones if those are skipped
            names = [image for image in scene.names if store.has(image)]
        with timed("pairs", seconds):
            pairs = pairing.run(
                chosen, predictions.features, place / "pairs.txt",
                names=names, seed=self.config.seed, overwrite=overwrite,
            )  # fmt: skip
        with timed("match", seconds):
            matches = stages.match(
                self.by, predictions.features, pairs, matched / "matches.h5", overwrite=overwrite, engine=work.engine
            )  # fmt: skip
        predictions = replace(predictions, matches=matches, seconds=seconds)
        result = SceneMap(scene, predictions, place, camera, chosen.name, len(read_pairs(pairs)))
        return _verify_and_map(mapping, result, pairs, names, overwrite, stages.verifier(work.engine))

    def _pairing_for(self, images: int) -> Method[Pairing]:
        """The pairing for this number of images."""
        chosen = pairing.choose(self.config.paired_by, images, device=self.device, auto=self.config.auto)
        fewer = {"num_matched": self.config.retrieved} if "num_matched" in type(chosen.own).model_fields else None
        return resolve("pairing", chosen.name, fewer, self.device)

    def _mapping_config(self, scene: EthScene) -> tuple[MapConfig, str]:
        """Mapping configuration, and the origin of its cameras in words."""
        mapping = self.config.map
        if scene.camera is not None and self.config.known_cameras:
            known = CameraConfig(model=scene.camera.model, params=scene.camera.params, mode="single", refine=False)
            return mapping.model_copy(update={"camera": known}), "camera.txt, fixed"
        origin = "EXIF or guessed" if mapping.camera.params is None else "given"
        return mapping, f"{mapping.camera.given_model}, {origin}, {'refined' if mapping.camera.refine else 'fixed'}"


def _verify_and_map(
    mapping: MapConfig, scene_map: SceneMap, pairs: Path, names: list[str], overwrite: bool, verifier: Verifier | None
) -> SceneMap:
    """Verify and map matched images, as far as that succeeds."""
    scene, predictions = scene_map.scene, scene_map.predictions
    assert predictions.matches is not None
    seconds = predictions.seconds
    database = None
    try:
        with timed("verify", seconds):
            database = build_database(
                map_stage.database_config(mapping), scene.images, predictions.features, pairs, predictions.matches,
                scene_map.folder / "database.db", names=names, overwrite=overwrite,
                verifier=verifier,
            )  # fmt: skip
        with timed("map", seconds):
            sparse = map_stage.build_map(
                mapping, scene.images, database, scene_map.folder / "sparse", overwrite=overwrite
            )
    except EmptyResultError as error:
        LOGGER.warning("%s, %s: %s", scene.name, predictions.method.name, error)
        return replace(scene_map, database=database, reason=str(error))
    return replace(scene_map, database=database, sparse=sparse)


# ----------------------------------------------------------------------------------------------------------------------
# Tables and report: ours next to published rows, errors against ground-truth cameras, maps in 3D.


def of_scene(scores: Sequence[SceneScore], scene: str) -> list[SceneScore]:
    """The rows of one scene."""
    return [score for score in scores if score.scene.name == scene]


def _score_table(scores: Sequence[SceneScore]) -> Table:
    """The benchmark's columns: a row per scene and method."""
    columns = ["scene", "method", "images", *(HEADS[column] for column in BENCHMARK)]
    rows: list[list[Cell]] = [
        [score.scene.name, score.name, len(score.scene.names), *_score_cells(score, BENCHMARK)] for score in scores
    ]
    empty = {number for number, score in enumerate(scores) if score.model is None}
    return Table("Maps", columns, rows, _table_note(scores), empty)


def pose_table(scores: Sequence[SceneScore], config: EthConfig) -> Table | None:
    """Errors against ground-truth cameras; None if no scene has any."""
    with_truth = [score for score in scores if score.pose_auc is not None]
    if not with_truth:
        return None
    columns = ["scene", "method", *(HEADS[column] for column in CAMERAS)]
    columns += [f"AUC {degrees:g} deg" for degrees in config.pose_thresholds_deg] + ["pairs", "failed pairs"]
    rows: list[list[Cell]] = []
    for score in with_truth:
        assert score.pose_auc is not None
        assert score.pose_errors is not None
        auc = [100 * value for value in score.pose_auc]
        counts = [len(score.pose_errors.error_deg), score.pose_errors.failed]
        rows.append([score.scene.name, score.name, *_score_cells(score, CAMERAS), *auc, *counts])
    complete = {score.scene.name: score.scene for score in with_truth if score.scene.is_whole}
    for row in _published_rows(list(complete.values())):
        if any(column in row for column in CAMERAS):
            cells = [row.get(column) for column in CAMERAS]
            label = f"{row['method']} ({_source_label(row)})"
            rows.append([row["scene"], label, *cells, *[None] * (len(columns) - 2 - len(cells))])
    note = "Centres and rotations: registered images, after one similarity. AUC in %, over all pairs of images."
    return Table("Cameras against the truth", columns, rows, note)


def comparison_tables(scenes: Sequence[EthScene], scores: Sequence[SceneScore]) -> list[Table]:
    """Our rows per scene, with published rows below; empty cells where papers give no number."""
    tables = []
    for scene in scenes:
        published_of_scene = [row for row in _published_rows([scene]) if set(row) & set(BENCHMARK)]
        if not published_of_scene:
            continue
        rows: list[list[Cell]] = [
            [score.name, "here", *_score_cells(score, BENCHMARK)] for score in of_scene(scores, scene.name)
        ]
        ours = set(range(len(rows)))
        rows += [
            [row["method"], _source_label(row), *(row.get(column) for column in BENCHMARK)]
            for row in published_of_scene
        ]
        columns = ["method", "from", *(HEADS[column] for column in BENCHMARK)]
        note = "" if scene.is_whole else "Published rows are for another number of images: they do not compare."
        tables.append(Table(f"{scene.name}, compared with published results", columns, rows, note, ours))
    return tables


def _published_rows(scenes: Sequence[EthScene]) -> list[dict[str, Any]]:
    """All published rows of these scenes, as json values."""
    names = {scene.name: scene.is_whole for scene in scenes}
    return [
        {
            "scene": row.scene,
            "method": row.name,
            "paper": table.paper,
            "where": table.where,
            "on_these_images": names[row.scene],
            **{name: _as_cell(name, value) for name, value in zip(table.columns, row.values, strict=True)},
        }
        for table in published("eth").tables
        for row in table.rows
        if row.scene in names
    ]


def origins(scenes: Sequence[EthScene]) -> str:
    """The papers' tables that have rows of these scenes."""
    names = {scene.name for scene in scenes}
    tables = (candidate for candidate in published("eth").tables if any(row.scene in names for row in candidate.rows))
    return " ".join(f"{table.paper}: {table.where}." for table in tables)


def _ranked(scores: Sequence[SceneScore]) -> list[Ranked]:
    """Points, track length, reprojection error and, if the truth is known, centre error of each scene."""
    measured: tuple[tuple[str, str, Literal["high", "low"]], ...] = (
        ("points", "points", "high"),
        ("track_length", "track", "high"),
        ("reprojection_px", "reproj., px", "low"),
        ("centre_error_mm_mean", "centre, mm", "low"),
    )
    ranking = []
    for score in scores:
        values = score.as_json()
        for key, label, better in measured:
            if key != "centre_error_mm_mean" or score.scene.truth is not None:
                ranking.append(Ranked(score.name, f"{score.scene.name} {label}", values[key], better))
    return ranking


def best_map(scores: Sequence[SceneScore]) -> Headline:
    """The method that registers the most images of a scene."""
    best = max(scores, key=lambda score: (score.statistics.registered, score.statistics.points))
    registered = f"{best.statistics.registered} / {len(best.scene.names)}"
    return Headline(best.scene.name, registered, hint=f"images, {best.name}")


def _score_cells(score: SceneScore, columns: Sequence[str]) -> list[Cell]:
    values = score.as_json()
    return [_as_cell(column, values[column]) for column in columns]


def _as_cell(column: str, value: float | None) -> float | int | None:
    return int(value) if value is not None and column in COUNTS else value


def _source_label(row: dict[str, Any]) -> str:
    """Short names of a paper and of its table."""
    return f"{row['paper'].partition(' (')[0]}, {row['where'].partition(';')[0].partition(',')[0]}"


def _table_note(scores: Sequence[SceneScore]) -> str:
    parts = [
        f"{score.scene.name}: {score.map.camera} camera; {score.map.pairs:,} pairs, {score.map.pairs_by}."
        for score in {score.scene.name: score for score in scores}.values()
    ]
    parts += [
        f"{score.scene.name}, {score.name}: nothing came out ({score.map.reason})."
        for score in scores
        if score.model is None
    ]
    if not dense_is_possible():
        parts.append(WITHOUT_CUDA)
    return " ".join(parts)


def pose_charts(scores: Sequence[SceneScore]) -> list[Item]:
    """Share of image pairs with an error up to x, for every scene with ground truth."""
    charts: list[Item] = []
    for scene in dict.fromkeys(score.scene.name for score in scores if score.pose_errors is not None):
        curves = [
            share_curve(score.name, score.pose_errors.error_deg.tolist(), CURVE_DEG)
            for score in of_scene(scores, scene)
            if score.pose_errors is not None
        ]
        charts.append(Curves(f"{scene}: relative poses", "error up to, deg", "pairs of images, %", curves))
    return charts


def scene_section(scene: EthScene, scores: Sequence[SceneScore]) -> Section:
    """The maps in 3D, and image pairs with their verified matches."""
    items: list[Item] = []
    shown = [score for score in scores if score.model is not None][:SHOWN_3D]
    items += [_draw_map(scene, score) for score in shown]
    for score in shown[:1]:
        assert score.map.database is not None
        items += match_pictures(scene.images, score.map.predictions.features, score.map.database)
    left_out = sum(score.model is not None for score in scores) - len(shown)
    text = f"Pairs of {shown[0].name}, from most inliers to fewest." if shown else "Nothing came out."
    return Section(scene.name, text + (f" {left_out} more methods are not drawn." if left_out > 0 else ""), items)


def _draw_map(scene: EthScene, score: SceneScore) -> Scene3D:
    """A map with its images' true cameras, in the ground-truth frame; in its own frame if there is no truth."""
    assert score.model is not None
    truth, model = scene.truth or {}, read_model(score.model)
    drawing = moved_scene(model, similarity_to_truth(model, truth) if truth else np.eye(3, 4))
    cameras = [
        posed_camera(f"{image.name}, true", truth[image.name], model.cameras[image.camera_id], "truth")
        for image in model.images.values()
        if image.has_pose and image.name in truth
    ]
    return replace(drawing, cameras=[*drawing.cameras, *cameras], title=f"{scene.name}, {score.name}")
