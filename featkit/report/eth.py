"""Tables and page of `featkit eval eth`: maps of the ETH local-feature benchmark, published rows beside ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from featkit.evaluation.eth import EthConfig, SceneScore, of_scene
from featkit.evaluation.eth_scenes import EthScene, SceneSet
from featkit.evaluation.published import published
from featkit.mapping.align import similarity_to_truth
from featkit.mapping.export import dense_is_possible
from featkit.mapping.model import Model, read_model
from featkit.report.content import Cell, Configuration, Curve, Curves, Headline, Item, Report, Scene3D, Section, Table
from featkit.report.maps import match_pictures, moved_scene, posed_camera
from featkit.report.ranking import Ranked

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


def eth_ranking(scores: Sequence[SceneScore]) -> list[Ranked]:
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


def eth_report(data: SceneSet, scores: Sequence[SceneScore], config: EthConfig, described: dict[str, Any]) -> Report:
    """The page. described: title -> plain values."""
    poses = pose_table(scores, config)
    missing = ", ".join(f"{scene.name} ({scene.source})" for scene in data.missing)
    sections = [Section("Scores", items=[score_table(scores)])]
    if poses is not None:
        curves = [_pose_curves(of_scene(scores, scene.name)) for scene in data.scenes if scene.truth is not None]
        sections.append(Section("Cameras against the truth", items=[poses, *curves]))
    sections += [_scene_section(scene, of_scene(scores, scene.name)) for scene in data.scenes]
    sections.append(_published_section(data.scenes, scores))
    configurations: list[Item] = [Configuration(title, json.dumps(v, indent=1)) for title, v in described.items()]
    sections.append(
        Section("Configuration", f"Scenes that are not here: {missing}." if missing else "", configurations)
    )
    return Report(
        title="ETH local-feature benchmark",
        subtitle=f"{data.root.name}: {', '.join(scene.name for scene in data.scenes)}",
        headlines=_headlines(data, scores),
        sections=sections,
    )


def _published_section(scenes: Sequence[EthScene], scores: Sequence[SceneScore]) -> Section:
    names = {scene.name for scene in scenes}
    origins = [
        f"{table.paper}: {table.where}."
        for table in published("eth").tables
        if any(row.scene in names for row in table.rows)
    ]
    return Section("As published", " ".join(origins) or "Nothing is.", beside_tables(scenes, scores))


def _headlines(data: SceneSet, scores: Sequence[SceneScore]) -> list[Headline]:
    found = []
    for scene in data.scenes[:SHOWN_3D]:
        best = max(
            of_scene(scores, scene.name), key=lambda score: (score.statistics.registered, score.statistics.points)
        )
        registered = f"{best.statistics.registered} / {len(scene.names)}"
        found.append(Headline(scene.name, registered, hint=f"images, {best.name}"))
    return found


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


def _pose_curves(scores: Sequence[SceneScore]) -> Curves:
    """Share of pairs of images with an error up to x."""
    curves = []
    for score in scores:
        assert score.pose_errors is not None
        errors = np.sort(score.pose_errors.error_deg)
        share = np.searchsorted(errors, CURVE_DEG, side="right") / max(len(errors), 1)
        curves.append(Curve(score.name, CURVE_DEG, 100 * share))
    return Curves(f"{scores[0].scene.name}: relative poses", "error up to, deg", "pairs of images, %", curves)


def _scene_section(scene: EthScene, scores: Sequence[SceneScore]) -> Section:
    """The maps in 3D, and pairs of images with their verified matches."""
    items: list[Item] = []
    shown = [score for score in scores if score.model is not None][:SHOWN_3D]
    for score in shown:
        assert score.model is not None
        items.append(_drawn(scene, score.name, read_model(score.model)))
    for score in shown[:1]:
        assert score.map.database is not None
        items += match_pictures(scene.images, score.map.predictions.features, score.map.database)
    left_out = sum(score.model is not None for score in scores) - len(shown)
    text = f"Pairs of {shown[0].name}, from most inliers to fewest." if shown else "Nothing came out."
    return Section(scene.name, text + (f" {left_out} more methods are not drawn." if left_out > 0 else ""), items)


def _drawn(scene: EthScene, method: str, model: Model) -> Scene3D:
    """A map in the frame of the truth where there is one, with the true cameras of its images."""
    truth = scene.truth or {}
    found = moved_scene(model, similarity_to_truth(model, truth) if truth else np.eye(3, 4))
    cameras = [
        posed_camera(f"{image.name}, true", truth[image.name], model.cameras[image.camera_id], "truth")
        for image in model.images.values()
        if image.has_pose and image.name in truth
    ]
    return replace(found, cameras=[*found.cameras, *cameras], title=f"{scene.name}, {method}")
