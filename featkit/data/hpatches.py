"""Patch benchmarks: reading HPatches and RomePatches."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from featkit.core.errors import BadInputError, UsageError, open_input
from featkit.data.patch_set import PatchSet
from featkit.io.atomic import read_json

# ----------------------------------------------------------------------------------------------------------------------
# HPatches patches (Balntas et al., CVPR 2017) in the layout of hpatches-release.
#
# A folder per sequence, i_* (illumination) or v_* (viewpoint), with 16 images that are columns of 65 x 65 patches:
# ref.png from the reference image; e1.png ... e5.png, h1 ... h5, t1 ... t5 from the five others, with easy, hard and
# tough geometric noise. Patch k of all 16 images shows the same point.


SIDE = 65  # px
LEVELS = ("e", "h", "t")  # easy, hard, tough
RELEASE = "hpatches-release"
VIEWS = 5
KINDS = ("ref", *(f"{level}{view}" for level in LEVELS for view in range(1, VIEWS + 1)))
SPLIT_PLACES = ("splits.json", "tasks/splits.json", "tasks/splits/splits.json", "python/utils/splits.json")


@dataclass(frozen=True)
class HPatches:
    """A folder of sequences. counts: number of points by sequence name."""

    root: Path
    counts: dict[str, int]

    @property
    def sequences(self) -> tuple[str, ...]:
        return tuple(self.counts)

    def patches(self, sequence: str, kind: str) -> UInt8[np.ndarray, "n 65 65"]:
        """All patches of one image. kind: "ref", "e1" ... "t5". Raises BadInputError."""
        path = self.root / sequence / f"{kind}.png"
        pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if pixels is None:
            what = "not an image that can be read" if path.is_file() else "no such file"
            raise BadInputError(f"{path}: {what}; fetch the data set again")
        count = self.counts[sequence]
        if pixels.shape != (count * SIDE, SIDE):
            height, width = pixels.shape
            raise BadInputError(
                f"{path}: {width} x {height} px, not {SIDE} x {count * SIDE} as ref.png; fetch it again"
            )
        return pixels.reshape(count, SIDE, SIDE)


def read_hpatches(root: Path) -> HPatches:
    """The sequences in a folder, or in its subfolder hpatches-release. Raises BadInputError."""
    if not root.is_dir():
        raise BadInputError(f"{root}: no such folder; get the data with `featkit data fetch hpatches --out {root}`")
    if (root / RELEASE).is_dir():
        root = root / RELEASE
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[:2] in {"i_", "v_"})
    if not names:
        raise BadInputError(f"{root}: no folder i_* or v_* in it; name the folder {RELEASE}")
    return HPatches(root, {name: _point_count(root / name / "ref.png") for name in names})


def is_hpatches(folder: Path) -> bool:
    """Whether a folder looks like the HPatches release, or contains it as hpatches-release."""
    return (folder / RELEASE).is_dir() or any(folder.glob("[iv]_*/ref.png"))


def _point_count(path: Path) -> int:
    """Number of points of a sequence, from the image size in the PNG header."""
    try:
        with open_input(path) as file:
            head = file.read(24)
    except OSError:
        raise BadInputError(f"{path}: no such file; this is not the HPatches release, or it is incomplete") from None
    if head[:8] != b"\x89PNG\r\n\x1a\n" or len(head) < 24:
        raise BadInputError(f"{path}: not a PNG image; fetch the data set again")
    width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    if width != SIDE or height % SIDE or not height:
        raise BadInputError(f"{path}: {width} x {height} px is not a column of {SIDE} x {SIDE} patches")
    return height // SIDE


def read_split(data: HPatches, split: str, path: Path | None = None) -> dict[str, tuple[str, ...]]:
    """The "train" and "test" sequences of a split in the official splits.json, by default searched for near the data.

    "full": all sequences are test; no file is needed. Raises UsageError for an unknown split, BadInputError for missing
    sequences.
    """
    path = path or find_splits(data.root)
    if path is None:
        if split == "full":
            return {"train": (), "test": data.sequences}
        raise BadInputError(
            f"{data.root}: no splits.json near it; copy it there (`featkit data fetch hpatches`), or take split full"
        )
    splits = _read_splits(path)
    if split not in splits and split != "full":
        raise UsageError(f"split {split!r}: {path} has {', '.join(splits)}")
    chosen = splits.get(split, {"test": data.sequences})
    members = {part: tuple(chosen.get(part, ())) for part in ("train", "test")}
    missing = [name for names in members.values() for name in names if name not in data.counts]
    if missing:
        raise BadInputError(
            f"{data.root}: sequence {missing[0]} is not there ({len(missing)} of the split are missing)"
        )
    return members


def find_splits(root: Path) -> Path | None:
    """splits.json in the data folder, in those above it, or in a copy of the benchmark's repository next to it."""
    for folder in (root, root.parent, root.parent / "hpatches-benchmark", root.parent.parent):
        for place in SPLIT_PLACES:
            if (folder / place).is_file():
                return folder / place
    return None


