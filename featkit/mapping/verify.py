"""Matches -> two-view geometries in the database: by RANSAC, or against known poses. `config` is always set."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pycolmap

from featkit.core.config import Confidence, Config, Count, Pixels, Seed, Trials, digest
from featkit.core.errors import BadInputError, EmptyResultError
from featkit.core.log import progress
from featkit.core.types import Pair, Pose
from featkit.geometry.epipolar import (
    epipolar_inliers,
    epipolar_inliers_of_rays,
    essential_matrix,
    is_turn,
    turn_inliers,
)
from featkit.io.artifact import artifact, discard, explained, is_left, locked, new_part, part_of, write_stamp
from featkit.io.atomic import (
    DATABASE,
    explained_by_disk,
    is_stamped,
    read_stamp,
    refuse_folder,
    refuse_foreign,
    refuse_other_kind,
)
from featkit.io.features import FeatureStore, open_features
from featkit.io.lists import Intrinsics, Spelling, read_pairs
from featkit.io.matches import MatchStore, open_matches
from featkit.mapping import database as db
from featkit.mapping.cameras import (
    CameraConfig,
    cameras_of_images,
    check_sizes,
    is_wide,
    rays_of,
    to_rigid,
)
from featkit.mapping.reference import Reference
from featkit.mapping.rigs import Rig, describe_rigs, shared_camera_keys, usable_rigs

LOGGER = logging.getLogger(__name__)


class VerifyConfig(Config):
    """Geometric verification of one pair."""

    max_error_px: Pixels = 4.0
    """RANSAC threshold, px; with known poses it is multiplied by the keypoints' uncertainty."""
    min_inliers: Count = 15
    """Minimum number of inliers for a pair to be kept."""
    confidence: Confidence = 0.999
    """Probability of having drawn an outlier-free sample, at which RANSAC stops."""
    max_trials: Trials = 10_000
    """Maximum number of RANSAC iterations."""
    seed: Seed = 0
    """Random seed of RANSAC."""


def verify_by_ransac(path: Path, config: VerifyConfig, pairs: Collection[Pair] | None = None) -> None:
    """Verify matches of a database that are not verified yet (E, F or H by LO-RANSAC; pycolmap).

    pairs: only these; None: pycolmap checks every pair of the database. It also does so if any name contains a space,
    which its list of pairs does not allow. RANSAC's draws depend on the order of the two images, so the one with the
    lower id always comes first: the result does not depend on the order within a pair.
    """
    options = pycolmap.TwoViewGeometryOptions()
    options.min_num_inliers = config.min_inliers
    options.ransac.max_error = config.max_error_px
    options.ransac.confidence = config.confidence
    options.ransac.max_num_trials = config.max_trials
    options.ransac.random_seed = config.seed
    if pairs is None or any(len(f"{pair.name0} {pair.name1}".split()) != 2 for pair in pairs):
        pycolmap.geometric_verification(str(path), two_view_geometry_options=options)
    elif pairs:
        with pycolmap.Database.open(str(path)) as opened:
            ids = {image.name: image.image_id for image in opened.read_all_images()}
        ordered = [sorted((pair.name0, pair.name1), key=ids.__getitem__) for pair in pairs]
        with tempfile.TemporaryDirectory() as folder:
            listed = Path(folder) / "pairs.txt"
            listed.write_text("".join(f"{first} {second}\n" for first, second in ordered), encoding="utf-8")
            pycolmap.verify_matches(str(path), str(listed), options)


