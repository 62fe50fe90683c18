"""Whether the .bin files of a COLMAP model are as long as they say: pycolmap does not come back from one that was cut.

Counts and lengths are followed from the first byte to the last, nothing else is read. Text files say in a comment how
many lines they have, which pycolmap passes over. The layout is COLMAP's (its documentation, "Output Format", binary;
rigs and frames since 3.12).
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pycolmap

from featkit.errors import BadInputError

COUNT = struct.Struct("<Q")
SHORT_COUNT = struct.Struct("<I")
CAMERA = struct.Struct("<IiQQ")  # id, model, width, height; then the model's parameters, 8 bytes each
IMAGE_BYTES = 64  # id, quaternion, translation, camera's id; then the name and a zero byte, and the keypoints
KEYPOINT_BYTES = 24
POINT_BYTES = 43  # id, xyz, colour, error; then the length of its track
SEEN_BYTES = 8
SENSOR_BYTES = 8  # type, id
POSE_BYTES = 56
FRAME_BYTES = 64  # id, rig's id, pose; then the number of its images
DATA_BYTES = 16
ANNOUNCED = re.compile(r"#\s*Number of \w+: (\d+)")  # in a text file


class _Cut(Exception):
    """The file ends before what it announces."""


def check_whole(folder: Path) -> None:
    """Follow a model folder's .bin files to their ends. Raises BadInputError for one that is cut off or is none."""
    for name, length_of in ITEMS.items():
        path = folder / f"{name}.bin"
        if path.is_file():
            try:
                _follow(path, length_of)
            except OSError as error:
                raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
            except (_Cut, struct.error, ValueError, IndexError):
                raise BadInputError(
                    f"{path}: cut off, or not a file of a COLMAP model; make or copy the model again"
                ) from None


def check_count(path: Path, found: int) -> None:
    """Compare what a text file of a model announces with what was found in it. Raises BadInputError."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.startswith("#"):
                return
            announced = ANNOUNCED.match(line)
            if announced and int(announced[1]) != found:
                raise BadInputError(
                    f"{path}: cut off: {found:,} of the {int(announced[1]):,} it announces; copy the model again"
                )


def _follow(path: Path, length_of: Callable[[mmap.mmap, int], int]) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position, size = COUNT.size, len(data)
        for _ in range(COUNT.unpack_from(data)[0]):
            position += length_of(data, position)
            if position > size:
                raise _Cut


def _camera(data: mmap.mmap, start: int) -> int:
    model = pycolmap.CameraModelId(CAMERA.unpack_from(data, start)[1])  # ValueError for a number that is none
    return CAMERA.size + 8 * len(pycolmap.Camera.create_from_model_id(1, model, 1.0, 1, 1).params)


def _image(data: mmap.mmap, start: int) -> int:
    end = data.find(b"\0", start + IMAGE_BYTES)
    if end < 0:
        raise _Cut
    (keypoints,) = COUNT.unpack_from(data, end + 1)
    return int(end + 1 + COUNT.size + keypoints * KEYPOINT_BYTES - start)


def _point(data: mmap.mmap, start: int) -> int:
    (seen,) = COUNT.unpack_from(data, start + POINT_BYTES)
    return int(POINT_BYTES + COUNT.size + seen * SEEN_BYTES)


def _rig(data: mmap.mmap, start: int) -> int:
    (sensors,) = SHORT_COUNT.unpack_from(data, start + 4)
    length = 8 + (SENSOR_BYTES if sensors else 0)
    for _ in range(1, sensors):
        length += SENSOR_BYTES + 1
        length += POSE_BYTES if data[start + length - 1] else 0
    return length


def _frame(data: mmap.mmap, start: int) -> int:
    (images,) = SHORT_COUNT.unpack_from(data, start + FRAME_BYTES)
    return int(FRAME_BYTES + SHORT_COUNT.size + images * DATA_BYTES)


ITEMS = {"cameras": _camera, "images": _image, "points3D": _point, "rigs": _rig, "frames": _frame}
