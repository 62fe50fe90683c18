"""Reading training patches in any supported format: PhotoTour, patch packs, HPatches, RomePatches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from featkit.core.config import Config, Runtime
from featkit.core.errors import BadInputError
from featkit.data.hpatches import hpatches_patch_set, is_hpatches, is_rome, read_hpatches, read_rome, read_split
from featkit.data.patch_pack import read_patch_data
from featkit.data.patch_set import PatchSet, union

WHOLE = "full"  # HPatches split without training sequences


class PatchDataConfig(Config):
    """Which part of a benchmark's patches is used for training; PhotoTour folders and packs are always used fully."""

    hpatches_split: str = "a"
    """HPatches split in splits.json: a, b, c, view or illum; full: all sequences, which leaves none for testing. All
    papers train on the training sequences of "a" (DOAP, section 5.2; AdaSample, Fig. 2)."""
    hpatches_splits_file: Runtime[str] = ""
    """Path of splits.json; empty: searched for near the data, as in `featkit eval patches`."""
    rome_part: Literal["train", "test"] = "train"
    """Part of RomePatches: train or test (DOAP, section 5.3)."""


def read_training_patches(paths: Sequence[Path], config: PatchDataConfig | None = None) -> PatchSet:
    """The patches of one or several datasets; several are merged, reduced to the smallest of their patch sizes.

    paths: folders in PhotoTour's format, packs (or one set of a pack), folders of hpatches-release or of RomePatches;
    the format is detected from the files. Raises BadInputError, and UsageError for a split that does not exist.
    """
    sets = [_read_patch_set(path, config or PatchDataConfig()) for path in paths]
    return sets[0] if len(sets) == 1 else union(sets, "+".join(patch_set.name for patch_set in sets))


def _read_patch_set(path: Path, config: PatchDataConfig) -> PatchSet:
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
