"""The scene that hloc.py gives to both sides: folders, lists of pairs, true poses, and a query of nothing."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pycolmap
from localizer import SplitScene, split

from featkit.geometry.poses import rotation_matrix
from featkit.images.listing import list_images
from featkit.io.lists import read_poses
from featkit.mapping.cameras import to_camera

NOTHING = "nothing.png"  # a query without anything on it


class Work:
    """The folders of one comparison: all photographs in one, the map's in another, lists of pairs, the true poses."""

    def __init__(self, scene: Path, folder: Path):
        self.folder, self.found = folder, split(scene, folder)
        self.map_names = list_images(self.found.map / "images")
        height, width = self.found.camera.height, self.found.camera.width
        cv2.imwrite(str(self.found.queries / NOTHING), np.full((height, width), 128, np.uint8))
        self.query_names = list_images(self.found.queries)
        self.all = folder / "all"
        self.all.mkdir()
        for source in (*(self.found.map / "images").iterdir(), *self.found.queries.iterdir()):
            shutil.copy(source, self.all / source.name)
        self.map_pairs = self._pairs("pairs-map.txt", itertools.combinations(self.map_names, 2))
        self.query_pairs = self._pairs("pairs-query.txt", itertools.product(self.query_names, self.map_names))
        self.reference = reference_model(scene, self.found, self.map_names, folder / "reference")
        camera = " ".join(map(str, (self.found.camera.model, width, height, *self.found.camera.params)))
        self.intrinsics = folder / "queries.txt"
        self.intrinsics.write_text("".join(f"{name} {camera}\n" for name in self.query_names))

    def _pairs(self, name: str, pairs: Iterable[tuple[str, str]]) -> Path:
        path = self.folder / name
        path.write_text("".join(f"{a} {b}\n" for a, b in pairs))
        return path


def reference_model(scene: Path, found: SplitScene, names: list[str], folder: Path) -> Path:
    """A COLMAP model of the true poses, without points."""
    model, poses = pycolmap.Reconstruction(), read_poses(scene / "poses.txt")
    model.add_camera_with_trivial_rig(to_camera(found.camera, 1))
    for number, name in enumerate(names, start=1):
        rigid = np.concatenate([rotation_matrix(poses[name].qvec), poses[name].tvec[:, None]], axis=1)
        image = pycolmap.Image(name=name, camera_id=1, image_id=number)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(rigid))
    folder.mkdir()
    model.write(folder)
    return folder
