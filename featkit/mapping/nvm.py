"""Models in VisualSFM's format NVM_V3: poses by image name, and which images see each point.

    NVM_V3 [anything]
    <number of cameras>
    <name> <focal px> <qw qx qy qz> <centre x y z> <radial distortion> 0      one line each
    <number of points>
    <x y z> <r g b> <n> n times: <camera> <feature> <x> <y>                   one line each

A line has a rotation from world to camera and the camera's CENTRE, so that t = -R c. Focal length and distortion are in
VisualSFM's own model (the distortion takes measured points to ideal ones), and measurements are relative to the
principal point: none of them is read here; cameras come from a list of intrinsics. A file may hold further models,
smaller than the first; they are not read.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featkit.errors import BadInputError
from featkit.geometry.poses import rotation_matrix
from featkit.log import progress
from featkit.mapping.cameras import to_camera
from featkit.mapping.covisibility import Tracks
from featkit.mapping.reference import Reference
from featkit.store.poses import read_intrinsics_list
from featkit.types import Pose

HEADER = "NVM_V3"
CAMERA_FIELDS = 10  # numbers behind an image's name
POINT_FIELDS, SEEN_FIELDS = 7, 4  # of a point, and of each observation of it
MAX_COUNT = 100_000_000  # more cameras or points than that is no count


@dataclass(frozen=True)
class NvmModel:
    """World-to-camera poses by name, in the order of the file. tracks: None when points were not read."""

    poses: dict[str, Pose]
    tracks: Tracks | None


def read_nvm(path: Path, with_points: bool = True) -> NvmModel:
    """Read the first model of an NVM file, a line at a time. Raises BadInputError that names the line."""
    with _opened(path) as lines:
        number, header = lines.next("the header")
        if header.split()[0] != HEADER:
            raise BadInputError(
                f"{path}:{number}: starts with {header[:20]!r}, not {HEADER}; save the model as {HEADER}"
            )
        poses: dict[str, Pose] = {}
        cameras = lines.count("the number of cameras")
        for index in range(cameras):
            number, line = lines.next(f"camera {index + 1} of {cameras}")
            name, pose = _camera(line, f"{path}:{number}")
            if name in poses:
                raise BadInputError(f"{path}:{number}: {name!r} is in it twice")
            poses[name] = pose
        return NvmModel(poses, _tracks(lines, tuple(poses)) if with_points else None)


def read_nvm_reference(path: Path, intrinsics: Path) -> Reference:
    """Poses of an NVM file with the cameras of a list (`name MODEL width height params...`), one camera per image.

    Raises BadInputError, also for an image of the model that the list does not have.
    """
    poses = read_nvm(path, with_points=False).poses
    listed = read_intrinsics_list(intrinsics)
    without = [name for name in poses if name not in listed]
    if without:
        more = f" and {len(without) - 1} more" if len(without) > 1 else ""
        raise BadInputError(f"{intrinsics}: no camera for {without[0]!r}{more}, an image of {path.name}")
    ids = {name: number for number, name in enumerate(poses, start=1)}
    return Reference(poses, {number: to_camera(listed[name], number) for name, number in ids.items()}, ids)


class _Lines:
    """The lines of a file that are not empty, with their numbers."""

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
def _opened(path: Path) -> Iterator[_Lines]:
    try:
        file = path.open(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such file") from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        yield _Lines(path, file)


def _camera(line: str, where: str) -> tuple[str, Pose]:
    fields = line.rsplit(maxsplit=CAMERA_FIELDS)
    if len(fields) != CAMERA_FIELDS + 1:
        raise BadInputError(f"{where}: expected `name focal qw qx qy qz cx cy cz radial 0`")
    try:
        values = np.array([float(field) for field in fields[1:]])
    except ValueError:
        raise BadInputError(f"{where}: expected {CAMERA_FIELDS} numbers behind the name of the image") from None
    if not np.all(np.isfinite(values)):
        raise BadInputError(f"{where}: a number is not finite")
    qvec, centre = values[1:5], values[5:8]
    length = float(np.linalg.norm(qvec))
    if not 0.5 < length < 2.0:
        raise BadInputError(f"{where}: the quaternion of {fields[0].strip()!r} has length {length:.3g}, not 1")
    return fields[0].strip(), Pose(qvec / length, -rotation_matrix(qvec) @ centre)


def _tracks(lines: _Lines, names: tuple[str, ...]) -> Tracks:
    total = lines.count("the number of points")
    images, lengths = array("i"), array("i", [0])
    with progress("read model", total, "points") as advance:
        for index in range(total):
            number, line = lines.next(f"point {index + 1} of {total}")
            seen = _seen_by(line.split(), len(names), f"{lines.path}:{number}")
            images.extend(seen)
            lengths.append(len(seen))
            advance(1)
    return Tracks(names, np.cumsum(np.array(lengths, np.int64)), np.array(images, np.int32))


def _seen_by(fields: list[str], cameras: int, where: str) -> list[int]:
    """Cameras that see a point. Raises BadInputError."""
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
