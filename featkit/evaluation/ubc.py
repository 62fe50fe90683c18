"""UBC's table (Winder et al., CVPR 2009): FPR95 of every method on the test pairs of every set.

A method that was trained on a set is not tested on it: with three sets this gives the six combinations of training
and test that the papers print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featkit.data.patch_set import PatchSet
from featkit.data.phototour import TestPairs, find_pairs, read_pairs, read_phototour
from featkit.evaluation.descriptor_distances import indexed_distances
from featkit.evaluation.patch_describers import PatchDescriber, describe_used
from featkit.evaluation.verification import fpr95


@dataclass(frozen=True)
class UbcSet:
    """A set and its test pairs."""

    patch_set: PatchSet
    pairs: TestPairs
    pairs_file: Path

    @property
    def name(self) -> str:
        return self.patch_set.name


@dataclass(frozen=True)
class UbcScore:
    """One cell of the table. train: set the method was trained on, "" for none. fpr95: share in [0, 1]."""

    method: str
    train: str
    test: str
    fpr95: float
    pairs: int


def read_ubc(folder: Path, pairs_file: str | None = None) -> UbcSet:
    """A folder of UBC's format with its test pairs, by default the largest (`find_pairs`). Raises BadInputError."""
    patch_set = read_phototour(folder)
    path = folder / pairs_file if pairs_file else find_pairs(folder)
    return UbcSet(patch_set, read_pairs(path, patch_set), path)


def evaluate_pairs(data: UbcSet, method: PatchDescriber) -> float:
    """FPR95 of a method on the pairs of a set; only the patches that are in pairs are described."""
    pairs = data.pairs
    descriptors, (first, second) = describe_used(method, data.patch_set.patches, [pairs.index0, pairs.index1])
    return fpr95(indexed_distances(descriptors, first, second), pairs.match)


def evaluate_ubc(sets: Sequence[UbcSet], methods: Mapping[tuple[str, str], PatchDescriber]) -> list[UbcScore]:
    """Every method on every set but its own. methods: by (name, name of the set it was trained on, or "")."""
    return [
        UbcScore(name, train, data.name, evaluate_pairs(data, method), len(data.pairs))
        for (name, train), method in methods.items()
        for data in sets
        if data.name != train
    ]
