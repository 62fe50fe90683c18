"""The rigs of a map: the prefixes of their cameras, what photographs that are added belong to, and their tables.

A model has rigs and frames, but not what tells them from names. That is in the record beside the map (`rig_config` of
metrics.json, or of what extended or merged it); without one each camera's photographs must have a folder of their own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from featkit.core.config import Config, Degrees, Share
from featkit.core.errors import BadInputError
from featkit.geometry.pixels import to_colmap
from featkit.geometry.poses import rotation_angle_deg
from featkit.images.exif import some_names
from featkit.images.read import stored_size
from featkit.io.atomic import read_stamp
from featkit.io.features import FeatureStore
from featkit.mapping.cameras import rays_of
from featkit.mapping.rigs import RIG_KEY, RigConfig, find_frames

LOGGER = logging.getLogger(__name__)
RECORDS = ("metrics.json", "extend.json", "merge.json")
"""What may hold the rigs of a map, in the folder of its sparse/."""
SAME_RELATION = 1e-7  # largest difference of rotation matrices and directions that were one file's
SAME_CAMERA = 1e-9  # relative difference of the parameters of one calibration
GRID = 9  # directions a side, over which two calibrations are compared


@dataclass(frozen=True)
class AddedFrame:
    """Photographs that one rig of a map took at one time. images: names by the map's camera.

    frame_id: of the frame of the map that they complete; None for a new one.
    """

    rig_id: int
    frame_id: int | None
    images: dict[int, str]


def rigs_of_several(model: pycolmap.Reconstruction) -> dict[int, pycolmap.Rig]:
    """Rigs of several cameras, by id."""
    return {rig_id: rig for rig_id, rig in sorted(model.rigs.items()) if rig.num_sensors() > 1}


def cameras_on(rig: pycolmap.Rig) -> list[int]:
    """Ids of a rig's cameras, its reference first."""
    return [rig.ref_sensor_id.id, *sorted(sensor.id for sensor in rig.non_ref_sensors)]


def recorded_prefixes(folder: Path) -> list[str]:
    """Prefixes of all cameras on rigs, as the record beside a model's folder has them; none without one."""
    for name in RECORDS:
        found = (read_stamp(folder.parent.parent / name) or {}).get(RIG_KEY)
        if isinstance(found, list):
            cameras = [one for rig in found if isinstance(rig, dict) for one in rig.get("cameras", [])]
            return [str(one["image_prefix"]) for one in cameras if isinstance(one, dict) and one.get("image_prefix")]
    return []


def prefixes_of(model: pycolmap.Reconstruction, recorded: Collection[str] = ()) -> dict[int, str]:
    """By camera on a rig of several the prefix of its photographs; a rig where it is not clear is left out.

    recorded: those that the rigs were made with; a camera has the longest that fits all of its names, else their
    folder.
    """
    names: dict[int, list[str]] = {}
    for image in model.images.values():
        names.setdefault(image.camera_id, []).append(image.name)
    found: dict[int, str] = {}
    for rig in rigs_of_several(model).values():
        own = {camera: _prefix(names.get(camera, []), recorded) for camera in cameras_on(rig)}
        if all(own.values()) and len({*own.values(), *found.values()}) == len(own) + len(found):
            found |= own
    return found


def _prefix(names: Sequence[str], recorded: Collection[str]) -> str:
    fitting = [prefix for prefix in recorded if names and all(name.startswith(prefix) for name in names)]
    if fitting:
        return max(fitting, key=len)
    folders = [name.rpartition("/")[0] for name in names]
    common = os.path.commonpath(folders) if all(folders) and folders else ""
    return f"{common}/" if common else ""


def added_frames(
    model: pycolmap.Reconstruction,
    prefixes: Mapping[int, str],
    names: Sequence[str],
    config: RigConfig,
    gone: Collection[str] = (),
) -> list[AddedFrame]:
    """The frames of new photographs on the rigs of a map. prefixes: of `prefixes_of`. gone: images that leave the map.

    A photograph whose name begins with no prefix, or whose place in its frame is taken, is in none.
    """
    if not prefixes:
        return []
    under: dict[int, list[str]] = {camera: [] for camera in prefixes}
    by_name = {image.name: image for image in model.images.values() if image.name not in gone}
    for name in [*by_name, *names]:  # of equal keys those of the map count
        fitting = [camera for camera in prefixes if name.startswith(prefixes[camera])]
        if fitting:
            under[max(fitting, key=lambda camera: len(prefixes[camera]))].append(name)
    new, found = set(names), []
    for rig_id, rig in rigs_of_several(model).items():
        cameras = [camera for camera in cameras_on(rig) if camera in prefixes]
        for frame in find_frames([(prefixes[camera], under[camera]) for camera in cameras], config):
            images = {cameras[place]: name for place, name in frame.items() if name in new}
            frame_id = next((by_name[name].frame_id for name in frame.values() if name in by_name), None)
            taken = set() if frame_id is None else {data.sensor_id.id for data in model.frames[frame_id].data_ids}
            images = {camera: name for camera, name in images.items() if camera not in taken}
            if images:
                found.append(AddedFrame(rig_id, frame_id, images))
    return found