def verify_by_poses(
    database: pycolmap.Database,
    pairs: Iterable[Pair],
    features: FeatureStore,
    poses: dict[str, Pose],
    config: VerifyConfig,
) -> None:
    """Keep matches near their epipolar lines in both images: `max_error_px` times the keypoints' uncertainty.

    Of cameras at the same place, those whose points lie in the same direction.
    """
    with pycolmap.DatabaseTransaction(database):
        for pair in pairs:
            names = (pair.name0, pair.name1)
            images = [database.read_image_with_name(name) for name in names]
            ids = [image.image_id for image in images]
            matches = database.read_matches(*ids)
            cameras = [database.read_camera(image.camera_id) for image in images]
            pixels, thresholds = [], []
            for column, (image, camera) in enumerate(zip(images, cameras, strict=True)):
                keypoints = database.read_keypoints(image.image_id)[matches[:, column], :2]
                pixels.append(keypoints.astype(np.float64))
                error_px = config.max_error_px * features.uncertainty_px(image.name)
                thresholds.append(camera.cam_from_img_threshold(error_px))
            pose0, pose1 = poses[names[0]], poses[names[1]]
            essential = essential_matrix(pose0, pose1)
            on_turn = is_turn(pose0, pose1)
            if on_turn or any(map(is_wide, cameras)):
                rays0, rays1 = (rays_of(camera, xy) for camera, xy in zip(cameras, pixels, strict=True))
                if on_turn:
                    inlier = turn_inliers(pose0, pose1, rays0, rays1, max(thresholds))
                else:
                    inlier = epipolar_inliers_of_rays(essential, rays0, rays1, thresholds[0], thresholds[1])
            else:
                points0, points1 = (np.asarray(c.cam_from_img(xy)) for c, xy in zip(cameras, pixels, strict=True))
                inlier = epipolar_inliers(essential, points0, points1, thresholds[0], thresholds[1])
            geometry = _calibrated_geometry(pose0, pose1, essential, matches[inlier])
            database.write_two_view_geometry(*ids, geometry)


def _calibrated_geometry(
    pose0: Pose, pose1: Pose, essential: np.ndarray, inliers: np.ndarray
) -> pycolmap.TwoViewGeometry:
    """A calibrated two-view geometry. pycolmap 4.2.1's triangulator silently drops geometries without `config`."""
    geometry = pycolmap.TwoViewGeometry()
    kinds = pycolmap.TwoViewGeometryConfiguration
    geometry.config = kinds.PANORAMIC if is_turn(pose0, pose1) else kinds.CALIBRATED
    geometry.inlier_matches = inliers
    geometry.E = essential
    geometry.cam2_from_cam1 = to_rigid(pose1) * to_rigid(pose0).inverse()
    return geometry


# ----------------------------------------------------------------------------------------------------------------------
# The database stage: features.h5 + matches.h5 -> database.db with verified two-view geometries.
#
# It is skipped only if its stamp is up to date; an interrupted verification is resumed.


MIN_CHUNK, MAX_CHUNKS = 64, 50  # minimum pairs verified at once, maximum number of chunks (progress steps)


Verifier = Callable[[VerifyConfig, Path, Path, list[Pair]], None]
"""Computes the two-view geometries of a database: (config, database, matches, pairs)."""


class DatabaseConfig(Config):
    """Cameras and geometric verification."""

    camera: CameraConfig = CameraConfig()
    """Cameras of the photographs."""
    verify: VerifyConfig = VerifyConfig()
    """Geometric verification of the matches."""


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
    rigs: Sequence[Rig] = (),
    overwrite: bool = False,
    verifier: Verifier | None = None,
) -> Path:
    """Write cameras, keypoints, matches and verified two-view geometries to a COLMAP database, and return it.

    names: only these images. With a reference, only its images are used, with its cameras, and matches are verified
    against its poses. intrinsics: known cameras by image name. rigs: rigs of these images. verifier: replaces the local
    RANSAC, for example to run it on several machines.
    Raises BadInputError for images without features, EmptyResultError if no pair could be verified, NotWritableError
    without disk space or while another process writes the output.
    """
    refuse_foreign(output)
    refuse_other_kind(output, DATABASE)
    refuse_folder(output)
    with locked(output), explained_by_disk(output):
        return _build_database(
            config, images, features, pairs, matches, output, names, reference, intrinsics, rigs, overwrite, verifier
        )


