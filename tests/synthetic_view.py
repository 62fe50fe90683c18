"""A scene to look at: a synthetic COLMAP model with its database, photographs in the sizes of its cameras, queries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pycolmap
from PIL import Image

from featkit.core.config import Config
from featkit.core.types import Features, Matches, Pair
from featkit.geometry.pixels import from_colmap
from featkit.io.features import append_features
from featkit.io.lists import Intrinsics, write_pairs
from featkit.io.matches import append_matches
from featkit.localization import stage as localization

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


# ----------------------------------------------------------------------------------------------------------------------
# Queries that see what the map's first image sees: its keypoints and its true pose, localized by featkit.


QUERIES = ("good.jpg", "lost.jpg", "wrong focal.jpg")
"""Localized, not localized (its matches are random), uncertain. The EXIF of the first says to turn it clockwise."""
PARAMS = (800.0, 320.0, 240.0, 0.05)
WRONG_PARAMS = (850.0, 320.0, 240.0, 0.05)
WRONG = 5  # every so many matches of a query is wrong
FEW = 6  # matches of the lost query with each image


class Exact(Config):
    """Correct features."""

    source: str = "projections"


def localize_view(made: MadeView, output: Path | None = None, queries: Path | None = None) -> Path:
    """Localize the queries in a map of `make_view`, which gets its features.h5. Returns the folder of the results.

    output, queries: scene/localize and scene/queries if not given.
    """
    output, queries = output or made.scene / "localize", queries or made.scene / "queries"
    queries.mkdir(parents=True)
    model = pycolmap.Reconstruction(str(made.model))
    images = {image.name: image for image in model.images.values()}
    first, *partners = made.names()
    for name in QUERIES:
        exif = Image.Exif()
        if name == QUERIES[0]:
            exif[0x0112] = CLOCKWISE
        Image.open(made.scene / "images" / first).convert("RGB").save(queries / name, exif=exif)
    stores = {made.scene / "features.h5": [first, *partners], output / "features.h5": [first] * len(QUERIES)}
    for path, of_images in stores.items():
        with append_features(path, Exact(), overwrite=True) as store:
            for name, like in zip(QUERIES if path.parent == output else of_images, of_images, strict=True):
                xy = from_colmap(np.array([point.xy for point in images[like].points2D])).astype(np.float32)
                store.write(name, Features(xy, np.zeros((len(xy), 4), np.float16), np.ones(len(xy), np.float32), SIZE))
    pairs = [Pair(query, partner) for query in QUERIES for partner in partners]
    write_pairs(output / "pairs.txt", pairs)
    with append_matches(output / "matches.h5", Exact(), "", overwrite=True) as store:
        for pair in pairs:
            matches0 = query_matches(images, first, pair)
            store.write(pair, Matches(matches0, np.ones(len(matches0), np.float32)), ("", ""))
    intrinsics = {
        name: Intrinsics("SIMPLE_RADIAL", *SIZE, WRONG_PARAMS if name == QUERIES[2] else PARAMS) for name in QUERIES
    }
    localization.run(
        localization.LocalizeConfig(), made.model, made.scene / "features.h5", queries, output / "features.h5",
        output / "pairs.txt", output / "matches.h5", output, names=QUERIES, intrinsics=intrinsics,
    )  # fmt: skip
    return output


def query_matches(images: dict[str, pycolmap.Image], first: str, pair: Pair) -> np.ndarray:
    """For every keypoint of a query its match in a map image: that of the same point, every fifth another, or -1."""
    own, other = ([point.point3D_id for point in images[name].points2D] for name in (first, pair.name1))
    has_point = [row for row, point in enumerate(images[pair.name1].points2D) if point.has_point3D()]
    rng = np.random.default_rng(other[0])
    rows = {point: row for row, point in enumerate(other)}
    found = np.full(len(own), -1, np.int32)
    for number, (row, point) in enumerate((row, point) for row, point in enumerate(own) if point in rows):
        if images[first].points2D[row].has_point3D():
            is_lost = pair.name0 == QUERIES[1]
            is_wrong = is_lost or number % WRONG == 0
            if is_lost and number >= FEW:
                break
            found[row] = rng.choice(has_point) if is_wrong else rows[point]
    return found
