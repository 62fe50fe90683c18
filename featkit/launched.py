"""Whether something else (torchrun, a job system) has started this process as one of several: from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

from featkit.errors import UsageError

NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets. Lightning's own processes have no RANK; a container that only knows its number no LOCAL_RANK."""


@dataclass(frozen=True)
class Launched:
    """Which of `size` processes this is; on this node, which of `local_size`."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @property
    def nodes(self) -> int:
        return self.size // self.local_size


def launched() -> Launched | None:
    """What the environment says; None when nothing did. Raises UsageError for values that cannot be."""
    if not all(name in os.environ for name in NEEDED):
        return None
    rank, size, local_rank = (_number(name) for name in NEEDED[:3])
    local_size = _number("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else size
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise UsageError(
            f"RANK={rank}, WORLD_SIZE={size}, LOCAL_RANK={local_rank} of {local_size}: these processes cannot be;"
            " start them by torchrun, or unset RANK"
        )
    if size % local_size:
        raise UsageError(
            f"torchrun: {size} processes, {local_size} of them on this node; start as many on every node"
            " (the same --nproc-per-node)"
        )
    return Launched(rank, size, local_rank, local_size)


def speaks() -> bool:
    """Whether this process tells what it cannot start with; of several on a node, the first one."""
    return os.environ.get("LOCAL_RANK", "0") == "0" or not {"WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ)


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise UsageError(f"{name}={os.environ[name]!r}: not a number; start by torchrun, or unset {name}") from None
