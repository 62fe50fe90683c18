"""Extends a map: registers new photographs in an existing model, keeping its coordinate frame and ids.

The steps are those of COLMAP's incremental mapper: register the photograph that sees the most points, triangulate, run
local bundle adjustment. Old images keep their ids, keypoints and tracks. The mapper's database holds only the pairs of
new photographs, so the cost depends on their number.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from jaxtyping import Float

from featkit.core.config import Config, Share, make, merged_values
from featkit.core.errors import EmptyResultError
from featkit.core.log import progress
from featkit.core.types import Pair
from featkit.geometry.pixels import to_colmap
from featkit.images.exif import some_names
from featkit.io.atomic import read_stamp
from featkit.io.features import FeatureStore
from featkit.io.matches import MatchStore
from featkit.mapping import database as db
from featkit.mapping.cameras import CameraConfig, cameras_of_images, to_pose
from featkit.mapping.map_rigs import (
    AddedFrame,
    complete_frames,
    name_those_without_points,
    new_frame,
    rig_of,
    rigs_of_several,
)
from featkit.mapping.stage import MapConfig, incremental_options
from featkit.mapping.verify import verify_by_poses, verify_by_ransac

LOGGER = logging.getLogger(__name__)
MADE_WITH = "made_with"  # key in the stamp of an extended map: the configuration of the original map
MAX_KEYPOINT_SHIFT_PX = 0.1  # between the keypoints of a model and of its features, which are both float32


class GrowConfig(Config):
    """How a map is extended with new photographs."""

    fixed: bool = False
    """Keep the poses of the old photographs and their cameras fixed."""
    whole_above: Share = 0.1
    """Ratio of new to old photographs above which the complete map is bundle-adjusted at the end. Below it, only the
    neighbourhood of each new image is adjusted (COLMAP adjusts the complete map when it has grown by a tenth).
    """


@dataclass(frozen=True)
class NewImages:
    """Photographs to register, with names relative to `folder`.

    shared: id of the map's only camera, if it took these too; None: their cameras are inferred with `config`. frames:
    those taken by the map's rigs.
    """

    names: list[str]
    folder: Path
    config: CameraConfig
    shared: int | None = None
    frames: Sequence[AddedFrame] = ()


@dataclass
class Grown:
    """An extended map. left_out: reasons by image name. moved: median and largest motion of old camera centres, map
    units.
    """

    model: pycolmap.Reconstruction
    registered: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    moved: tuple[float, float] = (0.0, 0.0)


def original_config(folder: Path, model: pycolmap.Reconstruction, changes: Mapping[str, Any]) -> MapConfig:
    """The configuration that made the model in a folder, with `changes`; the defaults if it is not recorded.

    Raises UsageError for invalid changes.
    """
    stamp = read_stamp(folder.parent.with_name(f"{folder.parent.name}.json")) or {}
    stored = stamp.get(MADE_WITH, stamp.get("config")) if stamp.get("kind") == "map" else None
    try:
        values = MapConfig(**stored).model_dump() if isinstance(stored, dict) else None
    except ValueError:  # recorded by another version
        values = None
    values = values or {"camera": {"model": _most_used_camera(model)}}
    return make(MapConfig, merged_values(values, dict(changes)), where="--set map")


def _most_used_camera(model: pycolmap.Reconstruction) -> str:
    names = [model.cameras[image.camera_id].model_name for image in model.images.values()]
    return max(sorted(set(names)), key=names.count)


def remove_images(model: pycolmap.Reconstruction, gone: Collection[str], where: Path) -> list[str]:
    """Remove images from a model, and the points that then have fewer than two observations. Returns their names.

    Images of a rig frame are only removed together. Raises EmptyResultError if fewer than two images would be left.
    """
    removed = []
    for frame in list(model.frames.values()):
        names = [model.images[data.id].name for data in frame.image_ids]
        if frame.has_pose() and names and all(name in gone for name in names):
            model.deregister_frame(frame.frame_id)
            removed += names
    if model.num_reg_images() < 2:
        raise EmptyResultError(f"{where}: --prune would leave {model.num_reg_images()} photographs of this map")
    model.tear_down()  # drops everything that is not registered
    return sorted(removed)


def has_same_keypoints(model: pycolmap.Reconstruction, features: FeatureStore) -> bool:
    """Whether a model's images have exactly the keypoints in `features`; positions are compared for some images."""
    for image in model.images.values():
        if not features.has(image.name) or features.count(image.name) != image.num_points2D():
            return False
    some = sorted(model.images.values(), key=lambda image: image.image_id)
    for image in some[:: max(1, len(some) // 50)]:
        stored = to_colmap(features.keypoints(image.name))
        own = np.array([point.xy for point in image.points2D]).reshape(-1, 2)
        if len(own) and np.abs(stored - own).max() > MAX_KEYPOINT_SHIFT_PX:
            return False
    return True


def add_keypoints(model: pycolmap.Reconstruction, features: FeatureStore) -> dict[str, int]:
    """Append keypoints of other features to those of a model's images; returns the previous counts by name.

    Tracks and ids of the points are kept.
    """
    points = {
        point_id: (point.xyz.copy(), point.color.copy(), [(e.image_id, e.point2D_idx) for e in point.track.elements])
        for point_id, point in model.points3D.items()
    }
    keypoints = {i: np.array([p.xy for p in image.points2D]).reshape(-1, 2) for i, image in model.images.items()}
    model.delete_all_points2D_and_points3D()
    before = {}
    for image_id, own in keypoints.items():
        image = model.images[image_id]
        before[image.name] = len(own)
        every = np.concatenate([own, to_colmap(features.keypoints(image.name).astype(np.float64))])
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(xy) for xy in every])
    for point_id, (xyz, colour, elements) in points.items():
        track = pycolmap.Track()
        for image_id, index in elements:
            track.add_element(image_id, index)
        model.add_point3D_with_id(point_id, pycolmap.Point3D(xyz=xyz, color=colour, track=track))
    return before


