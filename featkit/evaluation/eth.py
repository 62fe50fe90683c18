"""The ETH local-feature benchmark: any features into COLMAP's incremental mapper, by featkit's own stages.

    PREDICTIONS/SCENE/METHOD-FINGERPRINT/features.h5
        matches-FINGERPRINT/matches.h5
            map-FINGERPRINT/pairs.txt, database.db, sparse/

Each folder is named after all that decides what is in it, so that nothing is made twice and nothing stale is measured.
What is measured on a map: `eth_scores`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from featkit.core.config import Config, Count, Degrees, Seed, digest, merge
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
from featkit.pairing.base import Pairing
from featkit.pairing.stage import AutoConfig

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
SHOWN_3D = 4  # maps that are drawn; of these methods of a scene also pairs of images
CURVE_DEG = np.linspace(0.0, 10.0, 201)
WITHOUT_CUDA = "No dense points: this pycolmap has no CUDA."


class EthConfig(Config):
    """Everything that decides a map, and what is measured on it."""

    extractors: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """By extractor (sift, patches, scfeat): what differs from the configurations of features. Others stay as they
    are."""
    matched_by: str = "mutual"
    """A matcher by its name in configs/. The benchmark: mutual nearest neighbours, ratio 0.8 (there on one side)."""
    matching: dict[str, Any] = Field(default_factory=dict)
    """What differs from the matcher's configuration."""
    paired_by: str = "auto"
    """auto, exhaustive, retrieval, or another pairing by its name in configs/."""
    auto: AutoConfig = AutoConfig(exhaustive_up_to=1999)
    """What "auto" means. The benchmark: all pairs below 2000 images."""
    retrieved: Count = 100
    """Most similar images that each one is paired with by retrieval (the benchmark: 100 by a vocabulary tree)."""
    known_cameras: bool = True
    """Take the camera of a scene's camera.txt and leave it as it is, as the reference rows do. False: `map.camera`."""
    map: MapConfig = MapConfig()
    """Cameras without camera.txt, verification (both the benchmark's: 15 matches, then inliers), mapping."""
    dense: DenseConfig | None = DenseConfig()
    """Dense points where pycolmap has CUDA; null: none."""
    pose_thresholds_deg: tuple[Degrees, ...] = POSE_THRESHOLDS_DEG
    """Of the area under the curve of pose errors over pairs of images, where the truth is known."""
    seed: Seed = 0
    """Of pairing by retrieval; verification and mapping have their own in `map`."""


@dataclass(kw_only=True)
class EthBenchmark(SettingBenchmark[SceneSet]):
    """scenes: only these, comma-separated; by default the benchmark's."""

    name = "eth"
    Config = EthConfig
    setting = "eth"

    scenes: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.config.paired_by != "auto":
            resolve("pairing", self.config.paired_by)  # better found before the work than after

    @staticmethod
    def seeded(seed: int) -> dict[str, Any]:
        return {"map": {"verify": {"seed": seed}, "seed": seed}, "seed": seed}

    def find(self, roots: Sequence[Path]) -> SceneSet:
        return find_scenes(roots[0], names_in(self.scenes))

    def method(
        self, name: str, label: str | None = None, changes: dict[str, Any] | None = None, **reading: Any
    ) -> Method[Extractor]:
        """Features by name, under this setting. changes: fields that differ once more."""
        own = self.differences(name) or {}
        return super().method(name, label, merge(own, changes or {}), skip_broken=self.skip_broken, **reading)

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
        table, poses, beside = score_table(scores), pose_table(scores, config), beside_tables(data.scenes, scores)
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
                "published": published_rows(data.scenes),
            },
            tables=[table, *([poses] if poses else []), *beside],
            ranking=ranked(scores),
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
        """Features, pairs, matches, verification, map; what is done already is kept.

        Raises BadInputError for images that cannot be read or do not fit the camera.
        """
        found, overwrite = work.predict(method, scene.images, scene.names, scene=scene.name), work.overwrite
        chosen = self._pairing(len(scene.names))
        mapping, camera = self._mapping(scene)
        matched = found.features.parent / f"matches-{self.by.config.fingerprint()}"
        parts = (mapping.fingerprint(), chosen.config.fingerprint(), chosen.name, str(self.config.seed))
        place = matched / f"map-{digest(*parts)}"
        seconds = dict(found.seconds)
        with open_features(found.features) as store:  # without the broken ones, where those are passed over
            names = [image for image in scene.names if store.has(image)]
        with timed("pairs", seconds):
            pairs = pairing.run(
                chosen, found.features, place / "pairs.txt",
                names=names, seed=self.config.seed, overwrite=overwrite,
            )  # fmt: skip
        with timed("match", seconds):
            matches = stages.match(
                self.by, found.features, pairs, matched / "matches.h5", overwrite=overwrite, engine=work.engine
            )  # fmt: skip
        found = replace(found, matches=matches, seconds=seconds)
        result = SceneMap(scene, found, place, camera, chosen.name, len(read_pairs(pairs)))
        return _mapped(mapping, result, pairs, names, overwrite, stages.verifier(work.engine))

    def _pairing(self, images: int) -> Method[Pairing]:
        """The pairing for that many images."""
        chosen = pairing.choose(self.config.paired_by, images, device=self.device, auto=self.config.auto)
        fewer = {"num_matched": self.config.retrieved} if "num_matched" in type(chosen.own).model_fields else None
        return resolve("pairing", chosen.name, fewer, self.device)

    def _mapping(self, scene: EthScene) -> tuple[MapConfig, str]:
        """Configuration of the map, and in words where its cameras are from."""
        mapping = self.config.map
        if scene.camera is not None and self.config.known_cameras:
            known = CameraConfig(model=scene.camera.model, params=scene.camera.params, mode="single", refine=False)
            return mapping.model_copy(update={"camera": known}), "camera.txt, fixed"
        origin = "EXIF or guessed" if mapping.camera.params is None else "given"
        return mapping, f"{mapping.camera.given_model}, {origin}, {'refined' if mapping.camera.refine else 'fixed'}"