def _read_splits(path: Path) -> dict[str, dict[str, list[str]]]:
    splits = read_json(path, "a file of splits", "fetch it again")
    if not isinstance(splits, dict) or not all(
        isinstance(v, dict) and isinstance(v.get("test"), list) for v in splits.values()
    ):
        raise BadInputError(f'{path}: not a file of splits: {{"a": {{"train": [...], "test": [...]}}, ...}}')
    return splits


def hpatches_patch_set(data: HPatches, sequences: Sequence[str], name: str = "hpatches") -> PatchSet:
    """Load the patches of some sequences for training: a class of 16 patches per point, a scene per sequence.

    4 KB per patch: 7 GB for the 76 sequences of split "a". Raises BadInputError.
    """
    if not sequences:
        raise BadInputError(f"{data.root}: no sequence to take patches from")
    counts = [data.counts[sequence] for sequence in sequences]
    patches = np.empty((len(KINDS) * sum(counts), SIDE, SIDE), np.uint8)
    classes, scenes = np.empty(len(patches), np.int64), np.empty(len(patches), np.int64)
    end = first = 0
    for number, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
        for kind in KINDS:
            rows = slice(end, end + count)
            patches[rows] = data.patches(sequence, kind)
            classes[rows] = np.arange(first, first + count)
            scenes[rows] = number
            end += count
        first += count
    return PatchSet(name, patches, classes, scenes, tuple(sequences))


# ----------------------------------------------------------------------------------------------------------------------
# RomePatches (Paulin et al., ICCV 2015): 51 x 51 patches of photographs of Rome, in groups of 10 per 3D point.
#
# Two sets of 10,000 patches, train and test. patch_retrieval_Rome_SET.mat contains `patches`: first the queries (one of
# each group), whose labels are `labels_gt` in patch_retrieval_Rome_SET_labels.mat, then the database patches that are
# searched, with `labels`.


Part = Literal["train", "test"]


@dataclass(frozen=True)
class RomePatches:
    """patches: grey. labels: the group of each. The first `num_queries` patches are the queries."""

    patches: UInt8[np.ndarray, "n s s"]
    labels: Int[np.ndarray, " n"]
    num_queries: int

    def as_patch_set(self, part: Part = "train") -> PatchSet:
        """All patches, including queries, for training; as one scene, because the source photographs are unknown."""
        name = f"rome-{part}"
        return PatchSet(name, self.patches, self.labels, np.zeros(len(self.labels), np.int64), (name,))


def is_rome(folder: Path) -> bool:
    """Whether a folder contains one of the two sets, or part of it."""
    return any(folder.glob("patch_retrieval_Rome_*.mat"))


def read_rome(folder: Path, part: Part) -> RomePatches:
    """One of the two sets. Raises BadInputError."""
    path = folder / f"patch_retrieval_Rome_{part}.mat"
    labels_path = folder / f"patch_retrieval_Rome_{part}_labels.mat"
    for needed in (path, labels_path):
        if not needed.is_file():
            raise BadInputError(f"{needed}: no such file; get it with `featkit data fetch rome --out {folder}`")
    label_arrays = read_matlab(labels_path)
    queries, others = (_named_array(labels_path, label_arrays, name).reshape(-1) for name in ("labels_gt", "labels"))
    labels = np.concatenate([queries, others]).astype(np.int64)
    patches = _to_grey(path, _named_array(path, read_matlab(path), "patches"), len(labels))
    if not np.isin(queries, others).all():
        raise BadInputError(f"{labels_path}: a query has no patch of its own group to find; fetch it again")
    return RomePatches(patches, labels, len(queries))


