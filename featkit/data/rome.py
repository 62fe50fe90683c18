"""RomePatches (Paulin et al., ICCV 2015): 51 x 51 patches of photographs of Rome, in groups of 10 of one 3D point.

Two sets of 10,000 patches, train and test. patch_retrieval_Rome_SET.mat has `patches`; of these the first ones, as many
as `labels_gt` of patch_retrieval_Rome_SET_labels.mat has, are the queries (one of each group), and the others, with
`labels`, are what is searched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from featkit.data.matlab5 import read_matlab
from featkit.data.patch_set import PatchSet
from featkit.errors import BadInputError

Part = Literal["train", "test"]


@dataclass(frozen=True)
class RomePatches:
    """patches: grey. labels: the group of each. The first `num_queries` patches are the queries."""

    patches: UInt8[np.ndarray, "n s s"]
    labels: Int[np.ndarray, " n"]
    num_queries: int

    def as_patch_set(self, part: Part = "train") -> PatchSet:
        """All patches, queries too, to train on; one scene, as the groups' photographs are not told apart."""
        name = f"rome-{part}"
        return PatchSet(name, self.patches, self.labels, np.zeros(len(self.labels), np.int64), (name,))


def is_rome(folder: Path) -> bool:
    """Whether a folder has one of the two sets, or part of it."""
    return any(folder.glob("patch_retrieval_Rome_*.mat"))


def read_rome(folder: Path, part: Part) -> RomePatches:
    """One of the two sets. Raises BadInputError."""
    path = folder / f"patch_retrieval_Rome_{part}.mat"
    labels_path = folder / f"patch_retrieval_Rome_{part}_labels.mat"
    for needed in (path, labels_path):
        if not needed.is_file():
            raise BadInputError(f"{needed}: no such file; get it with `featkit data fetch rome --out {folder}`")
    named = read_matlab(labels_path)
    queries, others = (_array(labels_path, named, name).reshape(-1) for name in ("labels_gt", "labels"))
    labels = np.concatenate([queries, others]).astype(np.int64)
    patches = _grey(path, _array(path, read_matlab(path), "patches"), len(labels))
    if not np.isin(queries, others).all():
        raise BadInputError(f"{labels_path}: a query has no patch of its own group to find; fetch it again")
    return RomePatches(patches, labels, len(queries))


def _array(path: Path, named: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in named:
        raise BadInputError(f"{path}: no array {name!r} in it (there are: {', '.join(named) or 'none'})")
    return named[name]


def _grey(path: Path, patches: np.ndarray, count: int) -> UInt8[np.ndarray, "n s s"]:
    """Patches of any order of axes, grey or RGB, as (n, height, width)."""
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
    whole = ordered.astype(np.float64)
    whole = whole * (255 if whole.max(initial=0) <= 1 else 1)
    values = np.round(whole).clip(0, 255).astype(np.uint8)
    if not colour:
        return np.ascontiguousarray(values.reshape(count, side, side))
    pixels = np.ascontiguousarray(values.reshape(count * side, side, 3))
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).reshape(count, side, side)
