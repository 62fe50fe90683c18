"""The report of a localization: queries in the map, a table of all of them, and pictures of their matches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featkit.config import Config
from featkit.geometry.poses import rotation_matrix
from featkit.localization.localize import QueryResult
from featkit.mapping.cameras import to_camera
from featkit.mapping.model import Model, read_model
from featkit.mapping.scene import MapFiles
from featkit.report.content import Cell, Headline, Item, Report, Scene3D, Section, Table
from featkit.report.page import write_report
from featkit.report.reconstruction import camera_3d, configuration, scene_of
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
) -> Path:
    """Write report.html of a localization and return it."""
    tables: list[Item] = [recall_table(metrics)] if "recall" in metrics else []
    sections = [
        Section("3D", items=[_scene(read_model(found.model), results, truth)]),
        Section("Result", items=[*tables, seconds_table(metrics)]),
        Section("Queries", items=[_query_table(metrics, results)]),
        Section("Made by", items=[configuration(config)]),
    ]
    headlines = [Headline("Localized", f"{metrics['localized']} / {metrics['queries']}", hint="queries")]
    if "recall" in metrics:
        headlines += [
            Headline(f"Within {threshold}", f"{100 * share:.1f}", "%") for threshold, share in metrics["recall"].items()
        ]
    report = Report(f"{queries.resolve().name} in the map", f"{found.model.resolve()}", headlines, sections)
    return write_report(report, output)


def _scene(model: Model, results: list[QueryResult], truth: dict[str, Pose] | None) -> Scene3D:
    scene = scene_of(model)
    cameras = list(scene.cameras)
    for result in results:
        if result.intrinsics is None:
            continue
        camera = to_camera(result.intrinsics)
        true_pose = (truth or {}).get(result.name)
        for pose, group in ((result.pose, "query"), (true_pose, "truth")):
            if pose is not None:
                cameras.append(camera_3d(result.name, rotation_matrix(pose.qvec), pose.tvec, camera, group))
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
