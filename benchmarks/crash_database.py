"""What crash.py kills, third part: featkit's database stage, with real verification of a synthetic scene."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
from crash_ways import CheapConfig, Found, Tell, Way

from featkit.core.types import Features, Matches, Pair
from featkit.geometry.pixels import from_colmap
from featkit.io.features import append_features
from featkit.io.lists import write_pairs
from featkit.io.matches import append_matches
from featkit.mapping import verify
from featkit.mapping.cameras import CameraConfig
from featkit.mapping.verify import DatabaseConfig, build_database


def prepare_database(folder: Path) -> None:
    """Features and matches of a synthetic scene; every pair sees many points."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, 12, 400
    options.camera_model_id, options.camera_params = pycolmap.CameraModelId.PINHOLE, [1280.0, 1270.0, 512.0, 384.0]
    pycolmap.set_random_seed(1)
    model = pycolmap.synthesize_dataset(options)
    images = {f"{number:02d}.png": image for number, image in enumerate(model.images.values())}
    (folder / "images").mkdir()
    points: dict[str, dict[int, int]] = {}
    with append_features(folder / "features.h5", CheapConfig()) as store:
        for name, image in images.items():
            cv2.imwrite(str(folder / "images" / name), np.zeros((768, 1024), np.uint8))
            xy = from_colmap(np.array([point.xy for point in image.points2D])).astype(np.float32)
            count = len(xy)
            store.write(name, Features(xy, np.zeros((count, 4), np.float16), np.ones(count, np.float32), (1024, 768)))
            points[name] = {p.point3D_id: i for i, p in enumerate(image.points2D) if p.has_point3D()}
    pairs = [Pair(a, b) for a in images for b in images if a < b]
    write_pairs(folder / "pairs.txt", pairs)
    with append_matches(folder / "matches.h5", CheapConfig(), "synthetic") as store:
        for pair in pairs:
            seen0, seen1 = points[pair.name0], points[pair.name1]
            found = np.full(len(images[pair.name0].points2D), -1, np.int32)
            for point in seen0.keys() & seen1.keys():
                found[seen0[point]] = seen1[point]
            store.write(pair, Matches(found, (found >= 0).astype(np.float32)), ("", ""))


def write_database(folder: Path, tell: Tell) -> None:
    verify.MIN_CHUNK, verify.MAX_CHUNKS = 4, 1000
    plain = verify.verify_by_ransac

    def by_ransac(path: Path, config: Any, pairs: Any) -> None:
        plain(path, config, pairs)
        with pycolmap.Database.open(str(path)) as opened:  # sqlite3 beside it would break its locks
            tell(len(opened.read_two_view_geometry_num_inliers()[0]))

    verify.verify_by_ransac = by_ransac
    camera = CameraConfig(model="PINHOLE", params=(1280.0, 1270.0, 512.0, 384.0), mode="single")
    files = (folder / "images", folder / "features.h5", folder / "pairs.txt", folder / "matches.h5")
    build_database(DatabaseConfig(camera=camera), *files, folder / "database.db")


def geometries(path: Path) -> dict[int, Any]:
    """Every row of the two-view geometries, by pair; of a copy, with SQLite's journal beside it."""
    with tempfile.TemporaryDirectory() as folder:
        for one in path.parent.glob(f"{path.name}*"):
            shutil.copy(one, folder)
        with contextlib.closing(sqlite3.connect(Path(folder) / path.name)) as database:
            if database.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                raise sqlite3.DatabaseError(path)
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'two_view_geometries'").fetchall():
                return {}
            return {row[0]: row for row in database.execute("SELECT * FROM two_view_geometries")}


def look_database(folder: Path) -> Found:
    whole = geometries(folder.with_name("whole") / "database.db")
    for path in (folder / "database.db", folder / ".database.db.part"):
        if path.exists():
            try:
                found = geometries(path)
            except sqlite3.DatabaseError:
                return Found(readable=False)
            right = sum(whole.get(pair) == row for pair, row in found.items())
            unfinished = len(whole) - right if path.name == "database.db" else 0
            return Found(right, len(found) - right + unfinished)
    return Found()


DATABASE = Way("featkit database", 66, write_database, look_database, prepare_database, counts_all=True)
