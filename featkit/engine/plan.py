"""A stage cut into shards, on disk: what any machine needs to run one of them, and to join them all.

OUTPUT.shards/DIGEST/ holds plan.json, the items of each shard (0000.json, ...) and what came of them (0000.h5, ...). A
shard is written under a name of its own and renamed when it is whole: killed or done twice, it is never half. Paths in
a plan are as they were typed, relative to the folder the plan was made in, which every machine must see.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from jaxtyping import Int16
from pydantic import Field, ValidationError

from featkit import __version__
from featkit.core.config import Config, digest
from featkit.core.errors import BadInputError, EmptyResultError, UsageError, blaming
from featkit.core.registry import resolve
from featkit.core.types import Pair
from featkit.features import stage as extraction
from featkit.features.stage import ExtractConfig
from featkit.images.masks import masks_of
from featkit.io.artifact import write_text, writing
from featkit.io.atomic import read_json
from featkit.io.features import open_features
from featkit.io.foreign_arrays import read_npz
from featkit.io.shards import write_index
from featkit.mapping.verify import VerifyConfig, collect, verify_shard
from featkit.matching import stage as matching
from featkit.retrieval.retrieve import described
from featkit.retrieval.vlad import Codebook, VladConfig

# ----------------------------------------------------------------------------------------------------------------------
# Where a stage runs, and what a task of many shards promises.


class EngineConfig(Config):
    """Where a stage runs. No field changes a result."""

    name: Literal["local", "ray", "plan"] = "local"
    """local: in this process and its workers; ray: on a Ray cluster of many machines; plan: see `featkit plan`."""
    address: str | None = None
    """Address of the Ray cluster; "auto": the one this machine belongs to. None: this machine alone."""
    shards: int = Field(0, ge=0, le=10**6)
    """Parts of the work; 0: by their size."""
    cpus: float = Field(1.0, ge=0.01, le=1024)
    """Cores of each part; also its worker processes, rounded down."""
    gpus: float = Field(0.0, ge=0, le=1024)
    """GPUs of each part; 0.25: four parts share one."""
    retries: int = Field(3, ge=0, le=1000)
    """Times a part is tried again when its node or process is lost."""


LOCAL = EngineConfig()


class Task(Protocol):
    """One stage over items that do not depend on each other; a `Config`, so that a plan can hold it.

    stage: its name. unit: what its items are called. items_per_shard: where no number of shards is given. suffix: of a
    shard's file. linked: whether the output leads to the shards, which then stay.
    """

    stage: Any
    unit: Any
    items_per_shard: Any
    suffix: Any
    linked: Any

    def work(self, items: list[Any], output: Path) -> None:
        """Make one shard: a store of the results of these items."""
        ...

    def join(self, shards: list[Path], output: Path) -> None:
        """Make the output of all shards."""
        ...


# ----------------------------------------------------------------------------------------------------------------------
# The plan on disk, and one shard of it.


PLAN = "plan.json"
OWN = re.compile(r"\.?plan\.json(\.part)?|\.{0,2}\d{4,}[.-].*")  # names in a plan's folder


@dataclass(frozen=True)
class Plan:
    """folder: of the plan. output: what the joined shards become. sizes: items of each shard. cwd: see the module."""

    folder: Path
    task: Task
    output: Path
    sizes: tuple[int, ...]
    cwd: Path

    def items(self, shard: int) -> list[Any]:
        """The items of one shard."""
        return read_json(self.folder / f"{shard:04d}.json", "a plan's file", "make the plan again")

    def shard(self, number: int) -> Path:
        """Where the result of a shard lies when it is whole."""
        return self.folder / f"{number:04d}{self.task.suffix}"

    def waiting(self) -> list[int]:
        """Shards that have not been worked yet."""
        return [number for number in range(len(self.sizes)) if not self.shard(number).exists()]


def make_plan(task: Any, items: Sequence[Any], output: Path, shards: int = 0) -> Plan:
    """Cut items into shards of equal size (the order is kept) and write the plan; one that is there already is kept.

    shards: 0: by the task's size. Raises BadInputError, NotWritableError.
    """
    count = min(len(items), shards or max(1, round(len(items) / task.items_per_shard)))
    edges = [len(items) * number // count for number in range(count + 1)]
    parts = [list(items[start:end]) for start, end in itertools.pairwise(edges)]
    described = {
        "kind": "plan",
        "featkit_version": __version__,
        "stage": task.stage,
        "task": task.model_dump(mode="json"),
        "output": str(output),
        "cwd": str(Path.cwd()),
        "sizes": [len(part) for part in parts],
    }
    written = [json.dumps(part, ensure_ascii=False) for part in parts]
    name = output.name.strip(".").removesuffix(".part")
    folder = output.with_name(f"{name}.shards") / digest(json.dumps(described, sort_keys=True), *written)
    if not (folder / PLAN).exists():
        for number, text in enumerate(written):
            write_text(folder / f"{number:04d}.json", text + "\n", owned=True)  # the folder's name says what is in it
        write_text(folder / PLAN, json.dumps(described, indent=1, ensure_ascii=False) + "\n")  # last: a plan is whole
    return read_plan(folder)


def read_plan(folder: Path) -> Plan:
    """Read a plan's folder. Raises BadInputError when it is none, or of another featkit."""
    if folder.is_file() and folder.name == PLAN:
        folder = folder.parent
    if not (folder / PLAN).is_file():
        raise BadInputError(f"{folder}: no plan here (plan.json); `featkit plan` makes one")
    described = read_json(folder / PLAN, "a plan's file", "make the plan again")
    try:
        if described["featkit_version"] != __version__:
            raise BadInputError(
                f"{folder}: planned by featkit {described['featkit_version']}, this is {__version__} on"
                f" {socket.gethostname()}; install the same version everywhere"
            )
        task: Any = task_type(described["stage"]).model_validate(described["task"])
        sizes = tuple(int(size) for size in described["sizes"])
        return Plan(folder.absolute(), task, Path(described["output"]), sizes, Path(described["cwd"]))
    except (KeyError, TypeError, ValueError, OverflowError, ValidationError) as error:
        raise BadInputError(f"{folder / PLAN}: not a plan ({str(error).splitlines()[0]}); make it again") from None


