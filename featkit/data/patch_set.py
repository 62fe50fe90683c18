"""Patches with class labels: the data on which patch descriptors are trained and tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Int

from featkit.core.errors import BadInputError
from featkit.core.types import PatchArray


@dataclass(frozen=True)
class PatchSet:
    """patches: (n, side, side) grey uint8. classes: equal for patches of one 3D point. scenes: index in `scene_names`.

    Every class belongs to one scene. images: equal for patches of one photograph, -1 if unknown; None: unknown for all.
    magnification: side of the patches divided by their keypoints' scale; None: unknown.
    """

    name: str
    patches: PatchArray
    classes: Int[np.ndarray, " n"]
    scenes: Int[np.ndarray, " n"]
    scene_names: tuple[str, ...]
    images: Int[np.ndarray, " n"] | None = None
    magnification: float | None = None

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class ClassIndex:
    """The members of all classes that are large enough: class c has `members[starts[c] : starts[c] + counts[c]]`."""

    members: Int[np.ndarray, " n"]
    starts: Int[np.ndarray, " c"]
    counts: Int[np.ndarray, " c"]

    def __len__(self) -> int:
        return len(self.starts)

    @staticmethod
    def of(classes: Int[np.ndarray, " n"], at_least: int = 2) -> ClassIndex:
        """Group patches by class, sorted by class and patch; classes with fewer than `at_least` are left out."""
        members = np.argsort(classes, kind="stable")
        ordered = classes[members]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(classes) else np.zeros(0, np.int64)
        counts = np.diff(np.r_[starts, len(classes)])
        keep = counts >= at_least
        return ClassIndex(members, starts[keep], counts[keep])


class _ConcatenatedPatches:
    """Several patch arrays as one; larger patches are reduced to the smallest side when they are read."""

    def __init__(self, parts: Sequence[PatchArray]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        side = min(part.shape[-1] for part in parts)
        self.shape = (int(self._ends[-1]), side, side)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        out = np.empty((len(index), *self.shape[1:]), np.uint8)
        which = np.searchsorted(self._ends, index, side="right")
        for number in np.unique(which):
            rows = np.flatnonzero(which == number)
            first = self._ends[number] - len(self._parts[number])
            part_patches = self._parts[number][index[rows] - first]
            if part_patches.shape[1:] == self.shape[1:]:
                out[rows] = part_patches
                continue
            for place, patch in zip(rows, part_patches, strict=True):
                out[place] = cv2.resize(patch, self.shape[1:], interpolation=cv2.INTER_AREA)
        return out


def union(sets: Sequence[PatchSet], name: str = "union") -> PatchSet:
    """Several sets as one. Classes, scenes and images stay distinct; patches are reduced to the smallest size.

    Raises BadInputError for sets of different magnification.
    """
    magnifications = {s.magnification: s.name for s in sets if s.magnification is not None}
    if len(magnifications) > 1:
        found = ", ".join(f"{name}: {value:g}" for value, name in magnifications.items())
        raise BadInputError(
            f"patches of different size for one keypoint cannot be mixed (magnification: {found}); make them again with"
            " one `data patches --set magnification=...`"
        )
    classes, scenes, images = [], [], []
    names: list[str] = []
    next_class = next_image = 0
    for patch_set in sets:
        _, dense = np.unique(patch_set.classes, return_inverse=True)
        classes.append(dense + next_class)
        next_class += int(dense.max(initial=-1)) + 1
        scenes.append(patch_set.scenes + len(names))
        names.extend(patch_set.scene_names)
        images_of_patches = np.full(len(patch_set), -1) if patch_set.images is None else patch_set.images
        images.append(np.where(images_of_patches < 0, -1, images_of_patches + next_image))
        next_image += int(images_of_patches.max(initial=-1)) + 1
    return PatchSet(
        name,
        _ConcatenatedPatches([s.patches for s in sets]),
        np.concatenate(classes),
        np.concatenate(scenes),
        tuple(names),
        np.concatenate(images),
        next(iter(magnifications), None),
    )
