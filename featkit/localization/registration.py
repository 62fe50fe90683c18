"""Queries registered by COLMAP's incremental mapper, as by `colmap image_registrator`, instead of PnP on raw matches.

The pipeline of visuallocalization.net's local-feature challenge, which SCFeat and PoSFeat use: matches of queries are
verified pair by pair (RANSAC on E, F or H), the mapper follows the inliers to the map's points, and estimates and
refines the pose. Images and points of the map, and all cameras, stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from pydantic import Field

from featkit.core.config import Config, Pixels, PositiveShare, Seed, digest
from featkit.core.log import progress
from featkit.core.types import Pair
from featkit.geometry.pixels import to_colmap
from featkit.io.artifact import artifact, locked, scratch
from featkit.io.atomic import explained_by_disk
from featkit.io.features import FeatureStore, open_features
from featkit.io.lists import Intrinsics, read_pairs
from featkit.io.matches import MatchStore, open_matches
from featkit.localization.absolute_pose import MapPoints, PoseEstimate, assess_pose
from featkit.localization.queries import QueryCamera, query_camera
from featkit.localization.stage import (
    LocalizeConfig,
    QueryResult,
    query_facts,
    refuse_none,
    without_features,
    write_results,
)
from featkit.mapping import database as db
from featkit.mapping.grow import write_model_images
from featkit.mapping.model import poses_digest, read_model
from featkit.mapping.verify import VerifyConfig, sqlite_side_files, verify_pairs

LOGGER = logging.getLogger(__name__)


class RegistrationConfig(Config):
    """Registration of queries by COLMAP's incremental mapper."""

    verify: VerifyConfig = VerifyConfig()
    """Geometric verification of the queries' matches with images of the map."""
    max_error_px: Pixels = 12.0
    """RANSAC threshold, px (COLMAP's abs_pose_max_error)."""
    min_inliers: int = Field(30, ge=3, le=10**9)
    """Minimum points that agree (COLMAP's abs_pose_min_num_inliers)."""
    min_inlier_ratio: PositiveShare = 0.25
    """Minimum share of the points (COLMAP's abs_pose_min_inlier_ratio)."""
    seed: Seed = 0
    """Random seed of RANSAC."""


@dataclass(frozen=True)
class Query:
    """A query to register: its camera, and how many keypoints it has."""

    camera: QueryCamera
    keypoints: int


def run(
    config: RegistrationConfig,
    localize: LocalizeConfig,
    model: Path,
    map_features: Path,
    images: Path,
    query_features: Path,
    pairs: Path | None,
    matches: Path | None,
    output: Path,
    *,
    names: Sequence[str],
    intrinsics: dict[str, Intrinsics] | None = None,
) -> list[QueryResult]:
    """Register queries, write output/poses.txt and poses.json, and return every query's result; see `stage.run`.

    localize: of it `camera` and of `pose` its ratios. output/queries.db, a COLMAP database of map and queries with
    the verified pairs of queries, is kept and used again while it is up to date.
    """
    reconstruction = read_model(model)
    results: dict[str, QueryResult] = {}
    waiting: dict[str, Query] = {}
    with open_features(map_features) as map_store, open_features(query_features) as query_store:
        points = MapPoints(reconstruction, map_store)
        registered_names = set(points.names())
        listed = [] if pairs is None or matches is None else read_pairs(pairs, directed=True)
        usable = [pair for pair in listed if pair.name1 in registered_names and query_store.has(pair.name0)]
        partners: dict[str, list[str]] = {name: [] for name in names}
        for pair in usable:
            partners.setdefault(pair.name0, []).append(pair.name1)
        for name in names:
            if not query_store.has(name):
                results[name] = without_features(name, images)
                continue
            query = Query(
                query_camera(name, images, localize.camera, intrinsics, reconstruction), query_store.count(name)
            )
            facts, reason = query_facts(name, query.camera, query.keypoints, partners[name])
            if reason:
                results[name] = QueryResult(reason=reason, matches_3d=0, **facts)
            else:
                waiting[name] = query
        if waiting and matches is not None:
            with open_matches(matches, query_store, map_store) as match_store:
                pairs_of_waiting = [pair for pair in usable if pair.name0 in waiting]
                database = _build_database(
                    config,
                    reconstruction,
                    model,
                    waiting,
                    query_store,
                    match_store,
                    pairs_of_waiting,
                    output / "queries.db",
                )
            _ = points.reprojection  # of the map alone
            registered = _register_queries(config, reconstruction, database, list(waiting))
            for name, query in waiting.items():
                facts, _ = query_facts(name, query.camera, query.keypoints, partners[name])
                results[name] = _query_result(config, localize, points, registered[name], facts)
    ordered = [results[name] for name in names]
    write_results(ordered, config, model, output, images)
    refuse_none(ordered, images, output, map_features)
    return ordered


# ----------------------------------------------------------------------------------------------------------------------
# The database: images of the map under their ids, queries behind them, and the verified pairs between them.


