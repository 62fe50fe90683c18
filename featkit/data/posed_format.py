"""The two text files of posed pairs (see posed_pairs.py for the folder layout).

img_cam.txt: `name w h fx fy cx cy r11 r12 ... r33 t1 t2 t3`, R row by row, world to camera.
pairs.txt: two names, separated by a space, or by a tab if a name contains a space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from featkit.core.errors import BadInputError
from featkit.data.tree import FileTree

NUMBERS = 18  # numbers per line of img_cam.txt, after the name
SEPARATE = "two image names expected (tab-separated if a name has a space)"


@dataclass(frozen=True)
class CameraTable:
    """Images with their cameras, as in the file. lines: line numbers in the file; sizes: width, height."""

    names: tuple[str, ...]
    lines: Int[np.ndarray, " m"]
    sizes: Int[np.ndarray, "m 2"]
    intrinsics: Float[np.ndarray, "m 3 3"]
    rotations: Float[np.ndarray, "m 3 3"]
    translations: Float[np.ndarray, "m 3"]


def parse_cameras(text: str, where: str) -> CameraTable:
    """Parse img_cam.txt. Raises BadInputError with file and line number."""
    names: dict[str, int] = {}
    rows = []
    for number, line in _content_lines(text):
        fields = line.rsplit(maxsplit=NUMBERS)
        if len(fields) != NUMBERS + 1:
            raise BadInputError(f"{where}:{number}: expected `name w h fx fy cx cy R(9) t(3)`, {NUMBERS} numbers")
        name = fields[0].strip()
        if name in names:
            raise BadInputError(f"{where}:{number}: {name!r} is already in line {names[name]}; remove one")
        try:
            rows.append([float(field) for field in fields[1:]])
        except ValueError:
            raise BadInputError(f"{where}:{number}: {name!r}: a value after the name is not a number") from None
        names[name] = number
    if not rows:
        raise BadInputError(f"{where}: no images in it")
    values, lines = np.array(rows), np.array(list(names.values()))
    bad = ~(np.isfinite(values).all(axis=1) & (values[:, :4] > 0).all(axis=1) & (values[:, :2] % 1 == 0).all(axis=1))
    if bad.any():
        raise BadInputError(
            f"{where}:{lines[bad.argmax()]}: width and height must be positive integers, focal lengths positive,"
            " and all numbers finite"
        )
    intrinsics = np.zeros((len(values), 3, 3))
    intrinsics[:, 0, 0], intrinsics[:, 1, 1], intrinsics[:, 2, 2] = values[:, 2], values[:, 3], 1.0
    intrinsics[:, :2, 2] = values[:, 4:6]
    rotations = values[:, 6:15].reshape(-1, 3, 3)
    return CameraTable(tuple(names), lines, values[:, :2].astype(np.int64), intrinsics, rotations, values[:, 15:])


def parse_pairs(text: str, names: Sequence[str], where: str) -> tuple[Int[np.ndarray, "n 2"], Int[np.ndarray, " n"]]:
    """Parse pairs.txt: indices into `names`, and the line number of each pair. Raises BadInputError."""
    index = {name: i for i, name in enumerate(names)}
    pairs, lines = [], []
    for number, line in _content_lines(text):
        pair = [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]
        if len(pair) != 2 or not all(pair):
            raise BadInputError(f"{where}:{number}: {SEPARATE}")
        unknown = next((name for name in pair if name not in index), None)
        if unknown is not None:
            raise BadInputError(f"{where}:{number}: {unknown!r} has no camera in img_cam.txt; remove the line")
        if pair[0] == pair[1]:
            raise BadInputError(f"{where}:{number}: {pair[0]!r} is paired with itself; remove the line")
        pairs.append((index[pair[0]], index[pair[1]]))
        lines.append(number)
    if not pairs:
        raise BadInputError(f"{where}: no pairs in it; at least one is needed to learn from")
    return np.array(pairs), np.array(lines)


def format_cameras(cameras: CameraTable) -> str:
    """The text of img_cam.txt; parsing it returns exactly the same numbers."""
    lines = []
    for row, name in enumerate(cameras.names):
        k = cameras.intrinsics[row]
        values = [k[0, 0], k[1, 1], k[0, 2], k[1, 2], *cameras.rotations[row].ravel(), *cameras.translations[row]]
        size = f"{cameras.sizes[row, 0]} {cameras.sizes[row, 1]}"
        lines.append(f"{name} {size} {' '.join(repr(float(value)) for value in values)}\n")
    return "".join(lines)


def posed_pairs_text(pairs: Iterable[Sequence[int]], names: Sequence[str]) -> str:
    """The text of pairs.txt. names: those of all images."""
    separator = "\t" if any(len(name.split()) > 1 for name in names) else " "
    return "".join(f"{names[first]}{separator}{names[second]}\n" for first, second in pairs)


def parse_scene_list(text: str, where: str) -> tuple[str, ...]:
    """Unique scene names, one per line; # starts a comment. Raises BadInputError if there are none."""
    names = dict.fromkeys(name for _, line in _content_lines(text) if (name := line.split(" #")[0].strip().strip("/")))
    if not names:
        raise BadInputError(f"{where}: no scene in it; write one name per line, such as 0001")
    return tuple(names)


def read_scene_list(path: Path) -> tuple[str, ...]:
    """The names in a list of scenes. Raises BadInputError."""
    return parse_scene_list(FileTree(path.parent).text(path.name), str(path))


def has_lines(text: str) -> bool:
    """Whether the text has any line that is neither empty nor a comment."""
    return next(_content_lines(text), None) is not None


def _content_lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped
