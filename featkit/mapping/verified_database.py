"""The database stage: features.h5 + matches.h5 -> database.db with verified two-view geometries.

It has a stamp beside it and is skipped only when that agrees; a verification that was stopped goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pycolmap

from featkit.config import Config
from featkit.errors import BadInputError, NothingCameOutError
from featkit.log import progress
from featkit.mapping import database as db
from featkit.mapping import verify
from featkit.mapping.cameras import CameraConfig, cameras_of_images, check_sizes
from featkit.mapping.reference import Reference
from featkit.mapping.verify import VerifyConfig
from featkit.store.artifact import artifact, discard, explained, is_left, locked, new_part, part_of, write_stamp
from featkit.store.disk import explained_by_disk
from featkit.store.features import FeatureStore, open_features
from featkit.store.matches import MatchStore, open_matches
from featkit.store.pairs import read_pairs
from featkit.store.poses import Intrinsics
from featkit.store.stamp import digest, is_stamped, refuse_foreign
from featkit.types import Pair

LOGGER = logging.getLogger(__name__)
MIN_CHUNK, MAX_CHUNKS = 64, 50  # pairs verified before the next word of progress, and such words at most


Verifier = Callable[[VerifyConfig, Path, Path, list[Pair]], None]
"""Fills in the two-view geometries of a database: (how, the database, matches, the pairs)."""


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
    names: Sequence[str] | None = None,
    reference: Reference | None = None,
    intrinsics: Mapping[str, Intrinsics] | None = None,
    overwrite: bool = False,
    verifier: Verifier | None = None,
) -> Path:
    """Write cameras, keypoints, matches and verified two-view geometries to a COLMAP database, and return it.

    names: only these images. With a reference only its images are used, with its cameras, and matches are verified
    against its poses. intrinsics: known cameras of images, by name. verifier: does elsewhere what RANSAC would do here.
    Raises BadInputError for images without features, NothingCameOutError when no pair could be verified,
    NotWritableError without space or while another process writes it.
    """
    refuse_foreign(output)
    with locked(output), explained_by_disk(output):
        return _build(
            config, images, features, pairs, matches, output, names, reference, intrinsics, overwrite, verifier
        )


def _build(
    config: DatabaseConfig,
    images: Path,
    features: Path,
    pairs: Path,
    matches: Path,
    output: Path,
    names: Sequence[str] | None,
    reference: Reference | None,
    intrinsics: Mapping[str, Intrinsics] | None,
    overwrite: bool,
    verifier: Verifier | None,
) -> Path:
    with open_features(features) as store, open_matches(matches) as found:
        wanted = None if names is None else set(names)
        names = [name for name in store.names() if wanted is None or name in wanted]
        names = [name for name in names if reference is None or name in reference.poses]
        if len(names) < 2:
            raise BadInputError(f"{features}: a map takes two images or more, {len(names)} are usable")
        known = set(names)
        listed = [pair for pair in read_pairs(pairs) if pair.name0 in known and pair.name1 in known]
        given = {name: intrinsics[name] for name in names if name in intrinsics} if intrinsics else {}
        inputs = _inputs(store, found.attributes(), names, listed, reference, given)
        made = artifact(output, config, inputs)
        if made.up_to_date and not overwrite:
            LOGGER.info("database: done already")
            return output
        part = part_of(output)
        part_stamp = part.with_name(f"{part.name}.json")
        if not (is_left(part) and is_stamped(part_stamp, config, inputs)) or overwrite:
            cameras, camera_ids = _cameras(config.camera, images, names, reference, given)
            check_sizes(cameras, camera_ids, {name: store.image_size(name) for name in names})
            with explained(output):
                output.parent.mkdir(parents=True, exist_ok=True)
                for path in (part_stamp, *_journals(part)):
                    discard(path)
                new_part(output)
            with pycolmap.Database.open(str(part)) as database:
                db.write_images(database, cameras, camera_ids, store, names)
            write_stamp(part_stamp, config, inputs)  # from here on it goes on where it was stopped
        if verifier is not None and reference is None:
            verifier(config.verify, part, matches, listed)
        else:
            _verify_here(config.verify, part, store, found, listed, reference)
    verified, inliers = db.count_verified(part)
    LOGGER.info("verify: %d of %d pairs verified, %d inlier matches", verified, len(listed), inliers)
    if verified == 0:
        raise NothingCameOutError(
            f"{images}: no two of {len(names)} images match; are they of one scene"
            + (", and the reference's poses theirs?" if reference else "? (try --ratio 0.9)")
        )
    with explained(output):
        # Killed between the stamp and the name, the next run finds the part and has nothing left to verify.
        more = {"kind": "database", "verified_pairs": verified, "inlier_matches": inliers}
        made.replace(part, _journals(output), **more)
        part_stamp.unlink()
    return output


def _verify_here(
    config: VerifyConfig,
    part: Path,
    features: FeatureStore,
    matches: MatchStore,
    pairs: list[Pair],
    reference: Reference | None,
) -> None:
    with progress("verify", len(pairs), "pairs") as advance:
        for chunk in _chunks(pairs):
            with pycolmap.Database.open(str(part)) as database:
                fresh = db.write_matches(database, matches, chunk)
                if reference is not None:
                    verify.by_poses(database, fresh, features, reference.poses, config)
            if reference is None:
                verify.by_ransac(part, config, fresh)
            advance(len(chunk))


def _chunks(pairs: list[Pair]) -> Iterator[list[Pair]]:
    """Runs of pairs that are written and verified together: pycolmap says nothing until it is done with all it has."""
    size = max(MIN_CHUNK, -(-len(pairs) // MAX_CHUNKS))
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def _inputs(
    store: FeatureStore,
    matches: dict,
    names: Sequence[str],
    pairs: list[Pair],
    reference: Reference | None,
    intrinsics: Mapping[str, Intrinsics],
) -> str:
    counts = [f"{name} {store.digest(name)}" for name in names]
    origin = [str(store.attributes().get("fingerprint")), str(matches.get("fingerprint"))]
    known = [] if reference is None else [_described(reference, names)]
    known += [repr(sorted(intrinsics.items()))] if intrinsics else []
    return digest(*origin, *counts, *(f"{p.name0}\t{p.name1}" for p in pairs), *known)


def _described(reference: Reference, names: Sequence[str]) -> str:
    """Poses and cameras of a reference, every digit of them."""
    poses = [(name, reference.poses[name].qvec.tolist(), reference.poses[name].tvec.tolist()) for name in names]
    if reference.cameras is None or reference.camera_ids is None:
        return repr(poses)
    used = [reference.cameras[reference.camera_ids[name]] for name in names]
    return repr((poses, [(c.camera_id, c.model_name, c.width, c.height, c.params.tolist()) for c in used]))


def _journals(database: Path) -> list[Path]:
    """What SQLite leaves beside a database when it is killed: replayed into another one it would be wrong."""
    return [database.with_name(database.name + end) for end in ("-wal", "-shm", "-journal")]


def _cameras(
    config: CameraConfig,
    images: Path,
    names: Sequence[str],
    reference: Reference | None,
    intrinsics: Mapping[str, Intrinsics],
) -> tuple[dict[int, pycolmap.Camera], dict[str, int]]:
    if reference is not None and reference.cameras is not None and reference.camera_ids is not None:
        used = {reference.camera_ids[name] for name in names}
        kept = {camera_id: camera for camera_id, camera in reference.cameras.items() if camera_id in used}
        return kept, {name: reference.camera_ids[name] for name in names}
    cameras, camera_ids = cameras_of_images(images, names, config, intrinsics)
    guessed = [name for name in names if not cameras[camera_ids[name]].has_prior_focal_length]
    if reference is not None and guessed:
        raise BadInputError(
            f"{images / guessed[0]}: its focal length is not known, and known poses leave nothing to guess;"
            " give --camera-params or --intrinsics, or put a camera.txt beside the poses"
        )
    return cameras, camera_ids
