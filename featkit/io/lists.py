"""Text files with one item per line (pairs, poses, intrinsics, GPS positions, camera centres), and point clouds."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from featkit import __version__
from featkit.core.config import Config
from featkit.core.errors import BadInputError
from featkit.core.types import Pair, Pose
from featkit.geometry.poses import Geodetic, is_on_earth
from featkit.io.artifact import write_bytes, write_described, write_text
from featkit.io.atomic import read_lines, read_stamp
from featkit.io.camera_models import camera_fault, camera_models

T = TypeVar("T")

# ----------------------------------------------------------------------------------------------------------------------
# Spelling of image names in lists and on the disk: macOS decomposes accented letters (NFD), others compose them (NFC).


class Spelling:
    """Maps a name in a list to the image's own name if only the Unicode form differs; other names are unchanged.

    names: returns the images' own names; called once, at the first name that is not ASCII.
    """

    def __init__(self, names: Callable[[], Iterable[str]]):
        self._names = names

    @cached_property
    def _own_and_composed(self) -> tuple[set[str], dict[str, str]]:
        own = set(self._names())
        composed: dict[str, str] = {}
        for name in sorted(own):
            if not name.isascii():
                composed.setdefault(unicodedata.normalize("NFC", name), name)
        return own, composed

    def __call__(self, name: str) -> str:
        if name.isascii():
            return name
        own, composed = self._own_and_composed
        return name if name in own else composed.get(unicodedata.normalize("NFC", name), name)


def respelled(listed: Mapping[str, T], names: Callable[[], Iterable[str]]) -> dict[str, T]:
    """A list with the images' own names (`Spelling`). If a name occurs in both forms, the images' own is used."""
    spelled = Spelling(names)
    by_own_name = {spelled(name): value for name, value in listed.items()}
    return by_own_name | {name: value for name, value in listed.items() if name in by_own_name}


# ----------------------------------------------------------------------------------------------------------------------
# pairs.txt: two image names per line, separated by a space, or by a tab if any name contains a space.
#
# `pairs.json` next to it records the configuration that made it; readers do not need that file.


def read_pairs(
    path: Path, directed: bool = False, spelled: tuple[Callable[[str], str], Callable[[str], str]] = (str, str)
) -> list[Pair]:
    """Pairs in the order of the file; a pair that is listed twice, in either order, is returned once.

    directed: the first name is a query and the second a map image, from two folders that may have equal names; so
    (a, b) and (b, a) are two pairs, and (a, a) is valid. spelled: the `Spelling` of first and second names.
    Raises BadInputError for a missing file, a line without two names, or an image paired with itself.
    """
    pairs: dict[tuple[str, str], Pair] = {}
    known: dict[str, str] = {}  # keeps each name in memory once, even with millions of pairs
    for number, line in read_lines(path):
        names = line.split("\t") if "\t" in line else line.split()
        if len(names) != 2 or not all(name.strip() for name in names):
            raise BadInputError(f"{path}:{number}: two image names expected (tab-separated if a name has a space)")
        name0, name1 = (spell(name.strip()) for spell, name in zip(spelled, names, strict=True))
        name0, name1 = known.setdefault(name0, name0), known.setdefault(name1, name1)
        pair = Pair(name0, name1)
        if pair.name0 == pair.name1 and not directed:
            raise BadInputError(f"{path}:{number}: {pair.name0!r} is paired with itself; remove the line")
        pairs.setdefault((pair.name0, pair.name1) if directed else pair.key(), pair)
    if not pairs:
        raise BadInputError(f"{path}: no pairs in it")
    return list(pairs.values())


def write_pairs(
    path: Path, pairs: Iterable[Pair], config: Config | None = None, extra: Mapping[str, Any] | None = None
) -> Path:
    """Write pairs.txt and pairs.json, atomically.

    config: the configuration that made the pairs; it is written to pairs.json, together with the entries of `extra`.
    Raises NotWritableError, BadInputError for a name that cannot be written to a text file, and for a file that featkit
    did not make.
    """
    described: dict[str, Any] = {"kind": "pairs", "featkit_version": __version__}
    if config is not None:
        described |= {
            "fingerprint": config.fingerprint(),
            "method": type(config).__name__,
            "config": config.result_fields(),
        }
    return write_described(path, format_pairs(pairs), {**described, **(extra or {})})


def format_pairs(pairs: Iterable[Pair]) -> str:
    """The content of pairs.txt. Raises BadInputError for a name that cannot be written to a text file."""
    all_pairs = list(pairs)
    names = [name for pair in all_pairs for name in (pair.name0, pair.name1)]
    for name in names:
        if not _is_readable_name(name):
            raise BadInputError(f"image name {name!r} cannot be used in a text file (tab, leading '#', ...); rename it")
    separator = "\t" if any(len(name.split()) > 1 for name in names) else " "
    return "".join(f"{p.name0}{separator}{p.name1}\n" for p in all_pairs)


def _is_readable_name(name: str) -> bool:
    """Whether a name can be read back from a text file: no tab, line break, zero byte, leading # or outer space."""
    return (
        name == name.strip()
        and name.splitlines() == [name]
        and not {"\t", "\0"} & set(name)
        and name[0] not in "#\ufeff"
    )


