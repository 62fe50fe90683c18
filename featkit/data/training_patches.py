"""Patches to train on, whatever they come in: PhotoTour's format, a pack, a release of HPatches, RomePatches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from featkit.core.config import Config, Runtime
from featkit.core.errors import BadInputError
from featkit.data.hpatches import hpatches_patch_set, is_hpatches, is_rome, read_hpatches, read_rome, read_split
from featkit.data.patch_pack import read_patch_data
from featkit.data.patch_set import PatchSet, union

WHOLE = "full"  # HPatches' split in which nothing is for training


class PatchDataConfig(Config):
    """Which part of a benchmark's patches is trained on; PhotoTour folders and packs are always whole."""

    hpatches_split: str = "a"
    """Split of HPatches' splits.json: a, b, c, view or illum; full: all sequences, which leaves none to test on. All
    papers train on the sequences of "a" that its test does not have (DOAP, section 5.2; AdaSample, Fig. 2)."""
    hpatches_splits_file: Runtime[str] = ""
    """The splits.json; empty: found near the data, as `featkit eval patches` finds it."""
    rome_part: Literal["train", "test"] = "train"
    """Half of RomePatches (DOAP, section 5.3)."""


def read_training_patches(paths: Sequence[Path], config: PatchDataConfig | None = None) -> PatchSet:
    """The patches of one or several data sets; several are joined at the smallest of their patch sizes.

    paths: folders in PhotoTour's format, packs (or one set of a pack), folders of hpatches-release, of RomePatches;
    each is told by its files. Raises BadInputError, and UsageError for a split that does not exist.
    """
    sets = [_read(path, config or PatchDataConfig()) for path in paths]
    return sets[0] if len(sets) == 1 else union(sets, "+".join(one.name for one in sets))


def _read(path: Path, config: PatchDataConfig) -> PatchSet:
    if is_rome(path):
        return read_rome(path, config.rome_part).as_patch_set(config.rome_part)
    if not is_hpatches(path):
        return read_patch_data(path)
    data = read_hpatches(path)
    if config.hpatches_split == WHOLE:
        sequences = data.sequences
    else:
        file = Path(config.hpatches_splits_file) if config.hpatches_splits_file else None
        sequences = read_split(data, config.hpatches_split, file)["train"]
    if not sequences:
        raise BadInputError(f"{path}: split {config.hpatches_split!r} has no sequence to train on; choose another one")
    return hpatches_patch_set(data, sequences, f"hpatches-{config.hpatches_split}")