def check_sizes_on_rigs(
    model: pycolmap.Reconstruction, prefixes: Mapping[int, str], frames: Sequence[AddedFrame], folder: Path
) -> None:
    """Raise BadInputError for a photograph of another size than the rig's camera that its name stands for."""
    for frame in frames:
        for camera_id, name in frame.images.items():
            camera = model.cameras[camera_id]
            try:
                width, height = stored_size(folder / name)
            except BadInputError:
                continue  # extraction names it
            if (width, height) != (camera.width, camera.height):
                raise BadInputError(
                    f"{folder / name}: is {width} x {height}, and the map's camera of {prefixes[camera_id]!r} on a rig"
                    f" {camera.width} x {camera.height}; rename it if another camera took it"
                )


def report_added(prefixes: Mapping[int, str], frames: Sequence[AddedFrame], names: Sequence[str]) -> None:
    """Log which new photographs are on the map's rigs, and which are not."""
    if not prefixes:
        return
    taken = {name for frame in frames for name in frame.images.values()}
    completed = sum(frame.frame_id is not None for frame in frames)
    LOGGER.info(
        "rig: %d new photographs are in %d frames of the map's rigs (%s)%s",
        *(len(taken), len(frames), ", ".join(prefixes.values())),
        f", {completed} of which the map has already" if completed else "",
    )
    outside = [name for name in names if name not in taken]
    if outside:
        LOGGER.warning(
            "rig: %d new photographs are on no rig, each is by itself: %s", len(outside), some_names(outside)
        )


def add_to_frames(model: pycolmap.Reconstruction, added: Mapping[int, Mapping[int, int]]) -> None:
    """Give frames of a model further images, which must be added to it next. added: by frame, image ids by camera.

    Frames are final once they are in a model, so that all are set again; poses and points stay.
    """
    frames = []
    for old in model.frames.values():
        frame = pycolmap.Frame()
        frame.frame_id, frame.rig_id = old.frame_id, old.rig_id
        for data in old.data_ids:
            frame.add_data_id(data)
        for camera_id, image_id in added.get(old.frame_id, {}).items():
            frame.add_data_id(pycolmap.data_t(model.cameras[camera_id].sensor_id, image_id))
        if old.has_pose():
            frame.rig_from_world = old.rig_from_world
        frames.append(frame)
    model.set_rigs_and_frames([_copied(rig) for rig in model.rigs.values()], frames)


def _copied(old: pycolmap.Rig) -> pycolmap.Rig:
    rig = pycolmap.Rig(rig_id=old.rig_id)
    rig.add_ref_sensor(old.ref_sensor_id)
    for sensor, relation in old.non_ref_sensors.items():
        rig.add_sensor(sensor, relation)
    return rig


def complete_frames(model: pycolmap.Reconstruction, frames: Sequence[AddedFrame], features: FeatureStore) -> list[str]:
    """Add new images to frames that a model has: their poses are the frames'. Returns their names."""
    image_id = max([*model.images, *model.frames], default=0)
    added: dict[int, dict[int, int]] = {}
    images = []
    for frame in frames:
        if frame.frame_id is None:
            continue
        for camera_id, name in frame.images.items():
            if features.has(name):
                image_id += 1
                keypoints = to_colmap(features.keypoints(name).astype(np.float64))
                image = pycolmap.Image(name=name, keypoints=keypoints, camera_id=camera_id, image_id=image_id)
                image.frame_id = frame.frame_id
                added.setdefault(frame.frame_id, {})[camera_id] = image_id
                images.append(image)
    if images:
        add_to_frames(model, added)
    for image in images:
        model.add_image(image)
    return [image.name for image in images]


def new_frame(model: pycolmap.Reconstruction, rig_id: int, images: Mapping[int, int]) -> pycolmap.Frame:
    """A frame without a pose, under the smallest id of its images. images: ids by camera."""
    frame = pycolmap.Frame()
    frame.frame_id, frame.rig_id = min(images.values()), rig_id
    for camera_id, image_id in images.items():
        frame.add_data_id(pycolmap.data_t(model.cameras[camera_id].sensor_id, image_id))
    return frame