def describe_pairs(path: Path) -> dict[str, Any] | None:
    """The description of pairs.txt in pairs.json: fingerprint, method, config and more; None if not made by featkit."""
    described = read_stamp(path.with_suffix(".json"))
    return described if described is not None and described.get("kind") == "pairs" else None


# ----------------------------------------------------------------------------------------------------------------------
# poses.txt: `name qw qx qy qz tx ty tz` per line, world to camera; `camera.txt` and lists of intrinsics.
#
# A name may contain spaces: the last seven fields are the numbers.


WORD = re.compile(r"\S+")
LARGEST_SIDE = 10**6  # px, of any image


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
        values = _parse_numbers(path, number, fields[1:])
        norm = float(np.linalg.norm(values[:4]))
        if not 0.5 < norm < 2.0:
            raise BadInputError(f"{path}:{number}: the quaternion of {fields[0]!r} has length {norm:.3g}, not 1")
        if fields[0] in poses:
            raise BadInputError(f"{path}:{number}: {fields[0]!r} already has a pose")
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
    """`MODEL width height params...` as written by hloc and COLMAP. Raises BadInputError, beginning with `where`."""
    fields, models = text.split(), camera_models()
    if not fields or fields[0] not in models:
        raise BadInputError(f"{where}: no camera model {fields[0] if fields else ''!r}; one of {', '.join(models)}")
    model = models[fields[0]]
    if len(fields) != 3 + len(model.params):
        raise BadInputError(
            f"{where}: {model.name} takes width, height and {len(model.params)} parameters"
            f" ({', '.join(model.params)}); {len(fields) - 1} numbers are given"
        )
    try:
        width, height = int(fields[1]), int(fields[2])
        params = tuple(float(field) for field in fields[3:])
    except ValueError:
        raise BadInputError(f"{where}: width and height must be integers, parameters must be numbers") from None
    is_size_valid = min(width, height) > 0 and max(width, height) <= LARGEST_SIDE
    fault = None if is_size_valid else f"width and height must be positive, up to {LARGEST_SIDE:,}"
    fault = fault or camera_fault(model, (width, height), params)
    if fault:
        raise BadInputError(
            f"{where}: {fault}; correct it ({model.name} takes width, height, {', '.join(model.params)})"
        )
    return Intrinsics(model.name, width, height, params)


def read_camera(path: Path) -> Intrinsics:
    """A file with one line `MODEL width height params...`. Raises BadInputError."""
    for number, line in read_lines(path):
        return parse_intrinsics(line, f"{path}:{number}")
    raise BadInputError(f"{path}: no camera in it")


def read_intrinsics_list(path: Path) -> dict[str, Intrinsics]:
    """hloc's list of queries: `name MODEL width height params...` per line; or a .csv with these columns.

    Raises BadInputError.
    """
    cameras: dict[str, Intrinsics] = {}
    for number, name, camera in _csv_rows(path) if path.suffix.lower() == ".csv" else _list_rows(path):
        if not name:
            raise BadInputError(f"{path}:{number}: expected `name MODEL width height params...`")
        if name in cameras:
            raise BadInputError(f"{path}:{number}: {name!r} already has intrinsics")
        cameras[name] = parse_intrinsics(camera, f"{path}:{number}")
    if not cameras:
        raise BadInputError(f"{path}: no intrinsics in it")
    return cameras


def _list_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, name, rest) of the lines of a list."""
    for number, line in read_lines(path):
        yield number, *_split_name(line)


def _csv_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, name, rest) of the rows of a csv. A first row with `model` in its second column is a header."""
    numbered = list(read_lines(path))
    try:
        rows = list(csv.reader((line for _, line in numbered), strict=True))
    except csv.Error as error:
        raise BadInputError(f"{path}: not a csv file ({error})") from None
    if len(rows) != len(numbered):
        raise BadInputError(f"{path}: a quoted cell continues on the next line; expected one image per line")
    for index, ((number, _), row) in enumerate(zip(numbered, rows, strict=True)):
        cells = [cell.strip() for cell in row]
        if index == 0 and [cell.lower() for cell in cells[1:2]] == ["model"]:
            continue
        yield number, cells[0], " ".join(cells[1:])


def _split_name(line: str) -> tuple[str, str]:
    """Split a line into name and rest. A name may contain spaces: it ends before a camera model (or first space)."""
    for word in list(WORD.finditer(line))[1:]:
        if word.group() in camera_models():
            return line[: word.start()].strip(), line[word.start() :]
    name, *rest = line.split(maxsplit=1)
    return (name, rest[0]) if rest else ("", "")


def _parse_numbers(path: Path, number: int, fields: list[str]) -> np.ndarray:
    try:
        values = np.array([float(field) for field in fields])
    except ValueError:
        raise BadInputError(f"{path}:{number}: expected numbers after the name, got {' '.join(fields)!r}") from None
    if not np.all(np.isfinite(values)):
        raise BadInputError(f"{path}:{number}: a number is not finite")
    return values


# ----------------------------------------------------------------------------------------------------------------------
# Positions by image from a csv: `name,lat,lon[,alt]` per line, in degrees and metres.
#
# A first line with column names is recognised (including `SourceFile,GPSLatitude,GPSLongitude,GPSAltitude` from
# `exiftool -n -csv`) and determines the order of the columns; other columns are ignored.


COLUMNS = {
    "name": ("name", "image", "image_name", "file", "filename", "file_name", "sourcefile"),
    "lat": ("lat", "latitude", "gpslatitude"),
    "lon": ("lon", "lng", "long", "longitude", "gpslongitude"),
    "alt": ("alt", "altitude", "gpsaltitude", "elevation", "height"),
}
EXPECTED = "`name,lat,lon` or `name,lat,lon,alt` expected (degrees north and east, metres)"


def read_gps_csv(path: Path) -> dict[str, Geodetic]:
    """Positions by image name. An image with empty coordinates has none. Raises BadInputError."""
    columns: dict[str, int] | None = None
    positions: dict[str, Geodetic] = {}
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        fields = [field.strip() for field in _split_csv_line(line, where)]
        if columns is None:
            columns = _column_indices(fields)
            if columns is not None:
                continue
            columns = {"name": 0, "lat": 1, "lon": 2, "alt": 3}
            if len(fields) not in (3, 4):
                raise BadInputError(f"{where}: {EXPECTED}")
        name, position = _parse_gps_row(fields, columns, where)
        if name in positions:
            raise BadInputError(f"{where}: {name!r} already has a position")
        if position is not None:
            positions[name] = position
    if not positions:
        raise BadInputError(f"{path}: no positions in it; {EXPECTED}")
    return positions


def _split_csv_line(line: str, where: str) -> list[str]:
    try:
        return next(csv.reader([line], skipinitialspace=True, strict=True))
    except (csv.Error, StopIteration):
        raise BadInputError(f"{where}: not a line of comma-separated values; {EXPECTED}") from None


