"""The UBC PhotoTour format (Winder and Brown 2007): memory-mapped bitmaps of 16 x 16 patches, and their text files.

patches0000.bmp ...  1024 x 1024 pixels, 8 bit grey, patches from left to right and from top to bottom.
info.txt             a line per patch: id of its 3D point, id of its image (always 0 in UBC's own data).
m50_N_N_0.txt        N test pairs, half of them matching: patch, its point, 0, patch, its point, 0, 0.
scenes.txt           featkit's optional extension, a line per image id: scene, tab, image. Without it: one scene.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int, UInt8

from featkit.core.errors import BadInputError, open_input
from featkit.data.patch_set import ClassIndex, PatchSet
from featkit.io.artifact import write_bytes, write_text
from featkit.io.atomic import read_json, read_lines

BITMAP, ROW, SIDE = 1024, 16, 64  # px of a bitmap, patches in a row, px of a patch
PER_BITMAP = ROW * ROW
HEADER = struct.Struct("<2sIHHIIiiHHIIiiII")  # BITMAPFILEHEADER and BITMAPINFOHEADER
PALETTE = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, axis=1) * np.array([1, 1, 1, 0], np.uint8)
OFFSET = HEADER.size + PALETTE.size
MAPPED = 128  # bitmaps of a set mapped at a time; a process can usually have 1,024 open files
INFO, SCENES = "info.txt", "scenes.txt"
DATASET = "dataset.json"  # of `featkit data patches`: settings, scenes, counts


@dataclass(frozen=True)
class TestPairs:
    """Pairs of patches (rows of a PatchSet). match: whether both show the same point."""

    __test__ = False  # tells pytest that this is not a test class

    index0: Int[np.ndarray, " n"]
    index1: Int[np.ndarray, " n"]
    match: Bool[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.match)


class MappedPatches:
    """Patches of bitmaps on disk, (n, 64, 64), read on access.

    All bitmaps are checked at construction. At most `MAPPED` are mapped at a time, as each needs an open file and UBC's
    sets have up to 2,475 of them. Safe to read from several threads.
    """

    def __init__(self, paths: Sequence[Path], count: int, writable: bool = False):
        self._bitmaps = [_check_bitmap(path) for path in paths]
        self._mode: Literal["r", "r+"] = "r+" if writable else "r"
        self._mapped: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        self.shape = (count, SIDE, SIDE)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> UInt8[np.ndarray, "b s s"]:
        index = np.asarray(index)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        out = np.empty((len(index), SIDE, SIDE), np.uint8)
        for rows, tiles, places in self._split_by_bitmap(index):
            out[rows] = tiles[places // ROW, places % ROW]
        return out

    def __setitem__(self, index: np.ndarray, patches: UInt8[np.ndarray, "b s s"]) -> None:
        for rows, tiles, places in self._split_by_bitmap(np.asarray(index)):
            tiles[places // ROW, places % ROW] = patches[rows]

    def _split_by_bitmap(self, index: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(rows of `index`, patches of a bitmap, positions in it) for every bitmap that is needed."""
        if len(index) and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"patch {index.max()} of {len(self)}")
        order = np.argsort(index // PER_BITMAP, kind="stable")
        bitmap = index[order] // PER_BITMAP
        for rows in np.split(order, np.flatnonzero(np.diff(bitmap)) + 1):
            if len(rows):
                yield rows, self._bitmap_tiles(int(index[rows[0]]) // PER_BITMAP), index[rows] % PER_BITMAP

    def _bitmap_tiles(self, number: int) -> UInt8[np.ndarray, "16 16 64 64"]:
        """A bitmap's patches as a view of the file."""
        with self._lock:
            if number not in self._mapped:
                self._mapped[number] = self._bitmaps[number].mapped(self._mode)
                if len(self._mapped) > MAPPED:
                    self._mapped.popitem(last=False)
            self._mapped.move_to_end(number)
            return self._mapped[number]


@dataclass(frozen=True)
class _Bitmap:
    """offset: bytes before the pixels. from_bottom: whether the rows are stored from bottom to top."""

    path: Path
    offset: int
    from_bottom: bool

    def mapped(self, mode: Literal["r", "r+"]) -> UInt8[np.ndarray, "16 16 64 64"]:
        try:
            pixels = np.memmap(self.path, np.uint8, mode, self.offset, (BITMAP, BITMAP))
        except (OSError, ValueError) as error:
            raise BadInputError(f"{self.path}: cannot be read ({error})") from None
        upright = pixels[::-1] if self.from_bottom else pixels
        return upright.reshape(ROW, SIDE, ROW, SIDE).transpose(0, 2, 1, 3)


def _check_bitmap(path: Path) -> _Bitmap:
    """Check a bitmap's header and size. Raises BadInputError unless it is a complete bitmap of patches."""
    try:
        with open_input(path) as file:
            head = file.read(OFFSET)
            size = file.seek(0, 2)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    if len(head) < HEADER.size or head[:2] != b"BM":
        raise BadInputError(f"{path}: not a bitmap; copy it again")
    _, _, _, _, offset, _, width, height, _, bits, compression, *_ = HEADER.unpack(head[: HEADER.size])
    if (width, abs(height)) != (BITMAP, BITMAP) or bits != 8 or compression != 0:
        raise BadInputError(
            f"{path}: {width} x {abs(height)} pixels of {bits} bits; expected {BITMAP} x {BITMAP} pixels of 8 bits"
        )
    if size < offset + BITMAP * BITMAP or offset < HEADER.size:
        raise BadInputError(f"{path}: the file is cut off ({size} bytes); copy it again")
    return _Bitmap(path, offset, height > 0)


def bitmap_paths(folder: Path) -> list[Path]:
    """The bitmaps of a folder, in order. Raises BadInputError if there are none or one is missing."""
    if not folder.is_dir():
        raise BadInputError(
            f"{folder}: {'is a file, not a folder of patches' if folder.exists() else 'no such folder'}"
        )
    present = sorted(folder.glob("patches*.bmp"))
    if not present:
        raise BadInputError(f"{folder}: no patches0000.bmp in it; make patches with `featkit data patches`")
    expected = [folder / f"patches{number:04d}.bmp" for number in range(len(present))]
    missing = sorted(set(expected) - set(present))
    if missing:
        raise BadInputError(f"{missing[0]}: missing, though there are {len(present)} bitmaps; copy the folder again")
    return expected


def read_phototour(folder: Path) -> PatchSet:
    """Read a folder in UBC's format; the patches are memory-mapped. Raises BadInputError."""
    paths = bitmap_paths(folder)
    info = read_integers(folder / INFO, (2,))
    if not PER_BITMAP * (len(paths) - 1) < len(info) <= PER_BITMAP * len(paths):
        raise BadInputError(
            f"{folder / INFO}: {len(info)} lines, but the {len(paths)} bitmaps hold"
            f" {PER_BITMAP * (len(paths) - 1) + 1} to {PER_BITMAP * len(paths)} patches"
        )
    if info.min() < 0:
        raise BadInputError(f"{folder / INFO}: line {int(np.argmax((info < 0).any(axis=1))) + 1} has a negative id")
    classes, images = info[:, 0], info[:, 1]
    if len(np.unique(classes)) == len(classes):
        raise BadInputError(f"{folder / INFO}: no point has two patches; unusable for training or testing")
    scenes, names = _read_scenes(folder, images)
    image_ids = images if (folder / SCENES).is_file() else None  # the ids in UBC's own data carry no information
    patches, magnification = MappedPatches(paths, len(info)), _recorded_magnification(folder / DATASET)
    return PatchSet(folder.resolve().name, patches, classes, scenes, names, image_ids, magnification)


def _recorded_magnification(path: Path) -> float | None:
    """The magnification with which `data patches` cut the patches; None for those of others."""
    if not path.is_file():
        return None
    record = read_json(path, "the record of a patch set", "make the patches again, or delete it")
    settings = record.get("settings") if isinstance(record, dict) else None
    value = settings.get("magnification") if isinstance(settings, dict) else None
    return magnification_of(value, path)


def magnification_of(value: Any, path: Path) -> float | None:
    """A recorded magnification; None if there is none. Raises BadInputError for anything but a positive number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise BadInputError(f"{path}: magnification {value!r} is no positive number; make the patches again")
    return float(value)


def read_image_ids(folder: Path) -> Int[np.ndarray, " n"]:
    """The image id of every patch of a folder (all 0 in UBC's own data). Raises BadInputError."""
    return read_integers(folder / INFO, (2,))[:, 1]


def _read_scenes(folder: Path, images: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    path = folder / SCENES
    if not path.is_file():
        return np.zeros(len(images), np.int64), (folder.resolve().name,)
    scene_of_image = [line.split("\t")[0] for _, line in read_lines(path)]
    if images.max() >= len(scene_of_image):
        raise BadInputError(
            f"{path}: {len(scene_of_image)} lines, but {INFO} has an image {images.max()}; copy it again"
        )
    names = tuple(dict.fromkeys(scene_of_image))
    return np.array([names.index(name) for name in scene_of_image], dtype=np.int64)[images], names


def read_integers(path: Path, columns: tuple[int, ...]) -> Int[np.ndarray, "n c"]:
    """A text file of integers with one of these numbers of columns. Raises BadInputError with the line number."""
    rows = []
    for number, line in read_lines(path):
        parts = line.split()
        try:
            rows.append([int(part) for part in parts])
        except ValueError:
            raise BadInputError(f"{path}: line {number} is not a row of integers: {line[:60]!r}") from None
        if len(parts) not in columns or len(parts) != len(rows[0]):
            raise BadInputError(f"{path}: line {number} has {len(parts)} numbers, not {' or '.join(map(str, columns))}")
    if not rows:
        raise BadInputError(f"{path}: is empty")
    return np.array(rows, dtype=np.int64)


def read_phototour_pairs(path: Path, patch_set: PatchSet | None = None) -> TestPairs:
    """Read test pairs. Raises BadInputError; with `patch_set` also for pairs that do not agree with it."""
    rows = read_integers(path, (6, 7))
    index, points = rows[:, [0, 3]], rows[:, [1, 4]]
    if patch_set is not None:
        _check_pairs(path, index, points, patch_set)
    return TestPairs(index[:, 0], index[:, 1], points[:, 0] == points[:, 1])


def _check_pairs(
    path: Path, index: Int[np.ndarray, "n 2"], points: Int[np.ndarray, "n 2"], patch_set: PatchSet
) -> None:
    outside = (index < 0) | (index >= len(patch_set))
    if outside.any():
        line, column = np.argwhere(outside)[0]
        raise BadInputError(f"{path}: names patch {index[line, column]}; {patch_set.name} has {len(patch_set)}")
    wrong = patch_set.classes[index] != points
    if wrong.any():
        line, column = np.argwhere(wrong)[0]
        raise BadInputError(
            f"{path}: says patch {index[line, column]} shows point {points[line, column]}, but {INFO} says"
            f" {patch_set.classes[index[line, column]]}; they are not of one set"
        )


def find_pairs(folder: Path) -> Path:
    """The test pairs of a folder: UBC's file of 100,000 pairs, otherwise the largest m50 file.

    Raises BadInputError.
    """
    official = folder / "m50_100000_100000_0.txt"
    if official.is_file():
        return official
    candidates = [path for path in folder.glob("m50_*_*_0.txt") if path.name.split("_")[1].isdigit()]
    if not candidates:
        raise BadInputError(f"{folder}: no test pairs (m50_100000_100000_0.txt) in it")
    return max(candidates, key=lambda path: int(path.name.split("_")[1]))


def create_bitmaps(folder: Path, count: int) -> MappedPatches:
    """Black bitmaps for `count` patches, to be filled by assignment. Raises BadInputError, NotWritableError."""
    paths = [folder / f"patches{number:04d}.bmp" for number in range(-(-count // PER_BITMAP))]
    size = OFFSET + BITMAP * BITMAP
    head = HEADER.pack(b"BM", size, 0, 0, OFFSET, 40, BITMAP, BITMAP, 1, 8, 0, BITMAP * BITMAP, 2835, 2835, 256, 0)
    for path in paths:
        write_bytes(path, head + PALETTE.tobytes() + bytes(BITMAP * BITMAP))
    return MappedPatches(paths, count, writable=True)


def write_info(folder: Path, classes: Int[np.ndarray, " n"], images: Int[np.ndarray, " n"]) -> Path:
    """Write info.txt."""
    return write_text(
        folder / INFO, "".join(f"{c} {i}\n" for c, i in zip(classes.tolist(), images.tolist(), strict=True))
    )


def write_scenes(folder: Path, images: Sequence[tuple[str, str]]) -> Path:
    """Write scenes.txt: (scene, image name) for every image id."""
    return write_text(folder / SCENES, "".join(f"{scene}\t{image}\n" for scene, image in images))


def write_phototour_pairs(folder: Path, pairs: TestPairs, classes: Int[np.ndarray, " n"]) -> Path:
    """Write m50_N_N_0.txt, named like UBC's: N pairs in total."""
    rows = zip(
        pairs.index0.tolist(), classes[pairs.index0].tolist(), pairs.index1.tolist(), classes[pairs.index1].tolist(),
        strict=True,
    )  # fmt: skip
    name = f"m50_{len(pairs)}_{len(pairs)}_0.txt"
    return write_text(folder / name, "".join(f"{a} {p} 0 {b} {q} 0 0\n" for a, p, b, q in rows))


def write_phototour(folder: Path, patch_set: PatchSet, images: Int[np.ndarray, " n"] | None = None) -> Path:
    """Write a set of 64 x 64 patches. images: image id of each patch; its scene by default."""
    if patch_set.patches.shape[1:] != (SIDE, SIDE):
        raise ValueError(f"patches of {patch_set.patches.shape[1:]} pixels; the format has {SIDE} x {SIDE}")
    bitmaps = create_bitmaps(folder, len(patch_set))
    for start in range(0, len(patch_set), 4 * PER_BITMAP):
        index = np.arange(start, min(start + 4 * PER_BITMAP, len(patch_set)))
        bitmaps[index] = patch_set.patches[index]
    write_info(folder, patch_set.classes, patch_set.scenes if images is None else images)
    if images is None:
        write_scenes(folder, [(name, "-") for name in patch_set.scene_names])
    return folder


# ----------------------------------------------------------------------------------------------------------------------
# Test pairs drawn like UBC's: half are two patches of one point, half are patches of two points of one scene.


def draw_pairs(
    classes: Int[np.ndarray, " n"], scenes: Int[np.ndarray, " n"], count: int, generator: np.random.Generator
) -> TestPairs:
    """Up to `count` pairs, half of them matching, in random order; fewer if there are not enough matching pairs.

    Matching pairs are drawn without replacement; their two patches come from different images if every class has at
    most one patch per image, as in the output of `featkit data patches`.
    """
    first, second = all_matching(classes)
    half = min(count // 2, len(first))
    chosen = generator.permutation(len(first))[:half]
    swap = generator.random(half) < 0.5
    a, b = np.where(swap, second[chosen], first[chosen]), np.where(swap, first[chosen], second[chosen])
    c, d = _draw_non_matching(classes, scenes, half, generator)
    order = generator.permutation(half + len(c))
    match = np.r_[np.ones(half, bool), np.zeros(len(c), bool)]
    return TestPairs(np.r_[a, c][order], np.r_[b, d][order], match[order])


def all_matching(classes: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """All pairs of patches of the same class, each once."""
    index = ClassIndex.of(classes)
    firsts, seconds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for size in np.unique(index.counts):
        a, b = np.triu_indices(int(size), 1)
        starts = index.starts[index.counts == size][:, None]
        firsts.append(index.members[starts + a].ravel())
        seconds.append(index.members[starts + b].ravel())
    return np.concatenate(firsts), np.concatenate(seconds)


def _draw_non_matching(
    classes: Int[np.ndarray, " n"], scenes: Int[np.ndarray, " n"], count: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of different classes in the same scene: a patch drawn uniformly, then another one of its scene."""
    order = np.argsort(scenes, kind="stable")
    starts = np.searchsorted(scenes[order], np.arange(scenes.max(initial=-1) + 2))
    a, b = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for _ in range(100):  # a draw fails with at most the probability of the largest class in its scene
        missing = count - len(a)
        if missing == 0:
            break
        first = generator.integers(0, len(classes), missing)
        low, high = starts[scenes[first]], starts[scenes[first] + 1]
        second = order[low + (generator.random(missing) * (high - low)).astype(np.int64)]
        differ = classes[first] != classes[second]
        a, b = np.r_[a, first[differ]], np.r_[b, second[differ]]
    return a, b
