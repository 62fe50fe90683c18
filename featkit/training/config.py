"""What the configuration of every training has: optimiser, schedule, length, precision, records."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from featkit.core.config import Config, Runtime

# ----------------------------------------------------------------------------------------------------------------------
# The learning rate as a function of the share of the training that is done, so that any budget keeps its shape.


class Constant(Config):
    """The learning rate stays (HyNet's code)."""

    kind: Literal["constant"] = "constant"

    def factor(self, share: float) -> float:
        return 1.0


class Linear(Config):
    """Falls linearly to zero (HardNet's code; DOAP, appendix D)."""

    kind: Literal["linear"] = "linear"

    def factor(self, share: float) -> float:
        return 1.0 - share


class Halve(Config):
    """Halved each time a share of the training is over (SDGMNet, sec. IV: every 10 %)."""

    kind: Literal["halve"] = "halve"
    every: float = Field(0.1, gt=0, le=1)
    """Share of the training between two halvings."""

    def factor(self, share: float) -> float:
        return 0.5 ** int(share / self.every + 1e-9)


class Steps(Config):
    """Multiplied by a factor at given shares of the training (AdaSample: 0.1 at epochs 30, 60 and 80 of 90)."""

    kind: Literal["steps"] = "steps"
    at: tuple[float, ...] = (30 / 90, 60 / 90, 80 / 90)
    """Shares of the training."""
    gamma: float = Field(0.1, gt=0)
    """Factor at each of them."""

    def factor(self, share: float) -> float:
        return self.gamma ** sum(share >= place - 1e-9 for place in self.at)


class Cosine(Config):
    """Rises linearly, then falls along half a cosine (Loshchilov and Hutter: SGDR, 2017, eq. 5, without restarts)."""

    kind: Literal["cosine"] = "cosine"
    rise: float = Field(0.01, ge=0, lt=1)
    """Share of the training in which the rate rises from 0."""
    end: float = Field(0.01, ge=0, le=1)
    """Factor at the end."""

    def factor(self, share: float) -> float:
        if share < self.rise:
            return share / self.rise
        done = (share - self.rise) / (1 - self.rise)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * done)) / 2


Schedule = Annotated[Constant | Linear | Halve | Steps | Cosine, Field(discriminator="kind")]


# ----------------------------------------------------------------------------------------------------------------------
# The configuration of every training: optimiser, schedule, length, precision, records.
#
# Lengths are shares of the whole training, so that `--steps` and `--budget` keep the paper's shape.


Precision = Literal["fp32", "bf16"]
AskedPrecision = Literal["auto", "fp32", "bf16"]


class Sgd(Config):
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: float = Field(gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    dampening: float = Field(0.0, ge=0, le=1)
    """HardNet's code: 0.9."""
    weight_decay: float = Field(1e-4, ge=0)
    reference_batch: int | None = None
    """Batch size the learning rate is for: it scales linearly with `batch_size` (DOAP, appendix D); none: it stays."""


class Adam(Config):
    """Adam with its usual moments; its steps do not depend on the scale of the loss."""

    kind: Literal["adam"] = "adam"
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    reference_batch: int | None = None
    """As with Sgd."""


class Measured(Config):
    """How often a training is measured on what was held out of it."""

    every: float = Field(0.05, gt=0, le=1)
    """Share of the training between two measurements."""


class TrainingConfig(Config):
    """Fields that the loop reads."""

    optimiser: Annotated[Sgd | Adam, Field(discriminator="kind")]
    schedule: Schedule = Constant()
    batch_size: int = Field(ge=1)
    """Items (pairs, or patches) in a batch."""
    steps: int = Field(ge=1)
    """Length of the training."""
    budget: str = ""
    """What `--budget` said, if it did: `steps` were then measured on the machine."""
    max_gradient: float | None = Field(None, gt=0)
    """Longer gradients (their norm over all parameters) are cut to this length; none: they stay."""
    average: float = Field(0.0, ge=0, lt=1)
    """Exponential average of the network along the training: its weight of the past at each step. It is the average
    that is measured, shown and exported (Polyak and Juditsky 1992; 0.999 is common); 0: the network as it is."""
    held_out: Measured = Measured()
    precision: AskedPrecision = "auto"
    """Of the network; distances, norms and losses are float32 always. auto: bf16 where a measurement before the
    training says that it is faster (task.py). A run keeps what it was begun with; its records and checkpoint name
    that."""
    seed: int = Field(0, ge=0)
    compile: Runtime[bool] = False
    """torch.compile for the network."""
    timeout_s: Runtime[float] = Field(600.0, gt=0)
    """Seconds that a process waits for the others of its training before it gives up: longer than a look at what is
    held out, which the first one takes by itself."""
    save_every_s: Runtime[float] = Field(120.0, gt=0)
    """Seconds between two checkpoints."""
    save_every: Runtime[int] = Field(0, ge=0)
    """Steps between two checkpoints besides; 0: only by time."""
    log_every: Runtime[int] = Field(0, ge=0)
    """Steps between two rows of metrics.csv; 0: a thousandth of the training."""
    snapshots: Runtime[int] = Field(0, ge=0)
    """Networks kept along the training, evenly, in RUN/snapshots."""


# ----------------------------------------------------------------------------------------------------------------------
# Optimisers as configurations name them.


def build_optimiser(config: Sgd | Adam, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser of parameter groups that carry their learning rates as `lr`."""
    for group in groups:
        group["full_lr"] = group["lr"]  # what the schedule's factor is applied to
    if isinstance(config, Sgd):
        return torch.optim.SGD(
            groups, momentum=config.momentum, dampening=config.dampening, weight_decay=config.weight_decay
        )
    return torch.optim.Adam(groups, weight_decay=config.weight_decay)


def set_learning_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Every group learns at `factor` times its full rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["full_lr"] * factor