def name_those_without_points(model: pycolmap.Reconstruction, names: Collection[str]) -> None:
    """Warn of images that are in the map by their frame alone: they may be of another time or camera."""
    blind = [i.name for i in model.images.values() if i.name in names and not i.num_points3D]
    if blind:
        LOGGER.warning(
            "extend: %d photographs are in the map by the others of their frame alone, and see no point of it: %s",
            *(len(blind), some_names(blind)),
        )


# ----------------------------------------------------------------------------------------------------------------------
# Rigs of two maps that are one: cameras of equal prefixes, calibration and relation.


class SameRigConfig(Config):
    """How far rigs of two maps, in one frame, may differ to be one: both are estimated from photographs."""

    max_turn_deg: Degrees = 1.0
    """Maximum difference of a camera's rotation relative to the reference camera, degrees."""
    max_shift: Share = 0.2
    """Maximum difference of its position, as a share of the longest distance between two cameras of the rig."""
    max_pixel_shift: Share = 0.02
    """Maximum displacement of a pixel by the other map's calibration of its camera, as a share of the longer side."""


@dataclass(frozen=True)
class SharedRigs:
    """Rigs and cameras of a second map by their numbers, and those of the first that they are.

    free: rigs of the first whose relation is another in the second, so that both were estimated.
    """

    rigs: dict[int, int] = field(default_factory=dict)
    cameras: dict[int, int] = field(default_factory=dict)
    free: set[int] = field(default_factory=set)


def shared_rigs(
    first: pycolmap.Reconstruction,
    second: pycolmap.Reconstruction,
    prefixes: tuple[Mapping[int, str], Mapping[int, str]],
    config: SameRigConfig,
) -> SharedRigs:
    """Rigs of the second map that are the first's. The maps are in one frame; one line for each rig that is none.

    prefixes: of `prefixes_of`, for both maps.
    """
    found = SharedRigs()
    camera_of = {prefix: camera for camera, prefix in prefixes[0].items()}
    for rig_id, rig in rigs_of_several(second).items():
        own = cameras_on(rig)
        named = ", ".join(prefixes[1].get(camera, "?") for camera in own)
        cameras = {camera: camera_of.get(prefixes[1].get(camera, "")) for camera in own}
        same = {camera: other for camera, other in cameras.items() if other is not None}
        on = {rig_of(first, camera) for camera in same.values()}
        if len(same) < len(own) or len(on) != 1 or min(on) in found.rigs.values():
            LOGGER.info("merge: the second map's rig (%s) is none of the first map's; both are kept", named)
            continue
        [target] = on
        if difference := _difference(first, second, (first.rigs[target], rig), same, config):
            LOGGER.warning(
                "merge: the rig of %s is not the same in both maps: %s; it is kept as two rigs", named, difference
            )
            continue
        found.rigs[rig_id] = target
        found.cameras.update(same)
        if not _is_one_relation(first.rigs[target], rig, same):
            found.free.add(target)
    return found


def rig_of(model: pycolmap.Reconstruction, camera_id: int) -> int:
    """The rig that has a camera of the model."""
    sensor = model.cameras[camera_id].sensor_id
    return next(rig_id for rig_id, rig in sorted(model.rigs.items()) if rig.has_sensor(sensor))


def _difference(
    first: pycolmap.Reconstruction,
    second: pycolmap.Reconstruction,
    rigs: tuple[pycolmap.Rig, pycolmap.Rig],
    cameras: Mapping[int, int],
    config: SameRigConfig,
) -> str:
    """In what two rigs differ by more than they may; "" for none. cameras: the second map's, and the first's."""
    for camera_id, other in cameras.items():
        one, two = first.cameras[other], second.cameras[camera_id]
        if (one.model, one.width, one.height) != (two.model, two.width, two.height):
            shown = [f"{c.model_name} {c.width} x {c.height}" for c in (one, two)]
            return f"one camera is {shown[0]} in the first map and {shown[1]} in the second"
        shift = _pixel_shift(one, two)
        if not shift <= config.max_pixel_shift:
            return f"the calibrations of a camera are {100 * shift:.2g} % of its longer side apart"
    relations = _relations(rigs, cameras)
    centres = [np.array([relation.inverse().translation for relation in side]) for side in relations]
    longest = max(float(np.linalg.norm(a - b)) for a in centres[0] for b in centres[0])
    for one, two, apart in zip(*relations, np.linalg.norm(centres[0] - centres[1], axis=1), strict=True):
        turn = rotation_angle_deg(one.rotation.matrix(), two.rotation.matrix())
        if turn > config.max_turn_deg or apart > config.max_shift * longest:
            return (
                f"a camera is turned by {turn:.2g} degrees and moved by {apart:.2g}, of {longest:.2g} between cameras"
            )
    return ""