def _named_array(path: Path, arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise BadInputError(f"{path}: no array {name!r} in it (there are: {', '.join(arrays) or 'none'})")
    return arrays[name]


def _to_grey(path: Path, patches: np.ndarray, count: int) -> UInt8[np.ndarray, "n s s"]:
    """Patches with axes in any order, grey or RGB, as (n, height, width)."""
    shape = patches.shape
    if count not in shape:
        raise BadInputError(f"{path}: patches of shape {shape}, but {count} labels; the files are not of one set")
    ordered = np.moveaxis(patches, shape.index(count), 0)
    colour = [axis for axis, size in enumerate(ordered.shape) if size == 3 and axis > 0]
    if colour:
        ordered = np.moveaxis(ordered, colour[0], -1)
    channels = 3 if colour else 1
    side = round((ordered[0].size / channels) ** 0.5)
    if ordered.shape[1:] not in {(side, side), (side, side, 3), (side * side,), (side * side, 3)}:
        raise BadInputError(f"{path}: patches of shape {shape}; they are not square, grey or RGB")
    scaled = ordered.astype(np.float64)
    scaled = scaled * (255 if scaled.max(initial=0) <= 1 else 1)
    values = np.round(scaled).clip(0, 255).astype(np.uint8)
    if not colour:
        return np.ascontiguousarray(values.reshape(count, side, side))
    pixels = np.ascontiguousarray(values.reshape(count * side, side, 3))
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).reshape(count, side, side)


# ----------------------------------------------------------------------------------------------------------------------
# Reader for numeric arrays in MATLAB 5 files (.mat, the format before 7.3), in which RomePatches is stored.
#
# A header of 128 bytes is followed by elements: type, length, data. A matrix is an element that contains elements:
# flags, dimensions, name, values. Elements may be compressed with zlib. Numbers are in column-major order.


HEADER, MATRIX, COMPRESSED = 128, 14, 15
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
NUMERIC = range(6, 16)  # array classes: double, single, and the integers
HDF5 = b"\x89HDF"
MAX_BYTES = 4 << 30  # limit of one compressed element


def read_matlab(path: Path) -> dict[str, np.ndarray]:
    """The numeric arrays of a file by name. Raises BadInputError."""
    try:
        with open_input(path) as file:
            content = file.read()
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    if content[:4] == HDF5 or HDF5 in content[512:516]:
        raise BadInputError(f"{path}: a MATLAB 7.3 (HDF5) file, which is not supported; save it with -v7")
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise BadInputError(f"{path}: not a MATLAB file; fetch it again")
    try:
        matrices = [
            _parse_matrix(data, order)
            for kind, data in _iterate_elements(memoryview(content)[HEADER:], order)
            if kind == MATRIX
        ]
    except (zlib.error, ValueError, IndexError, KeyError) as error:
        raise BadInputError(f"{path}: broken ({error}); fetch it again") from None
    return dict(matrix for matrix in matrices if matrix is not None)


def _iterate_elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Iterate over the elements as (type, bytes), decompressed."""
    offset = 0
    while offset + 8 <= len(data):
        word = int(np.frombuffer(data[offset : offset + 4], f"{order}u4")[0])
        if word >> 16:  # small: length and type in one word, then up to 4 bytes
            kind, size, start, step = word & 0xFFFF, word >> 16, offset + 4, 8
        else:
            kind, size = word, int(np.frombuffer(data[offset + 4 : offset + 8], f"{order}u4")[0])
            start, step = offset + 8, 8 + size + (-size % 8 if kind != COMPRESSED else 0)
        if start + size > len(data):
            raise ValueError("cut off")
        content = data[start : start + size]
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            decompressed = unpacker.decompress(content, MAX_BYTES)
            if not unpacker.eof:
                raise ValueError("a compressed element is cut off, or too large")
            yield from _iterate_elements(memoryview(decompressed), order)
        else:
            yield kind, content
        offset += step


def _parse_matrix(data: memoryview, order: str) -> tuple[str, np.ndarray] | None:
    """Name and values; None if the element is not an array of real numbers."""
    parts = list(_iterate_elements(data, order))
    flags = int(np.frombuffer(parts[0][1][:4], f"{order}u4")[0])
    if flags & 0xFF not in NUMERIC or flags & 0x0800:  # a struct or string; complex numbers
        return None
    shape = np.frombuffer(parts[1][1], f"{order}i4").tolist()
    name = bytes(parts[2][1]).decode("ascii", "replace")
    kind, values = parts[3]
    return name, np.frombuffer(values, order + TYPES[kind]).reshape(shape, order="F")
