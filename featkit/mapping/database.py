"""features.h5 + matches.h5 -> COLMAP's database.db. COLMAP's half-pixel offset is added here and nowhere else."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Bool, Float

from featkit.core.errors import BadInputError
from featkit.core.log import progress
from featkit.core.types import Pair
from featkit.geometry.pixels import to_colmap
from featkit.io.features import FeatureStore
from featkit.io.matches import MatchStore
from featkit.mapping.relations import write_rigs
from featkit.mapping.rigs import Rig

IMAGES_AT_ONCE = 1000  # per transaction: SQLite keeps an open transaction's changes in a separate file


def write_images(
    database: pycolmap.Database,
    cameras: dict[int, pycolmap.Camera],
    camera_ids: dict[str, int],
    features: FeatureStore,
    names: Sequence[str],
    rigs: Sequence[Rig] = (),
) -> None:
    """Write cameras, rigs, frames, images and keypoints, in batches of images per transaction; image ids count from 1.

    Cameras and images that are not in `rigs` become a rig and a frame each, as COLMAP does for photographs without a
    rig. The database is complete only when this returns.
    """
    on_rigs = {name for rig in rigs for frame in rig.frames for name in frame.values()}
    cameras_on_rigs = {camera_ids[name] for name in on_rigs}
    with pycolmap.DatabaseTransaction(database):
        for camera in cameras.values():
            write_camera(database, camera, alone=camera.camera_id not in cameras_on_rigs)
    with progress("database", len(names), "images") as advance:
        for start in range(0, len(names), IMAGES_AT_ONCE):
            some = names[start : start + IMAGES_AT_ONCE]
            with pycolmap.DatabaseTransaction(database):
                for image_id, name in enumerate(some, start=start + 1):
                    keypoints = to_colmap(features.keypoints(name))
                    write_image(database, image_id, name, camera_ids[name], keypoints, alone=name not in on_rigs)
            advance(len(some))
    if rigs:
        write_rigs(database, rigs, camera_ids, {name: number for number, name in enumerate(names, start=1)})


def copy_images(whole: pycolmap.Database, part: pycolmap.Database, names: Sequence[str]) -> None:
    """Copy some images of a database, with their cameras and keypoints, to another one under the same ids."""
    images = sorted((whole.read_image_with_name(name) for name in names), key=lambda image: image.image_id)
    with pycolmap.DatabaseTransaction(part):
        for camera_id in sorted({image.camera_id for image in images}):
            write_camera(part, whole.read_camera(camera_id))
        for image in images:
            keypoints = whole.read_keypoints(image.image_id)
            write_image(part, image.image_id, image.name, image.camera_id, keypoints)


def write_camera(database: pycolmap.Database, camera: pycolmap.Camera, *, alone: bool = True) -> None:
    """Write a camera and (alone) a rig that consists of it, under the camera's id."""
    database.write_camera(camera, use_camera_id=True)
    if not alone:
        return
    rig = pycolmap.Rig(rig_id=camera.camera_id)
    rig.add_ref_sensor(camera.sensor_id)
    database.write_rig(rig, use_rig_id=True)


def write_image(
    database: pycolmap.Database,
    image_id: int,
    name: str,
    camera_id: int,
    keypoints: Float[np.ndarray, "n c"],
    *,
    rig_id: int | None = None,
    alone: bool = True,
) -> None:
    """Write an image and (alone) a frame that consists of it, under the image's id.

    keypoints: in COLMAP's pixels. rig_id: None: the camera's id. Raises BadInputError for NaN and infinity.
    """
    if broken := int((~np.isfinite(keypoints)).any(axis=1).sum()):
        raise BadInputError(
            f"{name!r}: {broken} of its {len(keypoints)} keypoints are NaN or infinity; extract it again"
        )
    image = pycolmap.Image(name=name, camera_id=camera_id, image_id=image_id)
    database.write_image(image, use_image_id=True)
    if alone:
        frame = pycolmap.Frame()
        frame.frame_id, frame.rig_id = image_id, camera_id if rig_id is None else rig_id
        frame.add_data_id(image.data_id)
        database.write_frame(frame, use_frame_id=True)
    database.write_keypoints(image_id, keypoints)


