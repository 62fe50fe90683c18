"""The report of a map: 3D scene, match pictures, tables per image and stage, histograms, configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float

from featkit.config import Config
from featkit.geometry.poses import rotation_matrix
from featkit.images.decode import DecodeConfig, decode
from featkit.mapping.align import transform_pose
from featkit.mapping.database import matches_and_inliers, verified_pairs
from featkit.mapping.model import Model, read_model
from featkit.mapping.statistics import image_statistics, tracks_and_errors
from featkit.mapping.verify import to_pose
from featkit.report.content import (
    Camera3D,
    Cell,
    Configuration,
    Headline,
    Histogram,
    Item,
    MatchPicture,
    Report,
    Scene3D,
    Section,
    Table,
)
from featkit.report.page import write_report
from featkit.report.summary import camera_error_table, map_table, seconds_table
from featkit.store.features import open_features
from featkit.types import Pair, Pose

PICTURE_SIDE = 640  # px: longer side of each half of a match picture
NUM_PICTURES = 4


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
        Section("Images", items=[_image_table(model, features)]),
        Section(
            "Distributions",
            items=[
                Histogram("Track length", "images that see a point", lengths.astype(float)),
                Histogram("Reprojection error", "px, mean of a point's observations", errors),
            ],
        ),
        Section("Made by", items=[configuration(config)]),
    ]
    title = (images.parent if images.name == "images" else images).resolve().name
    subtitle = f"Map by featkit {metrics['featkit_version']}"
    return write_report(Report(title, subtitle, _headlines(metrics), sections), output)


def _headlines(metrics: dict[str, Any]) -> list[Headline]:
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
    tables: list[Item] = [map_table(metrics), seconds_table(metrics)]
    if "truth" in metrics:
        tables.append(camera_error_table(metrics["truth"]))
    return tables


def _image_table(model: Model, features: Path) -> Table:
    registered = image_statistics(model)
    rows: list[list[Cell]] = [
        [r.name, r.camera_id, r.focal_px, r.keypoints, r.observations, r.error_px] for r in registered
    ]
    known = {r.name for r in registered}
    with open_features(features) as store:
        left_out = [name for name in store.names() if name not in known]
        rows += [[name, None, None, store.count(name), 0, None] for name in left_out]
    columns = ["image", "camera", "focal px", "keypoints", "observations", "error px"]
    note = f"{len(left_out)} images are not in the largest model." if left_out else ""
    return Table("Images", columns, rows, note, highlight=set(range(len(registered), len(rows))))


def configuration(config: Config) -> Configuration:
    """The whole configuration as yaml."""
    return Configuration("Configuration", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def moved_scene(model: Model, similarity: Float[np.ndarray, "3 4"]) -> Scene3D:
    """Points and registered cameras of a model after a similarity (s R | t) of the world."""
    points = list(model.points3D.values())
    xyz = np.array([point.xyz for point in points], dtype=np.float64).reshape(-1, 3)
    colours = np.array([point.color for point in points], dtype=np.uint8).reshape(-1, 3)
    images = sorted((image for image in model.images.values() if image.has_pose), key=lambda image: image.name)
    cameras = [
        posed_camera(
            image.name,
            transform_pose(to_pose(image.cam_from_world()), similarity),
            model.cameras[image.camera_id],
            "map",
        )
        for image in images
    ]
    return Scene3D(xyz @ similarity[:, :3].T + similarity[:, 3], colours, cameras)


def posed_camera(name: str, pose: Pose, camera: Any, group: str) -> Camera3D:
    """A camera to draw."""
    rotation = rotation_matrix(pose.qvec)
    return Camera3D(name, rotation, pose.tvec, camera.width, camera.height, camera.mean_focal_length(), group)


def match_pictures(images: Path, features: Path, database: Path) -> list[Item]:
    """Pictures of verified pairs: the one with most inliers, the one with fewest, and some between."""
    ranked = verified_pairs(database)
    places = np.unique(np.linspace(0, len(ranked) - 1, min(NUM_PICTURES, len(ranked))).round().astype(int))
    return [_picture(images, features, database, ranked[place][0]) for place in places]


def _picture(images: Path, features: Path, database: Path, pair: Pair) -> MatchPicture:
    matches, inlier = matches_and_inliers(database, pair)
    with open_features(features) as store:
        points = [store.keypoints(name) for name in (pair.name0, pair.name1)]
    return match_picture((images / pair.name0, images / pair.name1), pair, points, matches, inlier)


def match_picture(
    paths: tuple[Path, Path], pair: Pair, points: list[np.ndarray], matches: np.ndarray, inlier: np.ndarray
) -> MatchPicture:
    """Picture of a pair. points: keypoints of both files in pixels; matches: (m, 2) indices into them."""
    pixels, seen = [], []
    for column, path in enumerate(paths):
        image = decode(path, DecodeConfig(resize_max=PICTURE_SIDE), colour=True)
        pixels.append(image.pixels)
        seen.append(image.pixels_from_file(points[column][matches[:, column]]))
    return MatchPicture(f"{pair.name0} - {pair.name1}", pixels[0], pixels[1], seen[0], seen[1], inlier)
