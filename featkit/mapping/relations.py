"""Rigs in COLMAP's database, and the relative poses of their cameras, estimated from a map made without the rig.

As in COLMAP's documentation ("Rig Support": reconstruct without rigs, derive them, reconstruct with them), but robust:
rotations are averaged over consistent frames, and positions are medians.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Float

from featkit.core.errors import BadInputError, EmptyResultError
from featkit.mapping.cameras import to_rigid
from featkit.mapping.rigs import Rig, RigConfig

LOGGER = logging.getLogger(__name__)

# ----------------------------------------------------------------------------------------------------------------------
# Rigs in a database. A rig has the id of its reference camera, a frame that of its first image.


def write_rigs(
    database: pycolmap.Database, rigs: Sequence[Rig], camera_ids: Mapping[str, int], image_ids: Mapping[str, int]
) -> None:
    """Write rigs of several cameras and their frames. Cameras and images must be in the database, without rigs."""
    with pycolmap.DatabaseTransaction(database):
        for rig in rigs:
            ids = [_camera_id(rig, place, camera_ids) for place in range(len(rig.cameras))]
            written = pycolmap.Rig(rig_id=ids[0])
            written.add_ref_sensor(_sensor(ids[0]))
            for camera_id, camera in zip(ids[1:], rig.cameras[1:], strict=True):
                written.add_sensor(_sensor(camera_id), camera.cam_from_rig and to_rigid(camera.cam_from_rig))
            database.write_rig(written, use_rig_id=True)
            for images in rig.frames:
                frame = pycolmap.Frame()
                frame.frame_id, frame.rig_id = min(image_ids[name] for name in images.values()), ids[0]
                for place, name in sorted(images.items()):
                    frame.add_data_id(pycolmap.data_t(_sensor(ids[place]), image_ids[name]))
                database.write_frame(frame, use_frame_id=True)


def _camera_id(rig: Rig, place: int, camera_ids: Mapping[str, int]) -> int:
    return next(camera_ids[frame[place]] for frame in rig.frames if place in frame)


def _sensor(camera_id: int) -> pycolmap.sensor_t:
    return pycolmap.sensor_t(pycolmap.SensorType.CAMERA, camera_id)


def split_by_known_relation(database: Path) -> tuple[list[pycolmap.Rig], list[pycolmap.Rig]]:
    """Rigs of several cameras: those with known relative poses, and the others."""
    known: list[pycolmap.Rig] = []
    unknown: list[pycolmap.Rig] = []
    with pycolmap.Database.open(str(database)) as opened:
        for rig in opened.read_all_rigs():
            if rig.num_sensors() > 1:
                (unknown if None in rig.non_ref_sensors.values() else known).append(rig)
    return known, unknown


def copy_without_rigs(database: Path, rigs: Sequence[pycolmap.Rig], output: Path) -> Path:
    """Copy a database without these rigs, so that their images are independent; ids of cameras and images are kept."""
    shutil.copyfile(database, output)
    gone = {rig.rig_id for rig in rigs}
    with pycolmap.Database.open(str(output)) as opened, pycolmap.DatabaseTransaction(opened):
        frames, others = opened.read_all_frames(), [r for r in opened.read_all_rigs() if r.rig_id not in gone]
        opened.clear_frames()
        opened.clear_rigs()
        for rig in others:
            opened.write_rig(rig, use_rig_id=True)
        for rig in rigs:
            for sensor in sorted(rig.sensor_ids(), key=lambda sensor: sensor.id):
                alone = pycolmap.Rig(rig_id=sensor.id)
                alone.add_ref_sensor(sensor)
                opened.write_rig(alone, use_rig_id=True)
        for frame in frames:
            if frame.rig_id not in gone:
                opened.write_frame(_frame_without_pose(frame), use_frame_id=True)
                continue
            for data in frame.data_ids:
                single = pycolmap.Frame()
                single.frame_id, single.rig_id = data.id, data.sensor_id.id
                single.add_data_id(data)
                opened.write_frame(single, use_frame_id=True)
    return output


def _frame_without_pose(frame: pycolmap.Frame) -> pycolmap.Frame:
    copy = pycolmap.Frame()
    copy.frame_id, copy.rig_id = frame.frame_id, frame.rig_id
    for data in frame.data_ids:
        copy.add_data_id(data)
    return copy


# ----------------------------------------------------------------------------------------------------------------------
# Relative poses of a rig's cameras, from a map in which they were independent.


def copy_with_relations(
    database: Path, rigs: Sequence[pycolmap.Rig], model: pycolmap.Reconstruction, config: RigConfig, output: Path
) -> Path:
    """Copy a database with the relative poses of these rigs, estimated from a model of the same images.

    Raises EmptyResultError if no frame of the model has a camera together with the reference; BadInputError for cameras
    that move relative to each other.
    """
    shutil.copyfile(database, output)
    with pycolmap.Database.open(str(output)) as opened:
        labels = {image.camera_id: image.name.rpartition("/")[0] for image in reversed(opened.read_all_images())}
        frames = opened.read_all_frames()
        for rig in rigs:
            own = [{d.sensor_id.id: d.id for d in frame.data_ids} for frame in frames if frame.rig_id == rig.rig_id]
            for sensor in rig.non_ref_sensors:
                both = labels[rig.ref_sensor_id.id], labels[sensor.id]
                poses = _relative_poses(model, own, rig.ref_sensor_id.id, sensor.id)
                if not poses:
                    raise EmptyResultError(
                        f"rig: the map without it has no frame with both {both[0]!r} and {both[1]!r}, so their"
                        " relative pose cannot be estimated; give it in a rig.json"
                    )
                rig.set_sensor_from_rig(
                    sensor, _mean_relation(poses, _extent(model, own, rig.ref_sensor_id.id), both, config)
                )
            opened.update_rig(rig)
    return output


def _relative_poses(
    model: pycolmap.Reconstruction, frames: Sequence[Mapping[int, int]], reference: int, camera: int
) -> list[pycolmap.Rigid3d]:
    """cam_from_rig in every frame whose two photographs are in the model."""
    pairs = [(_posed_image(model, frame.get(reference)), _posed_image(model, frame.get(camera))) for frame in frames]
    return [b.cam_from_world() * a.cam_from_world().inverse() for a, b in pairs if a is not None and b is not None]


def _posed_image(model: pycolmap.Reconstruction, image_id: int | None) -> pycolmap.Image | None:
    """An image of a model, or None if it has no pose."""
    return model.images[image_id] if image_id in model.images and model.images[image_id].has_pose else None


def _extent(model: pycolmap.Reconstruction, frames: Sequence[Mapping[int, int]], reference: int) -> float:
    """Median distance of the reference camera's centres from their median."""
    images = [_posed_image(model, frame.get(reference)) for frame in frames]
    centres = np.array([image.projection_center() for image in images if image is not None])
    return float(np.median(np.linalg.norm(centres - np.median(centres, axis=0), axis=1)))


