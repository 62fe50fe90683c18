"""Known poses for triangulation: a COLMAP model, or a poses.txt with its camera."""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pycolmap

from featkit.core.errors import BadInputError, open_input
from featkit.core.log import progress
from featkit.core.types import Pose
from featkit.geometry.poses import rotation_matrix
from featkit.io.camera_models import camera_models
from featkit.io.lists import Intrinsics, read_camera, read_intrinsics_list, read_poses, respelled
from featkit.mapping.cameras import CameraConfig, to_camera, to_pose
from featkit.mapping.covisibility import Tracks
from featkit.mapping.model import is_binary, not_utf8, read_model


@dataclass(frozen=True)
class Reference:
    """World-to-camera poses by image name; cameras by id, and each image's camera id (None: inferred later)."""

    poses: dict[str, Pose]
    cameras: dict[int, pycolmap.Camera] | None
    camera_ids: dict[str, int] | None

    def spelled_as(self, names: Sequence[str]) -> Reference:
        """The same with names spelled as in `names`, if they differ only in Unicode normalization."""
        ids = None if self.camera_ids is None else respelled(self.camera_ids, lambda: names)
        return Reference(respelled(self.poses, lambda: names), self.cameras, ids)


def read_reference(path: Path, config: CameraConfig) -> Reference:
    """Read a COLMAP model folder, or a poses.txt whose camera is `config.params` or in a camera.txt next to it.

    Raises BadInputError.
    """
    if path.is_dir():
        model = read_model(path)
        images = [image for image in model.images.values() if image.has_pose]
        if not images:
            raise BadInputError(f"{path}: no image of this model has a pose")
        return Reference(
            poses={image.name: to_pose(image.cam_from_world()) for image in images},
            cameras=dict(model.cameras),
            camera_ids={image.name: image.camera_id for image in images},
        )
    poses = read_poses(path)
    beside = path.with_name("camera.txt")
    if config.params is None and beside.is_file():
        return _single_camera_reference(poses, read_camera(beside))
    return Reference(poses, None, None)


def _single_camera_reference(poses: dict[str, Pose], intrinsics: Intrinsics) -> Reference:
    return Reference(poses, {1: to_camera(intrinsics, 1)}, dict.fromkeys(poses, 1))


# ----------------------------------------------------------------------------------------------------------------------
# Reading a COLMAP model's .bin files without keypoints: poses and cameras, or tracks.
#
# pycolmap reads complete models; a reference model of thousands of images has tens of millions of keypoints, which are
# not needed here and are skipped in the file. The layout is COLMAP's (its documentation, "Output Format", binary).


COUNT = struct.Struct("<Q")
CAMERA = struct.Struct("<IiQQ")  # id, model, width, height; then the model's parameters
IMAGE = struct.Struct("<I7dI")  # id, quaternion w x y z, translation, camera id; then the name and a zero byte
KEYPOINT_BYTES = 24  # x, y, point id
POINT = struct.Struct("<Q3d3BdQ")  # id, xyz, colour, error, length of its track
SEEN = np.dtype([("image", "<u4"), ("keypoint", "<u4")])


def read_light_reference(folder: Path) -> Reference:
    """Read poses and cameras from cameras.bin and images.bin. Raises BadInputError for a truncated or invalid file."""
    cameras = _read_cameras(folder / "cameras.bin")
    poses: dict[str, Pose] = {}
    ids: dict[str, int] = {}
    for _, name, pose, camera_id in _read_images(folder / "images.bin"):
        if camera_id not in cameras:
            raise BadInputError(
                f"{folder / 'images.bin'}: {name!r} has camera {camera_id}, which is not in cameras.bin"
            )
        poses[name], ids[name] = pose, camera_id
    if not poses:
        raise BadInputError(f"{folder}: no image of this model has a pose")
    return Reference(poses, cameras, ids)


