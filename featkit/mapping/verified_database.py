"""The database stage: features.h5 + matches.h5 -> database.db with verified two-view geometries.

It has a stamp beside it and is skipped only when that agrees; a verification that was stopped goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pycolmap

from featkit.config import Config
from featkit.errors import BadInputError, NothingCameOutError, NotWritableError
from featkit.mapping import database as db
from featkit.mapping import verify
from featkit.mapping.cameras import CameraConfig, cameras_of_images, check_sizes
from featkit.mapping.reference import Reference
from featkit.mapping.verify import VerifyConfig
from featkit.store.features import FeatureStore, open_features
from featkit.store.matches import open_matches
from featkit.store.pairs import read_pairs
from featkit.store.stamp import digest, is_stamped, write_stamp
from featkit.types import Pair

LOGGER = logging.getLogger(__name__)


class DatabaseConfig(Config):
    """Cameras and geometric verification."""

    camera: CameraConfig = CameraConfig()
    verify: VerifyConfig = VerifyConfig()


def build_database(
    config: DatabaseConfig,
    images: Path,
    features: Path,
    pairs: Path,
    matches: Path,
    output: Path,
    *,
    reference: Reference | None = None,
    overwrite: bool = False,
) -> Path:
    """Write cameras, keypoints, matches and verified two-view geometries to a COLMAP database, and return it.

    With a reference only its images are used, with its cameras, and matches are verified against its poses.
    Raises BadInputError for images without features, NothingCameOutError when no pair could be verified.
    """
    stamp = output.with_suffix(".json")
    with open_features(features) as store, open_matches(matches) as found:
        names = store.names() if reference is None else [n for n in store.names() if n in reference.poses]
        if len(names) < 2:
            raise BadInputError(f"{features}: a map takes two images or more, {len(names)} are usable")
        known = set(names)
        listed = [pair for pair in read_pairs(pairs) if pair.name0 in known and pair.name1 in known]
        inputs = _inputs(store, found.attributes(), names, listed, reference)
        if output.is_file() and is_stamped(stamp, config, inputs) and not overwrite:
            LOGGER.info("database: done already")
            return output
        part, part_stamp = output.with_name(f".{output.name}.part"), output.with_name(f".{output.name}.part.json")
        if not (part.is_file() and is_stamped(part_stamp, config, inputs)) or overwrite:
            cameras, camera_ids = _cameras(config.camera, images, names, reference)
            check_sizes(cameras, camera_ids, {name: store.image_size(name) for name in names})
            _remove(part, part_stamp, output, stamp)
            with pycolmap.Database.open(str(part)) as database:
                ids = db.write_images(database, cameras, camera_ids, store, names)
                matched = db.write_matches(database, ids, found, listed)
                if reference is not None:
                    verify.by_poses(database, ids, matched, store, reference.poses, config.verify)
            write_stamp(part_stamp, config, inputs)  # from here on only verification is left, and it goes on
    if reference is None:
        verify.by_ransac(part, config.verify)
    verified, inliers = db.count_verified(part)
    LOGGER.info("verify: %d of %d pairs verified, %d inlier matches", verified, len(listed), inliers)
    if verified == 0:
        raise NothingCameOutError(
            f"{images}: no two of {len(names)} images match; are they of one scene? (try --ratio 0.9)"
        )
    _remove(output, stamp)
    part.rename(output)
    part_stamp.unlink()
    write_stamp(stamp, config, inputs, kind="database", verified_pairs=verified, inlier_matches=inliers)
    return output


def _inputs(
    store: FeatureStore, matches: dict, names: Sequence[str], pairs: list[Pair], reference: Reference | None
) -> str:
    counts = [f"{name} {store.count(name)} {store.source_bytes(name)}" for name in names]
    origin = [str(store.attributes().get("fingerprint")), str(matches.get("fingerprint"))]
    known = [] if reference is None else [_described(reference, names)]
    return digest(*origin, *counts, *(f"{p.name0}\t{p.name1}" for p in pairs), *known)


def _described(reference: Reference, names: Sequence[str]) -> str:
    """Poses and cameras of a reference, every digit of them."""
    poses = [(name, reference.poses[name].qvec.tolist(), reference.poses[name].tvec.tolist()) for name in names]
    if reference.cameras is None or reference.camera_ids is None:
        return repr(poses)
    used = [reference.cameras[reference.camera_ids[name]] for name in names]
    return repr((poses, [(c.camera_id, c.model_name, c.width, c.height, c.params.tolist()) for c in used]))


def _remove(*paths: Path) -> None:
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        except OSError as error:
            raise NotWritableError(f"{path}: cannot be written ({error.strerror})") from None


def _cameras(
    config: CameraConfig, images: Path, names: Sequence[str], reference: Reference | None
) -> tuple[dict[int, pycolmap.Camera], dict[str, int]]:
    if reference is None or reference.cameras is None or reference.camera_ids is None:
        return cameras_of_images(images, names, config)
    used = {reference.camera_ids[name] for name in names}
    return {k: v for k, v in reference.cameras.items() if k in used}, {n: reference.camera_ids[n] for n in names}
