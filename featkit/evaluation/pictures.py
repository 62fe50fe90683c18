"""What several pages show: a map in 3D, two images with their matches, shares of errors, times."""

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
LARGE = DecodeConfig(resize_max=1000)  # the same, of a benchmark's extreme pairs


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
    """A camera to draw; of a panorama, which has no focal length, a part of what it sees."""
    rotation, focal = rotation_matrix(pose.qvec), camera.mean_focal_length() or camera.width / np.pi
    return Camera3D(name, rotation, pose.tvec, camera.width, camera.height, focal, group)


def match_pictures(images: Path, features: Path, database: Path) -> list[Item]:
    """Pictures of verified pairs: the one with most inliers, the one with fewest, and some between."""
    ranked = verified_pairs(database)
    places = np.unique(np.linspace(0, len(ranked) - 1, min(NUM_PICTURES, len(ranked))).round().astype(int))
    pictures: list[Item] = []
    for place in places:
        pair = ranked[place][0]
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
    """Two images of a folder, reduced. points: of the matches in either image, in pixels of the files."""
    both = [decode(images / name, decoding, colour=True) for name in (pair.name0, pair.name1)]
    seen = [image.pixels_from_file(of_it) for image, of_it in zip(both, points, strict=True)]
    return MatchPicture(title, both[0].pixels, both[1].pixels, seen[0], seen[1], inlier)


def share_curve(name: str, errors: Sequence[float], up_to: Float[np.ndarray, " n"]) -> Curve:
    """Which share of some errors, in %, is at most each of the values; infinite ones are never reached."""
    share = np.searchsorted(np.sort(errors), up_to, side="right") / max(len(errors), 1)
    return Curve(name, up_to, 100 * share)


def seconds_table(metrics: dict[str, Any]) -> Table:
    """Wall time of every stage."""
    rows: list[list[Cell]] = [[stage, round(seconds, 2)] for stage, seconds in metrics["seconds"].items()]
    rows.append(["total", round(sum(metrics["seconds"].values()), 2)])
    return Table("Time", ["stage", "seconds"], rows, note="A stage that was done already takes no time.")