# ----------------------------------------------------------------------------------------------------------------------
# The database of an extended map: the model's images under their ids, then the new images, and the pairs to verify.


def write_model_images(database: pycolmap.Database, model: pycolmap.Reconstruction) -> None:
    """Write a model's cameras, rigs, images, frames and keypoints under its ids."""
    with pycolmap.DatabaseTransaction(database):
        for camera in model.cameras.values():
            database.write_camera(camera, use_camera_id=True)
        for rig in model.rigs.values():
            database.write_rig(rig, use_rig_id=True)
        for image_id, image in sorted(model.images.items()):
            plain = pycolmap.Image(name=image.name, camera_id=image.camera_id, image_id=image_id)
            database.write_image(plain, use_image_id=True)
            xy = np.array([point.xy for point in image.points2D], np.float32).reshape(-1, 2)
            database.write_keypoints(image_id, xy)
        for frame in model.frames.values():
            plain_frame = pycolmap.Frame()
            plain_frame.frame_id, plain_frame.rig_id = frame.frame_id, frame.rig_id
            for data in frame.data_ids:
                plain_frame.add_data_id(data)
            database.write_frame(plain_frame, use_frame_id=True)


def write_new_images(
    database: pycolmap.Database, model: pycolmap.Reconstruction, new: NewImages, features: FeatureStore
) -> None:
    """Write new images after those of the model: cameras, rigs, frames and images get the next free ids.

    Images of the map's rigs get its cameras, and one frame for each time.
    """
    there = {image.name for image in model.images.values()}
    names = [name for name in new.names if features.has(name) and name not in there]
    on_rigs = {name: camera for frame in new.frames for camera, name in frame.images.items()}
    alone = [name for name in names if name not in on_rigs]
    if new.shared is not None:
        cameras, camera_ids = {}, dict.fromkeys(alone, new.shared)
    else:
        made, numbers = cameras_of_images(new.folder, alone, new.config)
        first = max([*model.cameras, *model.rigs], default=0)
        cameras = {first + number: camera for number, camera in made.items()}
        camera_ids = {name: first + number for name, number in numbers.items()}
    with pycolmap.DatabaseTransaction(database):
        for camera_id, camera in cameras.items():
            camera.camera_id = camera_id
            db.write_camera(database, camera)
        last = max([*model.images, *model.frames], default=0)
        image_ids = {name: number for number, name in enumerate(names, start=last + 1)}
        for name, image_id in image_ids.items():
            keypoints = to_colmap(features.keypoints(name))
            if name in on_rigs:
                db.write_image(database, image_id, name, on_rigs[name], keypoints, alone=False)
                continue
            rig_id = camera_ids[name] if new.shared is None else rig_of(model, new.shared)
            db.write_image(database, image_id, name, camera_ids[name], keypoints, rig_id=rig_id)
        for added in new.frames:
            images = {camera: image_ids[name] for camera, name in added.images.items() if name in image_ids}
            if images:
                database.write_frame(new_frame(model, added.rig_id, images), use_frame_id=True)


