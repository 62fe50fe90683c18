"""poses.txt: `name qw qx qy qz tx ty tz` a line, world to camera; `camera.txt` and lists of intrinsics.

A name with spaces is legal: the last seven fields are the numbers.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featkit.errors import BadInputError
from featkit.store.artifact import write_text
from featkit.store.text import read_lines
from featkit.types import Pose

# Number of parameters of each COLMAP camera model that featkit takes in a list of intrinsics.
CAMERA_PARAMS = {
    "SIMPLE_PINHOLE": 3,
    "PINHOLE": 4,
    "SIMPLE_RADIAL": 4,
    "RADIAL": 5,
    "OPENCV": 8,
    "FULL_OPENCV": 12,
    "OPENCV_FISHEYE": 8,
    "SIMPLE_RADIAL_FISHEYE": 4,
    "RADIAL_FISHEYE": 5,
    "FOV": 5,
    "THIN_PRISM_FISHEYE": 12,
}
WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Intrinsics:
    """A COLMAP camera: model name, width and height in pixels, parameters in the model's order (COLMAP pixels)."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]


def read_poses(path: Path) -> dict[str, Pose]:
    """World-to-camera poses by image name. Raises BadInputError."""
    poses: dict[str, Pose] = {}
    for number, line in read_lines(path):
        fields = line.rsplit(maxsplit=7)
        if len(fields) != 8:
            raise BadInputError(f"{path}:{number}: expected `name qw qx qy qz tx ty tz`")
        values = _numbers(path, number, fields[1:])
        norm = float(np.linalg.norm(values[:4]))
        if not 0.5 < norm < 2.0:
            raise BadInputError(f"{path}:{number}: the quaternion of {fields[0]!r} has length {norm:.3g}, not 1")
        if fields[0] in poses:
            raise BadInputError(f"{path}:{number}: {fields[0]!r} has a pose already")
        poses[fields[0]] = Pose(qvec=values[:4] / norm, tvec=values[4:])
    if not poses:
        raise BadInputError(f"{path}: no poses in it")
    return poses


def write_poses(path: Path, poses: Mapping[str, Pose]) -> Path:
    """Write poses.txt in the order of `poses`. Raises BadInputError, NotWritableError."""
    return write_text(path, format_poses(poses))


def format_poses(poses: Mapping[str, Pose]) -> str:
    """The content of poses.txt."""
    lines = []
    for name, pose in poses.items():
        numbers = " ".join(f"{value:.9f}" for value in (*pose.qvec, *pose.tvec))
        lines.append(f"{name} {numbers}\n")
    return "".join(lines)


def parse_intrinsics(text: str, where: str) -> Intrinsics:
    """`MODEL width height params...` as written by hloc and COLMAP. Raises BadInputError that begins with `where`."""
    fields = text.split()
    if not fields or fields[0] not in CAMERA_PARAMS:
        raise BadInputError(
            f"{where}: no camera model {fields[0] if fields else ''!r}; one of {', '.join(CAMERA_PARAMS)}"
        )
    expected = CAMERA_PARAMS[fields[0]]
    if len(fields) != 3 + expected:
        raise BadInputError(
            f"{where}: {fields[0]} takes width, height and {expected} parameters; {len(fields) - 1} numbers are given"
        )
    try:
        width, height = int(fields[1]), int(fields[2])
        params = tuple(float(field) for field in fields[3:])
    except ValueError:
        raise BadInputError(f"{where}: width and height are whole numbers, parameters are numbers") from None
    if width <= 0 or height <= 0 or params[0] <= 0 or not np.all(np.isfinite(params)):
        raise BadInputError(f"{where}: size and focal length must be positive, all parameters finite")
    return Intrinsics(fields[0], width, height, params)


def read_camera(path: Path) -> Intrinsics:
    """A file with one line `MODEL width height params...`. Raises BadInputError."""
    for number, line in read_lines(path):
        return parse_intrinsics(line, f"{path}:{number}")
    raise BadInputError(f"{path}: no camera in it")


def read_intrinsics_list(path: Path) -> dict[str, Intrinsics]:
    """hloc's list of queries: `name MODEL width height params...` a line; or a .csv with these as its columns.

    Raises BadInputError.
    """
    cameras: dict[str, Intrinsics] = {}
    for number, name, camera in _csv_rows(path) if path.suffix.lower() == ".csv" else _listed(path):
        if not name:
            raise BadInputError(f"{path}:{number}: expected `name MODEL width height params...`")
        if name in cameras:
            raise BadInputError(f"{path}:{number}: {name!r} has intrinsics already")
        cameras[name] = parse_intrinsics(camera, f"{path}:{number}")
    if not cameras:
        raise BadInputError(f"{path}: no intrinsics in it")
    return cameras


def _listed(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, name, and the rest, of a list."""
    for number, line in read_lines(path):
        yield number, *_split_name(line)


def _csv_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, name, and the rest, of a csv. A first row whose second column is `model` is its heading."""
    numbered = list(read_lines(path))
    try:
        rows = list(csv.reader((line for _, line in numbered), strict=True))
    except csv.Error as error:
        raise BadInputError(f"{path}: not a csv file ({error})") from None
    if len(rows) != len(numbered):
        raise BadInputError(f"{path}: a quoted cell runs over the end of its line; one image a line is expected")
    for index, ((number, _), row) in enumerate(zip(numbered, rows, strict=True)):
        cells = [cell.strip() for cell in row]
        if index == 0 and [cell.lower() for cell in cells[1:2]] == ["model"]:
            continue
        yield number, cells[0], " ".join(cells[1:])


def _split_name(line: str) -> tuple[str, str]:
    """The name may hold spaces: it ends where a camera model's name follows (or after the first word)."""
    for word in list(WORD.finditer(line))[1:]:
        if word.group() in CAMERA_PARAMS:
            return line[: word.start()].strip(), line[word.start() :]
    name, *rest = line.split(maxsplit=1)
    return (name, rest[0]) if rest else ("", "")


def _numbers(path: Path, number: int, fields: list[str]) -> np.ndarray:
    try:
        values = np.array([float(field) for field in fields])
    except ValueError:
        raise BadInputError(f"{path}:{number}: expected numbers after the name, got {' '.join(fields)!r}") from None
    if not np.all(np.isfinite(values)):
        raise BadInputError(f"{path}:{number}: a number is not finite")
    return values
