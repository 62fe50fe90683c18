"""HPatches patches (Balntas et al., CVPR 2017) in the layout of hpatches-release.

A folder per sequence, i_* (illumination) or v_* (viewpoint), with 16 images that are columns of 65 x 65 patches:
ref.png from the reference image; e1.png ... e5.png, h1 ... h5, t1 ... t5 from the five others, with easy, hard and
tough geometric noise. Patch k of all 16 shows the same point.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from featkit.data.patch_set import PatchSet
from featkit.errors import BadInputError, UsageError

SIDE = 65  # px
LEVELS = ("e", "h", "t")  # easy, hard, tough
RELEASE = "hpatches-release"
VIEWS = 5
KINDS = ("ref", *(f"{level}{view}" for level in LEVELS for view in range(1, VIEWS + 1)))
SPLIT_PLACES = ("splits.json", "tasks/splits.json", "tasks/splits/splits.json", "python/utils/splits.json")


@dataclass(frozen=True)
class HPatches:
    """A folder of sequences. counts: points of each, by name."""

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
    """The sequences below a folder, or below its hpatches-release. Raises BadInputError."""
    if not root.is_dir():
        raise BadInputError(f"{root}: no such folder; get the data with `featkit data fetch hpatches --out {root}`")
    if (root / RELEASE).is_dir():
        root = root / RELEASE
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[:2] in {"i_", "v_"})
    if not names:
        raise BadInputError(f"{root}: no folder i_* or v_* in it; name the folder {RELEASE}")
    return HPatches(root, {name: _count(root / name / "ref.png") for name in names})


def is_hpatches(folder: Path) -> bool:
    """Whether a folder is meant to be a release of patches, or holds one as hpatches-release."""
    return (folder / RELEASE).is_dir() or any(folder.glob("[iv]_*/ref.png"))


def _count(path: Path) -> int:
    """Points of a sequence, from the size that a PNG states in its first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError:
        raise BadInputError(f"{path}: no such file; this is not the release of patches, or not all of it") from None
    if head[:8] != b"\x89PNG\r\n\x1a\n" or len(head) < 24:
        raise BadInputError(f"{path}: not a PNG image; fetch the data set again")
    width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    if width != SIDE or height % SIDE or not height:
        raise BadInputError(f"{path}: {width} x {height} px is no column of {SIDE} x {SIDE} patches")
    return height // SIDE


def read_split(data: HPatches, split: str, path: Path | None = None) -> dict[str, tuple[str, ...]]:
    """The sequences "train" and "test" of a split of the official splits.json, which is looked for near the data.

    "full": everything is test; it needs no file. Raises UsageError for an unknown split, BadInputError for sequences
    that are not there.
    """
    path = path or find_splits(data.root)
    if path is None:
        if split == "full":
            return {"train": (), "test": data.sequences}
        raise BadInputError(
            f"{data.root}: no splits.json near it; copy it there (`featkit data fetch hpatches`), or take split full"
        )
    known = _splits_of(path)
    if split not in known and split != "full":
        raise UsageError(f"split {split!r}: {path} has {', '.join(known)}")
    chosen = known.get(split, {"test": data.sequences})
    found = {part: tuple(chosen.get(part, ())) for part in ("train", "test")}
    missing = [name for names in found.values() for name in names if name not in data.counts]
    if missing:
        raise BadInputError(
            f"{data.root}: sequence {missing[0]} is not there ({len(missing)} of the split are missing)"
        )
    return found


def find_splits(root: Path) -> Path | None:
    """splits.json in the folder of the data, in the one above, or in a benchmark's repository beside it."""
    for folder in (root, root.parent, root.parent / "hpatches-benchmark", root.parent.parent):
        for place in SPLIT_PLACES:
            if (folder / place).is_file():
                return folder / place
    return None


def _splits_of(path: Path) -> dict[str, dict[str, list[str]]]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: cannot be read as json ({error})") from None
    if not isinstance(known, dict) or not all(
        isinstance(v, dict) and isinstance(v.get("test"), list) for v in known.values()
    ):
        raise BadInputError(f'{path}: not a file of splits: {{"a": {{"train": [...], "test": [...]}}, ...}}')
    return known


def hpatches_patch_set(data: HPatches, sequences: Sequence[str], name: str = "hpatches") -> PatchSet:
    """The patches of some sequences in memory, a class of 16 per point, a scene per sequence: to train on.

    4 KB a patch: 7 GB for the 76 sequences of split "a". Raises BadInputError.
    """
    if not sequences:
        raise BadInputError(f"{data.root}: no sequence to take patches from")
    counts = [data.counts[sequence] for sequence in sequences]
    patches = np.empty((len(KINDS) * sum(counts), SIDE, SIDE), np.uint8)
    classes, scenes = np.empty(len(patches), np.int64), np.empty(len(patches), np.int64)
    end = first = 0
    for number, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
        for kind in KINDS:
            part = slice(end, end + count)
            patches[part] = data.patches(sequence, kind)
            classes[part] = np.arange(first, first + count)
            scenes[part] = number
            end += count
        first += count
    return PatchSet(name, patches, classes, scenes, tuple(sequences))