def _relations(
    rigs: tuple[pycolmap.Rig, pycolmap.Rig], cameras: Mapping[int, int]
) -> tuple[list[pycolmap.Rigid3d], list[pycolmap.Rigid3d]]:
    """Of two rigs the poses of all common cameras relative to the one that comes first."""
    found = []
    for rig, own in zip(rigs, (list(cameras.values()), list(cameras)), strict=True):
        known = {sensor.id: relation for sensor, relation in rig.non_ref_sensors.items()}
        known[rig.ref_sensor_id.id] = pycolmap.Rigid3d()
        poses = [known[camera] for camera in own]
        found.append([pose * poses[0].inverse() for pose in poses])
    return found[0], found[1]


def _is_one_relation(first: pycolmap.Rig, second: pycolmap.Rig, cameras: Mapping[int, int]) -> bool:
    """Whether two rigs have one relation to the last digits, up to a scale: that of one file."""
    one, two = _relations((first, second), cameras)
    turns = [np.abs(a.rotation.matrix() - b.rotation.matrix()).max() for a, b in zip(one, two, strict=True)]
    rays = [np.concatenate([pose.translation for pose in side]) for side in (one, two)]
    lengths = [float(np.linalg.norm(ray)) for ray in rays]
    if min(lengths) == 0:
        return max(turns) < SAME_RELATION and max(lengths) == 0
    return max(turns) < SAME_RELATION and np.abs(rays[0] / lengths[0] - rays[1] / lengths[1]).max() < SAME_RELATION


def _pixel_shift(one: pycolmap.Camera, two: pycolmap.Camera) -> float:
    """How far apart two cameras of one size show a direction: largest over a grid, as a share of the longer side."""
    x, y = np.meshgrid(np.linspace(0, one.width, GRID), np.linspace(0, one.height, GRID))
    pixels = np.column_stack([x.ravel(), y.ravel()])
    shown = np.asarray(one.img_from_cam(rays_of(two, pixels)))
    return float(np.abs(shown - pixels).max()) / max(one.width, one.height)


def equal_camera(model: pycolmap.Reconstruction, camera: pycolmap.Camera) -> int | None:
    """The id of a camera of the model, on no rig with others, that has the same calibration as one of another map."""
    alone = {rig.ref_sensor_id.id for rig in model.rigs.values() if rig.num_sensors() == 1}
    for camera_id, other in sorted(model.cameras.items()):
        if camera_id not in alone:
            continue
        alike = (other.model, other.width, other.height) == (camera.model, camera.width, camera.height)
        if alike and np.allclose(other.params, camera.params, rtol=SAME_CAMERA, atol=0):
            return int(camera_id)
    return None


# ----------------------------------------------------------------------------------------------------------------------
# For metrics.json and tables.


def rig_metrics(model: pycolmap.Reconstruction, recorded: Collection[str] = ()) -> dict[str, Any]:
    """Number of rigs of several cameras and of their registered frames, and the rigs in COLMAP's format.

    Nothing for a model without such rigs. recorded: the prefixes that they were made with.
    """
    several = rigs_of_several(model)
    if not several:
        return {}
    prefixes = prefixes_of(model, recorded)
    for image in model.images.values():
        prefixes.setdefault(image.camera_id, image.name)
    frames = [frame for frame in model.frames.values() if frame.rig_id in several and frame.has_pose()]
    written = []
    for rig in several.values():
        cameras: list[dict[str, Any]] = [
            {"image_prefix": prefixes.get(rig.ref_sensor_id.id, ""), "ref_sensor": True},
        ]
        for sensor, relation in sorted(rig.non_ref_sensors.items(), key=lambda item: item[0].id):
            x, y, z, w = relation.rotation.quat.tolist()
            cameras.append(
                {
                    "image_prefix": prefixes.get(sensor.id, ""),
                    "cam_from_rig_rotation": [w, x, y, z],
                    "cam_from_rig_translation": relation.translation.tolist(),
                }
            )
        written.append({"cameras": cameras})
    return {"rigs": len(several), "frames": len(frames), RIG_KEY: written}
