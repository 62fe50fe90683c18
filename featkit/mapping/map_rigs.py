"""The rigs of a map: the prefixes of their cameras, what photographs that are added belong to, and their tables.

A model has rigs and frames, but not what tells them from names. That is in the record beside the map (`rig_config` of
metrics.json, or of what extended or merged it); without one each camera's photographs must have a folder of their own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from featkit.core.errors import BadInputError
from featkit.geometry.pixels import to_colmap
from featkit.images.exif import some_names
from featkit.images.read import stored_size
from featkit.io.atomic import read_stamp
from featkit.io.features import FeatureStore
from featkit.mapping.rigs import RIG_KEY, RigConfig, frames_of_keys, keyed

LOGGER = logging.getLogger(__name__)
RECORDS = ("metrics.json", "extend.json", "merge.json")
"""What may hold the rigs of a map, in the folder of its sparse/."""


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
        for frame in frames_of_keys([keyed(prefixes[camera], under[camera]) for camera in cameras], config):
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