def read_light_tracks(folder: Path) -> Tracks:
    """Read tracks from images.bin and points3D.bin; sorted names. Raises BadInputError."""
    by_name = sorted((name, image_id) for image_id, name, _, _ in _read_images(folder / "images.bin"))
    place = {image_id: index for index, (_, image_id) in enumerate(by_name)}
    images, lengths = array("i"), array("q", [0])
    with _open_binary(folder / "points3D.bin") as file:
        (total,) = COUNT.unpack(_read_bytes(file, COUNT.size))
        with progress("read model", total, "points") as advance:
            for _ in range(total):
                length = POINT.unpack(_read_bytes(file, POINT.size))[-1]
                track = np.frombuffer(_read_bytes(file, length * SEEN.itemsize), SEEN)["image"].tolist()
                seen = [place[image_id] for image_id in track if image_id in place]
                images.extend(seen)
                lengths.append(len(seen))
                advance(1)
    return Tracks(tuple(name for name, _ in by_name), np.cumsum(np.array(lengths)), np.array(images, np.int32))


def _read_cameras(path: Path) -> dict[int, pycolmap.Camera]:
    found = {}
    with _open_binary(path) as file:
        for _ in range(COUNT.unpack(_read_bytes(file, COUNT.size))[0]):
            camera_id, model, width, height = CAMERA.unpack(_read_bytes(file, CAMERA.size))
            name = _model_name(model)
            if name not in camera_models():
                raise BadInputError(f"{path}: camera {camera_id} has the unknown model {model}")
            number = len(camera_models()[name].params)
            params = struct.unpack(f"<{number}d", _read_bytes(file, 8 * number))
            found[camera_id] = to_camera(Intrinsics(name, width, height, params), camera_id)
    return found


def _model_name(model: int) -> str:
    """Name of a camera model; empty for an unknown number."""
    try:
        return str(pycolmap.CameraModelId(model).name)
    except (TypeError, ValueError):
        return ""


def _read_images(path: Path) -> Iterator[tuple[int, str, Pose, int]]:
    """Id, name, pose and camera id of every image."""
    with _open_binary(path) as file:
        for _ in range(COUNT.unpack(_read_bytes(file, COUNT.size))[0]):
            image_id, *numbers, camera_id = IMAGE.unpack(_read_bytes(file, IMAGE.size))
            try:
                name = _read_name(file)
            except UnicodeDecodeError as error:
                raise BadInputError(not_utf8(path, image_id, error.object)) from None
            pose, length = np.array(numbers), float(np.linalg.norm(numbers[:4]))
            if not (np.all(np.isfinite(pose)) and 0.5 < length < 2.0):
                raise BadInputError(f"{path}: the pose of {name!r} is invalid")
            (keypoints,) = COUNT.unpack(_read_bytes(file, COUNT.size))
            _skip_bytes(file, keypoints * KEYPOINT_BYTES)
            yield image_id, name, Pose(pose[:4] / length, pose[4:]), camera_id


def _read_name(file: BinaryIO) -> str:
    letters = bytearray()
    while (letter := _read_bytes(file, 1)) != b"\0":
        letters += letter
    return letters.decode("utf-8")


def _read_bytes(file: BinaryIO, size: int) -> bytes:
    data = file.read(size) if size <= _bytes_left(file) else b""
    if len(data) < size:
        raise EOFError
    return data


def _skip_bytes(file: BinaryIO, size: int) -> None:
    if size > _bytes_left(file):
        raise EOFError
    file.seek(size, os.SEEK_CUR)


