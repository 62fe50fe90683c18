"""HPatches' three tasks (Balntas et al., CVPR 2017, section 5), following the official benchmark.

Verification: ROC AUC over 1M positive and 1M negative pairs (balanced), AP over the first fifth of the positives and
all negatives (imbalanced), with negatives from the same sequence (intra) or from two (inter). Matching: nearest
neighbour of every reference patch in each of the five images; AP over all patches; mean over images, then sequences.
Retrieval: the five patches of a query's point among distractors of other sequences; mean AP over queries, then over
pool sizes. AP uses the trapezoid rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, Shaped

from featkit.core.config import Config, Count, Share
from featkit.core.content import Cell, Table
from featkit.core.log import progress
from featkit.data.hpatches import KINDS, LEVELS, VIEWS, HPatches, read_hpatches, read_split
from featkit.data.hpatches_tasks import (
    DrawnTasksConfig,
    HPatchesTasks,
    PatchPairs,
    ReferencePatches,
    find_or_draw,
    write_tasks,
)
from featkit.evaluation.benchmark import Ranked, Result, Work
from featkit.evaluation.metrics import ap_of_counts, distance_matrix, indexed_distances
from featkit.evaluation.patches import PatchDescriber, matching_ap
from featkit.evaluation.ubc import PatchBenchmark, PatchMethod, percent, trained_on

# ----------------------------------------------------------------------------------------------------------------------
# The three tasks.


Task = Literal["verification", "matching", "retrieval"]
TASKS: tuple[Task, ...] = ("verification", "matching", "retrieval")
QUERIES_AT_ONCE = 128


class HPatchesConfig(Config):
    """Parameters of the tasks; defaults as in hpatches-benchmark."""

    tasks: tuple[Task, ...] = TASKS
    """Tasks to run."""
    imbalanced_share: Share = 0.2
    """Fraction of the positive pairs used by the imbalanced protocol, taken from the start of the list."""
    pool_sizes: tuple[Count, ...] = (100, 500, 1000, 5000, 10_000, 15_000, 20_000)
    """Retrieval: pool sizes, including the five correct patches; if fewer patches exist, all are used."""
    drawn: DrawnTasksConfig = DrawnTasksConfig()
    """How tasks without official files are drawn."""
    ties: Literal["official", "against"] = "official"
    """Retrieval: rank of the correct patch among equal distances. The official script ranks it first, which favours
    binary descriptors; "against" ranks it last, as the official script does in verification."""


@dataclass(frozen=True)
class HPatchesScores:
    """Scores in [0, 1] by level e, h, t; None: not run.

    verification: {level: {"intra"|"inter": {"auc": , "ap": }}}. matching: {level: {"i"|"v": mAP}}.
    retrieval: {level: {pool size: mAP}}. means: one number per task, averaged as in the benchmark's tables.
    """

    verification: dict[str, dict[str, dict[str, float]]] | None
    matching: dict[str, dict[str, float]] | None
    retrieval: dict[str, dict[int, float]] | None
    means: dict[str, float]
    tasks_from: str


@dataclass(frozen=True)
class DescriptorTable:
    """Descriptors of whole sequences in one table. starts: first row of [sequence, kind]; -1: not described."""

    rows: Shaped[np.ndarray, "m d"]
    starts: Int[np.ndarray, "s 16"]
    counts: Int[np.ndarray, " s"]

    def of(self, sequence: int, kind: int) -> Shaped[np.ndarray, "n d"]:
        start = self.starts[sequence, kind]
        return self.rows[start : start + self.counts[sequence]]


def describe_sequences(data: HPatches, sequences: Sequence[str], method: PatchDescriber) -> DescriptorTable:
    """Describe all patches of some sequences."""
    starts = np.full((len(data.sequences), len(KINDS)), -1, np.int64)
    parts, end = [], 0
    with progress(method.name, len(sequences), "sequences") as advance:
        for sequence in sequences:
            for kind, name in enumerate(KINDS):
                part = method.describe(data.patches(sequence, name))
                starts[data.sequences.index(sequence), kind] = end
                parts.append(part)
                end += len(part)
            advance(1)
    return DescriptorTable(np.concatenate(parts), starts, np.array(list(data.counts.values())))


def evaluate_hpatches(
    data: HPatches,
    sequences: Sequence[str],
    tasks: HPatchesTasks,
    method: PatchDescriber,
    config: HPatchesConfig | None = None,
) -> HPatchesScores:
    """Run the tasks on the test sequences of a split."""
    config = config or HPatchesConfig()
    table = describe_sequences(data, sorted({*sequences, *tasks.sequences()}), method)
    verification = matching = retrieval = None
    if "verification" in config.tasks and tasks.positive is not None:
        verification = score_verification(table, tasks, config)
    if "matching" in config.tasks:
        matching = score_matching(table, data, sequences)
    if "retrieval" in config.tasks and tasks.queries is not None and tasks.distractors is not None:
        retrieval = score_retrieval(table, tasks.queries, tasks.distractors, config)
    means = {}
    if verification is not None:
        cases = [case for level in verification.values() for case in level.values()]
        means["verification_auc"] = float(np.mean([case["auc"] for case in cases]))
        means["verification_ap"] = float(np.mean([case["ap"] for case in cases]))
    if matching is not None:
        by_type = {kind: [level[kind] for level in matching.values() if kind in level] for kind in ("i", "v")}
        means["matching"] = float(np.mean([np.mean(values) for values in by_type.values() if values]))
    if retrieval is not None:
        means["retrieval"] = float(np.mean([np.mean(list(sizes.values())) for sizes in retrieval.values()]))
    return HPatchesScores(verification, matching, retrieval, means, tasks.source)


def _kind_index(image: Int[np.ndarray, " n"], level: int) -> Int[np.ndarray, " n"]:
    """Index in KINDS of an image (0 the reference) at a level of noise."""
    return np.where(image == 0, 0, level * VIEWS + image)


def score_verification(
    table: DescriptorTable, tasks: HPatchesTasks, config: HPatchesConfig
) -> dict[str, dict[str, dict[str, float]]]:
    """ROC AUC and AP per level and kind of negatives. At equal distance, negatives come first."""
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for level, name in enumerate(LEVELS):
        assert tasks.positive is not None
        positive_distances = _pair_distances(table, tasks.positive, level)
        imbalanced_distances = positive_distances[: int(len(positive_distances) * config.imbalanced_share)]
        scores[name] = {}
        for kind, pairs in (("intra", tasks.intra), ("inter", tasks.inter)):
            if pairs is None:
                continue
            negative_distances = np.sort(_pair_distances(table, pairs, level))
            before = np.searchsorted(negative_distances, np.sort(positive_distances), side="right")
            auc = 1 - before.mean() / len(negative_distances)
            ap = ap_of_counts(np.searchsorted(negative_distances, np.sort(imbalanced_distances), side="right"))
            scores[name][kind] = {"auc": float(auc), "ap": float(ap)}
    return scores


def _pair_distances(table: DescriptorTable, pairs: PatchPairs, level: int) -> np.ndarray:
    s1, t1, i1, s2, t2, i2 = pairs.rows.T
    first = table.starts[s1, _kind_index(t1, level)] + i1
    second = table.starts[s2, _kind_index(t2, level)] + i2
    return indexed_distances(table.rows, first, second)


def score_matching(table: DescriptorTable, data: HPatches, sequences: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean over images, then over the sequences of each type."""
    aps: dict[str, dict[str, list[float]]] = {level: {} for level in LEVELS}
    with progress("matching", len(sequences), "sequences") as advance:
        for sequence in sequences:
            number = data.sequences.index(sequence)
            for level, name in enumerate(LEVELS):
                scores = [_matching_ap(table, number, level * VIEWS + view) for view in range(1, VIEWS + 1)]
                aps[name].setdefault(sequence[0], []).append(float(np.mean(scores)))
            advance(1)
    return {level: {kind: float(np.mean(values)) for kind, values in kinds.items()} for level, kinds in aps.items()}


