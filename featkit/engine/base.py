"""Where a stage runs, and what a task of many shards promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from featkit.config import Config


class EngineConfig(Config):
    """Where a stage runs. No field changes a result."""

    name: Literal["local", "ray", "plan"] = "local"
    """local: in this process and its workers; ray: on a Ray cluster; plan: nowhere yet, shards are only planned."""
    address: str | None = None
    """Of the Ray cluster ("auto": the one this machine belongs to); None: one of this machine alone."""
    shards: int = Field(default=0, ge=0, description="parts of the work; 0: by the task's `items_per_shard`")
    cpus: float = Field(default=1.0, gt=0, description="cores of each task; also its worker processes, rounded down")
    gpus: float = Field(default=0.0, ge=0, description="GPUs of each task; 0.25: four tasks share one")
    retries: int = Field(default=3, ge=0, description="times a shard is tried again when its node or process is lost")


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
