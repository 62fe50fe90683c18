"""Merges two maps: a similarity from shared points moves the second onto the first, then all is bundle-adjusted.

Shared points come from verified matches between photographs of the two maps, and from photographs that are in both.
The similarity is estimated by RANSAC over triples of shared points (Umeyama, PAMI 1991, by pycolmap). A shared point is
an inlier if each map's version of it projects near its keypoint in a photograph of the other map, so that no threshold
in map units is needed. The coordinate frame and the ids are the first map's.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Bool, Float, Int

from featkit.core.config import Confidence, Config, Count, Later, Pixels, Seed, Trials
from featkit.core.errors import EmptyResultError
from featkit.core.types import Pair
from featkit.geometry.pixels import to_colmap
from featkit.geometry.poses import facing
from featkit.io.features import FeatureStore
from featkit.io.matches import MatchStore
from featkit.mapping import database as db
from featkit.mapping.cameras import is_spherical, rays_of
from featkit.mapping.grow import Growth, write_model_images
from featkit.mapping.map_rigs import (
    SameRigConfig,
    SharedRigs,
    add_to_frames,
    added_frames,
    equal_camera,
    prefixes_of,
    rig_of,
    shared_rigs,
)
from featkit.mapping.model import point_ids
from featkit.mapping.stage import MapConfig
from featkit.mapping.verify import verify_by_ransac

LOGGER = logging.getLogger(__name__)
SAMPLE = 3


class MergeConfig(Config):
    """How two maps are merged."""

    max_error_px: Pixels = 8.0
    """Maximum reprojection error of a point of one map in a photograph of the other, px (COLMAP: 8)."""
    min_points: Count = 20
    """Minimum number of shared points that must be inliers; with fewer the maps are not merged."""
    max_trials: Trials = 5000
    """Maximum number of triples tried by RANSAC; with 10 % inliers, 5,000 fail once in 150."""
    confidence: Confidence = 0.9999
    """Probability of having drawn an outlier-free triple, at which RANSAC stops."""
    seed: Seed = 0
    """Random seed of RANSAC."""
    same_rig: Later[SameRigConfig] = SameRigConfig()
    """When a rig of both maps is one."""


@dataclass(frozen=True)
class SharedPoints:
    """Candidate point correspondences, one row each: ids in both maps, and an observation in each map.

    rays: keypoints on the plane at depth 1 in the camera frame. limits: inlier thresholds on that plane.
    """

    ids: Int[np.ndarray, "n 2"]
    xyz: Float[np.ndarray, "2 n 3"]
    cam_from_world: Float[np.ndarray, "2 n 3 4"]
    rays: Float[np.ndarray, "2 n 2"]
    limits: Float[np.ndarray, "2 n"]


@dataclass(frozen=True)
class Merged:
    """A merged map. common: photographs in both maps. verified: number of verified pairs between the maps.

    points, candidates: numbers of inliers and of all shared points. moved: median and largest motion of the first map's
    camera centres, map units.
    """

    model: pycolmap.Reconstruction
    common: list[str]
    verified: int
    points: int
    candidates: int
    moved: tuple[float, float]


@dataclass(frozen=True)
class PlacedFrame:
    """Images of the second map taken at one time: pairs of ids in the second and in the merged map.

    into: id of the first map's frame that they complete; None: they are a new frame.
    """

    rig_id: int
    images: list[tuple[int, int]]
    into: int | None = None


@dataclass(frozen=True)
class IdMap:
    """Ids of the second map's items in the merged map. rigs: those with several cameras that are copied."""

    images: dict[int, int]
    cameras: dict[int, int]
    new_cameras: set[int]
    rigs: dict[int, int]
    frames: list[PlacedFrame]