def _build_database(
    config: DatabaseConfig,
    images: Path,
    features: Path,
    pairs: Path,
    matches: Path,
    output: Path,
    names: Sequence[str] | None,
    reference: Reference | None,
    intrinsics: Mapping[str, Intrinsics] | None,
    rigs: Sequence[Rig],
    overwrite: bool,
    verifier: Verifier | None,
) -> Path:
    with open_features(features) as store, open_matches(matches, store) as found:
        wanted = None if names is None else set(names)
        names = [name for name in store.names() if wanted is None or name in wanted]
        names = [name for name in names if reference is None or name in reference.poses]
        if len(names) < 2:
            raise BadInputError(f"{features}: a map takes two images or more, {len(names)} are usable")
        known = set(names)
        rigs = usable_rigs(rigs, known)
        spelled = Spelling(lambda: known)
        listed = read_pairs(pairs, spelled=(spelled, spelled))
        listed = [pair for pair in listed if pair.name0 in known and pair.name1 in known]
        given = {name: intrinsics[name] for name in names if name in intrinsics} if intrinsics else {}
        inputs = _inputs_digest(store, found.identity(listed), names, listed, reference, given, rigs)
        made = artifact(output, config, inputs)
        if made.up_to_date and not overwrite:
            LOGGER.info("database: done already")
            return output
        part = part_of(output)
        part_stamp = part.with_name(f"{part.name}.json")
        if not (is_left(part) and is_stamped(part_stamp, config, inputs)) or overwrite:
            cameras, camera_ids = _assign_cameras(config.camera, images, names, reference, given, rigs)
            check_sizes(cameras, camera_ids, {name: store.image_size(name) for name in names})
            with explained(output):
                output.parent.mkdir(parents=True, exist_ok=True)
                for path in (part_stamp, *sqlite_side_files(part)):
                    discard(path)
                new_part(output)
            with pycolmap.Database.open(str(part)) as database:
                db.write_images(database, cameras, camera_ids, store, names, rigs)
            write_stamp(part_stamp, config, inputs)  # from here on, an interrupted run can be resumed
        if verifier is not None and reference is None:
            found.refuse_others(listed)
            verifier(config.verify, part, matches, listed)
        else:
            verify_pairs(config.verify, part, found, listed, store, reference)
    verified, inliers = db.count_verified(part)
    LOGGER.info("verify: %d of %d pairs verified, %d inlier matches", verified, len(listed), inliers)
    if verified == 0:
        raise EmptyResultError(
            f"{images}: no two of {len(names)} images match; do they show the same scene"
            + (", and are the reference's poses theirs?" if reference else "? (try --ratio 0.9)")
        )
    with explained(output):
        # If killed between writing the stamp and renaming, the next run finds the part with nothing left to verify.
        more = {"kind": "database", "verified_pairs": verified, "inlier_matches": inliers}
        made.replace(part, sqlite_side_files(output), **more)
        part_stamp.unlink()
    return output


def verify_pairs(
    config: VerifyConfig,
    part: Path,
    matches: MatchStore,
    pairs: list[Pair],
    features: FeatureStore | None = None,
    reference: Reference | None = None,
) -> None:
    """Write matches of pairs to a database that has their images, and verify those that are not verified yet.

    They are verified by RANSAC; with `features` and a reference of all images, against its poses.
    """
    with progress("verify", len(pairs), "pairs") as advance:
        for chunk in _chunks(pairs):
            with pycolmap.Database.open(str(part)) as database:
                fresh = db.write_matches(database, matches, chunk)
                if reference is not None and features is not None:
                    verify_by_poses(database, fresh, features, reference.poses, config)
            if reference is None:
                verify_by_ransac(part, config, fresh)
            advance(len(chunk))