def _bytes_left(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size - file.tell()


@contextmanager
def _open_binary(path: Path) -> Iterator[BinaryIO]:
    """Open a file; errors inside the block become BadInputError."""
    try:
        with open_input(path) as file:
            yield file
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such file") from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    except (EOFError, OverflowError, UnicodeDecodeError, MemoryError, struct.error):
        raise BadInputError(f"{path}: cut off, or not a file of a COLMAP model; fetch it again") from None


# ----------------------------------------------------------------------------------------------------------------------
# Poses or tracks of a COLMAP model; binary files are read without keypoints.


def poses_of_model(folder: Path) -> dict[str, Pose]:
    """World-to-camera poses by image name. Raises BadInputError."""
    reference = read_light_reference(folder) if is_binary(folder) else read_reference(folder, CameraConfig())
    return reference.poses


def tracks_of_model(folder: Path) -> Tracks:
    """The images that see each point; sorted names. Raises BadInputError."""
    if is_binary(folder):
        return read_light_tracks(folder)
    model = read_model(folder)
    names = sorted(image.name for image in model.images.values() if image.has_pose)
    place = {name: index for index, name in enumerate(names)}
    by_id = {image.image_id: place[image.name] for image in model.images.values() if image.has_pose}
    seen = [
        [by_id[element.image_id] for element in point.track.elements if element.image_id in by_id]
        for _, point in sorted(model.points3D.items())
    ]
    starts = np.cumsum([0, *map(len, seen)])
    return Tracks(tuple(names), starts, np.array([image for track in seen for image in track], np.int32))


# ----------------------------------------------------------------------------------------------------------------------
# Models in VisualSFM's format NVM_V3: poses by image name, and the images that see each point.
#
#     NVM_V3 [anything]
#     <number of cameras>
#     <name> <focal px> <qw qx qy qz> <centre x y z> <radial distortion> 0      one line each
#     <number of points>
#     <x y z> <r g b> <n> n times: <camera> <feature> <x> <y>                   one line each
#
# A camera line has the rotation from world to camera and the camera CENTRE, so that t = -R c. Focal length and
# distortion are those of VisualSFM's model (distortion maps measured points to ideal ones), and measurements are
# relative to the principal point. They are not read here: cameras come from a list of intrinsics. Further models in the
# file, smaller than the first, are not read.


HEADER = "NVM_V3"
CAMERA_FIELDS = 10  # numbers after an image's name
POINT_FIELDS, SEEN_FIELDS = 7, 4  # numbers of a point, and of each of its observations
MAX_COUNT = 100_000_000  # larger numbers of cameras or points are invalid


@dataclass(frozen=True)
class NvmModel:
    """World-to-camera poses by name, in the order of the file. tracks: None if points were not read."""

    poses: dict[str, Pose]
    tracks: Tracks | None


def read_nvm(path: Path, with_points: bool = True) -> NvmModel:
    """Read the first model of an NVM file, line by line. Raises BadInputError with the line number."""
    with _open_text(path) as lines:
        number, header = lines.next("the header")
        if header.split()[0] != HEADER:
            raise BadInputError(
                f"{path}:{number}: starts with {header[:20]!r}, not {HEADER}; save the model as {HEADER}"
            )
        poses: dict[str, Pose] = {}
        cameras = lines.count("the number of cameras")
        for index in range(cameras):
            number, line = lines.next(f"camera {index + 1} of {cameras}")
            name, pose = _parse_nvm_camera(line, f"{path}:{number}")
            if name in poses:
                raise BadInputError(f"{path}:{number}: {name!r} is listed twice")
            poses[name] = pose
        return NvmModel(poses, _read_nvm_tracks(lines, tuple(poses)) if with_points else None)


def read_nvm_reference(path: Path, intrinsics: Path) -> Reference:
    """Poses of an NVM file, with cameras from a list (`name MODEL width height params...`), one camera per image.

    Raises BadInputError, also for an image of the model that is not in the list.
    """
    poses = read_nvm(path, with_points=False).poses
    listed = read_intrinsics_list(intrinsics)
    without = [name for name in poses if name not in listed]
    if without:
        more = f" and {len(without) - 1} more" if len(without) > 1 else ""
        raise BadInputError(f"{intrinsics}: no camera for {without[0]!r}{more}, an image of {path.name}")
    ids = {name: number for number, name in enumerate(poses, start=1)}
    return Reference(poses, {number: to_camera(listed[name], number) for name, number in ids.items()}, ids)


class _NumberedLines:
    """Non-empty lines of a file, with their numbers."""

    def __init__(self, path: Path, lines: Iterator[str]):
        self.path = path
        self._lines = enumerate(lines, start=1)
        self._last = 0

    def next(self, what: str) -> tuple[int, str]:
        try:
            for number, line in self._lines:
                self._last = number
                if not line.isspace():
                    return number, line
        except UnicodeDecodeError:
            raise BadInputError(f"{self.path}:{self._last + 1}: not a UTF-8 text file") from None
        except OSError as error:
            raise BadInputError(f"{self.path}: cannot be read ({error.strerror})") from None
        raise BadInputError(f"{self.path}:{self._last}: the file ends before {what}; it is cut off")

    def count(self, what: str) -> int:
        number, line = self.next(what)
        text = line.strip()
        if not text.isdecimal() or int(text) > MAX_COUNT:
            raise BadInputError(f"{self.path}:{number}: {what} expected, got {text[:40]!r}")
        return int(text)


@contextmanager
def _open_text(path: Path) -> Iterator[_NumberedLines]:
    try:
        file = TextIOWrapper(open_input(path), encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such file") from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        yield _NumberedLines(path, file)


def _parse_nvm_camera(line: str, where: str) -> tuple[str, Pose]:
    fields = line.rsplit(maxsplit=CAMERA_FIELDS)
    if len(fields) != CAMERA_FIELDS + 1:
        raise BadInputError(f"{where}: expected `name focal qw qx qy qz cx cy cz radial 0`")
    try:
        values = np.array([float(field) for field in fields[1:]])
    except ValueError:
        raise BadInputError(f"{where}: expected {CAMERA_FIELDS} numbers after the image name") from None
    if not np.all(np.isfinite(values)):
        raise BadInputError(f"{where}: a number is not finite")
    qvec, centre = values[1:5], values[5:8]
    length = float(np.linalg.norm(qvec))
    if not 0.5 < length < 2.0:
        raise BadInputError(f"{where}: the quaternion of {fields[0].strip()!r} has length {length:.3g}, not 1")
    return fields[0].strip(), Pose(qvec / length, -rotation_matrix(qvec) @ centre)


def _read_nvm_tracks(lines: _NumberedLines, names: tuple[str, ...]) -> Tracks:
    total = lines.count("the number of points")
    images, lengths = array("i"), array("i", [0])
    with progress("read model", total, "points") as advance:
        for index in range(total):
            number, line = lines.next(f"point {index + 1} of {total}")
            seen = _parse_nvm_observations(line.split(), len(names), f"{lines.path}:{number}")
            images.extend(seen)
            lengths.append(len(seen))
            advance(1)
    return Tracks(names, np.cumsum(np.array(lengths, np.int64)), np.array(images, np.int32))


def _parse_nvm_observations(fields: list[str], cameras: int, where: str) -> list[int]:
    """Indices of the cameras that see a point. Raises BadInputError."""
    try:
        count = int(fields[POINT_FIELDS - 1])
        seen = [int(field) for field in fields[POINT_FIELDS::SEEN_FIELDS]]
    except (IndexError, ValueError):
        raise BadInputError(f"{where}: expected `x y z r g b n` and n times `camera feature x y`") from None
    if count < 0 or len(fields) != POINT_FIELDS + SEEN_FIELDS * count:
        raise BadInputError(
            f"{where}: a point with {count} observations has {POINT_FIELDS + SEEN_FIELDS * count} fields,"
            f" there are {len(fields)}"
        )
    wrong = next((index for index in seen if not 0 <= index < cameras), None)
    if wrong is not None:
        raise BadInputError(f"{where}: seen by camera {wrong}, there are {cameras} (from 0)")
    return seen
