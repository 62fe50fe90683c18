"""Reports and metrics of a map: report, metrics.json, alignment, the demo's comparison with the ground truth."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from featkit import __version__
from featkit.core.config import Config
from featkit.core.content import (
    Cell,
    Configuration,
    Gallery,
    Headline,
    Histogram,
    Item,
    Report,
    Scene3D,
    Section,
    Table,
    Thumbnail,
)
from featkit.core.errors import BadInputError
from featkit.core.types import Pose
from featkit.demo.scene import RenderedConfig, intrinsics, map_poses, query_poses
from featkit.evaluation.metrics import LocalizationScore
from featkit.evaluation.pictures import match_pictures, moved_scene, posed_camera, seconds_table
from featkit.geometry.poses import rotation_angle_deg, rotation_matrix
from featkit.images.thumbnails import thumbnail
from featkit.io.artifact import inside
from featkit.io.features import open_features
from featkit.localization.stage import QueryResult
from featkit.mapping.align import PoseErrors, compare_with_truth, transform_pose
from featkit.mapping.cameras import to_camera
from featkit.mapping.database import count_verified, verified_pairs
from featkit.mapping.map_rigs import rig_metrics
from featkit.mapping.metric import Alignment
from featkit.mapping.model import (
    Model,
    image_statistics,
    map_statistics,
    read_model,
    registered_names,
    tracks_and_errors,
)
from featkit.mapping.outcome import camera_motion, map_warnings
from featkit.mapping.rigs import RIG_KEY, Rig
from featkit.report.page import write_report
from featkit.report.tables import spread

# ----------------------------------------------------------------------------------------------------------------------
# The report of a map: 3D scene, match pictures, tables per image and stage, histograms, configuration.


MOST_PHOTOGRAPHS = 120  # maximum in the grid
THUMBNAIL_PX = 240  # longer side


def reconstruction_report(
    config: Config, metrics: dict[str, Any], images: Path, features: Path, database: Path, sparse: Path, output: Path
) -> Path:
    """Write report.html of a map and return it."""
    model = read_model(sparse / "0")
    lengths, errors = tracks_and_errors(model)
    sections = [
        Section("3D", items=[moved_scene(model, np.eye(3, 4))]),
        Section("Models", items=_model_tables(metrics)),
        Section("Matches", items=match_pictures(images, features, database)),
        Section("Images", items=[photograph_grid(model, images, features), _image_table(model, features)]),
        Section(
            "Distributions",
            items=[
                Histogram("Track length", "images that see a point", lengths.astype(float)),
                Histogram("Reprojection error", "px, mean of a point's observations", errors),
            ],
        ),
        Section("Configuration", items=[configuration(config)]),
    ]
    title = (images.parent if images.name == "images" else images).resolve().name
    subtitle = f"Map by featkit {metrics['featkit_version']}"
    page = Report(title, subtitle, _map_headlines(metrics), sections, metrics["warnings"])
    return write_report(page, output)


def _map_headlines(metrics: dict[str, Any]) -> list[Headline]:
    lines = [
        Headline("Registered", f"{metrics['registered']} / {metrics['images']}", hint="images in the largest model"),
        Headline("Points", metrics["points"]),
        Headline("Track length", round(metrics["track_length"], 2), hint="images that see a point"),
        Headline("Reprojection", round(metrics["reprojection_px"], 3), "px"),
        Headline("Time", round(sum(metrics["seconds"].values()), 1), "s"),
    ]
    if "truth" in metrics:
        lines.append(
            Headline("Centre error", round(1e3 * metrics["truth"]["centre_mean"], 2), "mm", "mean, true cameras")
        )
    return lines


def _model_tables(metrics: dict[str, Any]) -> list[Item]:
    tables: list[Item] = [*map_tables(metrics), seconds_table(metrics)]
    if "truth" in metrics:
        tables.append(camera_error_table(metrics["truth"]))
    return tables


def _image_table(model: Model, features: Path) -> Table:
    registered = image_statistics(model)
    rows: list[list[Cell]] = [
        [r.name, r.camera_id, r.focal_px or None, r.keypoints, r.observations, r.error_px] for r in registered
    ]
    known = {r.name for r in registered}
    with open_features(features) as store:
        left_out = [name for name in store.names() if name not in known]
        rows += [[name, None, None, store.count(name), 0, None] for name in left_out]
    columns = ["image", "camera", "focal px", "keypoints", "observations", "error px"]
    note = f"{len(left_out)} images are not in the largest model." if left_out else ""
    return Table("Images", columns, rows, note, highlight=set(range(len(registered), len(rows))))


def photograph_grid(model: Model, images: Path, features: Path) -> Gallery:
    """Thumbnails with the number of points each photograph sees; photographs outside the model are highlighted."""
    seen = {row.name: row.observations for row in image_statistics(model)}
    with open_features(features) as store:
        names, grey_range = sorted({*seen, *store.names()}), store.intensity_range
    left_out = [name for name in names if name not in seen]
    shown = {names[i] for i in spread(len(names), MOST_PHOTOGRAPHS)}
    shown |= {left_out[i] for i in spread(len(left_out), MOST_PHOTOGRAPHS // 4)}
    small = []
    for name in (name for name in names if name in shown):
        try:
            picture = thumbnail(inside(images, name), THUMBNAIL_PX, grey_range).pixels
        except BadInputError:
            continue
        caption = f"{name}: {seen[name]:,} points" if name in seen else f"{name}: not in the model"
        small.append(Thumbnail(picture, caption, highlight=name not in seen))
    note = f"{len(small)} of {len(names)} photographs." if len(small) < len(names) else ""
    return Gallery("Photographs", small, note)


def configuration(config: Config) -> Configuration:
    """The complete configuration as yaml."""
    return Configuration("Configuration", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


# ----------------------------------------------------------------------------------------------------------------------
# Small tables of metrics, the same in the terminal and in the report.


def map_table(metrics: dict[str, Any]) -> Table:
    """One row per model, the largest first."""
    columns = ["model", "registered", "points", "observations", "track", "error px"]
    rows: list[list[Cell]] = [
        [
            str(number),
            f"{model['registered']} / {model['images']}",
            model["points"],
            model["observations"],
            model["track_length"],
            model["reprojection_px"],
        ]
        for number, model in enumerate(metrics["models"])
    ]
    if "truth" in metrics:
        columns += ["centre mm", "rotation deg"]
        truth = metrics["truth"]
        for number, row in enumerate(rows):
            row += [1e3 * truth["centre_mean"], truth["rotation_deg_mean"]] if number == 0 else [None, None]
    return Table("Map", columns, rows)


def map_tables(metrics: dict[str, Any]) -> list[Table]:
    """The models, and the cameras of rigs if there are any."""
    return [map_table(metrics), *([rig_table(metrics)] if RIG_KEY in metrics else [])]


def rig_table(metrics: dict[str, Any]) -> Table:
    """Every camera of a rig relative to the reference camera: rotation angle, and position in the reference's axes.

    Lengths are in the map's units.
    """
    rows: list[list[Cell]] = []
    for number, rig in enumerate(metrics[RIG_KEY], start=1):
        for camera in rig["cameras"]:
            if camera.get("ref_sensor"):
                rows.append([number, camera["image_prefix"], 0.0, 0.0, 0.0, 0.0])
                continue
            rotation = rotation_matrix(np.array(camera["cam_from_rig_rotation"]))
            place = -rotation.T @ np.array(camera["cam_from_rig_translation"])
            angle = rotation_angle_deg(np.eye(3), rotation)
            rows.append([number, camera["image_prefix"], angle, *map(float, place)])
    note = f"{metrics['frames']} frames in the largest model. x right, y down, z forward of the reference camera."
    return Table("Cameras on rigs", ["rig", "camera", "rotation deg", "x", "y", "z"], rows, note)


def recall_table(metrics: dict[str, Any]) -> Table:
    """Recall at the thresholds, and median errors."""
    columns = ["queries", "localized", *metrics["recall"], "median m", "median deg"]
    shares = [f"{100 * share:.1f} %" for share in metrics["recall"].values()]
    row: list[Cell] = [
        metrics["judged"],
        metrics["localized"],
        *shares,
        metrics["median_m"],
        metrics["median_deg"],
    ]
    return Table("Localization compared with the truth", columns, [row])


def camera_error_table(truth: dict[str, Any]) -> Table:
    """Errors of every camera of a map, in millimetres and degrees."""
    rows: list[list[Cell]] = [
        [name, 1e3 * error["centre"], error["rotation_deg"]] for name, error in truth["per_image"].items()
    ]
    return Table("Cameras compared with the truth", ["image", "centre error mm", "rotation error deg"], rows)


# ----------------------------------------------------------------------------------------------------------------------
# metrics.json: the results of a run, in plain values. Lengths are in the unit of the map or the ground truth, as named.


def map_metrics(
    sparse: Path,
    database: Path,
    names: Sequence[str],
    truth: dict[str, Pose] | None,
    align: bool,
    without_pose: Sequence[str] = (),
    rigs: Sequence[Rig] = (),
) -> dict[str, Any]:
    """Statistics of every model, largest first; camera errors of the largest if the ground truth is known.

    names: the photographs that were mapped. align: whether to align the map to the truth by a similarity transform
    first. without_pose: other photographs of the scene, which have no pose in the reference. rigs: the given rigs.
    """
    folders = sorted((path for path in sparse.iterdir() if path.is_dir()), key=lambda path: int(path.name))
    largest = read_model(folders[0])
    total = len(names) + len(without_pose)
    statistics, registered = [map_statistics(largest, total)], [registered_names(largest)]
    for folder in folders[1:]:  # one in memory at a time
        model = read_model(folder)
        statistics.append(map_statistics(model, total))
        registered.append(registered_names(model))
    verified, inliers = count_verified(database)
    between = [pair for pair, _ in verified_pairs(database)] if len(folders) > 1 else []
    metrics: dict[str, Any] = {
        "featkit_version": __version__,
        **asdict(statistics[0]),
        "verified_pairs": verified,
        "inlier_matches": inliers,
        "models": [asdict(one) for one in statistics],
        "unregistered": sorted({*names, *without_pose} - registered[0]),
        "warnings": map_warnings(registered, names, camera_motion(database), without_pose, sparse, between),
        **rig_metrics(largest, [camera.prefix for rig in rigs for camera in rig.cameras]),
        **peak_memory(),
    }
    if truth is not None:
        metrics["truth"] = error_summary(compare_with_truth(largest, truth, align))
    return metrics


def error_summary(errors: PoseErrors) -> dict[str, Any]:
    """Mean, median and maximum of the camera errors, and the errors of every image."""
    return {
        "cameras": len(errors.names),
        "centre_mean": float(np.mean(errors.centre)),
        "centre_median": float(np.median(errors.centre)),
        "centre_max": float(np.max(errors.centre)),
        "rotation_deg_mean": float(np.mean(errors.rotation_deg)),
        "rotation_deg_max": float(np.max(errors.rotation_deg)),
        "per_image": {
            name: {"centre": float(centre), "rotation_deg": float(angle)}
            for name, centre, angle in zip(errors.names, errors.centre, errors.rotation_deg, strict=True)
        },
    }


def localization_metrics(
    results: Sequence[QueryResult], score: LocalizationScore | None, seconds: dict[str, float]
) -> dict[str, Any]:
    """Number of localized queries; recall and medians (metres, degrees) if the ground truth is known."""
    localized = [result.name for result in results if result.pose is not None]
    metrics: dict[str, Any] = {
        "featkit_version": __version__,
        "queries": len(results),
        "localized": len(localized),
        "failed": {result.name: result.reason for result in results if result.pose is None},
        "uncertain": {result.name: result.uncertain for result in results if result.uncertain},
        "seconds": seconds,
        **peak_memory(),
    }
    if score is not None:
        metrics |= {
            "judged": score.queries,
            "recall": {
                f"{metres:g} m, {degrees:g} deg": share
                for (metres, degrees), share in zip(score.thresholds, score.recall, strict=True)
            },
            "median_m": _finite(score.median_m),
            "median_deg": _finite(score.median_deg),
            "errors": {name: {"m": m, "deg": deg} for name, (m, deg) in score.errors.items()},
        }
    return metrics


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def peak_memory() -> dict[str, float]:
    """Peak resident memory so far, in MB (10^6 bytes): of this process, and of its largest finished worker."""
    return {
        "peak_memory_mb": _peak_mb(resource.RUSAGE_SELF),
        "peak_worker_memory_mb": _peak_mb(resource.RUSAGE_CHILDREN),
    }


def _peak_mb(who: int) -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB on Linux
    return round(resource.getrusage(who).ru_maxrss * unit / 1e6, 1)


# ----------------------------------------------------------------------------------------------------------------------
# Alignment residuals of a model's cameras with respect to the reference positions: a table and a line.


AXES = {"gps": ("east m", "north m", "up m")}


def alignment_table(found: Alignment) -> Table:
    """One row per image with a known position; residuals in metres, with unused positions marked."""
    assert found.fit is not None
    columns = ["image", "residual m", *AXES.get(found.method, ("x m", "y m", "z m")), "used"]
    rows: list[list[Cell]] = [
        [name, float(residual), *map(float, offset), "yes" if used else "no"]
        for name, residual, offset, used in zip(
            found.names, found.fit.residuals, found.fit.offsets, found.fit.used, strict=True
        )
    ]
    left_out = frozenset(index for index, used in enumerate(found.fit.used) if not used)
    return Table("Cameras compared with the given positions", columns, rows, highlight=left_out)


def alignment_lines(found: Alignment) -> list[str]:
    """The result as text."""
    lines = [f"scale: {found.scale:.6g} m per unit of the model"]
    if found.fit is None:
        return lines
    numbers = found.as_json()
    residual = numbers["residual_m"]
    lines[0] += f" (± {100 * found.fit.scale_std:.2g} %), orientation ± {found.fit.orientation_std_deg:.2g} degrees"
    lines.append(
        f"residual: rms {residual['rms']:.4g} m, median {residual['median']:.4g} m, largest {residual['max']:.4g} m,"
        f" over {numbers['used']} of {numbers['positions']} positions"
    )
    if found.origin is not None:
        origin, height = found.origin, found.origin.altitude_m
        altitude = "" if height is None else f", altitude {height:g} m"
        lines.append(f"origin: latitude {origin.latitude_deg:.7f}, longitude {origin.longitude_deg:.7f}{altitude}")
    return lines


# ----------------------------------------------------------------------------------------------------------------------
# The demo's report: the map and the query poses compared with the exact ground truth.


def truth_table(metrics: dict[str, Any]) -> Table:
    """The demo's results and their errors in one table."""
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
    note = "The scene is about 11 m wide; the map is aligned to the truth by one similarity transform."
    return Table("featkit compared with the exact truth", ["", "result"], rows, note)