def merge_maps(
    config: MergeConfig,
    made_with: MapConfig,
    first: pycolmap.Reconstruction,
    second: pycolmap.Reconstruction,
    features: FeatureStore,
    matches: MatchStore,
    pairs: Sequence[Pair],
    work: Path,
    names: tuple[object, object] = ("the first map", "the second map"),
    recorded: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> Merged:
    """Add the second map to the first, which is modified. pairs: with `matches`, between photographs of the two maps.

    features: of all images, with the keypoints of both models. Images with the same name are the same photograph. work:
    folder for the database. names: names of the maps for the error. recorded: camera prefixes of the maps' rigs. Raises
    EmptyResultError if the maps have too little in common, and then leaves the first map unchanged.
    """
    by_name = {image.name: image_id for image_id, image in first.images.items()}
    common = sorted(image.name for image in second.images.values() if image.name in by_name)
    places = _map_ids(first, second, by_name)
    path = work / "database.db"
    with pycolmap.Database.open(str(path)) as database:
        write_model_images(database, first)
        _write_second_map(database, second, places, features)
        fresh = db.write_matches(database, matches, pairs)
    verify_by_ransac(path, made_with.verify, fresh)
    same = find_shared_points(first, second, places, path, config.max_error_px)
    verified = sum(1 for pair, _ in db.verified_pairs(path))
    found = find_similarity(same, config)
    if found is None or len(np.unique(same.ids[found[1], 0])) < config.min_points:
        agree = 0 if found is None else len(np.unique(same.ids[found[1], 0]))
        raise EmptyResultError(
            f"{names[0]} and {names[1]} have too little in common to be merged: {len(common)} photographs, {verified}"
            f" verified pairs, {agree} consistent points ({config.min_points} are needed); add photographs that show"
            " parts of both (`featkit extend`), then merge"
        )
    similarity, inlier = found
    own = [image_id for image_id, image in first.images.items() if image.has_pose]
    second.transform(pycolmap.Sim3d(similarity))
    prefixes = prefixes_of(first, recorded[0]), prefixes_of(second, recorded[1])
    shared = shared_rigs(first, second, prefixes, config.same_rig)
    if shared.rigs:
        new = [image.name for image in second.images.values() if image.name not in by_name]
        times = added_frames(first, prefixes[0], new, made_with.rigs)
        into = {name: added.frame_id for added in times for name in added.images.values()}
        places = _map_ids(first, second, by_name, shared, into)
    _add_second_map(first, second, places, same.ids[inlier])
    if shared.rigs:
        path = _written_again(first, path, work / "joined.db")
    growth = Growth(made_with, first, path, fixed=False, anchors=own, free_rigs=shared.free)
    growth.triangulate({name for pair in fresh for name in (pair.name0, pair.name1)})
    growth.adjust_all()
    moved = growth.finish()
    return Merged(first, common, verified, len(np.unique(same.ids[inlier, 0])), len(np.unique(same.ids[:, 0])), moved)


# ---- ids -------------------------------------------------------------------------------------------------------------


def _map_ids(
    first: pycolmap.Reconstruction,
    second: pycolmap.Reconstruction,
    by_name: Mapping[str, int],
    shared: SharedRigs | None = None,
    into: Mapping[str, int | None] | None = None,
) -> IdMap:
    """Map the second map's ids: new images keep their ids if these are free, else get the next free ones.

    Cameras likewise, unless the first map has an identical camera. Rigs of several cameras are copied with their
    cameras, unless they are rigs of the first map (shared). into: the first map's frame of a new image's time, by name.
    """
    shared = shared or SharedRigs()
    images, taken = {}, set(first.images) | set(first.frames)
    for image_id, image in sorted(second.images.items()):
        if image.name in by_name:
            images[image_id] = by_name[image.name]
            continue
        images[image_id] = image_id if image_id not in taken else max(taken) + 1
        taken.add(images[image_id])
    added = [image for image in second.images.values() if image.name not in by_name]
    rig_ids = {second.frames[image.frame_id].rig_id for image in added} - set(shared.rigs)
    several = {rig_id for rig_id in rig_ids if second.rigs[rig_id].num_sensors() > 1}
    on_rigs = {sensor.id for rig_id in several for sensor in second.rigs[rig_id].sensor_ids()}
    cameras, new, taken = dict(shared.cameras), set(), set(first.cameras) | set(first.rigs)
    for camera_id in sorted(({image.camera_id for image in added} | on_rigs) - set(cameras)):
        equal = None if camera_id in on_rigs else equal_camera(first, second.cameras[camera_id])
        if equal is None:
            equal = camera_id if camera_id not in taken else max(taken) + 1
            new.add(camera_id)
            taken.add(equal)
        cameras[camera_id] = equal
    rigs = {rig_id: cameras[second.rigs[rig_id].ref_sensor_id.id] for rig_id in several}
    frames = _new_frames(first, second, images, cameras, {**rigs, **shared.rigs}, into or {})
    return IdMap(images, cameras, new, rigs, frames)


def _new_frames(
    first: pycolmap.Reconstruction,
    second: pycolmap.Reconstruction,
    images: Mapping[int, int],
    cameras: Mapping[int, int],
    rigs: Mapping[int, int],
    into: Mapping[str, int | None],
) -> list[PlacedFrame]:
    """Frames of the new images: together for a rig, in the first map's frame of their time; others get one each."""
    found = []
    full: set[int] = set()
    for frame in second.frames.values():
        new = sorted((d.id, images[d.id]) for d in frame.image_ids if images[d.id] not in first.images)
        if frame.rig_id in rigs and new:
            targets = {into.get(second.images[old].name) for old, _ in new}
            target = targets.pop() if len(targets) == 1 and not targets & full else None
            full |= set() if target is None else {target}
            found.append(PlacedFrame(rigs[frame.rig_id], new, target))
            continue
        for both in new:
            camera_id = cameras[second.images[both[0]].camera_id]
            found.append(PlacedFrame(rig_of(first, camera_id) if camera_id in first.cameras else camera_id, [both]))
    return found


def _camera_with_id(camera: pycolmap.Camera, camera_id: int) -> pycolmap.Camera:
    copy = pycolmap.Camera(camera.todict())
    copy.camera_id = camera_id
    return copy


def _write_second_map(
    database: pycolmap.Database, second: pycolmap.Reconstruction, places: IdMap, features: FeatureStore
) -> None:
    rigs = _new_rigs(second, places)
    on_rigs = {sensor.id for rig in rigs for sensor in rig.sensor_ids()}
    with pycolmap.DatabaseTransaction(database):
        for camera_id in sorted(places.new_cameras):
            number = places.cameras[camera_id]
            db.write_camera(database, _camera_with_id(second.cameras[camera_id], number), alone=number not in on_rigs)
        for rig in rigs:
            database.write_rig(rig, use_rig_id=True)
        for placed in places.frames:
            frame = _new_frame(second, places, placed)
            for image_id, new_id in placed.images:
                name = second.images[image_id].name
                camera_id, keypoints = places.cameras[second.images[image_id].camera_id], features.keypoints(name)
                db.write_image(database, new_id, name, camera_id, to_colmap(keypoints), alone=False)
            database.write_frame(frame, use_frame_id=True)


def _new_rigs(second: pycolmap.Reconstruction, places: IdMap) -> list[pycolmap.Rig]:
    """Rigs of several new cameras, with ids of the merged map and in the second map's current scale."""
    rigs = []
    for old_id, rig_id in sorted(places.rigs.items()):
        old = second.rigs[old_id]
        rig = pycolmap.Rig(rig_id=rig_id)
        rig.add_ref_sensor(_mapped_sensor(places, old.ref_sensor_id))
        for sensor, relation in sorted(old.non_ref_sensors.items(), key=lambda item: item[0].id):
            rig.add_sensor(_mapped_sensor(places, sensor), relation)
        rigs.append(rig)
    return rigs


def _mapped_sensor(places: IdMap, old: pycolmap.sensor_t) -> pycolmap.sensor_t:
    return pycolmap.sensor_t(pycolmap.SensorType.CAMERA, places.cameras[old.id])


def _written_again(first: pycolmap.Reconstruction, verified: Path, output: Path) -> Path:
    """A database of a model's images, with the matches and geometries of another one under the same ids."""
    with pycolmap.Database.open(str(output)) as database, pycolmap.Database.open(str(verified)) as other:
        write_model_images(database, first)
        with pycolmap.DatabaseTransaction(database):
            for number, matches in zip(*other.read_all_matches(), strict=True):
                ids = pycolmap.pair_id_to_image_pair(number)
                if all(image_id in first.images for image_id in ids) and other.exists_two_view_geometry(*ids):
                    database.write_matches(*ids, matches)
                    database.write_two_view_geometry(*ids, other.read_two_view_geometry(*ids))
    return output


def _new_frame(second: pycolmap.Reconstruction, places: IdMap, placed: PlacedFrame) -> pycolmap.Frame:
    """A frame of new images, without a pose, under the smallest of their numbers."""
    frame = pycolmap.Frame()
    frame.frame_id, frame.rig_id = min(new_id for _, new_id in placed.images), placed.rig_id
    for image_id, new_id in placed.images:
        frame.add_data_id(pycolmap.data_t(_mapped_sensor(places, second.images[image_id].data_id.sensor_id), new_id))
    return frame


# ---- shared points ---------------------------------------------------------------------------------------------------


def find_shared_points(
    first: pycolmap.Reconstruction, second: pycolmap.Reconstruction, places: IdMap, database: Path, max_error_px: float
) -> SharedPoints:
    """Points that both maps have, from verified matches between their photographs and from common photographs."""
    back = {new: old for old, new in places.images.items()}
    of_first = {image_id: point_ids(image) for image_id, image in first.images.items()}
    of_second = {image_id: point_ids(image) for image_id, image in second.images.items()}
    rows: list[np.ndarray] = []  # image and keypoint of the first map, image and keypoint of the second
    for image_id, other in back.items():
        if image_id in first.images:
            index = np.arange(len(of_first[image_id]))
            rows.append(_observation_rows(image_id, index, other, index))
    with pycolmap.Database.open(str(database)) as opened:
        numbers, geometries = opened.read_two_view_geometries()
    for number, geometry in zip(numbers, geometries, strict=True):
        a, b = pycolmap.pair_id_to_image_pair(number)
        matched = np.asarray(geometry.inlier_matches, np.int64).reshape(-1, 2)
        for one, two, columns in ((a, b, matched), (b, a, matched[:, ::-1])):
            if one in first.images and two in back:
                rows.append(_observation_rows(one, columns[:, 0], back[two], columns[:, 1]))
    every = np.concatenate(rows) if rows else np.zeros((0, 4), np.int64)
    ids = np.array([(of_first[i][k], of_second[j][m]) for i, k, j, m in every.tolist()], np.int64).reshape(-1, 2)
    seen = (ids >= 0).all(axis=1)
    ids, every = ids[seen], every[seen]
    _, once = np.unique(ids, axis=0, return_index=True)
    ids, every = ids[once], every[once]
    sides = [
        _point_observations(model, ids[:, side], every[:, 2 * side :], max_error_px)
        for side, model in enumerate((first, second))
    ]
    xyz, poses, rays, limits = (np.stack(parts) for parts in zip(*sides, strict=True))
    return SharedPoints(ids, xyz, poses, rays, limits)


def _observation_rows(image: int, keypoints: np.ndarray, other: int, others: np.ndarray) -> Int[np.ndarray, "n 4"]:
    return np.stack([np.full(len(keypoints), image), keypoints, np.full(len(others), other), others], axis=1)


def _point_observations(
    model: pycolmap.Reconstruction, ids: np.ndarray, seen: np.ndarray, max_error_px: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates of points, and pose, ray and inlier threshold of the photograph that sees each point.

    A panorama, which also sees what is behind it, is turned to each point: its ray is then straight ahead.
    """
    xyz = np.array([model.points3D[i].xyz for i in ids.tolist()]).reshape(-1, 3)
    poses, rays, limits = np.zeros((len(ids), 3, 4)), np.zeros((len(ids), 2)), np.zeros(len(ids))
    for image_id in np.unique(seen[:, 0]).tolist():
        image, here = model.images[image_id], seen[:, 0] == image_id
        camera = model.cameras[image.camera_id]
        points = image.points2D
        xy = np.array([points[k].xy for k in seen[here, 1].tolist()]).reshape(-1, 2)
        poses[here] = image.cam_from_world().matrix()
        if is_spherical(camera):
            poses[here] = facing(rays_of(camera, xy)) @ poses[here]
        else:
            rays[here] = np.asarray(camera.cam_from_img(xy))
        limits[here] = camera.cam_from_img_threshold(max_error_px)
    return xyz, poses, rays, limits


# ---- the similarity --------------------------------------------------------------------------------------------------


def find_similarity(
    same: SharedPoints, config: MergeConfig
) -> tuple[Float[np.ndarray, "3 4"], Bool[np.ndarray, " n"]] | None:
    """The similarity s R | t from the second map to the first, and its inlier rows; None with fewer than three."""
    number, generator = len(same.ids), np.random.default_rng(config.seed)
    best, best_count = None, SAMPLE - 1
    trials, needed = 0, float(config.max_trials)
    while number >= SAMPLE and trials < min(needed, config.max_trials):
        trials += 1
        similarity = _fit_similarity(same, generator.choice(number, SAMPLE, replace=False))
        if similarity is None:
            continue
        count = int(similarity_inliers(same, similarity).sum())
        if count > best_count:
            best, best_count = similarity, count
            right = (count / number) ** SAMPLE
            needed = np.log(1 - config.confidence) / np.log(1 - right) if right < 1 else 0
    if best is None:
        return None
    for _ in range(10):  # refit to all inliers until these no longer change
        inlier = similarity_inliers(same, best)
        refined = _fit_similarity(same, np.flatnonzero(inlier))
        if refined is None or similarity_inliers(same, refined).sum() < inlier.sum():
            break
        best, before = refined, inlier
        if np.array_equal(similarity_inliers(same, best), before):
            break
    return best, similarity_inliers(same, best)


def _fit_similarity(same: SharedPoints, rows: np.ndarray) -> Float[np.ndarray, "3 4"] | None:
    if len(rows) < SAMPLE:
        return None
    found = pycolmap.estimate_sim3d(same.xyz[1, rows], same.xyz[0, rows])
    matrix = None if found is None else np.asarray(found.matrix())
    return matrix if matrix is not None and np.isfinite(matrix).all() and np.linalg.det(matrix[:, :3]) > 0 else None


def similarity_inliers(same: SharedPoints, first_from_second: Float[np.ndarray, "3 4"]) -> Bool[np.ndarray, " n"]:
    """Rows whose points project near their keypoints in the photographs of the other map, in both directions."""
    linear, offset = first_from_second[:, :3], first_from_second[:, 3]
    in_first = same.xyz[1] @ linear.T + offset
    in_second = (same.xyz[0] - offset) @ np.linalg.inv(linear).T
    near = np.ones(len(same.ids), bool)
    for side, points in enumerate((in_first, in_second)):
        pose = same.cam_from_world[side]
        in_camera = np.einsum("nij,nj->ni", pose[:, :, :3], points) + pose[:, :, 3]
        with np.errstate(divide="ignore", invalid="ignore"):
            away = np.linalg.norm(in_camera[:, :2] / in_camera[:, 2:] - same.rays[side], axis=1)
        near &= (in_camera[:, 2] > 0) & (away <= same.limits[side])
    return near


# ---- one model -------------------------------------------------------------------------------------------------------


def _add_second_map(
    first: pycolmap.Reconstruction,
    second: pycolmap.Reconstruction,
    places: IdMap,
    same: Int[np.ndarray, "n 2"],
) -> None:
    """Add the second model, already in the first one's frame. same: shared points, merged under the first map's id."""
    rigs = _new_rigs(second, places)
    on_rigs = {sensor.id for rig in rigs for sensor in rig.sensor_ids()}
    for camera_id in sorted(places.new_cameras):
        camera = _camera_with_id(second.cameras[camera_id], places.cameras[camera_id])
        if camera.camera_id in on_rigs:
            first.add_camera(camera)
        else:
            first.add_camera_with_trivial_rig(camera)
    for rig in rigs:
        first.add_rig(rig)
    frames = [(f, [pair for pair in f.images if second.images[pair[0]].has_pose]) for f in places.frames]
    completed = {
        f.into: {places.cameras[second.images[old].camera_id]: new for old, new in f.images}
        for f, posed in frames
        if posed and f.into is not None
    }
    if completed:
        add_to_frames(first, completed)
    for placed, posed in frames:
        if posed:
            _add_images(first, second, places, placed, posed[0][0])
    most = Counter(map(tuple, same.tolist())).most_common()
    into = {two: one for (one, two), _ in reversed(most)}
    for point_id, point in sorted(second.points3D.items()):
        free = [
            (places.images[e.image_id], e.point2D_idx)
            for e in point.track.elements
            if not first.images[places.images[e.image_id]].points2D[e.point2D_idx].has_point3D()
        ]
        target = into.get(point_id)
        if target is not None:
            shown = {element.image_id for element in first.points3D[target].track.elements}
            for image_id, index in free:
                if image_id not in shown:
                    first.add_observation(target, pycolmap.TrackElement(image_id, index))
                    shown.add(image_id)
        elif len(free) >= 2:
            track = pycolmap.Track()
            for image_id, index in free:
                track.add_element(image_id, index)
            first.add_point3D(point.xyz, track, point.color)


def _add_images(
    first: pycolmap.Reconstruction, second: pycolmap.Reconstruction, places: IdMap, placed: PlacedFrame, shown: int
) -> None:
    """Add the images of a frame, and the frame where it is new. shown: one of them, in the second map's numbers."""
    frame_id = placed.into
    if frame_id is None:
        frame = _new_frame(second, places, placed)
        frame_id = frame.frame_id
        first.add_frame(frame)
        image = second.images[shown]
        first.frame(frame_id).set_cam_from_world(places.cameras[image.camera_id], image.cam_from_world())
    for image_id, new_id in placed.images:
        image = second.images[image_id]
        xy = np.array([point.xy for point in image.points2D]).reshape(-1, 2)
        added = pycolmap.Image(
            name=image.name, keypoints=xy, camera_id=places.cameras[image.camera_id], image_id=new_id
        )
        added.frame_id = frame_id
        first.add_image(added)
    if placed.into is None:
        first.register_frame(frame_id)
