"""The demo's report: the map and the query poses beside the exact truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from featkit.config import Config
from featkit.data.rendered import RenderedConfig, intrinsics, map_poses, query_poses
from featkit.localization.localize import QueryResult
from featkit.mapping.align import transform_pose
from featkit.mapping.cameras import to_camera
from featkit.mapping.model import read_model
from featkit.report.content import Cell, Headline, Histogram, Report, Scene3D, Section, Table
from featkit.report.page import write_report
from featkit.report.reconstruction import configuration, match_pictures, moved_scene, posed_camera
from featkit.report.summary import camera_error_table, map_table, recall_table


def truth_table(metrics: dict[str, Any]) -> Table:
    """The demo in one table: what came out, and how far it is from the truth."""
    mapped, localized, truth = metrics["map"], metrics["localization"], metrics["map"]["truth"]
    errors = localized["errors"].values()
    rows: list[list[Cell]] = [
        ["images in the map", f"{mapped['registered']} of {mapped['images']}"],
        ["points (track length)", f"{mapped['points']:,} ({mapped['track_length']:.2f})"],
        ["reprojection error", f"{mapped['reprojection_px']:.3f} px"],
        ["camera centres, mean error", f"{1e3 * truth['centre_mean']:.2f} mm"],
        ["camera rotations, mean error", f"{truth['rotation_deg_mean']:.4f} deg"],
        ["points to the true surface, median", f"{metrics['surface_distance_mm_median']:.2f} mm"],
        ["queries localized", f"{localized['localized']} of {localized['queries']}"],
        ["query centres, largest error", f"{1e3 * max((e['m'] for e in errors), default=float('nan')):.2f} mm"],
        ["query rotations, largest error", f"{max((e['deg'] for e in errors), default=float('nan')):.4f} deg"],
    ]
    note = "The scene is about 11 m wide; the map is moved onto the truth by one similarity."
    return Table("featkit against the exact truth", ["", "result"], rows, note)


def demo_report(
    config: Config,
    metrics: dict[str, Any],
    images: Path,
    folder: Path,
    results: list[QueryResult],
    truth_from_map: np.ndarray,
    distances: np.ndarray,
) -> Path:
    """Write the demo's report beside its images and return it. folder: where the map was written."""
    scene = _scene(config.scene, folder, results, truth_from_map)  # type: ignore[attr-defined]
    pictures = match_pictures(images, folder / "features.h5", folder / "database.db")
    sections = [
        Section("3D", "The map and the localized queries, in metres, with the true cameras.", [scene]),
        Section("Truth", items=[truth_table(metrics), recall_table(metrics["localization"])]),
        Section("Cameras", items=[camera_error_table(metrics["map"]["truth"]), map_table(metrics["map"])]),
        Section("Matches", items=pictures),
        Section(
            "Points",
            items=[Histogram("Distance to the true surface", "mm; 50: all beyond", np.minimum(1e3 * distances, 50))],
        ),
        Section("Made by", items=[configuration(config)]),
    ]
    return write_report(
        Report("featkit demo", "Rendered, mapped and localized by one command", _headlines(metrics), sections),
        images.parent / "report.html",
    )


def _headlines(metrics: dict[str, Any]) -> list[Headline]:
    mapped, localized = metrics["map"], metrics["localization"]
    return [
        Headline("Registered", f"{mapped['registered']} / {mapped['images']}", hint="map photographs"),
        Headline("Localized", f"{localized['localized']} / {localized['queries']}", hint="queries"),
        Headline("Camera centres", round(1e3 * mapped["truth"]["centre_mean"], 2), "mm", "mean error"),
        Headline("Points", mapped["points"], hint=f"{metrics['surface_distance_mm_median']:.1f} mm from the surface"),
        Headline("Time", round(sum(metrics["seconds"].values()), 1), "s"),
    ]


def _scene(config: RenderedConfig, folder: Path, results: list[QueryResult], truth_from_map: np.ndarray) -> Scene3D:
    scene = moved_scene(read_model(folder / "sparse" / "0"), truth_from_map)
    camera = to_camera(intrinsics(config))
    cameras = list(scene.cameras)
    for result in results:
        if result.pose is not None:
            cameras.append(posed_camera(result.name, transform_pose(result.pose, truth_from_map), camera, "query"))
    for name, pose in {**map_poses(config), **query_poses(config)}.items():
        cameras.append(posed_camera(name, pose, camera, "truth"))
    return Scene3D(scene.points, scene.colours, cameras)