def run_shard(plan: Plan, number: int) -> None:
    """Work one shard, unless it is there. Raises UsageError for a number that the plan has not, and what its stage
    raises, with the name of this machine.
    """
    if not 0 <= number < len(plan.sizes):
        raise UsageError(f"{plan.folder}: shards are numbered 0 to {len(plan.sizes) - 1}, not {number}")
    done = plan.shard(number)
    if done.exists():
        return
    mine = plan.folder / f".{number:04d}-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}{plan.task.suffix}"
    try:
        with in_folder(plan.cwd):
            plan.task.work(plan.items(number), mine)
            os.replace(mine, done)
    finally:
        _remove(mine)


def join(plan: Plan) -> Path:
    """Make the plan's output of its shards. Raises BadInputError when one is missing or damaged."""
    if waiting := plan.waiting():
        first = ", ".join(map(str, waiting[:5])) + (", ..." if len(waiting) > 5 else "")
        raise BadInputError(
            f"{plan.folder}: {len(waiting)} of {len(plan.sizes)} shards are missing ({first});"
            f" `featkit run {plan.folder}` makes them"
        )
    with in_folder(plan.cwd):
        plan.task.join([plan.shard(number) for number in range(len(plan.sizes))], plan.output)
    if not plan.task.linked:
        remove_plan(plan)
    for left in plan.folder.glob(".*"):  # of machines that were lost
        if OWN.fullmatch(left.name):
            _remove(left)
    return plan.output


def remove_plan(plan: Plan) -> None:
    """Delete a plan's folder: what it made, and nothing else."""
    for path in plan.folder.iterdir() if plan.folder.is_dir() else ():
        if OWN.fullmatch(path.name):
            _remove(path)
    with contextlib.suppress(OSError):
        plan.folder.rmdir()


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Inside, relative paths are those of `folder`. Raises BadInputError on a machine that does not have it."""
    before = Path.cwd()
    if folder == before:
        yield
        return
    try:
        os.chdir(folder)
    except OSError:
        raise BadInputError(
            f"{folder}: {socket.gethostname()} does not have this folder; all machines must see the same files"
        ) from None
    try:
        yield
    finally:
        os.chdir(before)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


# ----------------------------------------------------------------------------------------------------------------------
# The stages that can be cut into shards: extraction and matching here, the others beside.


class ExtractTask(Config):
    """Features of images. Items: their names, relative to `images`."""

    unit: ClassVar[str] = "images"
    items_per_shard: ClassVar[int] = 64
    suffix: ClassVar[str] = ".h5"
    linked: ClassVar[bool] = True
    stage: Literal["extract"] = "extract"
    """What tells tasks apart in a plan."""
    config: ExtractConfig
    """What features, and how images are read."""
    images: Path
    """Folder of the images."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def work(self, items: list[str], output: Path) -> None:
        """See `engine.plan.Task`. A shard of images that cannot be used, where that is allowed, is an empty store."""
        method = extraction.extraction(self.config, device=self.device)
        masks = {} if self.config.masks is None else masks_of(self.config.masks, items)
        with contextlib.suppress(EmptyResultError):
            extraction.run(method, self.images, output, items, masks=masks)

    def join(self, shards: list[Path], output: Path) -> None:
        """See `engine.plan.Task`."""
        write_index(output, shards)


