"""The HPatches tasks: official files of pairs, queries and distractors, or random ones drawn by the same rules.

verif_pos_split-X.csv, verif_neg_intra_split-X.csv, verif_neg_inter_split-X.csv: s1,t1,idx1,s2,t2,idx2, where t is the
image (0 the reference, 1 to 5 the others). retr_queries_split-X.csv, retr_distractors_split-X.csv: s,idx, patches of
reference images. The matching task needs no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from featkit.core.config import Config, Count, CountOrZero, FactorOrZero, Seed
from featkit.core.errors import BadInputError, blaming, open_input
from featkit.data.hpatches import VIEWS, HPatches
from featkit.io.artifact import write_text

PAIR_COLUMNS = ("s1", "t1", "idx1", "s2", "t2", "idx2")
PATCH_COLUMNS = ("s", "idx")
PAIR_FILES = {"positive": "verif_pos", "intra": "verif_neg_intra", "inter": "verif_neg_inter"}


class DrawnTasksConfig(Config):
    """Tasks drawn at random without official files, in the official numbers (or fewer, if the data has fewer)."""

    pairs: Count = 1_000_000
    """Pairs of each kind: positive, negative within a sequence, negative across sequences."""
    queries: Count = 10_000
    """Retrieval queries, drawn from patches with enough contrast."""
    distractors: CountOrZero = 20_000
    """Retrieval distractors; none is also a query."""
    min_deviation: FactorOrZero = 10.0
    """Standard deviation of the grey values (0 to 255) above which a patch can be a query or a distractor."""
    seed: Seed = 0
    """Random seed of the drawn tasks."""


@dataclass(frozen=True)
class PatchPairs:
    """Rows of sequence, image, point, sequence, image, point; sequences are indices into `names`."""

    rows: Int[np.ndarray, "n 6"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class ReferencePatches:
    """Rows of sequence (an index into `names`), point: patches of reference images."""

    rows: Int[np.ndarray, "n 2"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class HPatchesTasks:
    """The pairs and patches of the tasks; None: no file for this task. source: their origin, for the result."""

    source: str
    positive: PatchPairs | None
    intra: PatchPairs | None
    inter: PatchPairs | None
    queries: ReferencePatches | None
    distractors: ReferencePatches | None

    def sequences(self) -> set[str]:
        """Names of all sequences that occur."""
        used = set()
        for pairs in (self.positive, self.intra, self.inter):
            if pairs is not None:
                used |= {pairs.names[number] for number in np.unique(pairs.rows[:, [0, 3]])}
        for points in (self.queries, self.distractors):
            if points is not None:
                used |= {points.names[number] for number in np.unique(points.rows[:, 0])}
        return used


def read_tasks(folder: Path, split: str, data: HPatches) -> HPatchesTasks | None:
    """The official task files of a split, unchanged; None if the folder has none of them.

    Raises BadInputError for rows that refer to patches missing from the data.
    """
    tables: dict[str, PatchPairs | ReferencePatches | None] = {}
    for name, stem in {**PAIR_FILES, "queries": "retr_queries", "distractors": "retr_distractors"}.items():
        path = folder / f"{stem}_split-{split}.csv"
        if not path.is_file():
            tables[name] = None
        elif name in PAIR_FILES:
            tables[name] = PatchPairs(_read_csv(path, PAIR_COLUMNS, data), data.sequences)
        else:
            tables[name] = ReferencePatches(_read_csv(path, PATCH_COLUMNS, data), data.sequences)
    return HPatchesTasks(str(folder), **tables) if any(tables.values()) else None  # type: ignore[arg-type]


def find_or_draw(
    data: HPatches,
    sequences: Sequence[str],
    split: str,
    folder: Path | None,
    config: DrawnTasksConfig,
    generator: np.random.Generator,
) -> HPatchesTasks:
    """The official tasks of a split, from `folder` or from folders near the data; else drawn from `sequences`.

    Raises BadInputError if `folder` is given and has none.
    """
    near = [folder] if folder else [data.root, data.root / "tasks", data.root.parent / "tasks"]
    near += [] if folder else [data.root.parent / "hpatches-benchmark" / "tasks"]
    official = next((tasks for place in near if place.is_dir() and (tasks := read_tasks(place, split, data))), None)
    if official is None and folder is not None:
        raise BadInputError(f"{folder}: no task file of split {split} in it, as verif_pos_split-{split}.csv")
    verification = official is not None and None not in (official.positive, official.intra, official.inter)
    retrieval = official is not None and None not in (official.queries, official.distractors)
    if official is not None and verification and retrieval:
        return official
    drawn = draw_tasks(data, sequences, config, generator)
    if official is not None and verification:
        source = f"verification from {official.source}, retrieval {drawn.source}"
        return replace(official, queries=drawn.queries, distractors=drawn.distractors, source=source)
    if official is not None and retrieval:
        source = f"retrieval from {official.source}, verification {drawn.source}"
        return replace(drawn, queries=official.queries, distractors=official.distractors, source=source)
    return drawn


def _read_csv(path: Path, columns: Sequence[str], data: HPatches) -> Int[np.ndarray, "n c"]:
    """Rows with sequences as indices. Raises BadInputError with the line number."""
    with (
        blaming(path, "a table of comma-separated values", "fetch the benchmark's files again"),
        open_input(path) as file,
    ):
        lines = file.read().decode("utf-8-sig").splitlines()
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
    """Draw tasks by the official rules, with two fixes: all six images are used (the official script uses five), and
    negatives across sequences are always from two different ones."""
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
        PatchPairs(np.stack([s, image, point, s, other_image, point], axis=1), names),
        PatchPairs(np.stack([s, image, point, s, other_image, other_point], axis=1), names),
        PatchPairs(inter, names) if inter is not None else None,
        ReferencePatches(queries, names),
        ReferencePatches(distractors, names),
    )


def _draw_points(
    data: HPatches, chosen: Int[np.ndarray, " s"], config: DrawnTasksConfig, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint queries and distractors. If there are few patches, a third of them are queries."""
    rows = []
    for number in chosen:
        patches = data.patches(data.sequences[number], "ref")
        points = np.flatnonzero(patches.reshape(len(patches), -1).std(axis=1) > config.min_deviation)
        rows.append(np.stack([np.full(len(points), number), points], axis=1))
    pool = generator.permutation(np.concatenate(rows))
    queries = min(config.queries, len(pool) // 3)
    return pool[:queries], pool[queries : queries + config.distractors]


def write_tasks(folder: Path, split: str, tasks: HPatchesTasks) -> None:
    """Write tasks in the official file format, for running another toolkit on the same. Raises NotWritableError."""
    for name, stem in PAIR_FILES.items():
        pairs = getattr(tasks, name)
        if pairs is not None:
            lines = (f"{pairs.names[a]},{b},{c},{pairs.names[d]},{e},{f}\n" for a, b, c, d, e, f in pairs.rows.tolist())
            write_text(folder / f"{stem}_split-{split}.csv", ",".join(PAIR_COLUMNS) + "\n" + "".join(lines))
    for points, stem in ((tasks.queries, "retr_queries"), (tasks.distractors, "retr_distractors")):
        if points is not None:
            lines = (f"{points.names[a]},{b}\n" for a, b in points.rows.tolist())
            write_text(folder / f"{stem}_split-{split}.csv", ",".join(PATCH_COLUMNS) + "\n" + "".join(lines))
