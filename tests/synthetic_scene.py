"""pycolmap's synthetic scene mapped by featkit, and the resulting points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from PIL import Image

from featkit.core.config import Config
from featkit.core.types import Features, Matches, Pair, Pose
from featkit.geometry.pixels import from_colmap
from featkit.io.features import append_features
from featkit.io.lists import write_pairs
from featkit.io.matches import append_matches
from featkit.mapping.cameras import CameraConfig, to_pose
from featkit.mapping.reference import Reference
from featkit.mapping.stage import MapConfig, build_map, database_config, read_largest
from featkit.mapping.verify import build_database

IMAGES, POINTS = 8, 200
PARAMS = (1280.0, 1270.0, 512.0, 384.0)
SIZE = (1024, 768)


class Exact(Config):
    """Correct features and matches."""

    source: str = "projections"


@dataclass(frozen=True)
class Written:
    """Files of the scene, and the true poses."""

    images: Path
    features: Path
    pairs: Path
    matches: Path
    poses: dict[str, Pose]


def write_scene(folder: Path) -> Written:
    """Eight cameras that see 200 points: keypoints are their exact projections, and all matches are correct."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, IMAGES, POINTS
    options.camera_model_id, options.camera_params = pycolmap.CameraModelId.PINHOLE, list(PARAMS)
    options.camera_width, options.camera_height = SIZE
    pycolmap.set_random_seed(1)
    model = pycolmap.synthesize_dataset(options)
    images = {f"{number}.png": image for number, image in enumerate(model.images.values())}
    (folder / "images").mkdir()
    indices: dict[str, dict[int, int]] = {}
    with append_features(folder / "features.h5", Exact()) as store:
        for name, image in images.items():
            Image.new("L", SIZE).save(folder / "images" / name)
            xy = from_colmap(np.array([point.xy for point in image.points2D])).astype(np.float32)
            store.write(name, Features(xy, np.zeros((len(xy), 4), np.float16), np.ones(len(xy), np.float32), SIZE))
            indices[name] = {p.point3D_id: i for i, p in enumerate(image.points2D) if p.has_point3D()}
    pairs = [Pair(a, b) for a in images for b in images if a < b]
    write_pairs(folder / "pairs.txt", pairs)
    with append_matches(folder / "matches.h5", Exact(), "exact") as found:
        for pair in pairs:
            seen0, seen1 = indices[pair.name0], indices[pair.name1]
            matches0 = np.full(len(images[pair.name0].points2D), -1, np.int32)
            for point in seen0.keys() & seen1.keys():
                matches0[seen0[point]] = seen1[point]
            found.write(pair, Matches(matches0, (matches0 >= 0).astype(np.float32)), ("", ""))
    poses = {name: to_pose(image.cam_from_world()) for name, image in images.items()}
    return Written(folder / "images", folder / "features.h5", folder / "pairs.txt", folder / "matches.h5", poses)


def counted(scene: Written, folder: Path) -> dict[str, Any]:
    """Map the scene, triangulate it with its true poses, and count."""
    config = MapConfig(camera=CameraConfig(model="PINHOLE", params=PARAMS, mode="single", refine=False))
    files = (scene.images, scene.features, scene.pairs, scene.matches)
    database = build_database(database_config(config), *files, folder / "free" / "database.db")
    mapped = read_largest(build_map(config, scene.images, database, folder / "free" / "sparse"))
    known = Reference(scene.poses, None, None)
    posed = build_database(database_config(config), *files, folder / "known" / "database.db", reference=known)
    sparse = build_map(config, scene.images, posed, folder / "known" / "sparse", reference=known)
    return {
        "pycolmap": pycolmap.__version__,
        "configs": sorted({*configs(database), *configs(posed)}),
        "mapped_images": mapped.num_reg_images(),
        "mapped_points": mapped.num_points3D(),
        "mapped_error_px": round(mapped.compute_mean_reprojection_error(), 4),
        "triangulated_points": read_largest(sparse).num_points3D(),
    }


def configs(database: Path) -> list[str]:
    """The types of the two-view geometries in a database, except those with too few inliers."""
    with pycolmap.Database.open(str(database)) as opened:
        ids = [image.image_id for image in opened.read_all_images()]
        found = [opened.read_two_view_geometry(a, b) for a in ids for b in ids if a < b]
    return [str(pycolmap.TwoViewGeometryConfiguration(one.config).name) for one in found if len(one.inlier_matches)]
