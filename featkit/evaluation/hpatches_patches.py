"""HPatches' three tasks (Balntas et al., CVPR 2017, section 5), by the rules of the official benchmark.

Verification: ROC area of 1M matching and 1M other pairs (balanced), and AP of the first fifth of the matching ones with
all others (imbalanced), for others of one sequence (intra) and of two (inter). Matching: nearest neighbour of every
reference patch in each of the five images; AP of those found, of all patches; mean over images, then sequences.
Retrieval: the five patches of a query's point among the first distractors of other sequences; mean AP over queries,
then over the sizes of the pool. AP is the trapezoid one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Shaped

from featkit.core.config import Config, Count, CountOrZero, FactorOrZero, Share
from featkit.core.errors import BadInputError
from featkit.core.log import progress
from featkit.data.hpatches import KINDS, LEVELS, VIEWS, HPatches
from featkit.evaluation.metrics import ap_of_counts, distance_matrix, indexed_distances
from featkit.evaluation.patches import PatchDescriber, matching_ap
from featkit.io.artifact import write_text

# ----------------------------------------------------------------------------------------------------------------------
# What HPatches' tasks compare: the official files of pairs, queries and distractors, or ones drawn by the same rules.
#
# verif_pos_split-X.csv, verif_neg_intra_split-X.csv, verif_neg_inter_split-X.csv: s1,t1,idx1,s2,t2,idx2, where t is the
# image (0 the reference, 1 to 5 the others). retr_queries_split-X.csv, retr_distractors_split-X.csv: s,idx, patches of
# reference images. The matching task needs none.


PAIR_COLUMNS = ("s1", "t1", "idx1", "s2", "t2", "idx2")
PATCH_COLUMNS = ("s", "idx")
PAIR_FILES = {"positive": "verif_pos", "intra": "verif_neg_intra", "inter": "verif_neg_inter"}


class DrawnTasksConfig(Config):
    """Tasks drawn when there are no official files, by the official numbers (fewer when there are not as many)."""

    pairs: Count = 1_000_000
    """Of each kind: positive, negative of one sequence, negative of two."""
    queries: Count = 10_000
    """Retrieval; drawn from patches with enough contrast."""
    distractors: CountOrZero = 20_000
    """Retrieval; never a query."""
    min_deviation: FactorOrZero = 10.0
    """Standard deviation of the grey values (0 to 255) above which a patch can be a query or a distractor."""


@dataclass(frozen=True)
class Pairs:
    """Rows of the columns sequence, image, point, sequence, image, point; sequences as numbers in `names`."""

    rows: Int[np.ndarray, "n 6"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Points:
    """Rows of the columns sequence (a number in `names`), point: patches of reference images."""

    rows: Int[np.ndarray, "n 2"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class HPatchesTasks:
    """What is to be compared; None: this task has no file. source: where it comes from, for the result."""

    source: str
    positive: Pairs | None
    intra: Pairs | None
    inter: Pairs | None
    queries: Points | None
    distractors: Points | None

    def sequences(self) -> set[str]:
        """Names of all sequences that take part."""
        found = set()
        for pairs in (self.positive, self.intra, self.inter):
            if pairs is not None:
                found |= {pairs.names[number] for number in np.unique(pairs.rows[:, [0, 3]])}
        for points in (self.queries, self.distractors):
            if points is not None:
                found |= {points.names[number] for number in np.unique(points.rows[:, 0])}
        return found


def read_tasks(folder: Path, split: str, data: HPatches) -> HPatchesTasks | None:
    """The official task files of a split, each read unchanged; None when the folder has none of them.

    Raises BadInputError for rows that name no patch of the data.
    """
    found: dict[str, Pairs | Points | None] = {}
    for name, stem in {**PAIR_FILES, "queries": "retr_queries", "distractors": "retr_distractors"}.items():
        path = folder / f"{stem}_split-{split}.csv"
        if not path.is_file():
            found[name] = None
        elif name in PAIR_FILES:
            found[name] = Pairs(_read_csv(path, PAIR_COLUMNS, data), data.sequences)
        else:
            found[name] = Points(_read_csv(path, PATCH_COLUMNS, data), data.sequences)
    return HPatchesTasks(str(folder), **found) if any(found.values()) else None  # type: ignore[arg-type]


def find_or_draw(
    data: HPatches,
    sequences: Sequence[str],
    split: str,
    folder: Path | None,
    config: DrawnTasksConfig,
    generator: np.random.Generator,
) -> HPatchesTasks:
    """The official tasks of a split from a folder, or from those near the data; drawn from `sequences` without any.

    Raises BadInputError when a given folder has none.
    """
    near = [folder] if folder else [data.root, data.root / "tasks", data.root.parent / "tasks"]
    near += [] if folder else [data.root.parent / "hpatches-benchmark" / "tasks"]
    found = next((tasks for place in near if place.is_dir() and (tasks := read_tasks(place, split, data))), None)
    if found is None and folder is not None:
        raise BadInputError(f"{folder}: no task file of split {split} in it, as verif_pos_split-{split}.csv")
    verification = found is not None and None not in (found.positive, found.intra, found.inter)
    retrieval = found is not None and None not in (found.queries, found.distractors)
    if found is not None and verification and retrieval:
        return found
    drawn = draw_tasks(data, sequences, config, generator)
    if found is not None and verification:
        source = f"verification from {found.source}, retrieval {drawn.source}"
        return replace(found, queries=drawn.queries, distractors=drawn.distractors, source=source)
    if found is not None and retrieval:
        source = f"retrieval from {found.source}, verification {drawn.source}"
        return replace(drawn, queries=found.queries, distractors=found.distractors, source=source)
    return drawn


def _read_csv(path: Path, columns: Sequence[str], data: HPatches) -> Int[np.ndarray, "n c"]:
    """Rows with the sequences as numbers. Raises BadInputError with the line."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    if not lines or [part.strip() for part in lines[0].split(",")] != list(columns):
        raise BadInputError(f"{path}: the first line is not {','.join(columns)}")
    number = {name: index for index, name in enumerate(data.sequences)}
    of_sequence = [column.startswith("s") for column in columns]
    rows = np.empty((len(lines) - 1, len(columns)), np.int64)
    for row, line in enumerate(lines[1:]):
        parts = line.split(",")
        try:
            rows[row] = [number[part] if named else int(part) for part, named in zip(parts, of_sequence, strict=True)]
        except KeyError as error:
            raise BadInputError(f"{path}: line {row + 2} names the sequence {error}, which {data.root} lacks") from None
        except ValueError:
            raise BadInputError(f"{path}: line {row + 2} is not {','.join(columns)}: {line[:60]!r}") from None
    _check_rows(path, rows, columns, data)
    return rows


