"""features.h5 + matches.h5 -> COLMAP's database.db. COLMAP's half-pixel offset is added here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Float

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

    Outside of `rigs` each camera is its own rig and each image its own frame, as COLMAP does for photographs without a
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

    keypoints: in COLMAP's pixels. rig_id: None: the camera's id.
    """
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
                    f"{matches.path}: the matches of {pair.name0!r} and {pair.name1!r} name keypoints beyond their"
                    f" {counts[0]:,} and {counts[1]:,}; match these features again"
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