class MatchTask(Config):
    """Matches of pairs. Items: two names each. settings: all fields of the matcher's configuration."""

    unit: ClassVar[str] = "pairs"
    items_per_shard: ClassVar[int] = 512
    suffix: ClassVar[str] = ".h5"
    linked: ClassVar[bool] = True
    stage: Literal["match"] = "match"
    """What tells tasks apart in a plan."""
    matcher: str
    """A matcher by its name in configs/, or a yaml file."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What differs from the matcher's configuration."""
    features: Path
    """The features file."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def work(self, items: list[list[str]], output: Path) -> None:
        """See `engine.plan.Task`."""
        method = resolve("matcher", self.matcher, self.settings, self.device)
        matching.run(method, self.features, [Pair(*item) for item in items], output)

    def join(self, shards: list[Path], output: Path) -> None:
        """See `engine.plan.Task`."""
        write_index(output, shards)


def task_type(stage: str) -> type[Config]:
    """The class behind a stage's name. Raises BadInputError."""

    types: dict[str, type[Config]] = {
        "extract": ExtractTask,
        "describe": DescribeTask,
        "match": MatchTask,
        "verify": VerifyTask,
    }
    if stage not in types:
        raise BadInputError(f"a plan of the stage {stage!r}; this featkit has {', '.join(types)}")
    return types[stage]


# ----------------------------------------------------------------------------------------------------------------------
# Vectors that images are retrieved by, in shards.


class DescribeTask(Config):
    """Vectors of images. Items: their names in `features`. codebook: as `write_codebook` keeps it."""

    unit: ClassVar[str] = "images"
    items_per_shard: ClassVar[int] = 512
    suffix: ClassVar[str] = ".npz"
    linked: ClassVar[bool] = True
    stage: Literal["describe"] = "describe"
    """What tells tasks apart in a plan."""
    features: Path
    """The features file."""
    codebook: Path
    """File of the codebook that all shards share."""
    config: VladConfig
    """How images are described."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def work(self, items: list[str], output: Path) -> None:
        """See `engine.plan.Task`."""
        codebook = read_codebook(self.codebook)
        with open_features(self.features) as store:
            rows = list(described(store, items, codebook, self.config, self.device))
        vectors = np.stack([vector for _, vector in rows]) if rows else np.empty((0, codebook.dims), np.int16)
        np.savez(output, names=np.array([name for name, _ in rows], dtype=np.str_), vectors=vectors)

    def join(self, shards: list[Path], output: Path) -> None:
        """See `engine.plan.Task`; who planned it reads the shards (`read_vectors`)."""


def write_codebook(codebook: Codebook, path: Path) -> None:
    """Keep a codebook for other machines."""
    with writing(path, owned=True) as file:  # named by what is in it
        np.savez(file, basis=codebook.basis, centroids=codebook.centroids)


def read_codebook(path: Path) -> Codebook:
    """A codebook that `write_codebook` kept. Raises BadInputError."""
    with blaming(path, "a codebook", "make the plan again"):
        kept = read_npz(path, str(path), ("basis", "centroids"))
        return Codebook(kept["basis"], kept["centroids"])


def read_vectors(shards: Sequence[Path]) -> Iterator[tuple[str, Int16[np.ndarray, " d"]]]:
    """Names and vectors of all shards, in order; one shard is in memory. Raises BadInputError."""
    for path in shards:
        with blaming(path, "a shard of vectors", "remove it and run the same command again"):
            kept = read_npz(path, str(path), ("names", "vectors"))
            names, vectors = kept["names"].tolist(), kept["vectors"]
        yield from zip(names, vectors, strict=True)


# ----------------------------------------------------------------------------------------------------------------------
# Geometric verification in shards: each takes its images and pairs from the database that is being built.


class VerifyTask(Config):
    """Two-view geometries of pairs. Items: two names each. database: with all images and keypoints, and their ids."""

    unit: ClassVar[str] = "pairs"
    items_per_shard: ClassVar[int] = 2048
    suffix: ClassVar[str] = ".db"
    linked: ClassVar[bool] = False
    stage: Literal["verify"] = "verify"
    """What tells tasks apart in a plan."""
    config: VerifyConfig
    """How matches are verified."""
    database: Path
    """The COLMAP database with features and matches."""
    matches: Path
    """The matches file."""

    def work(self, items: list[list[str]], output: Path) -> None:
        """See `engine.plan.Task`. The shard is a COLMAP database of these images and pairs."""
        verify_shard(self.config, self.database, self.matches, [Pair(*item) for item in items], output)

    def join(self, shards: list[Path], output: Path) -> None:
        """Write the pairs of all shards into the database they were taken from."""
        collect(shards, output)
