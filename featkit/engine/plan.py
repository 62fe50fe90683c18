"""A stage cut into shards, on disk: what any machine needs to work one of them, and to join them all.

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
from typing import Any

from pydantic import ValidationError

from featkit import __version__
from featkit.engine.base import Task
from featkit.engine.tasks import task_type
from featkit.errors import BadInputError, UsageError
from featkit.store.artifact import write_text
from featkit.store.stamp import digest

PLAN = "plan.json"
OWN = re.compile(r"plan\.json|\d{4,}\.\w+|\.\d{4,}-.*")  # names in a plan's folder


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
        return _read_json(self.folder / f"{shard:04d}.json")

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
    described = _read_json(folder / PLAN)
    try:
        if described["featkit_version"] != __version__:
            raise BadInputError(
                f"{folder}: planned by featkit {described['featkit_version']}, this is {__version__} on"
                f" {socket.gethostname()}; install the same version everywhere"
            )
        task: Any = task_type(described["stage"]).model_validate(described["task"])
        sizes = tuple(int(size) for size in described["sizes"])
        return Plan(folder.absolute(), task, Path(described["output"]), sizes, Path(described["cwd"]))
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise BadInputError(f"{folder / PLAN}: not a plan ({str(error).splitlines()[0]}); make it again") from None


def work_shard(plan: Plan, number: int) -> None:
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


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: cannot be read ({error}); make the plan again") from None