def _mapped(
    mapping: MapConfig, found: SceneMap, pairs: Path, names: list[str], overwrite: bool, verifier: Verifier | None
) -> SceneMap:
    """Verification and map of matched images, as far as they come."""
    scene, predictions = found.scene, found.predictions
    assert predictions.matches is not None
    seconds = predictions.seconds
    database = None
    try:
        with timed("verify", seconds):
            database = build_database(
                map_stage.database_config(mapping), scene.images, predictions.features, pairs, predictions.matches,
                found.folder / "database.db", names=names, overwrite=overwrite,
                verifier=verifier,
            )  # fmt: skip
        with timed("map", seconds):
            sparse = map_stage.build_map(mapping, scene.images, database, found.folder / "sparse", overwrite=overwrite)
    except EmptyResultError as error:
        LOGGER.warning("%s, %s: %s", scene.name, predictions.method.name, error)
        return replace(found, database=database, reason=str(error))
    return replace(found, database=database, sparse=sparse)


# ----------------------------------------------------------------------------------------------------------------------
# Tables and page: published rows beside ours, errors against true cameras, maps in 3D.


def of_scene(scores: Sequence[SceneScore], scene: str) -> list[SceneScore]:
    """The rows of one scene."""
    return [score for score in scores if score.scene.name == scene]


def score_table(scores: Sequence[SceneScore]) -> Table:
    """The benchmark's columns: a row per scene and method."""
    columns = ["scene", "method", "images", *(HEADS[column] for column in BENCHMARK)]
    rows: list[list[Cell]] = [
        [score.scene.name, score.name, len(score.scene.names), *_cells(score, BENCHMARK)] for score in scores
    ]
    empty = {number for number, score in enumerate(scores) if score.model is None}
    return Table("Maps", columns, rows, _note(scores), empty)


def pose_table(scores: Sequence[SceneScore], config: EthConfig) -> Table | None:
    """Errors against true cameras; None where no scene has any."""
    judged = [score for score in scores if score.pose_auc is not None]
    if not judged:
        return None
    columns = ["scene", "method", *(HEADS[column] for column in CAMERAS)]
    columns += [f"AUC {degrees:g} deg" for degrees in config.pose_thresholds_deg] + ["pairs", "failed pairs"]
    rows: list[list[Cell]] = []
    for score in judged:
        assert score.pose_auc is not None
        assert score.pose_errors is not None
        auc = [100 * value for value in score.pose_auc]
        counts = [len(score.pose_errors.error_deg), score.pose_errors.failed]
        rows.append([score.scene.name, score.name, *_cells(score, CAMERAS), *auc, *counts])
    whole = {score.scene.name: score.scene for score in judged if score.scene.is_whole}
    for row in published_rows(list(whole.values())):
        if any(column in row for column in CAMERAS):
            cells = [row.get(column) for column in CAMERAS]
            label = f"{row['method']} ({_source(row)})"
            rows.append([row["scene"], label, *cells, *[None] * (len(columns) - 2 - len(cells))])
    note = "Centres and rotations: registered images, after one similarity. AUC in %, over all pairs of images."
    return Table("Cameras against the truth", columns, rows, note)