def shared_camera(model: pycolmap.Reconstruction, sizes: Collection[tuple[int, int]]) -> int | None:
    """Id of a map's only camera if other photographs of these sizes may be from it too; else None."""
    if len(model.cameras) != 1 or model.num_reg_images() < 2 or len(model.rigs) != 1:
        return None
    [(camera_id, camera)], [rig] = model.cameras.items(), model.rigs.values()
    alone = rig.num_sensors() == 1 and rig.is_ref_sensor(camera.sensor_id)
    return camera_id if alone and set(sizes) == {(camera.width, camera.height)} else None


def verify_new_pairs(
    config: MapConfig,
    path: Path,
    model: pycolmap.Reconstruction,
    pairs: Sequence[Pair],
    features: FeatureStore,
    matches: MatchStore,
    before: Mapping[str, int],
) -> None:
    """Write and verify the matches of pairs: by RANSAC, or by their poses if both images are in the map already.

    before: numbers of keypoints that precede those of the features (`add_keypoints`).
    """
    poses = {image.name: to_pose(image.cam_from_world()) for image in model.images.values() if image.has_pose}
    with pycolmap.Database.open(str(path)) as database:
        there = {image.name for image in database.read_all_images()}
        usable = [pair for pair in pairs if pair.name0 in there and pair.name1 in there]
        fresh = db.write_matches(database, matches, usable, before)
        known = [pair for pair in fresh if pair.name0 in poses and pair.name1 in poses]
        verify_by_poses(database, known, features, poses, config.verify)
    verify_by_ransac(path, config.verify, [pair for pair in fresh if pair not in set(known)])


# ----------------------------------------------------------------------------------------------------------------------
# Registration and adjustment.


