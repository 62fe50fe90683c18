"""UBC's table (Winder et al., CVPR 2009): FPR95 of every method on the test pairs of every set.

A method that was trained on a set is not tested on it: with three sets this gives the six combinations of training
and test that the papers print.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from featkit.data.patch_set import PatchSet
from featkit.data.phototour import TestPairs, find_pairs, read_pairs, read_phototour
from featkit.errors import BadInputError
from featkit.evaluation.descriptor_distances import indexed_distances
from featkit.evaluation.patch_describers import PatchDescriber, describe_used
from featkit.evaluation.verification import fpr95

SEED = re.compile(r"^(.*?)(-s(\d+))?$")  # of a run's folder


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
    """One measurement. train: set the method was trained on, "" for none. fpr95: share in [0, 1]."""

    method: str
    train: str
    variant: str
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


@dataclass(frozen=True)
class UbcMethod:
    """A row of the table. train: set it was trained on, "" for none; variant: epoch and seed of a run, "" else."""

    name: str
    train: str
    variant: str
    weight: str
    """What `describer` takes: a name or a path."""

    @property
    def label(self) -> str:
        """One name for the row: `hynet`, or `liberty/hynet, best`."""
        return f"{self.train}/{self.name}, {self.variant}" if self.train else self.name

    def learned_scenes(self) -> frozenset[str]:
        """Scenes that a run was trained on, as the summary.json beside its weight has them; none for another weight.

        Raises BadInputError for a summary that cannot be read.
        """
        path = Path(self.weight).parent / "summary.json"
        if not self.train or not path.is_file():
            return frozenset()
        try:
            return frozenset(json.loads(path.read_text(encoding="utf-8"))["data"]["scenes"])
        except (OSError, ValueError, KeyError, TypeError):
            raise BadInputError(f"{path}: not the summary of a training; train it again, or move the run") from None


def find_runs(folder: Path, epochs: Sequence[str] = ("best", "last")) -> list[UbcMethod]:
    """The weights of RUNS/SET/METHOD/{best,last}.safetensors; METHOD may end in -s and a seed. Raises BadInputError."""
    found = []
    for path in sorted(folder.glob("*/*/*.safetensors")):
        if path.stem in epochs:
            name, _, seed = SEED.match(path.parent.name).groups()  # type: ignore[union-attr]
            variant = path.stem if seed is None else f"{path.stem}, seed {seed}"
            found.append(UbcMethod(name, path.parent.parent.name, variant, str(path)))
    if not found:
        raise BadInputError(f"{folder}: no run in it; a run is SET/METHOD/best.safetensors, from `featkit train patch`")
    return found


def evaluate_ubc(
    sets: Sequence[UbcSet], methods: Sequence[UbcMethod], make: Callable[[str], PatchDescriber]
) -> list[UbcScore]:
    """Every method on every set but the one it was trained on. make: descriptor of a `weight`."""
    scores = []
    for method in methods:
        describe = make(method.weight)
        for data in sets:
            if data.name != method.train:
                value = evaluate_pairs(data, describe)
                scores.append(UbcScore(method.name, method.train, method.variant, data.name, value, len(data.pairs)))
    return scores


@dataclass(frozen=True)
class UbcTable:
    """columns: (training set, test set). rows: (method, variant) and FPR95 by column; None: not measured."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, str, tuple[float | None, ...]], ...]

    @staticmethod
    def mean(values: Sequence[float | None]) -> float | None:
        """Mean of a row; None when a cell is missing."""
        return None if any(value is None for value in values) else fmean(v for v in values if v is not None)


def ubc_table(scores: Sequence[UbcScore]) -> UbcTable:
    """The papers' table. A method that is not trained has the same value for every training set.

    Without any method that was trained on one of the sets, the columns are the test sets alone, with "" as the training
    set. A method trained on another set, such as the union, has no row.
    """
    tests = list(dict.fromkeys(score.test for score in scores))
    trains = [test for test in tests if any(score.train == test for score in scores)]
    columns = tuple((train, test) for test in tests for train in trains if train != test)
    columns = columns or tuple(("", test) for test in tests)
    rows: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for score in scores:
        cells = rows.setdefault((score.method, score.variant), {})
        for train, test in columns:
            if test == score.test and score.train in ("", train):
                cells[train, test] = score.fpr95
    lines = ((name, variant, tuple(map(cells.get, columns))) for (name, variant), cells in rows.items() if cells)
    return UbcTable(columns, tuple(lines))