def beside_tables(scenes: Sequence[EthScene], scores: Sequence[SceneScore]) -> list[Table]:
    """Per scene our rows, and below what papers print of it; gaps where they print nothing."""
    tables = []
    for scene in scenes:
        printed = [row for row in published_rows([scene]) if set(row) & set(BENCHMARK)]
        if not printed:
            continue
        rows: list[list[Cell]] = [
            [score.name, "here", *_cells(score, BENCHMARK)] for score in of_scene(scores, scene.name)
        ]
        ours = set(range(len(rows)))
        rows += [[row["method"], _source(row), *(row.get(column) for column in BENCHMARK)] for row in printed]
        columns = ["method", "from", *(HEADS[column] for column in BENCHMARK)]
        note = "" if scene.is_whole else "Published rows are of another number of images: they do not compare."
        tables.append(Table(f"{scene.name}, beside what is published", columns, rows, note, ours))
    return tables


def published_rows(scenes: Sequence[EthScene]) -> list[dict[str, Any]]:
    """Everything that is printed on these scenes, as plain values."""
    names = {scene.name: scene.is_whole for scene in scenes}
    return [
        {
            "scene": row.scene,
            "method": row.name,
            "paper": table.paper,
            "where": table.where,
            "on_these_images": names[row.scene],
            **{name: _number(name, value) for name, value in zip(table.columns, row.values, strict=True)},
        }
        for table in published("eth").tables
        for row in table.rows
        if row.scene in names
    ]


def origins(scenes: Sequence[EthScene]) -> str:
    """Which tables of papers have rows of these scenes."""
    names = {scene.name for scene in scenes}
    tables = (one for one in published("eth").tables if any(row.scene in names for row in one.rows))
    return " ".join(f"{table.paper}: {table.where}." for table in tables)


def ranked(scores: Sequence[SceneScore]) -> list[Ranked]:
    """Points, track length, reprojection error and, where the truth is known, centre error of each scene."""
    measured: tuple[tuple[str, str, Literal["high", "low"]], ...] = (
        ("points", "points", "high"),
        ("track_length", "track", "high"),
        ("reprojection_px", "reproj., px", "low"),
        ("centre_error_mm_mean", "centre, mm", "low"),
    )
    found = []
    for score in scores:
        values = score.as_json()
        for key, label, better in measured:
            if key != "centre_error_mm_mean" or score.scene.truth is not None:
                found.append(Ranked(score.name, f"{score.scene.name} {label}", values[key], better))
    return found


def best_map(scores: Sequence[SceneScore]) -> Headline:
    """The method that registers most images of a scene."""
    best = max(scores, key=lambda score: (score.statistics.registered, score.statistics.points))
    registered = f"{best.statistics.registered} / {len(best.scene.names)}"
    return Headline(best.scene.name, registered, hint=f"images, {best.name}")


def _cells(score: SceneScore, columns: Sequence[str]) -> list[Cell]:
    values = score.as_json()
    return [_number(column, values[column]) for column in columns]


def _number(column: str, value: float | None) -> float | int | None:
    return int(value) if value is not None and column in COUNTS else value


def _source(row: dict[str, Any]) -> str:
    """Short name of a paper, and of the table in it."""
    return f"{row['paper'].partition(' (')[0]}, {row['where'].partition(';')[0].partition(',')[0]}"


def _note(scores: Sequence[SceneScore]) -> str:
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
    """Share of pairs of images with an error up to x, of every scene with a truth."""
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
    """The maps in 3D, and pairs of images with their verified matches."""
    items: list[Item] = []
    shown = [score for score in scores if score.model is not None][:SHOWN_3D]
    items += [_drawn(scene, score) for score in shown]
    for score in shown[:1]:
        assert score.map.database is not None
        items += match_pictures(scene.images, score.map.predictions.features, score.map.database)
    left_out = sum(score.model is not None for score in scores) - len(shown)
    text = f"Pairs of {shown[0].name}, from most inliers to fewest." if shown else "Nothing came out."
    return Section(scene.name, text + (f" {left_out} more methods are not drawn." if left_out > 0 else ""), items)


def _drawn(scene: EthScene, score: SceneScore) -> Scene3D:
    """A map in the frame of the truth where there is one, with the true cameras of its images."""
    assert score.model is not None
    truth, model = scene.truth or {}, read_model(score.model)
    found = moved_scene(model, similarity_to_truth(model, truth) if truth else np.eye(3, 4))
    cameras = [
        posed_camera(f"{image.name}, true", truth[image.name], model.cameras[image.camera_id], "truth")
        for image in model.images.values()
        if image.has_pose and image.name in truth
    ]
    return replace(found, cameras=[*found.cameras, *cameras], title=f"{scene.name}, {score.name}")