def _chunks(pairs: list[Pair]) -> Iterator[list[Pair]]:
    """Split pairs into chunks that are verified together: pycolmap reports no progress within a chunk."""
    size = max(MIN_CHUNK, -(-len(pairs) // MAX_CHUNKS))
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def _inputs_digest(
    store: FeatureStore,
    matches: str,
    names: Sequence[str],
    pairs: list[Pair],
    reference: Reference | None,
    intrinsics: Mapping[str, Intrinsics],
    rigs: Sequence[Rig],
) -> str:
    counts = [f"{name} {store.digest(name)}" for name in names]
    origin = [str(store.attributes().get("fingerprint")), matches]
    known = [] if reference is None else [_describe_reference(reference, names)]
    known += [repr(sorted(intrinsics.items()))] if intrinsics else []
    known += [describe_rigs(rigs)] if rigs else []
    return digest(*origin, *counts, *(f"{p.name0}\t{p.name1}" for p in pairs), *known)


def _describe_reference(reference: Reference, names: Sequence[str]) -> str:
    """Poses and cameras of a reference in full precision, for a digest."""
    poses = [(name, reference.poses[name].qvec.tolist(), reference.poses[name].tvec.tolist()) for name in names]
    if reference.cameras is None or reference.camera_ids is None:
        return repr(poses)
    used = [reference.cameras[reference.camera_ids[name]] for name in names]
    return repr((poses, [(c.camera_id, c.model_name, c.width, c.height, c.params.tolist()) for c in used]))


def sqlite_side_files(database: Path) -> list[Path]:
    """Files that a killed SQLite leaves next to a database, which must not be replayed into another one."""
    return [database.with_name(database.name + end) for end in ("-wal", "-shm", "-journal")]


def _assign_cameras(
    config: CameraConfig,
    images: Path,
    names: Sequence[str],
    reference: Reference | None,
    intrinsics: Mapping[str, Intrinsics],
    rigs: Sequence[Rig],
) -> tuple[dict[int, pycolmap.Camera], dict[str, int]]:
    if reference is not None and reference.cameras is not None and reference.camera_ids is not None:
        used = {reference.camera_ids[name] for name in names}
        kept = {camera_id: camera for camera_id, camera in reference.cameras.items() if camera_id in used}
        return kept, {name: reference.camera_ids[name] for name in names}
    cameras, camera_ids = cameras_of_images(
        images, names, config, intrinsics, guess_fisheye=reference is None, sharing=shared_camera_keys(rigs)
    )
    guessed = [name for name in names if not cameras[camera_ids[name]].has_prior_focal_length]
    if reference is not None and guessed:
        raise BadInputError(
            f"{images / guessed[0]}: its focal length is unknown, and triangulation with known poses needs it;"
            " give --camera-params or --intrinsics, or put a camera.txt next to the poses"
        )
    return cameras, camera_ids


# ----------------------------------------------------------------------------------------------------------------------
# Pairs verified in shards, and the results collected.
#
# A shard is a separate database with the cameras, images and keypoints that its pairs need, under the same ids.
# pycolmap verifies pairs independently with the same seed, so the results are the same as in one database.


def unverified(part: Path, matches: Path, pairs: Sequence[Pair]) -> tuple[list[Pair], str]:
    """The pairs that a database in the making lacks, and the digest of what it is made from.

    Pairs with a two-view geometry are done, and so are those without matches once others are.
    """
    stamp = read_stamp(part.with_name(f"{part.name}.json")) or {}
    with pycolmap.Database.open(str(part)) as database:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        left = [p for p in pairs if not database.exists_two_view_geometry(ids[p.name0], ids[p.name1])]
    if len(left) < len(pairs):
        with open_matches(matches) as found:
            left = [pair for pair in left if len(found.read(pair).as_index_pairs())]
    return left, str(stamp.get("inputs"))


def verify_shard(config: VerifyConfig, database: Path, matches: Path, pairs: Sequence[Pair], output: Path) -> None:
    """Verify some pairs of a database in a new one. database: with cameras, images and keypoints; read only.

    Raises BadInputError if it is missing or `matches` lacks a pair.
    """
    if not database.is_file():
        raise BadInputError(f"{database}: no such database; plan the verification again")
    with (
        pycolmap.Database.open(str(database)) as whole,
        pycolmap.Database.open(str(output)) as shard,
        open_matches(matches) as found,
    ):
        db.copy_images(whole, shard, sorted({name for pair in pairs for name in (pair.name0, pair.name1)}))
        db.write_matches(shard, found, pairs)
    verify_by_ransac(output, config)


def collect_shards(shards: Sequence[Path], database: Path) -> None:
    """Copy matches and two-view geometries of shards to a database with their images, in one transaction per shard."""
    with pycolmap.Database.open(str(database)) as whole:
        for path in shards:
            with pycolmap.Database.open(str(path)) as shard, pycolmap.DatabaseTransaction(whole):
                _copy_results(shard, whole)


def _copy_results(shard: pycolmap.Database, whole: pycolmap.Database) -> None:
    for pair_id, matches in zip(*shard.read_all_matches(), strict=True):
        ids = pycolmap.pair_id_to_image_pair(pair_id)
        if not whole.exists_matches(*ids):
            whole.write_matches(*ids, matches)
        if shard.exists_two_view_geometry(*ids) and not whole.exists_two_view_geometry(*ids):
            whole.write_two_view_geometry(*ids, shard.read_two_view_geometry(*ids))
