"""The mapping stages: matches -> database.db -> sparse/. Each has a stamp and is skipped only when that agrees."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pycolmap

from featkit.config import Config, Runtime
from featkit.errors import BadInputError, NothingCameOutError, NotWritableError
from featkit.log import progress
from featkit.mapping import database as db
from featkit.mapping import verify
from featkit.mapping.cameras import CameraConfig, cameras_of_images, check_sizes
from featkit.mapping.model import largest_first, read_model, write_models
from featkit.mapping.reference import Reference
from featkit.mapping.verify import VerifyConfig
from featkit.store.features import FeatureStore, open_features
from featkit.store.matches import open_matches
from featkit.store.pairs import read_pairs
from featkit.store.stamp import digest, is_stamped, read_stamp, write_stamp
from featkit.types import Pair

LOGGER = logging.getLogger(__name__)
Mapper = Literal["incremental", "global", "hierarchical"]


class MapConfig(Config):
    """From matches to a map."""

    mapper: Mapper = "incremental"
    camera: CameraConfig = CameraConfig()
    verify: VerifyConfig = VerifyConfig()
    min_model_size: int = 3
    """Smallest number of registered images of a model that is kept."""
    min_num_matches: int = 15
    """Pairs with fewer verified matches are not used."""
    extract_colors: bool = True
    seed: int = 0
    threads: Runtime[int] = -1
    """-1: all cores."""


class DatabaseConfig(Config):
    """The part of the configuration that decides the database."""

    camera: CameraConfig
    verify: VerifyConfig


def build_database(
    config: MapConfig,
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
    stamped = DatabaseConfig(camera=config.camera, verify=config.verify)
    with open_features(features) as store, open_matches(matches) as found:
        names = store.names() if reference is None else [n for n in store.names() if n in reference.poses]
        if len(names) < 2:
            raise BadInputError(f"{features}: a map takes two images or more, {len(names)} are usable")
        known = set(names)
        listed = [pair for pair in read_pairs(pairs) if pair.name0 in known and pair.name1 in known]
        inputs = _inputs(store, found.attributes(), names, listed, reference)
        if output.is_file() and is_stamped(stamp, stamped, inputs) and not overwrite:
            LOGGER.info("database: done already")
            return output
        part, part_stamp = output.with_name(f".{output.name}.part"), output.with_name(f".{output.name}.part.json")
        if not (part.is_file() and is_stamped(part_stamp, stamped, inputs)) or overwrite:
            cameras, camera_ids = _cameras(config, images, names, reference)
            check_sizes(cameras, camera_ids, {name: store.image_size(name) for name in names})
            _remove(part, part_stamp, output, stamp)
            with pycolmap.Database.open(str(part)) as database:
                ids = db.write_images(database, cameras, camera_ids, store, names)
                matched = db.write_matches(database, ids, found, listed)
                if reference is not None:
                    verify.by_poses(database, ids, matched, store, reference.poses, config.verify)
            write_stamp(part_stamp, stamped, inputs)  # from here on only verification is left, and it goes on
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
    write_stamp(stamp, stamped, inputs, kind="database", verified_pairs=verified, inlier_matches=inliers)
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
    config: MapConfig, images: Path, names: Sequence[str], reference: Reference | None
) -> tuple[dict[int, pycolmap.Camera], dict[str, int]]:
    if reference is None or reference.cameras is None or reference.camera_ids is None:
        return cameras_of_images(images, names, config.camera)
    used = {reference.camera_ids[name] for name in names}
    return {k: v for k, v in reference.cameras.items() if k in used}, {n: reference.camera_ids[n] for n in names}


def build_map(
    config: MapConfig,
    images: Path,
    database: Path,
    output: Path,
    *,
    reference: Reference | None = None,
    overwrite: bool = False,
) -> Path:
    """Map a verified database (or triangulate it with the reference's poses) into output/0, output/1, ...

    All models that come out are kept, the largest first. Raises NothingCameOutError when there is none, or no point.
    """
    stamp = output.with_name(f"{output.name}.json")
    made_by = read_stamp(database.with_suffix(".json")) or {}
    inputs = digest(str(made_by.get("inputs")), str(made_by.get("fingerprint")), str(reference is not None))
    if output.is_dir() and is_stamped(stamp, config, inputs) and not overwrite:
        LOGGER.info("map: done already")
        return output
    stamp.unlink(missing_ok=True)
    work = output.with_name(f".{output.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    pycolmap.set_random_seed(config.seed)
    if reference is None:
        models = MAPPERS[config.mapper](config, images, database, work)
    else:
        models = [_triangulate(config, images, database, work, reference)]
    shutil.rmtree(work, ignore_errors=True)
    models = [model for model in largest_first(models) if model.num_points3D() > 0]
    if not models:
        raise NothingCameOutError(
            f"{images}: no model came out; the pairs may see too little in common (more keypoints, --pairs exhaustive)"
        )
    write_models(models, output)
    write_stamp(stamp, config, inputs, kind="map", models=len(models))
    return output


def read_largest(sparse: Path) -> pycolmap.Reconstruction:
    """The largest model of a `sparse/` folder. Raises BadInputError."""
    return read_model(sparse / "0")


def _incremental(config: MapConfig, images: Path, database: Path, work: Path) -> list[pycolmap.Reconstruction]:
    options = incremental_options(config)
    with pycolmap.Database.open(str(database)) as opened:
        total = opened.num_images()
    with progress("map", total, "images") as advance:
        models = pycolmap.incremental_mapping(
            str(database),
            str(images),
            str(work),
            options=options,
            initial_image_pair_callback=lambda: advance(2),
            next_image_callback=lambda: advance(1),
        )
    return list(models.values())


def incremental_options(config: MapConfig) -> pycolmap.IncrementalPipelineOptions:
    """pycolmap's options of the incremental mapper and the triangulator."""
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = config.min_model_size
    options.min_num_matches = config.min_num_matches
    options.extract_colors = config.extract_colors
    options.num_threads = config.threads
    options.random_seed = config.seed
    options.ba_refine_focal_length = config.camera.refine
    options.ba_refine_extra_params = config.camera.refine
    options.mapper.abs_pose_refine_focal_length = config.camera.refine
    options.mapper.abs_pose_refine_extra_params = config.camera.refine
    return options


def _global(config: MapConfig, images: Path, database: Path, work: Path) -> list[pycolmap.Reconstruction]:
    options = pycolmap.GlobalPipelineOptions()
    options.min_num_matches = config.min_num_matches
    options.min_model_size = config.min_model_size
    options.num_threads = config.threads
    options.random_seed = config.seed
    options.mapper.bundle_adjustment.refine_focal_length = config.camera.refine
    options.mapper.bundle_adjustment.refine_extra_params = config.camera.refine
    LOGGER.info("map: global mapper at work")
    database = _calibrated(database, work)
    models = pycolmap.global_mapping(str(database), str(images), str(work), options=options)
    for model in models.values():
        if config.extract_colors:
            model.extract_colors_for_all_images(str(images))
    return list(models.values())


def _calibrated(database: Path, work: Path) -> Path:
    """A copy whose guessed focal lengths are estimated from the fundamental matrices; the database if none is guessed.

    The global mapper takes focal lengths as they are until its bundle adjustment.
    """
    with pycolmap.Database.open(str(database)) as opened:
        if all(camera.has_prior_focal_length for camera in opened.read_all_cameras()):
            return database
    copy = work / database.name
    shutil.copyfile(database, copy)
    if not pycolmap.calibrate_view_graph(str(copy)):
        LOGGER.warning("map: focal lengths could not be estimated from the pairs; the guesses are used")
        return database
    return copy


def _hierarchical(config: MapConfig, images: Path, database: Path, work: Path) -> list[pycolmap.Reconstruction]:
    options = pycolmap.HierarchicalPipelineOptions()
    options.num_threads = config.threads
    options.incremental_options = incremental_options(config)
    LOGGER.info("map: hierarchical mapper at work")
    models = pycolmap.hierarchical_mapping(str(database), str(images), str(work), options=options)
    return list(models.values())


MAPPERS = {"incremental": _incremental, "global": _global, "hierarchical": _hierarchical}


def _triangulate(
    config: MapConfig, images: Path, database: Path, work: Path, reference: Reference
) -> pycolmap.Reconstruction:
    """Points from known poses and cameras, which stay as they are."""
    empty = pycolmap.Reconstruction()
    with pycolmap.Database.open(str(database)) as opened:
        for camera in opened.read_all_cameras():
            empty.add_camera_with_trivial_rig(camera)
        for image in opened.read_all_images():
            keypoints = opened.read_keypoints(image.image_id)[:, :2].astype("float64")
            known = pycolmap.Image(
                name=image.name, keypoints=keypoints, camera_id=image.camera_id, image_id=image.image_id
            )
            empty.add_image_with_trivial_frame(known, verify.to_rigid(reference.poses[image.name]))
    LOGGER.info("map: triangulation with %d known poses", empty.num_images())
    return pycolmap.triangulate_points(
        empty, str(database), str(images), str(work), options=incremental_options(config), refine_intrinsics=False
    )