def write_matches(
    database: pycolmap.Database, matches: MatchStore, pairs: Iterable[Pair], before: Mapping[str, int] | None = None
) -> list[Pair]:
    """Write the matches of pairs in one transaction; returns the pairs with matches but no two-view geometry yet.

    before: by image name, the number of keypoints in the database that precede those the matches index.
    Raises BadInputError for matches of keypoints that the database does not have.
    """
    ids = {image.name: image.image_id for image in database.read_all_images()}
    waiting = []
    with pycolmap.DatabaseTransaction(database):
        for pair in pairs:
            both = (ids[pair.name0], ids[pair.name1])
            found = matches.read(pair).as_index_pairs()
            if before:
                found = found + np.array([before.get(pair.name0, 0), before.get(pair.name1, 0)], found.dtype)
            counts = [database.num_keypoints_for_image(image_id) for image_id in both]
            if (found.max(axis=0, initial=-1) >= counts).any():  # native code would read beyond the keypoints
                raise BadInputError(
                    f"{matches.path}: the matches of {pair.name0!r} and {pair.name1!r} have indices beyond their"
                    f" {counts[0]:,} and {counts[1]:,} keypoints; match these features again"
                )
            if len(found) and not database.exists_matches(*both):
                database.write_matches(*both, found.astype(np.uint32))
            if len(found) and not database.exists_two_view_geometry(*both):
                waiting.append(pair)
    return waiting


def count_verified(path: Path) -> tuple[int, int]:
    """Pairs with a verified two-view geometry, and their inlier matches."""
    with pycolmap.Database.open(str(path)) as database:
        counts = database.read_two_view_geometry_num_inliers()[1]
    return sum(count > 0 for count in counts), int(sum(counts))


