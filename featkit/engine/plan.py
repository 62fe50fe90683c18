"""A stage split into shards, on disk: everything that a machine needs to run one shard, or to join all of them.

OUTPUT.shards/DIGEST/ contains plan.json, the items of each shard (0000.json, ...) and the results (0000.h5, ...). A
shard is written to a unique temporary name and renamed when it is complete, so that it is never partial, even if it is
killed or run twice. Paths in a plan are as typed, relative to the folder in which the plan was made, which every
machine must see.
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
from featkit.mapping.verify import VerifyConfig, collect_shards, verify_shard
from featkit.matching import stage as matching
from featkit.retrieval.retrieve import described
from featkit.retrieval.vlad import Codebook, VladConfig

# ----------------------------------------------------------------------------------------------------------------------
# Where a stage runs, and the interface of a sharded task.


class EngineConfig(Config):
    """Where a stage runs. No field affects the result."""

    name: Literal["local", "ray", "plan"] = "local"
    """local: in this process and its workers; ray: on a Ray cluster; plan: only write a plan, see `featkit plan`."""
    address: str | None = None
    """Address of the Ray cluster; "auto": the one this machine belongs to. None: this machine only."""
    shards: int = Field(0, ge=0, le=10**6)
    """Number of shards; 0: chosen by the amount of work."""
    cpus: float = Field(1.0, ge=0.01, le=1024)
    """CPU cores per shard, and (rounded down) its worker processes."""
    gpus: float = Field(0.0, ge=0, le=1024)
    """GPUs per shard; 0.25: four shards share one."""
    retries: int = Field(3, ge=0, le=1000)
    """How often a shard is retried if its node or process is lost."""


LOCAL = EngineConfig()


class Task(Protocol):
    """One stage over independent items; a `Config`, so that it can be stored in a plan.

    stage: its name. unit: plural noun for its items. items_per_shard: used if no number of shards is given. suffix: of
    the shard files. linked: whether the output links to the shards, which must then be kept.
    """

    stage: Any
    unit: Any
    items_per_shard: Any
    suffix: Any
    linked: Any

    def work(self, items: list[Any], output: Path) -> None:
        """Run one shard: write the results of these items to `output`."""
        ...

    def join(self, shards: list[Path], output: Path) -> None:
        """Make the output from all shards."""
        ...


# ----------------------------------------------------------------------------------------------------------------------
# The plan on disk, and running one of its shards.


PLAN = "plan.json"
OWN = re.compile(r"\.?plan\.json(\.part)?|\.{0,2}\d{4,}[.-].*")  # names in a plan's folder


@dataclass(frozen=True)
class Plan:
    """folder: of the plan. output: path of the joined shards. sizes: number of items of each shard. cwd: base folder of
    relative paths."""

    folder: Path
    task: Task
    output: Path
    sizes: tuple[int, ...]
    cwd: Path

    def items(self, shard: int) -> list[Any]:
        """The items of one shard."""
        return read_json(self.folder / f"{shard:04d}.json", "a plan's file", "make the plan again")

    def shard(self, number: int) -> Path:
        """The path of a finished shard."""
        return self.folder / f"{number:04d}{self.task.suffix}"

    def waiting(self) -> list[int]:
        """Shards that have not been run yet."""
        return [number for number in range(len(self.sizes)) if not self.shard(number).exists()]


def make_plan(task: Any, items: Sequence[Any], output: Path, shards: int = 0, inputs: str = "") -> Plan:
    """Split items, in order, into shards of equal size and write the plan; an existing plan is kept.

    shards: number of shards; 0: from the task's `items_per_shard`. inputs: digest of what the items are made from;
    finished shards of a plan are used only while it is the same. Raises BadInputError, NotWritableError.
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
    folder = output.with_name(f"{name}.shards") / digest(json.dumps(described, sort_keys=True), inputs, *written)
    if not (folder / PLAN).exists():
        for number, text in enumerate(written):
            write_text(folder / f"{number:04d}.json", text + "\n", owned=True)  # the folder's name is their digest
        write_text(folder / PLAN, json.dumps(described, indent=1, ensure_ascii=False) + "\n")  # marks it as complete
    return read_plan(folder)


def read_plan(folder: Path) -> Plan:
    """Read a plan's folder. Raises BadInputError if it is not a plan, or made by another version of featkit."""
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
    """Run one shard, unless it is finished. Raises UsageError for a number that the plan does not have, and the stage's
    errors.
    """
    if not 0 <= number < len(plan.sizes):
        raise UsageError(f"{plan.folder}: shards are numbered 0 to {len(plan.sizes) - 1}, not {number}")
    target = plan.shard(number)
    if target.exists():
        return
    temporary = plan.folder / f".{number:04d}-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}{plan.task.suffix}"
    try:
        with in_folder(plan.cwd):
            plan.task.work(plan.items(number), temporary)
            os.replace(temporary, target)
    finally:
        _remove_quietly(temporary)