def _check_rows(path: Path, rows: np.ndarray, columns: Sequence[str], data: HPatches) -> None:
    counts = np.array(list(data.counts.values()))
    for place, column in enumerate(columns):
        if column.startswith("idx"):
            sequence = rows[:, place - 2 if len(columns) == len(PAIR_COLUMNS) else place - 1]
            wrong = (rows[:, place] < 0) | (rows[:, place] >= counts[sequence])
        elif column.startswith("t"):
            wrong = (rows[:, place] < 0) | (rows[:, place] > VIEWS)
        else:
            continue
        if wrong.any():
            line = int(np.argmax(wrong))
            raise BadInputError(f"{path}: line {line + 2}: {column} {rows[line, place]} is not there in {data.root}")


def draw_tasks(
    data: HPatches, sequences: Sequence[str], config: DrawnTasksConfig, generator: np.random.Generator
) -> HPatchesTasks:
    """Tasks on some sequences by the official rules, with two mends: all six images take part (the official script
    draws five), and a negative of two sequences is never of one."""
    chosen = np.array([data.sequences.index(name) for name in sequences])
    counts = np.array(list(data.counts.values()))
    usable = np.flatnonzero(counts[chosen] > 1)
    if not len(usable):
        raise BadInputError(f"{data.root}: no sequence with two points; nothing can be drawn")
    place = usable[generator.integers(0, len(usable), config.pairs)]
    s = chosen[place]
    point = generator.integers(0, counts[s])
    other_point = (point + generator.integers(1, counts[s])) % counts[s]
    image = generator.integers(0, VIEWS + 1, len(s))
    other_image = (image + generator.integers(1, VIEWS + 1, len(s))) % (VIEWS + 1)
    inter = None
    if len(chosen) > 1:
        other = chosen[(place + generator.integers(1, len(chosen), len(s))) % len(chosen)]
        inter = np.stack([s, image, point, other, other_image, generator.integers(0, counts[other])], axis=1)
    queries, distractors = _draw_points(data, chosen, config, generator)
    names = data.sequences
    return HPatchesTasks(
        f"drawn from {len(chosen)} sequences",
        Pairs(np.stack([s, image, point, s, other_image, point], axis=1), names),
        Pairs(np.stack([s, image, point, s, other_image, other_point], axis=1), names),
        Pairs(inter, names) if inter is not None else None,
        Points(queries, names),
        Points(distractors, names),
    )