def verified_pairs(path: Path) -> list[tuple[Pair, int]]:
    """Pairs with a verified two-view geometry and their number of inliers, most inliers first."""
    with pycolmap.Database.open(str(path)) as database:
        names = {image.image_id: image.name for image in database.read_all_images()}
        pair_ids, counts = database.read_two_view_geometry_num_inliers()
    ids = [pycolmap.pair_id_to_image_pair(pair_id) for pair_id in pair_ids]
    rows = [(Pair(names[a], names[b]), int(n)) for (a, b), n in zip(ids, counts, strict=True) if n > 0]
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def matches_and_inliers(path: Path, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Index pairs (m, 2) of all matches of a pair, and a mask (m,) of its inliers."""
    with pycolmap.Database.open(str(path)) as database:
        ids = [database.read_image_with_name(name).image_id for name in (pair.name0, pair.name1)]
        matches = database.read_matches(*ids).astype(np.int64)
        kept = database.read_two_view_geometry(*ids).inlier_matches.astype(np.int64)
    stride = int(max(matches.max(initial=0), kept.max(initial=0))) + 1
    return matches, np.isin(matches @ [stride, 1], kept @ [stride, 1])


def database_counts(path: Path) -> dict[str, int]:
    """Numbers of images, cameras, keypoints, pairs and inliers. Raises BadInputError if it is not a COLMAP database."""
    try:
        with pycolmap.Database.open(str(path)) as database:
            verified = sum(count > 0 for count in database.read_two_view_geometry_num_inliers()[1])
            return {
                "images": database.num_images(),
                "cameras": database.num_cameras(),
                "keypoints": database.num_keypoints(),
                "matched_pairs": database.num_matched_image_pairs(),
                "verified_pairs": verified,
                "inlier_matches": database.num_inlier_matches(),
            }
    except Exception as error:  # pycolmap's exception types differ between versions
        raise BadInputError(f"{path}: not a COLMAP database ({str(error).splitlines()[0]})") from None


# ----------------------------------------------------------------------------------------------------------------------
# Reading a database without changing it: pycolmap opens databases for writing, and rewrites their header.


@dataclass(frozen=True)
class PairLines:
    """All matches of two images: keypoints in COLMAP pixels, and which matches verification kept."""

    points0: Float[np.ndarray, "m 2"]
    points1: Float[np.ndarray, "m 2"]
    inlier: Bool[np.ndarray, " m"]


class ReadOnlyDatabase:
    """Reads pairs and keypoints of a COLMAP database without changing a byte of its file.

    counts: numbers of matches and inliers of every pair with matches, by its image names in order. partners: the same
    by one image name, then by the other. Every call opens the file separately, so that threads can share an instance.
    """

    def __init__(self, path: Path):
        """Raises BadInputError if the file is not a COLMAP database."""
        self.path = path
        with self._open() as rows:
            self.ids = {name: number for number, name in rows.execute("SELECT image_id, name FROM images")}
            names = {number: name for name, number in self.ids.items()}
            matches = dict(rows.execute("SELECT pair_id, rows FROM matches WHERE rows > 0"))
            inliers = dict(rows.execute("SELECT pair_id, rows FROM two_view_geometries WHERE rows > 0"))
        self.counts: dict[Pair, tuple[int, int]] = {}
        self.partners: dict[str, dict[str, tuple[int, int]]] = {}
        for pair_id in sorted(matches.keys() | inliers.keys()):
            first, second = pycolmap.pair_id_to_image_pair(pair_id)
            if first in names and second in names:
                found = (matches.get(pair_id, 0), inliers.get(pair_id, 0))
                counts = (max(found), found[1])
                self.counts[Pair(names[first], names[second])] = counts
                self.partners.setdefault(names[first], {})[names[second]] = counts
                self.partners.setdefault(names[second], {})[names[first]] = counts

    def keypoints(self, name: str) -> Float[np.ndarray, "n 2"]:
        """Keypoints of an image in COLMAP pixels; empty for an image that is not in the database."""
        with self._open() as rows:
            return self._table(rows, "keypoints", "image_id", self.ids.get(name, -1), np.float32)[:, :2]

    def lines(self, pair: Pair) -> PairLines:
        """The matches of a pair, in either order of its names. Raises BadInputError for a damaged row."""
        ids = [self.ids.get(name, -1) for name in (pair.name0, pair.name1)]
        with self._open() as rows:
            points = [self._table(rows, "keypoints", "image_id", number, np.float32)[:, :2] for number in ids]
            pair_id = pycolmap.image_pair_to_pair_id(*ids) if min(ids) >= 0 else -1
            found, kept = (
                self._table(rows, table, "pair_id", pair_id, np.uint32).astype(np.int64)
                for table in ("matches", "two_view_geometries")
            )
        if ids[0] > ids[1]:  # stored in the order of the ids
            found, kept = found[:, ::-1], kept[:, ::-1]
        stride = int(max(found.max(initial=0), kept.max(initial=0))) + 1
        is_new = ~np.isin(kept @ [stride, 1], found @ [stride, 1])  # verification may add matches of its own
        every = np.concatenate([found, kept[is_new]])
        if (every.max(axis=0, initial=-1) >= [len(points[0]), len(points[1])]).any():
            raise BadInputError(
                f"{self.path}: matches of {pair.name0!r} and {pair.name1!r} have indices beyond their keypoints;"
                " match again"
            )
        inlier = np.isin(every @ [stride, 1], kept @ [stride, 1])
        return PairLines(points[0][every[:, 0]], points[1][every[:, 1]], inlier)

    def _table(self, rows: sqlite3.Connection, table: str, key: str, number: int, kind: type) -> np.ndarray:
        """The array (rows, cols) stored in one row of a table; shape (0, 2) if there is no such row."""
        query = f"SELECT rows, cols, data FROM {table} WHERE {key} = ?"
        count, width, data = rows.execute(query, (number,)).fetchone() or (0, 2, b"")
        if not count:
            return np.zeros((0, 2), kind)
        element = np.dtype(kind).newbyteorder("<")
        is_whole = isinstance(data, bytes) and isinstance(count, int) and isinstance(width, int) and width >= 2
        if not is_whole or len(data) != count * width * element.itemsize:
            raise BadInputError(f"{self.path}: a row of {table} is cut off; make or copy the database again")
        return np.frombuffer(data, element).reshape(count, width)

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection that writes nothing, not even locks or logs, unless another program is writing the database."""
        log = self.path.with_name(f"{self.path.name}-wal")
        busy = log.is_file() and log.stat().st_size > 0
        address = f"{self.path.resolve().as_uri()}?{'mode=ro' if busy else 'immutable=1'}"
        try:
            with contextlib.closing(sqlite3.connect(address, uri=True)) as rows:
                yield rows
        except sqlite3.Error as error:
            raise BadInputError(f"{self.path}: not a COLMAP database ({error})") from None