class Growth:
    """COLMAP's incremental mapper on an existing model, with the options the model was made with."""

    def __init__(
        self,
        config: MapConfig,
        model: pycolmap.Reconstruction,
        database: Path,
        *,
        fixed: bool,
        anchors: Collection[int] | None = None,
        free_rigs: Collection[int] = (),
    ):
        """database: has the model's images, the new ones, and the verified pairs to extend the map with.

        anchors: ids of the images that define the coordinate frame; None: all registered images. free_rigs: ids of the
        rigs whose relation is refined.
        """
        self.model = model
        cached = pycolmap.DatabaseCacheOptions()
        cached.load_all_images = True  # also images without matches, since the model has them
        with pycolmap.Database.open(str(database)) as opened:
            self._cache = pycolmap.DatabaseCache.create(opened, cached)
        self._old_cameras, self._old_points = set(model.cameras), set(model.points3D)
        self._old = {
            image_id: image.projection_center()
            for image_id, image in model.images.items()
            if image.has_pose and (anchors is None or image_id in anchors)
        }
        options = incremental_options(config, self._cache.num_images())
        options.ba_global_function_tolerance = max(
            options.ba_global_function_tolerance, config.global_adjustment_tolerance
        )
        # The relation of cameras on a rig is known from the complete map, better than from a part of it.
        self._held = set(rigs_of_several(model)) - set(free_rigs)
        options.constant_rigs = self._held
        self._options, self._mapping = options, options.get_mapper()
        self._triangulation = options.get_triangulation()
        self._local, self._global = (
            options.get_local_bundle_adjustment(),
            options.get_global_bundle_adjustment(),
        )
        self._mapping.fix_existing_frames = fixed
        if fixed:
            self._mapping.constant_cameras = self._old_cameras
        self._fixed, self._whole, self._new = fixed, False, set[int]()
        self._mapper = pycolmap.IncrementalMapper(self._cache)
        self._mapper.begin_reconstruction(model)

    def triangulate(self, names: Collection[str]) -> None:
        """Triangulate points of registered images from the database's pairs."""
        for image_id, image in sorted(self.model.images.items()):
            if image.has_pose and image.name in names:
                self._mapper.triangulate_image(self._triangulation, image_id)
        self._mapper.complete_and_merge_tracks(self._triangulation)

    def register_all(self, waiting: int) -> list[int]:
        """Register images until none sees enough points; returns their ids in order of registration.

        The other images of a frame are registered with its first.
        """
        registered: list[int] = []
        with progress("extend", waiting, "images") as advance:
            while (image_id := self._register_one()) is not None:
                together = sorted(data.id for data in self.model.images[image_id].frame.image_ids)
                self.refine_around(image_id, together)
                registered += together
                advance(len(together))
        return registered

    def refine_around(self, image_id: int, together: Collection[int]) -> None:
        """Triangulate images of one frame that has a pose, and adjust what is around one of them."""
        for one in together:
            self._mapper.triangulate_image(self._triangulation, one)
            self._new.add(one)
        self._mapper.iterative_local_refinement(
            self._options.ba_local_max_refinements, self._options.ba_local_max_refinement_change,
            self._mapping, self._local, self._triangulation, image_id,
        )  # fmt: skip

    def _register_one(self) -> int | None:
        for image_id in self._mapper.find_next_images(self._mapping, False):
            if self._mapper.register_next_image(self._mapping, image_id):
                return int(image_id)
        return None

    def visible_points(self, image_id: int) -> int:
        """Number of points in the map that an image sees according to its matches."""
        return int(self._mapper.observation_manager.num_visible_points3D(image_id))

    @property
    def min_inliers(self) -> int:
        """Minimum number of inliers for an image to be registered."""
        return int(self._mapping.abs_pose_min_num_inliers)

    def adjust_all(self) -> None:
        """Bundle-adjust the complete map, then restore its frame by a least-squares fit to the old camera centres."""
        self._mapper.iterative_global_refinement(
            self._options.ba_global_max_refinements, self._options.ba_global_max_refinement_change,
            self._mapping, self._global, self._triangulation, False,
        )  # fmt: skip
        self._whole = True
        if not self._fixed:
            restore_frame(self.model, self._old, scaled=not self._held)

    def finish(self) -> tuple[float, float]:
        """End the mapping; returns the median and largest motion of the old camera centres, map units.

        Points with large reprojection errors are removed. If only parts of the map were adjusted, this concerns only
        new points and those seen by new images.
        """
        self._mapper.complete_and_merge_tracks(self._triangulation)
        if self._whole:
            self._mapper.filter_points(self._mapping)
        else:
            limits = self._mapping.filter_max_reproj_error, self._mapping.filter_min_tri_angle
            manager = self._mapper.observation_manager
            manager.filter_points3D_in_images(*limits, self._new)
            manager.filter_points3D(*limits, set(self.model.points3D) - self._old_points)
        self._mapper.end_reconstruction(False)
        self.model.tear_down()
        self.model.update_point_3d_errors()
        images = self.model.images
        moved = [np.linalg.norm(images[i].projection_center() - old) for i, old in self._old.items() if i in images]
        return (float(np.median(moved)), float(np.max(moved))) if moved else (0.0, 0.0)


def restore_frame(
    model: pycolmap.Reconstruction, old: Mapping[int, Float[np.ndarray, "3"]], *, scaled: bool = True
) -> None:
    """Move a model by the similarity that best maps its camera centres to their old positions (least squares).

    For collinear centres the model is left as it is, in the frame kept by the bundle adjustment's own gauge. scaled:
    False: a rigid motion, since a scale would change the relation of cameras on a rig.
    """
    kept = [image_id for image_id in old if image_id in model.images and model.images[image_id].has_pose]
    now = np.array([model.images[image_id].projection_center() for image_id in kept]).reshape(-1, 3)
    was = np.array([old[image_id] for image_id in kept]).reshape(-1, 3)
    extents = np.linalg.svd(was - was.mean(axis=0), compute_uv=False) if len(kept) >= 3 else np.zeros(3)
    if extents[1] <= 1e-3 * extents[0]:
        return
    if scaled:
        similarity = pycolmap.estimate_sim3d(now, was)
    else:
        rigid = pycolmap.estimate_rigid3d(now, was)
        similarity = None if rigid is None else pycolmap.Sim3d(1.0, rigid.rotation, rigid.translation)
    if similarity is not None:
        model.transform(similarity)


