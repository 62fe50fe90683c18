"""The report of a localization: the queries in the map, and a table of all of them with the reasons of failures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from featkit.config import Config
from featkit.localization.localize import QueryResult
from featkit.mapping.align import transform_pose
from featkit.mapping.cameras import to_camera
from featkit.mapping.model import Model, read_model
from featkit.mapping.scene import MapFiles
from featkit.report.content import Cell, Headline, Item, Report, Scene3D, Section, Table
from featkit.report.page import write_report
from featkit.report.reconstruction import configuration, moved_scene, posed_camera
from featkit.report.summary import recall_table, seconds_table
from featkit.types import Pose


def localization_report(
    config: Config,
    metrics: dict[str, Any],
    results: list[QueryResult],
    found: MapFiles,
    queries: Path,
    output: Path,
    truth: dict[str, Pose] | None = None,
    truth_from_map: Float[np.ndarray, "3 4"] | None = None,
    title: str | None = None,
    first: Sequence[Item] = (),
) -> Path:
    """Write report.html of a localization and return it.

    truth: true poses, drawn beside the estimated ones. truth_from_map: similarity that everything is drawn after.
    title: instead of the queries' folder. first: items above the recall.
    """
    tables: list[Item] = [*first, *([recall_table(metrics)] if "recall" in metrics else [])]
    sections = [
        Section("3D", items=[_scene(read_model(found.model), results, truth, truth_from_map)]),
        Section("Result", items=[*tables, seconds_table(metrics)]),
        Section("Queries", items=[_query_table(metrics, results)]),
        Section("Made by", items=[configuration(config)]),
    ]
    headlines = [Headline("Localized", f"{metrics['localized']} / {metrics['queries']}", hint="queries")]
    if "recall" in metrics:
        headlines += [
            Headline(f"Within {threshold}", f"{100 * share:.1f}", "%") for threshold, share in metrics["recall"].items()
        ]
    report = Report(
        title or f"{queries.resolve().name} in the map",
        f"Localized by featkit {metrics['featkit_version']}",
        headlines,
        sections,
    )
    return write_report(report, output)


def _scene(
    model: Model, results: list[QueryResult], truth: dict[str, Pose] | None, truth_from_map: np.ndarray | None
) -> Scene3D:
    similarity = np.eye(3, 4) if truth_from_map is None else truth_from_map
    scene = moved_scene(model, similarity)
    cameras = list(scene.cameras)
    for result in results:
        if result.intrinsics is None:
            continue
        camera = to_camera(result.intrinsics)
        if result.pose is not None:
            cameras.append(posed_camera(result.name, transform_pose(result.pose, similarity), camera, "query"))
        if truth and result.name in truth:
            cameras.append(posed_camera(result.name, truth[result.name], camera, "truth"))
    return Scene3D(scene.points, scene.colours, cameras)


def _query_table(metrics: dict[str, Any], results: list[QueryResult]) -> Table:
    columns = [
        "query",
        "keypoints",
        "2D-3D matches",
        "inliers",
        "residual px",
        "± centre",
        "± rotation deg",
        "intrinsics",
    ]
    errors = metrics.get("errors", {})
    if errors:
        columns += ["error m", "error deg"]
    columns.append("failed because")
    rows: list[list[Cell]] = []
    for result in results:
        estimate = result.estimate if result.pose is not None else None
        row: list[Cell] = [
            result.name,
            result.keypoints,
            result.matches_3d,
            0 if result.estimate is None else int(result.estimate.inlier.sum()),
            None if estimate is None else estimate.residual_px,
            None if estimate is None else estimate.centre_std,
            None if estimate is None else estimate.rotation_std_deg,
            result.intrinsics_source,
        ]
        if errors:
            error = errors.get(result.name, {})
            row += [error.get("m"), error.get("deg")]
        rows.append([*row, result.reason])
    failed = {number for number, result in enumerate(results) if result.pose is None}
    return Table("Queries", columns, rows, note="± is one standard deviation, from the covariance.", highlight=failed)