def demo_report(
    config: Config,
    metrics: dict[str, Any],
    images: Path,
    folder: Path,
    results: list[QueryResult],
    truth_from_map: np.ndarray,
    distances: np.ndarray,
) -> Path:
    """Write the demo's report next to its images and return it. folder: the map's folder."""
    scene = _demo_scene(config.scene, folder, results, truth_from_map)  # type: ignore[attr-defined]
    pictures = match_pictures(images, folder / "features.h5", folder / "database.db")
    sections = [
        Section("3D", "The map and the localized queries, in metres, with the true cameras.", [scene]),
        Section("Truth", items=[truth_table(metrics), recall_table(metrics["localization"])]),
        Section("Cameras", items=[camera_error_table(metrics["map"]["truth"]), map_table(metrics["map"])]),
        Section("Matches", items=pictures),
        Section(
            "Points",
            items=[Histogram("Distance to the true surface", "mm; 50: and more", np.minimum(1e3 * distances, 50))],
        ),
        Section("Configuration", items=[configuration(config)]),
    ]
    return write_report(
        Report("featkit demo", "Rendered, mapped and localized by one command", _demo_headlines(metrics), sections),
        images.parent / "report.html",
    )


def _demo_headlines(metrics: dict[str, Any]) -> list[Headline]:
    mapped, localized = metrics["map"], metrics["localization"]
    return [
        Headline("Registered", f"{mapped['registered']} / {mapped['images']}", hint="map photographs"),
        Headline("Localized", f"{localized['localized']} / {localized['queries']}", hint="queries"),
        Headline("Camera centres", round(1e3 * mapped["truth"]["centre_mean"], 2), "mm", "mean error"),
        Headline("Points", mapped["points"], hint=f"{metrics['surface_distance_mm_median']:.1f} mm from the surface"),
        Headline("Time", round(sum(metrics["seconds"].values()), 1), "s"),
    ]


def _demo_scene(
    config: RenderedConfig, folder: Path, results: list[QueryResult], truth_from_map: np.ndarray
) -> Scene3D:
    scene = moved_scene(read_model(folder / "sparse" / "0"), truth_from_map)
    camera = to_camera(intrinsics(config))
    cameras = list(scene.cameras)
    for result in results:
        if result.pose is not None:
            cameras.append(posed_camera(result.name, transform_pose(result.pose, truth_from_map), camera, "query"))
    for name, pose in {**map_poses(config), **query_poses(config)}.items():
        cameras.append(posed_camera(name, pose, camera, "truth"))
    return Scene3D(scene.points, scene.colours, cameras)