def grow(
    config: GrowConfig,
    made_with: MapConfig,
    model: pycolmap.Reconstruction,
    new: NewImages,
    features: FeatureStore,
    matches: MatchStore,
    pairs: Sequence[Pair],
    work: Path,
    *,
    photographs: Mapping[str, Path] | None = None,
) -> Grown:
    """Register new photographs in a model, triangulate and adjust; modifies the model, but keeps its frame and ids.

    features: of all images. If they differ from the model's keypoints, they are added to these. pairs: with `matches`,
    of new images with the map's and with each other; with different features also of the map's images. work: folder for
    the database. photographs: files of the map's images, for the colours of new points.
    """
    old = [image.name for image in model.images.values() if image.has_pose]
    own = has_same_keypoints(model, features)
    before = {} if own else add_keypoints(model, features)
    completed = complete_frames(model, new.frames, features)
    path = work / "database.db"
    with pycolmap.Database.open(str(path)) as database:
        write_model_images(database, model)
        write_new_images(database, model, new, features)
    verify_new_pairs(made_with, path, model, pairs, features, matches, before)
    growth = Growth(made_with, model, path, fixed=config.fixed)
    if not own:
        growth.triangulate(old)
    by_name = {image.name: image for image in model.images.values()}
    for name in completed:
        growth.refine_around(by_name[name].image_id, [by_name[name].image_id])
    registered = [by_name[name].image_id for name in completed] + growth.register_all(len(new.names) - len(completed))
    left_out = _failure_reasons(growth, new.names, features, path)
    if len(registered) > config.whole_above * len(old):
        growth.adjust_all()
    names = [model.images[image_id].name for image_id in registered]
    moved = growth.finish()
    name_those_without_points(model, names)
    if made_with.extract_colors:
        _colour_new_points(model, new.folder, names, {} if own else photographs or {})
    return Grown(model, [name for name in new.names if name in set(names)], left_out, moved)


def _colour_new_points(
    model: pycolmap.Reconstruction, folder: Path, names: Iterable[str], more: Mapping[str, Path]
) -> None:
    """Colour the points without colours from the new photographs, and from old ones if these have new points."""
    by_name = {image.name: image.image_id for image in model.images.values()}
    for name in names:
        model.extract_colors_for_image(by_name[name], str(folder))
    for name, path in more.items():
        if name in by_name:
            model.extract_colors_for_image(by_name[name], str(path.parents[name.count("/")]))


def _failure_reasons(growth: Growth, names: Sequence[str], features: FeatureStore, database: Path) -> dict[str, str]:
    """The reasons why images are not in the map, by name."""
    by_name = {image.name: image for image in growth.model.images.values()}
    verified: dict[str, int] = {}
    for pair, _ in db.verified_pairs(database):
        for name in (pair.name0, pair.name1):
            verified[name] = verified.get(name, 0) + 1
    reasons = {}
    for name in names:
        if name in by_name and by_name[name].has_pose:
            continue
        if name not in by_name:
            reasons[name] = "it cannot be read"
        elif features.count(name) == 0:
            reasons[name] = "no keypoint found in it"
        elif not verified.get(name):
            reasons[name] = "it matches no photograph of the map"
        else:
            seen = growth.visible_points(by_name[name].image_id)
            reasons[name] = (
                f"it sees {seen} points of the map, from {verified[name]} verified pairs; {growth.min_inliers} inliers"
                " are needed"
            )
    return reasons


def refuse_no_growth(grown: Grown, photographs: Path) -> None:
    """Raise EmptyResultError if no photograph was registered."""
    if grown.left_out and not grown.registered:
        first = next(iter(grown.left_out))
        raise EmptyResultError(
            f"{photographs}: none of {len(grown.left_out)} new photographs could be registered"
            f" ({some_names(list(grown.left_out))}): {first!r}: {grown.left_out[first]}"
        )
