"""What the configuration of every training has: optimiser, schedule, length, precision, records."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from featkit.core.config import (
    Config,
    Count,
    CountOrZero,
    Factor,
    FactorOrZero,
    PositiveShare,
    Runtime,
    Seconds,
    Seed,
    Share,
)

# ----------------------------------------------------------------------------------------------------------------------
# The learning rate as a function of the share of the training that is done, so that any budget keeps its shape.


class Constant(Config):
    """The learning rate stays (HyNet's code)."""

    kind: Literal["constant"] = "constant"
    """Which schedule this configures."""

    def factor(self, share: float) -> float:
        return 1.0


class Linear(Config):
    """Falls linearly to zero (HardNet's code; DOAP, appendix D)."""

    kind: Literal["linear"] = "linear"
    """Which schedule this configures."""

    def factor(self, share: float) -> float:
        return 1.0 - share


class Halve(Config):
    """Halved each time a share of the training is over (SDGMNet, sec. IV: every 10 %)."""

    kind: Literal["halve"] = "halve"
    """Which schedule this configures."""
    every: PositiveShare = 0.1
    """Share of the training between two halvings."""

    def factor(self, share: float) -> float:
        return 0.5 ** int(share / self.every + 1e-9)


class Steps(Config):
    """Multiplied by a factor at given shares of the training (AdaSample: 0.1 at epochs 30, 60 and 80 of 90)."""

    kind: Literal["steps"] = "steps"
    """Which schedule this configures."""
    at: tuple[Share, ...] = (30 / 90, 60 / 90, 80 / 90)
    """Shares of the training."""
    gamma: Factor = 0.1
    """Factor at each of them."""

    def factor(self, share: float) -> float:
        return self.gamma ** sum(share >= place - 1e-9 for place in self.at)


class Cosine(Config):
    """Rises linearly, then falls along half a cosine (Loshchilov and Hutter: SGDR, 2017, eq. 5, without restarts)."""

    kind: Literal["cosine"] = "cosine"
    """Which schedule this configures."""
    rise: Share = Field(0.01, lt=1)
    """Share of the training in which the rate rises from 0."""
    end: Share = 0.01
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
    """Which optimiser this configures."""
    learning_rate: Factor
    """Before the schedule's factor."""
    momentum: Share = Field(0.9, lt=1)
    """Share of the last step that is taken again."""
    dampening: Share = 0.0
    """How much less a gradient counts in the momentum. HardNet's code: 0.9."""
    weight_decay: FactorOrZero = 1e-4
    """Factor of the weights that is added to their gradients."""
    reference_batch: Count | None = None
    """Batch size the learning rate is for: it scales linearly with `batch_size` (DOAP, appendix D). None: it stays."""


class Adam(Config):
    """Adam with its usual moments; its steps do not depend on the scale of the loss."""

    kind: Literal["adam"] = "adam"
    """Which optimiser this configures."""
    learning_rate: Factor
    """Before the schedule's factor."""
    weight_decay: FactorOrZero = 0.0
    """Factor of the weights that is added to their gradients."""
    reference_batch: Count | None = None
    """As with Sgd."""


class Measured(Config):
    """How often a training is measured on what was held out of it."""

    every: PositiveShare = 0.05
    """Share of the training between two measurements."""


class TrainingConfig(Config):
    """Fields that the loop reads."""

    optimiser: Annotated[Sgd | Adam, Field(discriminator="kind")]
    """How gradients become steps."""
    schedule: Schedule = Constant()
    """How the learning rate changes along the training."""
    batch_size: Count
    """Items (pairs, or patches) in a batch."""
    steps: Count
    """Length of the training, batches."""
    budget: str = ""
    """What `--budget` said, if it did: `steps` were then measured on the machine."""
    max_gradient: Factor | None = None
    """Longer gradients (their norm over all parameters) are cut to this length; none: they stay."""
    average: Share = Field(0.0, lt=1)
    """Exponential average of the network along the training: its weight of the past at each step. It is the average
    that is measured, shown and exported (Polyak and Juditsky 1992; 0.999 is common); 0: the network as it is."""
    held_out: Measured = Measured()
    """What is held out of the training and measured along it."""
    precision: AskedPrecision = "auto"
    """Of the network; distances, norms and losses are float32 always. auto: bf16 where a measurement before the
    training says that it is faster (task.py). A run keeps what it was begun with; its records and checkpoint name
    that."""
    seed: Seed = 0
    """Of the start of the network and of all draws."""
    compile: Runtime[bool] = False
    """Let torch.compile make the network's code."""
    timeout_s: Runtime[Seconds] = 600.0
    """Seconds that a process waits for the others of its training before it gives up: longer than a look at what is
    held out, which the first one takes by itself."""
    save_every_s: Runtime[Seconds] = 120.0
    """Seconds between two checkpoints."""
    save_every: Runtime[CountOrZero] = 0
    """Steps between two checkpoints besides; 0: only by time."""
    log_every: Runtime[CountOrZero] = 0
    """Steps between two rows of metrics.csv; 0: a thousandth of the training."""
    snapshots: Runtime[int] = Field(0, ge=0, le=10**6)
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
