"""UBC PhotoTour and RomePatches: `featkit eval ubc` and `featkit eval rome`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import numpy as np

from featkit.core.content import Cell, Table
from featkit.core.errors import BadInputError, EmptyResultError
from featkit.data.hpatches import RomePatches, read_rome
from featkit.data.patch_set import PatchSet
from featkit.data.phototour import TestPairs, find_pairs, read_phototour, read_phototour_pairs
from featkit.evaluation.benchmark import Benchmark, Data, Ranked, Result, Work
from featkit.evaluation.metrics import ApRule, average_precision, distance_matrix, fpr95, indexed_distances
from featkit.evaluation.patches import BASELINES, PatchDescriber, describe_used, patch_describer
from featkit.evaluation.published import published_tables
from featkit.weights.files import learned_scenes

# ----------------------------------------------------------------------------------------------------------------------
# Shared by benchmarks of patch descriptors: methods given as names of weights or as a folder of training runs.


SEED = re.compile(r"^(.*?)(-s(\d+))?$")  # name of a run's folder


@dataclass(frozen=True)
class PatchMethod:
    """A row of the table. train: training set, "" for none; variant: epoch and seed of a run, or ""."""

    name: str
    train: str
    variant: str
    weight: str
    """Argument of `patch_describer`: name or path of the weights."""

    @property
    def label(self) -> str:
        """Label of the row: `hynet`, or `liberty/hynet, best`."""
        return f"{self.train}/{self.name}, {self.variant}" if self.train else self.name

    def learned_scenes(self) -> frozenset[str]:
        """Scenes that its weights were trained on; empty for SIFT, and if nothing says so. Raises featkit's errors."""
        return frozenset() if self.weight in BASELINES else learned_scenes(self.weight)


def find_runs(folder: Path, epochs: Sequence[str] = ("best", "last")) -> list[PatchMethod]:
    """The weights RUNS/SET/METHOD/{best,last}.safetensors; METHOD may end in -s and a seed. Raises BadInputError."""
    runs = []
    for path in sorted(folder.glob("*/*/*.safetensors")):
        if path.stem in epochs:
            name, _, seed = SEED.match(path.parent.name).groups()  # type: ignore[union-attr]
            variant = path.stem if seed is None else f"{path.stem}, seed {seed}"
            runs.append(PatchMethod(name, path.parent.parent.name, variant, str(path)))
    if not runs:
        raise BadInputError(f"{folder}: no run in it; a run is SET/METHOD/best.safetensors, from `featkit train patch`")
    return runs


@dataclass(kw_only=True)
class PatchBenchmark(Benchmark[Data, PatchMethod]):
    """published: whether to append tables from papers."""

    default_features = "sift,rootsift"
    published_as: ClassVar[str]
    """Name of its file of published results."""

    published: bool = False

    def printed(self) -> list[Table]:
        """Tables from papers, if requested."""
        return published_tables(self.published_as) if self.published else []

    def methods(self, features: Sequence[str], *, runs: Path | None = None, **reading: Any) -> list[PatchMethod]:
        """The named methods, then the weights in a folder of training runs. Raises UsageError, BadInputError."""
        by_name = [PatchMethod(name, "", "", name) for name in features]
        return by_name + (find_runs(runs) if runs is not None else [])

    def describer(self, method: PatchMethod) -> PatchDescriber:
        """Load the method."""
        return patch_describer(method.weight, self.device)


def percent(share: float | None) -> float | None:
    """Convert a share to %; None stays None."""
    return None if share is None else 100 * share


# ----------------------------------------------------------------------------------------------------------------------
# UBC's table (Winder et al., CVPR 2009): FPR95 of every method on the test pairs of every set.
#
# A method is not tested on its own training set: three sets give the six combinations of training and test set that
# papers report.


@dataclass(frozen=True)
class UbcSet:
    """A patch set and its test pairs."""

    patch_set: PatchSet
    pairs: TestPairs
    pairs_file: Path

    @property
    def name(self) -> str:
        return self.patch_set.name

    @property
    def scenes(self) -> frozenset[str]:
        """Names of its scenes, and its own."""
        return frozenset((self.name, *self.patch_set.scene_names))


@dataclass(frozen=True)
class UbcScore:
    """One measurement. train: the method's training set, "" for none. fpr95: share in [0, 1]."""

    method: str
    train: str
    variant: str
    test: str
    fpr95: float
    pairs: int


def read_ubc(folder: Path, pairs_file: str | None = None) -> UbcSet:
    """A folder in UBC's format with its test pairs, by default the largest (`find_pairs`). Raises BadInputError."""
    patch_set = read_phototour(folder)
    path = folder / pairs_file if pairs_file else find_pairs(folder)
    return UbcSet(patch_set, read_phototour_pairs(path, patch_set), path)


def evaluate_pairs(data: UbcSet, method: PatchDescriber) -> float:
    """FPR95 of a method on the pairs of a set; only patches that occur in pairs are described."""
    pairs = data.pairs
    descriptors, (first, second) = describe_used(method, data.patch_set.patches, [pairs.index0, pairs.index1])
    return fpr95(indexed_distances(descriptors, first, second), pairs.match)


