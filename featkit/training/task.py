"""What the training loop asks of a task: patches, or one of SCFeat's stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from featkit.losses.base import LossResult
from featkit.training.world import World


@dataclass(frozen=True)
class Score:
    """What a network is measured by. name: its column. label: for people. Shown times `factor`, in `unit`."""

    name: str
    label: str
    factor: float
    unit: str

    def text(self, value: float) -> str:
        return f"{self.label} {self.factor * value:.2f} {self.unit}"


class Task(Protocol):
    """What training asks of a task. Built as `cls(config, device)`; then `prepare` takes the data, of its own type."""

    config: Any
    network: Any
    name: str
    unit: str
    """What a batch is counted in: "patches", "pairs"."""
    score: Score
    also_measured: dict[str, float]
    """Further numbers of the last `held_out`, by the name of their column."""

    @property
    def batch_items(self) -> int:
        """How many of them a step learns from."""
        ...

    @classmethod
    def identity_of(cls, data: Any) -> str:
        """Tells the data from other data."""
        ...

    @classmethod
    def described(cls, data: Any) -> dict[str, Any]:
        """The data in the summary: `name` and what else."""
        ...

    def prepare(self, data: Any, world: World) -> None: ...

    @property
    def starts_trained(self) -> bool:
        """Whether the network has values that training might spoil; asked after `prepare`."""
        ...

    def modules(self) -> dict[str, nn.Module]: ...

    def parameter_groups(self) -> list[dict[str, Any]]: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...

    def step(self, share: float) -> LossResult: ...

    def held_out(self) -> float:
        """The score on what was held out: smaller is better."""
        ...

    def held_out_s(self) -> float:
        """Seconds that `held_out` takes, by a sample of it."""
        ...

    def batch_arrays(self) -> dict[str, Any]: ...

    def waited_s(self) -> float: ...

    def save_weights(self, path: Path, state: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        """Write a network of this task with these values as a weight."""
        ...

    @property
    def picture_turns(self) -> int:
        """How often along the training `pictures` are wanted."""
        ...

    def pictures(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """What the network does now, in pictures by name."""
        ...

    def close(self) -> None: ...
