"""The map stage: database.db -> sparse/. Skipped only if its stamp is up to date."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, Literal

import pycolmap
from pydantic import Field

from featkit.core.config import Config, Count, CountOrZero, Later, Seed, Share, Threads, WorkerCount, digest
from featkit.core.errors import EmptyResultError
from featkit.core.log import progress
from featkit.core.runtime import usable_cores
from featkit.io.artifact import artifact, locked, scratch
from featkit.io.atomic import explained_by_disk, read_stamp
from featkit.mapping.cameras import to_rigid
from featkit.mapping.model import largest_first, read_model, refuse_other_models, write_models
from featkit.mapping.outcome import KeepConfig, camera_motion, models_to_keep, no_model_reason
from featkit.mapping.reference import Reference
from featkit.mapping.relations import copy_with_relations, copy_without_rigs, split_by_known_relation
from featkit.mapping.rigs import RigConfig
from featkit.mapping.verify import DatabaseConfig

LOGGER = logging.getLogger(__name__)
Mapper = Literal["incremental", "global", "hierarchical"]


class ClusterConfig(Config):
    """How the hierarchical mapper splits the graph of verified pairs (COLMAP's SceneClustering: normalized cuts)."""

    leaf_max_images: int = Field(500, ge=3, le=10**9)
    """Maximum number of images in a cluster, before overlap is added (COLMAP: 500). It limits memory per cluster."""
    overlap: CountOrZero = 50
    """Maximum number of images a cluster shares with each neighbour (COLMAP: 50); they are used to merge the maps."""
    branching: int = Field(2, ge=2, le=10**9)
    """Number of parts that a cluster that is too large is split into (COLMAP: 2)."""
    strongest_pairs: Count = 20
    """Number of pairs per image, by inliers, from which the overlap is chosen (COLMAP's num_image_matches: 20)."""
    workers: WorkerCount = 0
    """Number of clusters mapped in parallel, sharing the threads; 0: one for a small scene, else COLMAP's choice.

    Each holds its own map in memory.
    """
    adjust_merged: bool = True
    """Bundle-adjust the merged model, which COLMAP leaves to the user."""


class StartConfig(Config):
    """Initial pairs allowed for the incremental mapper when COLMAP's limits (16 degrees, 0.95) leave none."""

    min_angle_deg: float = Field(default=4.0, ge=0, le=90)
    """Minimum triangulation angle of the initial pair, degrees. It is small in photographs taken while driving."""
    max_forward_motion: float = Field(default=1.0, ge=0, le=1)
    """Maximum fraction of the initial pair's motion along the viewing direction; 1: no limit."""


class MapConfig(DatabaseConfig):
    """Mapping from matches."""

    mapper: Mapper = "incremental"
    """incremental: image by image; global: all at once; hierarchical: clusters of images, merged."""
    min_model_size: int = Field(3, ge=2, le=10**9)
    """Minimum number of registered images for a model to be kept."""
    keep: KeepConfig = KeepConfig()
    """Further requirements for a model to be kept."""
    start: StartConfig = StartConfig()
    """The incremental mapper's second attempt."""
    min_num_matches: Count = 15
    """Minimum number of verified matches for a pair to be used."""
    extract_colors: bool = True
    """Take the colours of the points from the photographs."""
    global_adjustment_growth: float = Field(1.1, gt=1, le=1e6)
    """Growth factor in images or points after which the incremental mapper adjusts the complete map (COLMAP: 1.1). This
    is the largest cost for thousands of images: if an adjustment costs in proportion to them, all together cost
    g / (g - 1) times the last one: 11 times at 1.1, 4.3 times at 1.3.
    """
    global_adjustment_tolerance: Share = 1e-6
    """Relative cost decrease below which a global bundle adjustment stops. COLMAP's is 0 (run all iterations): a fifth
    more time for 1,000 images, and more for more, for changes far below keypoint noise. Maps of up to
    `single_thread_images` keep COLMAP's.
    """
    local_adjustment_tolerance: Share = 1e-4
    """Relative cost decrease below which a local bundle adjustment stops; global ones refine it. COLMAP's is 0: a tenth
    to a fourth more time on small maps, for cameras equal to within 0.5 % of their error.
    """
    clusters: ClusterConfig = ClusterConfig()
    """Settings of the hierarchical mapper."""
    rigs: Later[RigConfig] = RigConfig()
    """Cameras that are on one rig."""
    seed: Seed = 0
    """Random seed of the mapper."""
    threads: Threads = 0
    """Number of mapper threads; -1: all cores; 0: one for small scenes, all cores for larger ones.

    With several threads, COLMAP's sums and its choice of initial pair depend on timing: only one thread gives identical
    bytes on every run.
    """
    single_thread_images: CountOrZero = 200
    """Maximum number of images of a small scene: `threads` = 0 then means one, and adjustments run all iterations."""


def database_config(config: MapConfig) -> DatabaseConfig:
    """The part of the configuration that determines the database."""
    return DatabaseConfig(camera=config.camera, verify=config.verify)


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

    If the relative poses of a rig's cameras are unknown, they are estimated from a first map, and a second map uses
    them. All valid models are kept, largest first. Raises EmptyResultError if there is no model or no point,
    NotWritableError without disk space or while another process writes the output.
    """
    refuse_other_models(output)
    with locked(output), explained_by_disk(output):
        return _build_map(config, images, database, output, reference, overwrite)


def _build_map(
    config: MapConfig, images: Path, database: Path, output: Path, reference: Reference | None, overwrite: bool
) -> Path:
    made_by = read_stamp(database.with_suffix(".json")) or {}
    inputs = digest(str(made_by.get("inputs")), str(made_by.get("fingerprint")), str(reference is not None))
    made = artifact(output, config, inputs, output.with_name(f"{output.name}.json"))
    if made.up_to_date and not overwrite:
        LOGGER.info("map: done already")
        return output
    if reference is None and config.keep.min_parallax_deg > 0 and (motion := camera_motion(database)).only_turned:
        raise EmptyResultError(f"{images}: {no_model_reason(motion)}")
    pycolmap.set_random_seed(config.seed)
    with scratch(output.with_name(f".{output.name}.work")) as work:
        if reference is None:
            models = _map_with_rigs(config, images, database, work)
        else:
            models = [_triangulate(config, images, database, work, reference)]
    if reference is None:
        models = models_to_keep(largest_first(models), config.keep, _min_images(config, database))
    if not any(model.num_points3D() > 0 for model in models):
        raise EmptyResultError(f"{images}: {no_model_reason(camera_motion(database))}")
    return write_models(models, output, lambda: made.write_stamp(kind="map", models=len(models)))


def read_largest(sparse: Path) -> pycolmap.Reconstruction:
    """The largest model of a `sparse/` folder. Raises BadInputError."""
    return read_model(sparse / "0")


def _map_with_rigs(config: MapConfig, images: Path, database: Path, work: Path) -> list[pycolmap.Reconstruction]:
    """Run the chosen mapper; unknown relative poses of rigs are first estimated from a map without these rigs."""

    def mapper(*given: Any) -> list[pycolmap.Reconstruction]:
        models = MAPPERS[config.mapper](*given)
        for model in models if fixed_rigs else ():
            _adjust_scale(config, model, fixed_rigs)
        return models

    known, unknown = split_by_known_relation(database)
    fixed_rigs = set() if config.rigs.refine else {rig.rig_id for rig in known}
    if not unknown:
        return mapper(config, images, database, work, fixed_rigs)
    LOGGER.info("map: the poses of the cameras on a rig are unknown and are estimated from a first map without the rig")
    models = mapper(config, images, copy_without_rigs(database, unknown, work / "without.db"), work, fixed_rigs)
    first = models_to_keep(largest_first(models), config.keep, _min_images(config, database))
    if not first:
        return []
    related = copy_with_relations(database, unknown, first[0], config.rigs, work / "related.db")
    pycolmap.set_random_seed(config.seed)
    return mapper(config, images, related, work, fixed_rigs)


def _adjust_scale(config: MapConfig, model: pycolmap.Reconstruction, fixed_rigs: set[int]) -> None:
    """Bundle-adjust a map with fixed rigs without fixing the distance between two cameras.

    COLMAP fixes that distance in all its adjustments, because the scale of a map without rigs is arbitrary. Fixed rigs
    determine the scale, but the map would keep the scale of its first pair.
    """
    adjusted = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        adjusted.add_image(image_id)
    for rig_id in fixed_rigs & set(model.rigs):
        for sensor in model.rig(rig_id).non_ref_sensors:
            adjusted.set_constant_sensor_from_rig_pose(sensor)
    options = _adjustment_options(config, model.num_reg_images())
    pycolmap.create_default_bundle_adjuster(options, adjusted, model).solve()
    model.update_point_3d_errors()


def _map_incrementally(
    config: MapConfig, images: Path, database: Path, work: Path, fixed_rigs: set[int]
) -> list[pycolmap.Reconstruction]:
    options = incremental_options(config, _num_images(database))
    options.constant_rigs = fixed_rigs
    models = _run_incremental_mapper(options, images, database, work)
    if not models_to_keep(models, config.keep, _min_images(config, database)):
        start = config.start
        LOGGER.info(
            "map: no map from COLMAP's initial pair; trying again with initial pairs with a triangulation angle of %g"
            " degrees or more, also in forward motion",
            start.min_angle_deg,
        )
        options.mapper.init_min_tri_angle = start.min_angle_deg
        options.mapper.init_max_forward_motion = start.max_forward_motion
        models = _run_incremental_mapper(options, images, database, work)
    return models


def _run_incremental_mapper(
    options: pycolmap.IncrementalPipelineOptions, images: Path, database: Path, work: Path
) -> list[pycolmap.Reconstruction]:
    with pycolmap.Database.open(str(database)) as opened:
        total, unit = opened.num_frames(), "images" if opened.num_frames() == opened.num_images() else "frames"
    with progress("map", total, unit) as advance:
        models = pycolmap.incremental_mapping(
            str(database),
            str(images),
            str(work),
            options=options,
            initial_image_pair_callback=lambda: advance(2),
            next_image_callback=lambda: advance(1),
        )
    return list(models.values())


def _num_images(database: Path) -> int:
    with pycolmap.Database.open(str(database)) as opened:
        return int(opened.num_images())


def _min_images(config: MapConfig, database: Path) -> int:
    """Minimum number of images of a model. pycolmap itself returns a smaller model if it is the only one."""
    return min(config.min_model_size, _num_images(database))


def _num_threads(config: MapConfig, images: int) -> int:
    asked = config.threads or (1 if images <= config.single_thread_images else -1)
    return min(asked, usable_cores())


def _adjustment_tolerance(config: MapConfig, images: int) -> float:
    return 0.0 if images <= config.single_thread_images else config.global_adjustment_tolerance


def incremental_options(config: MapConfig, images: int) -> pycolmap.IncrementalPipelineOptions:
    """pycolmap's options for the incremental mapper and the triangulator. images: number of images of the scene."""
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = config.min_model_size
    options.min_num_matches = config.min_num_matches
    options.extract_colors = config.extract_colors
    options.ba_global_frames_ratio = options.ba_global_points_ratio = config.global_adjustment_growth
    options.ba_global_function_tolerance = _adjustment_tolerance(config, images)
    options.ba_local_function_tolerance = config.local_adjustment_tolerance
    options.num_threads = _num_threads(config, images)
    options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = config.seed
    options.ba_refine_focal_length = config.camera.refine
    options.ba_refine_extra_params = config.camera.refine
    options.mapper.abs_pose_refine_focal_length = config.camera.refine
    options.mapper.abs_pose_refine_extra_params = config.camera.refine
    return options


def _map_globally(
    config: MapConfig, images: Path, database: Path, work: Path, fixed_rigs: set[int]
) -> list[pycolmap.Reconstruction]:
    options = pycolmap.GlobalPipelineOptions()
    options.min_num_matches = config.min_num_matches
    options.min_model_size = config.min_model_size
    options.num_threads = options.mapper.num_threads = _num_threads(config, _num_images(database))
    options.random_seed = options.mapper.random_seed = config.seed
    options.mapper.bundle_adjustment.refine_focal_length = config.camera.refine
    options.mapper.bundle_adjustment.refine_extra_params = config.camera.refine
    options.mapper.refine_sensor_from_rig = not fixed_rigs
    LOGGER.info("map: running the global mapper")
    database = _calibrate_focal_lengths(database, work)
    models = pycolmap.global_mapping(str(database), str(images), str(work), options=options)
    for model in models.values():
        if config.extract_colors:
            model.extract_colors_for_all_images(str(images))
    return list(models.values())


def _calibrate_focal_lengths(database: Path, work: Path) -> Path:
    """Copy a database with guessed focal lengths replaced by estimates from the fundamental matrices.

    Returns the database itself if no focal length is guessed. The global mapper keeps focal lengths fixed until its
    bundle adjustment.
    """
    with pycolmap.Database.open(str(database)) as opened:
        if all(camera.has_prior_focal_length for camera in opened.read_all_cameras()):
            return database
    copy = work / f"calibrated-{database.name}"
    shutil.copyfile(database, copy)
    if not pycolmap.calibrate_view_graph(str(copy)):
        LOGGER.warning("map: focal lengths could not be estimated from the pairs; using the guesses")
        return database
    return copy


def hierarchical_options(config: MapConfig, images: int) -> pycolmap.HierarchicalPipelineOptions:
    """pycolmap's options for the hierarchical mapper. images: number of images of the scene."""
    options = pycolmap.HierarchicalPipelineOptions()
    options.num_threads = _num_threads(config, images)
    options.num_workers = min(config.clusters.workers, usable_cores()) or options.num_threads
    options.clustering_options.leaf_max_num_images = config.clusters.leaf_max_images
    options.clustering_options.image_overlap = config.clusters.overlap
    options.clustering_options.branching = config.clusters.branching
    options.clustering_options.num_image_matches = config.clusters.strongest_pairs
    options.incremental_options = incremental_options(config, images)
    return options


def _map_hierarchically(
    config: MapConfig, images: Path, database: Path, work: Path, fixed_rigs: set[int]
) -> list[pycolmap.Reconstruction]:
    total = _num_images(database)
    options = hierarchical_options(config, total)
    options.incremental_options.constant_rigs = fixed_rigs
    LOGGER.info("map: running the hierarchical mapper, clusters of up to %d images", config.clusters.leaf_max_images)
    models = list(pycolmap.hierarchical_mapping(str(database), str(images), str(work), options=options).values())
    if total > config.clusters.leaf_max_images and config.clusters.adjust_merged:
        LOGGER.info("map: bundle adjustment of the merged model")
        for model in models:
            pycolmap.bundle_adjustment(model, _adjustment_options(config, total, bool(fixed_rigs)))
            model.update_point_3d_errors()
    return models


def _adjustment_options(
    config: MapConfig, images: int, rigs_are_fixed: bool = False
) -> pycolmap.BundleAdjustmentOptions:
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_sensor_from_rig = not rigs_are_fixed
    options.refine_focal_length = options.refine_extra_params = config.camera.refine
    solver = getattr(options, "ceres", options).solver_options  # pycolmap moved it within 4.x
    solver.num_threads = _num_threads(config, images)
    solver.function_tolerance = _adjustment_tolerance(config, images)
    options.print_summary = False
    return options


MAPPERS = {"incremental": _map_incrementally, "global": _map_globally, "hierarchical": _map_hierarchically}


def _triangulate(
    config: MapConfig, images: Path, database: Path, work: Path, reference: Reference
) -> pycolmap.Reconstruction:
    """Triangulate points from known poses and cameras, which are not changed."""
    empty = pycolmap.Reconstruction()
    with pycolmap.Database.open(str(database)) as opened:
        for camera in opened.read_all_cameras():
            empty.add_camera_with_trivial_rig(camera)
        for image in opened.read_all_images():
            keypoints = opened.read_keypoints(image.image_id)[:, :2].astype("float64")
            known = pycolmap.Image(
                name=image.name, keypoints=keypoints, camera_id=image.camera_id, image_id=image.image_id
            )
            empty.add_image_with_trivial_frame(known, to_rigid(reference.poses[image.name]))
    LOGGER.info("map: triangulation with %d known poses", empty.num_images())
    options = incremental_options(config, empty.num_images())
    return pycolmap.triangulate_points(
        empty, str(database), str(images), str(work), options=options, refine_intrinsics=False
    )
