"""Localization benchmark: every fourth image of a scene is a query, localized in a map of the others.

The map is triangulated with true poses, so that errors come from localization alone and are in the truth's units. Maps
and poses are computed by the pipelines behind `featkit reconstruct` and `featkit localize`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from featkit.core.config import Seed, digest, load_pipeline
from featkit.core.content import Cell, Curve, Curves, Headline, Link, Section, Table
from featkit.core.errors import BadInputError
from featkit.core.registry import Method
from featkit.evaluation.benchmark import ImageBenchmark, Ranked, Result, Work
from featkit.features.base import Extractor
from featkit.io.artifact import write_text
from featkit.io.atomic import read_lines
from featkit.io.lists import format_poses, read_poses
from featkit.io.shards import write_index
from featkit.mapping.scene import image_folder
from featkit.matching.config import MatchWith

ORIGIN = "a `poses.txt` of true poses (`name qw qx qy qz tx ty tz`) with its `camera.txt` next to it"
MM = 1e3


class HeldOutConfig(MatchWith):
    """Which images are queries, and how they are matched."""

    every: int = Field(4, ge=2, le=10**9)
    """Every N-th image, in the order of names, is a query; the others form the map."""
    seed: Seed = 0
    """Random seed."""


@dataclass(frozen=True)
class HeldOutScene:
    """A scene with true poses. camera: the line of its camera.txt."""

    folder: Path
    queries: tuple[str, ...]
    mapped: tuple[str, ...]
    camera: str

    @property
    def name(self) -> str:
        return self.folder.resolve().name


@dataclass(frozen=True)
class HeldOutResult:
    """A method on a scene. mapping, localization: metrics of `reconstruct` and `localize`. report: its page."""

    method: Method[Extractor]
    scene: str
    report: Path
    mapping: dict[str, Any]
    localization: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        mapped = {key: self.mapping[key] for key in ("registered", "points", "track_length", "reprojection_px")}
        return {"scene": self.scene, **self.method.described(), "map": mapped, **self.localization}


@dataclass(kw_only=True)
class Localization(ImageBenchmark[list[HeldOutScene]]):
    """every, matcher, ratio: override the configuration's fields."""

    name = "localization"
    Config = HeldOutConfig
    several = True

    every: int | None = None
    matcher: str | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        matching = {} if self.ratio is None else {"ratio": self.ratio}
        self.changed(every=self.every, matcher=self.matcher, matching=matching)

    @staticmethod
    def seeded(seed: int) -> dict[str, Any]:
        return {"seed": seed}

    def find(self, roots: Sequence[Path]) -> list[HeldOutScene]:
        return [read_held_out_scene(folder, self.config) for folder in roots]

    def run(self, data: list[HeldOutScene], methods: Sequence[Method[Extractor]], work: Work) -> Result:
        scores = [self.localize(scene, method, work) for scene in data for method in methods]
        by_scene = {scene.name: [score for score in scores if score.scene == scene.name] for scene in data}
        table = localization_table(scores)
        best = max(scores, key=lambda score: tuple(score.localization["recall"].values()))
        threshold, share = next(iter(best.localization["recall"].items()))
        folder = work.folder / self.name
        pages: list[list[Cell]] = [
            [result.scene, Link(result.method.name, Path(os.path.relpath(result.report, folder)).as_posix())]
            for result in scores
        ]
        return Result(
            "Localization of left-out photographs",
            subtitle=", ".join(by_scene),
            numbers={
                "roots": [str(scene.folder) for scene in data],
                "rows": [score.as_json() for score in scores],
            },
            tables=[table],
            ranking=_ranked(scores),
            headlines=[Headline(f"best within {threshold}", 100 * share, "%", f"{best.method.name}, {best.scene}")],
            sections=[
                Section("Recall", items=[table]),
                Section("Errors", items=[error_chart(scene, scene_scores) for scene, scene_scores in by_scene.items()]),
                Section(
                    "Queries", items=[query_table(scene, scene_scores) for scene, scene_scores in by_scene.items()]
                ),
                Section("Pages", "Each with its map and queries in 3D.", [Table("", ["scene", "method"], pages)]),
            ],
        )

    def localize(self, scene: HeldOutScene, method: Method[Extractor], work: Work) -> HeldOutResult:
        """Map and localize with one method's features; existing output is kept.

        Raises featkit's errors: EmptyResultError if nothing could be triangulated.
        """
        sfm, localize = load_pipeline("sfm"), load_pipeline("localize")
        config: HeldOutConfig = self.config
        poses, images = read_poses(scene.folder / "poses.txt"), image_folder(scene.folder)
        label = f"{method.file_name}-{digest(method.fingerprint, config.fingerprint())}"
        place = work.folder / self.name / scene.name / label
        poses_text = format_poses({name: poses[name] for name in scene.mapped})
        write_text(
            place / "truth" / "camera.txt", scene.camera + "\n", owned=True
        )  # the folder name identifies the configuration
        reference = write_text(place / "truth" / "poses.txt", poses_text, owned=True)
        lines = "".join(f"{name} {scene.camera}\n" for name in scene.queries)
        queries_file = write_text(place / "queries.txt", lines, owned=True)
        if not work.overwrite:
            predictions = work.predict(method, images, (*scene.mapped, *scene.queries), scene=scene.name)
            write_index(place / "features.h5", [predictions.features], scene.mapped)
            write_index(place / "localize" / "features.h5", [predictions.features], scene.queries)
        matching_changes = {"matcher": config.matcher, "matching": config.matching, "seed": config.seed}
        map_rule = {"verify": {"seed": config.seed}, "seed": config.seed}
        mapped = sfm.run(
            sfm.SfmConfig(extract=method.config, map=map_rule, **matching_changes),
            scene.folder,
            place,
            reference=reference,
            device=method.device,
            overwrite=work.overwrite,
            engine=work.engine,
        )
        pose_rule = {"pose": {"seed": config.seed}}
        localized = localize.run(
            localize.LocalizationConfig(localize=pose_rule, workers=method.config.workers, **matching_changes),
            place,
            images,
            intrinsics=queries_file,
            truth=scene.folder / "poses.txt",
            device=method.device,
            overwrite=work.overwrite,
        )
        return HeldOutResult(method, scene.name, localized.report, mapped.metrics, localized.metrics)


