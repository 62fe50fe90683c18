"""The report of a localization, and its metrics on Aachen Day-Night."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from featkit.core.config import Config
from featkit.core.content import (
    Cell,
    Headline,
    Item,
    Report,
    Scene3D,
    Section,
    Table,
)
from featkit.core.types import Pose
from featkit.evaluation.aachen import NAMES
from featkit.evaluation.metrics import LocalizationScore
from featkit.evaluation.pictures import moved_scene, posed_camera, seconds_table
from featkit.localization.stage import QueryResult
from featkit.mapping.align import transform_pose
from featkit.mapping.cameras import to_camera
from featkit.mapping.database import count_verified
from featkit.mapping.model import Model, map_statistics, read_model
from featkit.mapping.scene import MapFiles
from featkit.report.maps import configuration, localization_metrics, recall_table
from featkit.report.page import write_report

# ----------------------------------------------------------------------------------------------------------------------
# The report of a localization: the queries in the map, and a table of all of them with the reasons of failures.


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
    columns.append("failed or uncertain because")
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
        rows.append([*row, result.reason or (f"uncertain: {result.uncertain}" if result.uncertain else "")])
    failed = {number for number, result in enumerate(results) if result.pose is None}
    return Table("Queries", columns, rows, note="± is one standard deviation, from the covariance.", highlight=failed)


# ----------------------------------------------------------------------------------------------------------------------
# metrics.json of a method on Aachen Day-Night: day and night separately.


def aachen_metrics(
    model: Path,
    database: Path,
    results: Sequence[QueryResult],
    conditions: Mapping[str, Sequence[str]],
    scores: Mapping[str, LocalizationScore],
    score: LocalizationScore | None,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """metrics.json: as for a localization, with the map's statistics and each condition separately."""
    reconstruction = read_model(model)
    verified, inliers = count_verified(database)
    localized = {result.name for result in results if result.pose is not None}
    apart = {}
    for condition, names in conditions.items():
        counted: dict[str, Any] = {"queries": len(names), "localized": sum(name in localized for name in names)}
        if condition in scores:
            found = scores[condition]
            counted |= {
                "judged": found.queries,
                "recall": dict(zip(NAMES, found.recall, strict=True)),
                "median_m": found.median_m if found.localized else None,
                "median_deg": found.median_deg if found.localized else None,
            }
        apart[condition] = counted
    return {
        **localization_metrics(results, score, seconds),
        "conditions": apart,
        "map": {
            **asdict(map_statistics(reconstruction, reconstruction.num_images())),
            "verified_pairs": verified,
            "inlier_matches": inliers,
        },
    }
