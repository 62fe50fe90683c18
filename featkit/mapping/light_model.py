"""What a COLMAP model says without its keypoints, from its .bin files: poses and cameras, or who sees which point.

pycolmap reads a model whole; a reference model of thousands of images has tens of millions of keypoints, which nothing
here needs. They are passed over on the disk. The layout is COLMAP's (its documentation, "Output Format", binary).
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pycolmap

from featkit.errors import BadInputError
from featkit.log import progress
from featkit.mapping.cameras import to_camera
from featkit.mapping.covisibility import Tracks
from featkit.mapping.reference import Reference
from featkit.store.poses import CAMERA_PARAMS, Intrinsics
from featkit.types import Pose

COUNT = struct.Struct("<Q")
CAMERA = struct.Struct("<IiQQ")  # id, model, width, height; then the model's parameters
IMAGE = struct.Struct("<I7dI")  # id, quaternion w x y z, translation, camera's id; then the name and a zero byte
KEYPOINT_BYTES = 24  # x, y, id of its point
POINT = struct.Struct("<Q3d3BdQ")  # id, xyz, colour, error, length of its track
SEEN = np.dtype([("image", "<u4"), ("keypoint", "<u4")])


def read_light_reference(folder: Path) -> Reference:
    """Poses and cameras of cameras.bin and images.bin. Raises BadInputError for a file that is cut off or is none."""
    cameras = _cameras(folder / "cameras.bin")
    poses: dict[str, Pose] = {}
    ids: dict[str, int] = {}
    for _, name, pose, camera_id in _images(folder / "images.bin"):
        if camera_id not in cameras:
            raise BadInputError(
                f"{folder / 'images.bin'}: {name!r} has camera {camera_id}, which is not in cameras.bin"
            )
        poses[name], ids[name] = pose, camera_id
    if not poses:
        raise BadInputError(f"{folder}: no image of this model has a pose")
    return Reference(poses, cameras, ids)


def read_light_tracks(folder: Path) -> Tracks:
    """Who sees which point, of images.bin and points3D.bin; names in their order. Raises BadInputError."""
    by_name = sorted((name, image_id) for image_id, name, _, _ in _images(folder / "images.bin"))
    place = {image_id: index for index, (_, image_id) in enumerate(by_name)}
    images, lengths = array("i"), array("q", [0])
    with _opened(folder / "points3D.bin") as file:
        (total,) = COUNT.unpack(_take(file, COUNT.size))
        with progress("read model", total, "points") as advance:
            for _ in range(total):
                length = POINT.unpack(_take(file, POINT.size))[-1]
                track = np.frombuffer(_take(file, length * SEEN.itemsize), SEEN)["image"].tolist()
                seen = [place[image_id] for image_id in track if image_id in place]
                images.extend(seen)
                lengths.append(len(seen))
                advance(1)
    return Tracks(tuple(name for name, _ in by_name), np.cumsum(np.array(lengths)), np.array(images, np.int32))


def _cameras(path: Path) -> dict[int, pycolmap.Camera]:
    found = {}
    with _opened(path) as file:
        for _ in range(COUNT.unpack(_take(file, COUNT.size))[0]):
            camera_id, model, width, height = CAMERA.unpack(_take(file, CAMERA.size))
            name = _model_name(model)
            if name not in CAMERA_PARAMS:
                raise BadInputError(f"{path}: camera {camera_id} is of the unknown model {model}")
            number = CAMERA_PARAMS[name]
            params = struct.unpack(f"<{number}d", _take(file, 8 * number))
            found[camera_id] = to_camera(Intrinsics(name, width, height, params), camera_id)
    return found


def _model_name(model: int) -> str:
    """Empty for a number that is no model's."""
    try:
        return str(pycolmap.CameraModelId(model).name)
    except (TypeError, ValueError):
        return ""


def _images(path: Path) -> Iterator[tuple[int, str, Pose, int]]:
    """Id, name, pose and camera's id of every image."""
    with _opened(path) as file:
        for _ in range(COUNT.unpack(_take(file, COUNT.size))[0]):
            image_id, *numbers, camera_id = IMAGE.unpack(_take(file, IMAGE.size))
            name = _name(file)
            pose, length = np.array(numbers), float(np.linalg.norm(numbers[:4]))
            if not (np.all(np.isfinite(pose)) and 0.5 < length < 2.0):
                raise BadInputError(f"{path}: the pose of {name!r} is none")
            (keypoints,) = COUNT.unpack(_take(file, COUNT.size))
            _pass(file, keypoints * KEYPOINT_BYTES)
            yield image_id, name, Pose(pose[:4] / length, pose[4:]), camera_id


def _name(file: BinaryIO) -> str:
    letters = bytearray()
    while (letter := _take(file, 1)) != b"\0":
        letters += letter
    return letters.decode("utf-8")


def _take(file: BinaryIO, size: int) -> bytes:
    data = file.read(size) if size <= _left(file) else b""
    if len(data) < size:
        raise EOFError
    return data


def _pass(file: BinaryIO, size: int) -> None:
    if size > _left(file):
        raise EOFError
    file.seek(size, os.SEEK_CUR)


def _left(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size - file.tell()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """An open file; what goes wrong inside is explained."""
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such file") from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    except (EOFError, OverflowError, UnicodeDecodeError):
        raise BadInputError(f"{path}: cut off, or not a file of a COLMAP model; fetch it again") from None
