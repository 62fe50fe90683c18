"""A scene to look at: a synthetic COLMAP model with its database, and photographs in the sizes of its cameras."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pycolmap
from PIL import Image

SIZE = (640, 480)  # width, height as stored
TURNED = 2  # the image, by its place among the sorted names, whose EXIF says to turn it clockwise
CLOCKWISE = 6  # EXIF's orientation


@dataclass(frozen=True)
class MadeView:
    """scene/sparse/0, scene/images and scene/database.db."""

    scene: Path

    @property
    def model(self) -> Path:
        return self.scene / "sparse" / "0"

    @property
    def database(self) -> Path:
        return self.scene / "database.db"

    def names(self) -> list[str]:
        """Of the images, sorted."""
        return sorted(image.name for image in pycolmap.Reconstruction(str(self.model)).images.values())


def make_view(scene: Path, points: int = 60, frames: int = 5, with_database: bool = True, others: int = 7) -> MadeView:
    """Write the scene: every image its own colours, every point another colour, a fifth of the matches wrong.

    others: keypoints of every image that see no point.
    """
    made = MadeView(scene)
    made.model.mkdir(parents=True)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, frames, points
    options.num_points2D_without_point3D = others
    options.inlier_match_ratio = 0.8
    options.camera_width, options.camera_height = SIZE
    options.camera_params = [800.0, 320.0, 240.0, 0.05]
    pycolmap.set_random_seed(0)
    if with_database:
        with pycolmap.Database.open(str(made.database)) as database:
            model = pycolmap.synthesize_dataset(options, database)
    else:
        model = pycolmap.synthesize_dataset(options)
    for number, point in enumerate(model.points3D.values()):
        point.color = np.array([number % 256, 2 * number % 256, 255 - number % 256], np.uint8)
    model.update_point_3d_errors()
    model.write(str(made.model))
    rng = np.random.default_rng(0)
    for number, name in enumerate(made.names()):
        path = scene / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), SIZE, interpolation=cv2.INTER_LINEAR)
        exif = Image.Exif()
        if number == TURNED:
            exif[0x0112] = CLOCKWISE
        Image.fromarray(pixels).save(path, format="JPEG" if number else "PNG", exif=exif, quality=95)
    return made