def _matching_ap(table: DescriptorTable, sequence: int, kind: int) -> float:
    """AP of the nearest neighbours of the reference patches in one image; the patch of the same index is correct."""
    return matching_ap(table.of(sequence, 0), table.of(sequence, kind))


def score_retrieval(
    table: DescriptorTable, queries: ReferencePatches, distractors: ReferencePatches, config: HPatchesConfig
) -> dict[str, dict[int, float]]:
    """Mean AP over queries, per level and pool size."""
    others = table.rows[table.starts[distractors.rows[:, 0], 0] + distractors.rows[:, 1]]
    sums = np.zeros((len(LEVELS), len(config.pool_sizes)))
    with progress("retrieval", len(queries.rows), "queries") as advance:
        for sequence in np.unique(queries.rows[:, 0]):
            points = queries.rows[queries.rows[:, 0] == sequence, 1]
            pool = others[distractors.rows[:, 0] != sequence]
            for start in range(0, len(points), QUERIES_AT_ONCE):
                part = points[start : start + QUERIES_AT_ONCE]
                sums += _retrieval_aps(table, int(sequence), part, pool, config)
                advance(len(part))
    means = sums / len(queries.rows)
    return {
        level: {size: float(means[row, column]) for column, size in enumerate(config.pool_sizes)}
        for row, level in enumerate(LEVELS)
    }