def _draw_points(
    data: HPatches, chosen: Int[np.ndarray, " s"], config: DrawnTasksConfig, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Queries and distractors, disjoint. With few patches a third of them are queries."""
    rows = []
    for number in chosen:
        patches = data.patches(data.sequences[number], "ref")
        points = np.flatnonzero(patches.reshape(len(patches), -1).std(axis=1) > config.min_deviation)
        rows.append(np.stack([np.full(len(points), number), points], axis=1))
    pool = generator.permutation(np.concatenate(rows))
    queries = min(config.queries, len(pool) // 3)
    return pool[:queries], pool[queries : queries + config.distractors]


def write_tasks(folder: Path, split: str, tasks: HPatchesTasks) -> None:
    """Write tasks as the official files, so that another toolkit can be run on the same. Raises NotWritableError."""
    for name, stem in PAIR_FILES.items():
        pairs = getattr(tasks, name)
        if pairs is not None:
            lines = (f"{pairs.names[a]},{b},{c},{pairs.names[d]},{e},{f}\n" for a, b, c, d, e, f in pairs.rows.tolist())
            write_text(folder / f"{stem}_split-{split}.csv", ",".join(PAIR_COLUMNS) + "\n" + "".join(lines))
    for points, stem in ((tasks.queries, "retr_queries"), (tasks.distractors, "retr_distractors")):
        if points is not None:
            lines = (f"{points.names[a]},{b}\n" for a, b in points.rows.tolist())
            write_text(folder / f"{stem}_split-{split}.csv", ",".join(PATCH_COLUMNS) + "\n" + "".join(lines))


# ----------------------------------------------------------------------------------------------------------------------
# The three tasks.


Task = Literal["verification", "matching", "retrieval"]
TASKS: tuple[Task, ...] = ("verification", "matching", "retrieval")
QUERIES_AT_ONCE = 128


class HPatchesConfig(Config):
    """Rules of the tasks; the defaults are those of hpatches-benchmark."""

    tasks: tuple[Task, ...] = TASKS
    """Those to run."""
    imbalanced_share: Share = 0.2
    """Share of the matching pairs, from the first on, that the imbalanced protocol takes."""
    pool_sizes: tuple[Count, ...] = (100, 500, 1000, 5000, 10_000, 15_000, 20_000)
    """Retrieval: patches in the list, the five right ones among them; a smaller pool is taken whole."""
    drawn: DrawnTasksConfig = DrawnTasksConfig()
    """Tasks that have no official files."""
    ties: Literal["official", "against"] = "official"
    """Retrieval: of equal distances the official script ranks the right patch first, which favours binary descriptors;
    "against" ranks it last. (In verification the official script ranks it last.)"""


@dataclass(frozen=True)
class HPatchesScores:
    """Shares in [0, 1] by level e, h, t; None: not run.

    verification: {level: {"intra"|"inter": {"auc": , "ap": }}}. matching: {level: {"i"|"v": mAP}}.
    retrieval: {level: {pool size: mAP}}. means: one number per task, averaged as the benchmark's tables are.
    """

    verification: dict[str, dict[str, dict[str, float]]] | None
    matching: dict[str, dict[str, float]] | None
    retrieval: dict[str, dict[int, float]] | None
    means: dict[str, float]
    tasks_from: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "verification": self.verification,
            "matching": self.matching,
            "retrieval": self.retrieval,
            "means": self.means,
            "tasks_from": self.tasks_from,
        }


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


def _kind(image: Int[np.ndarray, " n"], level: int) -> Int[np.ndarray, " n"]:
    """Index in KINDS of an image (0 the reference) at a level of noise."""
    return np.where(image == 0, 0, level * VIEWS + image)


def score_verification(
    table: DescriptorTable, tasks: HPatchesTasks, config: HPatchesConfig
) -> dict[str, dict[str, dict[str, float]]]:
    """ROC area and AP per level and kind of negatives. At equal distance non-matches come first."""
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for level, name in enumerate(LEVELS):
        assert tasks.positive is not None
        near = _pair_distances(table, tasks.positive, level)
        few = near[: int(len(near) * config.imbalanced_share)]
        scores[name] = {}
        for kind, pairs in (("intra", tasks.intra), ("inter", tasks.inter)):
            if pairs is None:
                continue
            far = np.sort(_pair_distances(table, pairs, level))
            before = np.searchsorted(far, np.sort(near), side="right")
            auc = 1 - before.mean() / len(far)
            ap = ap_of_counts(np.searchsorted(far, np.sort(few), side="right"))
            scores[name][kind] = {"auc": float(auc), "ap": float(ap)}
    return scores


def _pair_distances(table: DescriptorTable, pairs: Pairs, level: int) -> np.ndarray:
    s1, t1, i1, s2, t2, i2 = pairs.rows.T
    first = table.starts[s1, _kind(t1, level)] + i1
    second = table.starts[s2, _kind(t2, level)] + i2
    return indexed_distances(table.rows, first, second)


def score_matching(table: DescriptorTable, data: HPatches, sequences: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean over images, then over the sequences of each type."""
    found: dict[str, dict[str, list[float]]] = {level: {} for level in LEVELS}
    with progress("matching", len(sequences), "sequences") as advance:
        for sequence in sequences:
            number = data.sequences.index(sequence)
            for level, name in enumerate(LEVELS):
                scores = [_matching_ap(table, number, level * VIEWS + view) for view in range(1, VIEWS + 1)]
                found[name].setdefault(sequence[0], []).append(float(np.mean(scores)))
            advance(1)
    return {level: {kind: float(np.mean(values)) for kind, values in kinds.items()} for level, kinds in found.items()}


def _matching_ap(table: DescriptorTable, sequence: int, kind: int) -> float:
    """AP of the nearest neighbours of one image's reference patches: right is the patch of the same number."""
    return matching_ap(table.of(sequence, 0), table.of(sequence, kind))


def score_retrieval(
    table: DescriptorTable, queries: Points, distractors: Points, config: HPatchesConfig
) -> dict[str, dict[int, float]]:
    """Mean AP per level and size of the pool, over the queries."""
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
    """Sums of the APs of some queries of one sequence, (levels, sizes)."""
    query = table.of(sequence, 0)[points]
    far = distance_matrix(query, pool)
    sums = np.zeros((len(LEVELS), len(config.pool_sizes)))
    for level in range(len(LEVELS)):
        right = np.stack(
            [table.of(sequence, level * VIEWS + view)[points] for view in range(1, VIEWS + 1)], axis=1
        )  # (q, 5, d)
        near = np.stack([distance_matrix(query[row : row + 1], right[row])[0] for row in range(len(points))])
        before = _ahead(np.sort(near, axis=1), far, config)
        sums[level] = ap_of_counts(before).sum(axis=1)
    return sums


def _ahead(near: np.ndarray, far: np.ndarray, config: HPatchesConfig) -> Int[np.ndarray, "sizes q 5"]:
    """How many distractors of each pool come before each right patch."""
    ends = [max(0, min(size - VIEWS, far.shape[1])) for size in config.pool_sizes]
    order = np.argsort(ends)
    before = np.zeros((len(ends), *near.shape), np.int64)
    counted, start = np.zeros(near.shape, np.int64), 0
    for place in order:  # each distractor is looked at once, in the smallest pool that has it
        part = far[:, start : ends[place]]
        for rank in range(near.shape[1]):
            wins = part < near[:, rank, None] if config.ties == "official" else part <= near[:, rank, None]
            counted[:, rank] += np.count_nonzero(wins, axis=1)
        start = ends[place]
        before[place] = counted
    return before