def _column_indices(fields: list[str]) -> dict[str, int] | None:
    """Column indices, if the line is a header with name, latitude and longitude; otherwise None."""
    lowered = [field.lower() for field in fields]
    columns = {key: next((lowered.index(n) for n in names if n in lowered), -1) for key, names in COLUMNS.items()}
    return columns if min(columns["name"], columns["lat"], columns["lon"]) >= 0 else None


def _parse_gps_row(fields: list[str], columns: dict[str, int], where: str) -> tuple[str, Geodetic | None]:
    needed = max(columns["name"], columns["lat"], columns["lon"])
    if len(fields) <= needed or not fields[columns["name"]]:
        raise BadInputError(f"{where}: {EXPECTED}")
    name = fields[columns["name"]].removeprefix("./")
    latitude, longitude = _parse_number(fields[columns["lat"]], where), _parse_number(fields[columns["lon"]], where)
    altitude = _parse_number(fields[columns["alt"]], where) if 0 <= columns["alt"] < len(fields) else None
    if latitude is None and longitude is None:
        return name, None
    if latitude is None or longitude is None:
        raise BadInputError(f"{where}: {name!r} has one coordinate without the other")
    if not is_on_earth(latitude, longitude):
        raise BadInputError(f"{where}: latitude {latitude:g}, longitude {longitude:g} is not on earth; {EXPECTED}")
    return name, Geodetic(latitude, longitude, altitude)


def _parse_number(field: str, where: str) -> float | None:
    """The number in a field; None if it is empty. Raises BadInputError unless it is a finite number."""
    if not field:
        return None
    try:
        value = float(field)
    except ValueError:
        raise BadInputError(f"{where}: {field!r} is not a number; {EXPECTED}") from None
    if not abs(value) < float("inf"):
        raise BadInputError(f"{where}: {field!r} is not finite")
    return value


# ----------------------------------------------------------------------------------------------------------------------
# Known camera centres: `name x y z` per line, in metres.
#
# A name may contain spaces: the last three fields are the numbers.


def read_references(path: Path) -> dict[str, Float[np.ndarray, "3"]]:
    """Positions by image name, in any right-handed frame. Raises BadInputError."""
    positions: dict[str, Float[np.ndarray, "3"]] = {}
    for number, line in read_lines(path):
        fields = line.rsplit(maxsplit=3)
        if len(fields) != 4:
            raise BadInputError(f"{path}:{number}: expected `name x y z`")
        try:
            position = np.array([float(field) for field in fields[1:]])
        except ValueError:
            raise BadInputError(f"{path}:{number}: expected numbers after the name, got {line!r}") from None
        if not np.all(np.isfinite(position)):
            raise BadInputError(f"{path}:{number}: a number is not finite")
        if fields[0] in positions:
            raise BadInputError(f"{path}:{number}: {fields[0]!r} already has a position")
        positions[fields[0]] = position
    if not positions:
        raise BadInputError(f"{path}: no positions in it; expected `name x y z` per line")
    return positions


# ----------------------------------------------------------------------------------------------------------------------
# Coloured points as a .ply file, which every point cloud viewer opens.


VERTEX = np.dtype([*((axis, "<f8") for axis in "xyz"), *((colour, "u1") for colour in ("red", "green", "blue"))])


def write_ply(path: Path, points: Float[np.ndarray, "n 3"], colours: UInt8[np.ndarray, "n 3"]) -> Path:
    """Write a binary .ply with float64 coordinates (float32 would lose half a metre in geocentric coordinates).

    Written atomically. Raises BadInputError for a file that featkit did not make, NotWritableError.
    """
    rows = np.empty(len(points), VERTEX)
    for index, (axis, colour) in enumerate(zip("xyz", ("red", "green", "blue"), strict=True)):
        rows[axis], rows[colour] = points[:, index], colours[:, index]
    properties = [f"property double {axis}" for axis in "xyz"]
    properties += [f"property uchar {colour}" for colour in ("red", "green", "blue")]
    head = ["ply", "format binary_little_endian 1.0", f"comment featkit {__version__}", f"element vertex {len(points)}"]
    return write_bytes(path, "\n".join([*head, *properties, "end_header", ""]).encode() + rows.tobytes())