def _retrieval_aps(
    table: DescriptorTable,
    sequence: int,
    points: Int[np.ndarray, " q"],
    pool: Shaped[np.ndarray, "m d"],
    config: HPatchesConfig,
) -> np.ndarray:
    """Sum of APs over some queries of one sequence, (levels, sizes)."""
    query = table.of(sequence, 0)[points]
    far = distance_matrix(query, pool)
    sums = np.zeros((len(LEVELS), len(config.pool_sizes)))
    for level in range(len(LEVELS)):
        correct = np.stack(
            [table.of(sequence, level * VIEWS + view)[points] for view in range(1, VIEWS + 1)], axis=1
        )  # (q, 5, d)
        near = np.stack([distance_matrix(query[row : row + 1], correct[row])[0] for row in range(len(points))])
        before = _count_ranked_before(np.sort(near, axis=1), far, config)
        sums[level] = ap_of_counts(before).sum(axis=1)
    return sums


def _count_ranked_before(near: np.ndarray, far: np.ndarray, config: HPatchesConfig) -> Int[np.ndarray, "sizes q 5"]:
    """Number of distractors in each pool ranked before each correct patch."""
    ends = [max(0, min(size - VIEWS, far.shape[1])) for size in config.pool_sizes]
    order = np.argsort(ends)
    before = np.zeros((len(ends), *near.shape), np.int64)
    counted, start = np.zeros(near.shape, np.int64), 0
    for place in order:  # each distractor is counted once, in the smallest pool that contains it
        distractors = far[:, start : ends[place]]
        for rank in range(near.shape[1]):
            wins = (
                distractors < near[:, rank, None] if config.ties == "official" else distractors <= near[:, rank, None]
            )
            counted[:, rank] += np.count_nonzero(wins, axis=1)
        start = ends[place]
        before[place] = counted
    return before


# ----------------------------------------------------------------------------------------------------------------------
# The benchmark.


COLUMNS = {
    "verification_ap": "verification mAP",
    "verification_auc": "verification AUC",
    "matching": "matching mAP",
    "retrieval": "retrieval mAP",
}


@dataclass(kw_only=True)
class HpatchesPatches(PatchBenchmark[HPatches]):
    """split: a name in splits.json, or full. splits, tasks: the official files, searched near the data by default.
    write_tasks: folder that drawn tasks are written to."""

    name = "patches"
    Config = HPatchesConfig
    published_as = "hpatches_patches"

    split: str = "a"
    splits: Path | None = None
    tasks: Path | None = None
    write_tasks: Path | None = None

    @staticmethod
    def seeded(seed: int) -> dict[str, dict[str, int]]:
        return {"drawn": {"seed": seed}}

    def find(self, roots: Sequence[Path]) -> HPatches:
        return read_hpatches(roots[0])

    def run(self, data: HPatches, methods: Sequence[PatchMethod], work: Work) -> Result:
        config: HPatchesConfig = self.config
        chosen = read_split(data, self.split, self.splits)["test"]
        generator = np.random.default_rng(config.drawn.seed)
        tasks = find_or_draw(data, chosen, self.split, self.tasks, config.drawn, generator)
        if self.write_tasks is not None:
            write_tasks(self.write_tasks, self.split, tasks)
        usable, left_out = not_trained_on(methods, set(chosen))
        scores = {
            method.label: evaluate_hpatches(data, chosen, tasks, self.describer(method), config) for method in usable
        }
        rows: list[list[Cell]] = [
            [name, *(percent(score.means.get(column)) for column in COLUMNS)] for name, score in scores.items()
        ]
        reasons = (f"left out: {name} ({why})" for name, why in left_out.items())
        note = "; ".join([f"tasks: {tasks.source}", *reasons])
        table = Table(f"HPatches, split {self.split}, %", ["method", *COLUMNS.values()], rows, note)
        return Result(
            "HPatches: verification, matching, retrieval",
            numbers={
                "split": self.split,
                "tasks_from": tasks.source,
                "scores": {name: asdict(score) for name, score in scores.items()},
                "left_out": left_out,
            },
            tables=[table, *self.printed()],
            ranking=[
                Ranked(name, head, percent(score.means.get(column)))
                for name, score in scores.items()
                for column, head in COLUMNS.items()
            ],
        )


def not_trained_on(methods: Sequence[PatchMethod], tested: set[str]) -> tuple[list[PatchMethod], dict[str, str]]:
    """The methods not trained on any tested scene, and why each of the others is left out."""
    usable, left_out = [], {}
    for method in methods:
        shared = sorted(method.learned_scenes() & tested)
        if shared:
            left_out[method.label] = trained_on(shared)
        else:
            usable.append(method)
    return usable, left_out