def _mean_relation(
    poses: Sequence[pycolmap.Rigid3d], extent: float, names: tuple[str, str], config: RigConfig
) -> pycolmap.Rigid3d:
    """Mean rotation of the consistent frames, and median position. names: both cameras' names, for messages."""
    rotations = np.array([pose.rotation.matrix() for pose in poses])
    centres = np.array([pose.inverse().translation for pose in poses])
    angles = _angles_deg(rotations)
    turns = angles[int(angles.sum(axis=1).argmin())]
    agree = turns <= 3 * max(float(np.median(turns)), 1e-3)
    middle = np.median(centres[agree], axis=0)
    turn, away = float(np.median(turns)), float(np.median(np.linalg.norm(centres - middle, axis=1)))
    shift = away / extent if extent > 0 else 0.0
    if turn > config.max_turn_deg or shift > config.max_shift:
        raise BadInputError(
            f"rig: {names[1]!r} is not fixed to {names[0]!r}: over {len(poses)} frames its rotation varies by"
            f" {turn:.2g} degrees and its position by {100 * shift:.2g} % of the path; check the names within a frame"
        )
    LOGGER.info(
        "rig: pose of %r relative to %r from %d frames: rotation varies by %.2g degrees, position by %.2g %% of path",
        *(names[1], names[0], len(poses), turn, 100 * shift),
    )
    mean = pycolmap.average_quaternions(
        [p.rotation for p, good in zip(poses, agree, strict=True) if good], [1.0] * int(agree.sum())
    )
    return pycolmap.Rigid3d(mean, -mean.matrix() @ middle)


def _angles_deg(rotations: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, "n n"]:
    """Angles between all rotations, degrees."""
    traces = np.einsum("aij,bij->ab", rotations, rotations)
    return np.degrees(np.arccos(np.clip((traces - 1) / 2, -1, 1)))