def join(plan: Plan) -> Path:
    """Make the plan's output from its shards. Raises BadInputError if one is missing or damaged."""
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
    for leftover in plan.folder.glob(".*"):  # temporary files of lost machines
        if OWN.fullmatch(leftover.name):
            _remove_quietly(leftover)
    return plan.output


def remove_plan(plan: Plan) -> None:
    """Delete a plan's files, and its folder if nothing else is in it."""
    for path in plan.folder.iterdir() if plan.folder.is_dir() else ():
        if OWN.fullmatch(path.name):
            _remove_quietly(path)
    with contextlib.suppress(OSError):
        plan.folder.rmdir()


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Change the working directory to `folder`. Raises BadInputError on a machine that does not have it."""
    previous = Path.cwd()
    if folder == previous:
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
        os.chdir(previous)


def _remove_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


# ----------------------------------------------------------------------------------------------------------------------
# The stages that can be split into shards: extraction and matching; the others follow below.


class ExtractTask(Config):
    """Features of images. Items: image names, relative to `images`."""

    unit: ClassVar[str] = "images"
    items_per_shard: ClassVar[int] = 64
    suffix: ClassVar[str] = ".h5"
    linked: ClassVar[bool] = True
    stage: Literal["extract"] = "extract"
    """Kind of task in a plan."""
    config: ExtractConfig
    """Configuration of features and image reading."""
    images: Path
    """Folder of the images."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def work(self, items: list[str], output: Path) -> None:
        """See `engine.plan.Task`. If no image can be used, where that is allowed, the shard is an empty store."""
        method = extraction.extraction_method(self.config, device=self.device)
        masks = {} if self.config.masks is None else masks_of(self.config.masks, items)
        with contextlib.suppress(EmptyResultError):
            extraction.run(method, self.images, output, items, masks=masks)

    def join(self, shards: list[Path], output: Path) -> None:
        """See `engine.plan.Task`."""
        write_index(output, shards)


class MatchTask(Config):
    """Matches of pairs. Items: two image names each."""

    unit: ClassVar[str] = "pairs"
    items_per_shard: ClassVar[int] = 512
    suffix: ClassVar[str] = ".h5"
    linked: ClassVar[bool] = True
    stage: Literal["match"] = "match"
    """Kind of task in a plan."""
    matcher: str
    """Name of a matcher in configs/, or a yaml file."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Values of the matcher's configuration."""
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
# Image vectors for retrieval, in shards.


class DescribeTask(Config):
    """Image vectors. Items: image names in `features`."""

    unit: ClassVar[str] = "images"
    items_per_shard: ClassVar[int] = 512
    suffix: ClassVar[str] = ".npz"
    linked: ClassVar[bool] = True
    stage: Literal["describe"] = "describe"
    """Kind of task in a plan."""
    features: Path
    """The features file."""
    codebook: Path
    """File of the codebook that all shards share, from `write_codebook`."""
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
        """See `engine.plan.Task`; does nothing, as the caller reads the shards with `read_vectors`."""


def write_codebook(codebook: Codebook, path: Path) -> None:
    """Save a codebook for other machines."""
    with writing(path, owned=True) as file:  # the name is a digest of the content
        np.savez(file, basis=codebook.basis, centroids=codebook.centroids)


def read_codebook(path: Path) -> Codebook:
    """Read a codebook that `write_codebook` saved. Raises BadInputError."""
    with blaming(path, "a codebook", "make the plan again"):
        arrays = read_npz(path, str(path), ("basis", "centroids"))
        return Codebook(arrays["basis"], arrays["centroids"])


def read_vectors(shards: Sequence[Path]) -> Iterator[tuple[str, Int16[np.ndarray, " d"]]]:
    """Names and vectors of all shards, in order, with one shard in memory at a time. Raises BadInputError."""
    for path in shards:
        with blaming(path, "a shard of vectors", "remove it and run the same command again"):
            arrays = read_npz(path, str(path), ("names", "vectors"))
            names, vectors = arrays["names"].tolist(), arrays["vectors"]
        yield from zip(names, vectors, strict=True)


# ----------------------------------------------------------------------------------------------------------------------
# Geometric verification in shards: each reads its images and pairs from the database that is being built.


class VerifyTask(Config):
    """Two-view geometries of pairs. Items: two image names each."""

    unit: ClassVar[str] = "pairs"
    items_per_shard: ClassVar[int] = 2048
    suffix: ClassVar[str] = ".db"
    linked: ClassVar[bool] = False
    stage: Literal["verify"] = "verify"
    """Kind of task in a plan."""
    config: VerifyConfig
    """How matches are verified."""
    database: Path
    """The COLMAP database with features and matches."""
    matches: Path
    """The matches file."""

    def work(self, items: list[list[str]], output: Path) -> None:
        """See `engine.plan.Task`. The shard is a COLMAP database with these images and pairs."""
        verify_shard(self.config, self.database, self.matches, [Pair(*item) for item in items], output)

    def join(self, shards: list[Path], output: Path) -> None:
        """Write the pairs of all shards to the database from which they were read."""
        collect_shards(shards, output)