def evaluate_ubc(
    sets: Sequence[UbcSet], methods: Sequence[PatchMethod], make: Callable[[str], PatchDescriber]
) -> tuple[list[UbcScore], dict[str, dict[str, str]]]:
    """Every method on every set but its training set and those with a scene that it was trained on.

    Also by method and set why a set is left out, unless it is the training set. make: loads the descriptor of a
    `weight`. Raises EmptyResultError if nothing is left to measure.
    """
    scores: list[UbcScore] = []
    left_out: dict[str, dict[str, str]] = {}
    for method in methods:
        describe, learned = make(method.weight), method.learned_scenes()
        for data in sets:
            if data.name == method.train:
                continue
            if shared := sorted(learned & data.scenes):
                left_out.setdefault(method.label, {})[data.name] = trained_on(shared)
                continue
            value = evaluate_pairs(data, describe)
            scores.append(UbcScore(method.name, method.train, method.variant, data.name, value, len(data.pairs)))
    if not scores:
        raise EmptyResultError(f"all methods were trained on all of {', '.join(data.name for data in sets)}")
    return scores, left_out


def trained_on(scenes: Sequence[str]) -> str:
    """Why a method is not tested on some scenes, of which there is at least one."""
    return f"trained on {scenes[0]}" + (f" and {len(scenes) - 1} more" if scenes[1:] else "")


@dataclass(frozen=True)
class UbcTable:
    """columns: (training set, test set). rows: (method, variant) and FPR95 by column; None: not measured."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, str, tuple[float | None, ...]], ...]

    @staticmethod
    def mean(values: Sequence[float | None]) -> float | None:
        """Mean of a row; None if a value is missing."""
        return None if any(value is None for value in values) else fmean(v for v in values if v is not None)


def ubc_table(scores: Sequence[UbcScore]) -> UbcTable:
    """The papers' table. A method without training has the same value for every training set.

    If no method was trained on one of the sets, the columns are the test sets only, with "" as the training set. A
    method trained on another set, such as the union, has no row.
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


@dataclass(kw_only=True)
class Ubc(PatchBenchmark[list[UbcSet]]):
    """pairs: file name of the test pairs in each folder; by default the largest m50_*."""

    name = "ubc"
    data_option = "data"
    several = True
    published_as = "ubc"

    pairs: str | None = None

    def find(self, roots: Sequence[Path]) -> list[UbcSet]:
        return [read_ubc(folder, self.pairs) for folder in roots]

    def run(self, data: list[UbcSet], methods: Sequence[PatchMethod], work: Work) -> Result:
        scores, left_out = evaluate_ubc(data, methods, lambda weight: patch_describer(weight, self.device))
        table = ubc_table(scores)
        heads = [f"{train} -> {test}" if train else test for train, test in table.columns]
        rows: list[list[Cell]] = [
            [name, variant or "-", *map(percent, values), percent(table.mean(values))]
            for name, variant, values in table.rows
        ]
        notes = [f"{ubc_set.name}: {len(ubc_set.pairs):,} pairs of {ubc_set.pairs_file.name}" for ubc_set in data]
        notes += [f"{name} not on {test} ({why})" for name, rest in left_out.items() for test, why in rest.items()]
        return Result(
            "UBC PhotoTour",
            numbers={"scores": [asdict(score) for score in scores], "left_out": left_out},
            tables=[Table("FPR95, %", ["method", "weight", *heads, "mean"], rows, "; ".join(notes)), *self.printed()],
            ranking=[
                Ranked(name, "mean FPR95, %", percent(table.mean(values)), "low") for name, _, values in table.rows
            ],
        )


# ----------------------------------------------------------------------------------------------------------------------
# Patch retrieval on RomePatches (Paulin et al., ICCV 2015; DOAP, section 5.3).
#
# Each query is searched among the patches that are not queries; correct are those of its group, 9 of 9,000. The score
# is the mean AP over the 1,000 queries, for the training set and for the test set.


QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class RomeScore:
    """mean_ap: share in [0, 1]."""

    mean_ap: float
    queries: int
    searched: int


def evaluate_rome(data: RomePatches, method: PatchDescriber, rule: ApRule = "trapezoid") -> RomeScore:
    """Mean AP of one set. rule: "trapezoid" as in image retrieval scripts; "precision" is DOAP's eq. 2."""
    descriptors = method.describe(data.patches)
    num = data.num_queries
    aps = []
    for start in range(0, num, QUERIES_AT_ONCE):
        part = slice(start, min(start + QUERIES_AT_ONCE, num))
        distances = distance_matrix(descriptors[part], descriptors[num:])
        relevant = data.labels[part, None] == data.labels[None, num:]
        aps += [average_precision(*row, rule=rule) for row in zip(distances, relevant, strict=True)]
    return RomeScore(float(np.mean(aps)), num, len(descriptors) - num)


class Rome(PatchBenchmark[dict[str, RomePatches]]):
    """Patch retrieval on both sets, training and test."""

    name = "rome"
    published_as = "rome"

    def find(self, roots: Sequence[Path]) -> dict[str, RomePatches]:
        return {part: read_rome(roots[0], part) for part in ("train", "test")}

    def run(self, data: dict[str, RomePatches], methods: Sequence[PatchMethod], work: Work) -> Result:
        scores: dict[str, dict[str, RomeScore]] = {}
        for method in methods:
            describe = self.describer(method)
            scores[method.label] = {part: evaluate_rome(rome, describe) for part, rome in data.items()}
        rows: list[list[Cell]] = [
            [name, *(percent(score.mean_ap) for score in by_part.values())] for name, by_part in scores.items()
        ]
        return Result(
            "RomePatches",
            numbers={
                "scores": {
                    name: {part: asdict(score) for part, score in by_part.items()} for name, by_part in scores.items()
                }
            },
            tables=[Table("RomePatches, mAP, %", ["method", *data], rows), *self.printed()],
            ranking=[
                Ranked(name, "RomePatches test mAP, %", percent(by_part["test"].mean_ap))
                for name, by_part in scores.items()
            ],
        )