def _build_database(
    config: RegistrationConfig,
    model: pycolmap.Reconstruction,
    folder: Path,
    queries: Mapping[str, Query],
    features: FeatureStore,
    matches: MatchStore,
    pairs: list[Pair],
    output: Path,
) -> Path:
    inputs = digest(
        poses_digest(folder),
        matches.identity(pairs),
        *(f"{name} {features.digest(name)} {query.camera.camera.todict()}" for name, query in queries.items()),
        *(f"{pair.name0}\t{pair.name1}" for pair in pairs),
        *(f"{image.name} {image.num_points2D()}" for _, image in sorted(model.images.items())),
    )
    database_artifact = artifact(output, config.verify, inputs)
    if database_artifact.up_to_date:
        LOGGER.info("verify queries: done already")
        return output
    with locked(output), explained_by_disk(output), scratch(output.with_name(f".{output.name}.work")) as work:
        part = work / output.name
        with pycolmap.Database.open(str(part)) as database:
            write_model_images(database, model)
            _write_queries(database, model, queries, features)
        verify_pairs(config.verify, part, matches, pairs)
        database_artifact.replace(part, sqlite_side_files(output), kind="database")
    return output


def _write_queries(
    database: pycolmap.Database,
    model: pycolmap.Reconstruction,
    queries: Mapping[str, Query],
    features: FeatureStore,
) -> None:
    """Each with a camera of its own, under the next free ids."""
    camera_id = max([*model.cameras, *model.rigs], default=0)
    image_id = max([*model.images, *model.frames], default=0)
    with pycolmap.DatabaseTransaction(database):
        for name, query in queries.items():
            camera_id, image_id = camera_id + 1, image_id + 1
            camera = pycolmap.Camera(query.camera.camera.todict())
            camera.camera_id = camera_id
            db.write_camera(database, camera)
            db.write_image(database, image_id, name, camera_id, to_colmap(features.keypoints(name)))


# ----------------------------------------------------------------------------------------------------------------------
# Registration.


@dataclass(frozen=True)
class RegistrationResult:
    """What came of one query. visible: its keypoints whose verified matches lead to points of the map."""

    visible: int
    estimate: PoseEstimate | None


def _register_queries(
    config: RegistrationConfig, model: pycolmap.Reconstruction, database: Path, names: Sequence[str]
) -> dict[str, RegistrationResult]:
    """Register images of the database in the model, which gains them."""
    cached = pycolmap.DatabaseCacheOptions()
    cached.load_all_images = True  # also those without a pair: the model has them
    with pycolmap.Database.open(str(database)) as opened:
        cache = pycolmap.DatabaseCache.create(opened, cached)
        ids = {image.name: image.image_id for image in opened.read_all_images()}
    options = pycolmap.IncrementalMapperOptions()
    options.abs_pose_max_error = config.max_error_px
    options.abs_pose_min_num_inliers = config.min_inliers
    options.abs_pose_min_inlier_ratio = config.min_inlier_ratio
    options.abs_pose_refine_focal_length = options.abs_pose_refine_extra_params = False
    options.random_seed = config.seed
    mapper = pycolmap.IncrementalMapper(cache)
    mapper.begin_reconstruction(model)
    results = {}
    with progress("register", len(names), "queries") as advance:
        for name in names:
            visible = int(mapper.observation_manager.num_visible_points3D(ids[name]))
            is_registered = mapper.register_next_image(options, ids[name])
            results[name] = RegistrationResult(
                visible, _estimate_of_registered(model, ids[name]) if is_registered else None
            )
            advance(1)
    mapper.end_reconstruction(False)
    return results


def _estimate_of_registered(model: pycolmap.Reconstruction, image_id: int) -> PoseEstimate:
    """The pose of a registered image; its inliers are the points that it sees now."""
    image = model.images[image_id]
    observed = [point for point in image.points2D if point.has_point3D()]
    points2d = np.array([point.xy for point in observed], np.float64).reshape(-1, 2)
    points3d = np.array([model.points3D[point.point3D_id].xyz for point in observed], np.float64).reshape(-1, 3)
    camera = pycolmap.Camera(model.cameras[image.camera_id].todict())
    refinement = pycolmap.AbsolutePoseRefinementOptions()
    refinement.refine_focal_length = False
    return assess_pose(image.cam_from_world(), camera, points2d, points3d, np.ones(len(observed), bool), refinement)


def _query_result(
    config: RegistrationConfig,
    localize: LocalizeConfig,
    points: MapPoints,
    registration: RegistrationResult,
    facts: dict,
) -> QueryResult:
    facts["matches_3d"] = registration.visible
    if registration.estimate is None:
        reason = (
            f"{registration.visible} keypoints with verified matches see points of the map; {config.min_inliers} that"
            f" agree are needed, and {config.min_inlier_ratio:.0%} of them"
        )
        return QueryResult(reason=reason, **facts)
    uncertain = points.uncertain(registration.estimate, localize.pose)
    return QueryResult(reason="", estimate=registration.estimate, uncertain=uncertain, **facts)
