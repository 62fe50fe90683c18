"""Figures shared by several report pages: a 3D map, matches of two images, error curves, times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from featkit.core.content import Camera3D, Cell, Curve, Item, MatchPicture, Scene3D, Table
from featkit.core.types import Pair, Pose
from featkit.geometry.poses import rotation_matrix
from featkit.images.read import DecodeConfig, decode
from featkit.io.features import open_features
from featkit.mapping.align import transform_pose
from featkit.mapping.cameras import to_pose
from featkit.mapping.database import matches_and_inliers, verified_pairs
from featkit.mapping.model import Model

NUM_PICTURES = 4
PICTURE_SIDE = 640  # px: longer side of each half of a match picture
LARGE = DecodeConfig(resize_max=1000)  # the same, for the worst and best pairs of a benchmark


def moved_scene(model: Model, similarity: Float[np.ndarray, "3 4"]) -> Scene3D:
    """Points and registered cameras of a model, transformed by a similarity (s R | t) of the world."""
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
    """A camera to draw; of a panorama, which has no focal length, only a part of its view."""
    rotation, focal = rotation_matrix(pose.qvec), camera.mean_focal_length() or camera.width / np.pi
    return Camera3D(name, rotation, pose.tvec, camera.width, camera.height, focal, group)


def match_pictures(images: Path, features: Path, database: Path) -> list[Item]:
    """Pictures of verified pairs: the ones with the most and the fewest inliers, and some in between."""
    ranked = verified_pairs(database)
    ranks = np.unique(np.linspace(0, len(ranked) - 1, min(NUM_PICTURES, len(ranked))).round().astype(int))
    pictures: list[Item] = []
    for rank in ranks:
        pair = ranked[rank][0]
        index, inlier = matches_and_inliers(database, pair)
        with open_features(features) as store:
            points = [store.keypoints(name)[index[:, side]] for side, name in enumerate((pair.name0, pair.name1))]
            decoding = DecodeConfig(resize_max=PICTURE_SIDE, intensity_range=store.intensity_range)
        pictures.append(match_picture(f"{pair.name0} - {pair.name1}", images, pair, points, inlier, decoding))
    return pictures


def match_picture(
    title: str,
    images: Path,
    pair: Pair,
    points: Sequence[Float[np.ndarray, "m 2"]],
    inlier: Bool[np.ndarray, " m"],
    decoding: DecodeConfig = LARGE,
) -> MatchPicture:
    """Matches drawn on two downscaled images. points: matched keypoints in each image, in pixels of the files."""
    images_of_pair = [decode(images / name, decoding, colour=True) for name in (pair.name0, pair.name1)]
    points_drawn = [
        image.pixels_from_file(file_points) for image, file_points in zip(images_of_pair, points, strict=True)
    ]
    return MatchPicture(
        title, images_of_pair[0].pixels, images_of_pair[1].pixels, points_drawn[0], points_drawn[1], inlier
    )


def share_curve(name: str, errors: Sequence[float], up_to: Float[np.ndarray, " n"]) -> Curve:
    """Share of the errors, in %, up to each value of `up_to`; infinite errors are never reached."""
    share = np.searchsorted(np.sort(errors), up_to, side="right") / max(len(errors), 1)
    return Curve(name, up_to, 100 * share)


def seconds_table(metrics: dict[str, Any]) -> Table:
    """Wall time of each stage."""
    rows: list[list[Cell]] = [[stage, round(seconds, 2)] for stage, seconds in metrics["seconds"].items()]
    rows.append(["total", round(sum(metrics["seconds"].values()), 2)])
    return Table("Time", ["stage", "seconds"], rows, note="A stage that was already up to date takes no time.")