def read_held_out_scene(folder: Path, config: HeldOutConfig) -> HeldOutScene:
    """Split images with true poses into map and queries. Raises BadInputError if the truth is missing or too small."""
    image_folder(folder)
    for needed in ("poses.txt", "camera.txt"):
        if not (folder / needed).is_file():
            raise BadInputError(f"{folder / needed}: missing; the truth is {ORIGIN}")
    names = sorted(read_poses(folder / "poses.txt"))
    queries = names[config.every - 1 :: config.every]
    mapped = [name for name in names if name not in queries]
    if not queries or len(mapped) < 2:
        raise BadInputError(f"{folder / 'poses.txt'}: has {len(names)} images; too few to map some and localize others")
    lines = [line for _, line in read_lines(folder / "camera.txt")]
    if not lines:
        raise BadInputError(f"{folder / 'camera.txt'}: no camera in it; `MODEL width height params...`")
    return HeldOutScene(folder, tuple(queries), tuple(mapped), lines[0])


def localization_table(scores: Sequence[HeldOutResult]) -> Table:
    """A row per scene and method: the map, recall in %, medians in mm and degrees."""
    thresholds = list(scores[0].localization["recall"])
    columns = ["scene", "method", "map images", "points", "queries", "localized"]
    columns += [*thresholds, "median mm", "median deg"]
    rows: list[list[Cell]] = []
    for score in scores:
        metrics = score.localization
        row: list[Cell] = [score.scene, score.method.name, score.mapping["registered"], score.mapping["points"]]
        row += [
            metrics["judged"],
            metrics["localized"],
            *(100 * metrics["recall"][threshold] for threshold in thresholds),
        ]
        metres = metrics["median_m"]
        rows.append([*row, None if metres is None else MM * metres, metrics["median_deg"]])
    return Table(
        "Localization", columns, rows, "Assumes a truth in metres; a query without a pose is wrong at every threshold."
    )


def _ranked(scores: Sequence[HeldOutResult]) -> list[Ranked]:
    """Recall at the strictest threshold in %, and the median errors."""
    ranking = []
    for score in scores:
        metrics, name = score.localization, score.method.name
        threshold, recall = next(iter(metrics["recall"].items()))
        metres = metrics["median_m"]
        ranking += [
            Ranked(name, f"{score.scene} within {threshold}, %", 100 * recall, "high"),
            Ranked(name, f"{score.scene} median, mm", None if metres is None else MM * metres, "low"),
            Ranked(name, f"{score.scene} median, deg", metrics["median_deg"], "low"),
        ]
    return ranking


def error_chart(scene: str, scores: Sequence[HeldOutResult]) -> Curves:
    """Share of queries by centre error; failed ones have infinite error."""
    curves = []
    for score in scores:
        metres = np.sort([error["m"] for error in score.localization["errors"].values()])
        share = 100 * np.arange(len(metres) + 1) / score.localization["judged"]
        steps = np.concatenate([[0.0], np.repeat(metres, 2)])
        curves.append(Curve(score.method.name, MM * steps, np.repeat(share, 2)[:-1]))
    return Curves(f"{scene}: queries found up to an error", "centre error, mm", "queries, %", curves)


def query_table(scene: str, scores: Sequence[HeldOutResult]) -> Table:
    """A row per query: centre error (mm) and rotation error (degrees) by each method."""
    columns = ["query", *(f"{score.method.name}, {unit}" for score in scores for unit in ("mm", "deg"))]
    names = sorted({name for s in scores for name in (*s.localization["errors"], *s.localization["failed"])})
    rows: list[list[Cell]] = []
    for name in names:
        row: list[Cell] = [name]
        for score in scores:
            error = score.localization["errors"].get(name)
            row += [None, None] if error is None else [MM * error["m"], error["deg"]]
        rows.append(row)
    return Table(scene, columns, rows)
