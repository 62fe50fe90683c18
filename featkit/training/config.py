"""Configuration shared by all trainings: optimiser, schedule, length, precision, records."""

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
# The learning rate as a function of the completed share of the training, so that its shape fits any budget.


class Constant(Config):
    """Constant learning rate (HyNet's code)."""

    kind: Literal["constant"] = "constant"
    """Which schedule this configures."""

    def factor(self, share: float) -> float:
        return 1.0


class Linear(Config):
    """Linear decay to zero (HardNet's code; DOAP, appendix D)."""

    kind: Literal["linear"] = "linear"
    """Which schedule this configures."""

    def factor(self, share: float) -> float:
        return 1.0 - share


class Halve(Config):
    """Halved after every fixed share of the training (SDGMNet, sec. IV: every 10 %)."""

    kind: Literal["halve"] = "halve"
    """Which schedule this configures."""
    every: PositiveShare = 0.1
    """Share of the training between two halvings, in (0, 1]."""

    def factor(self, share: float) -> float:
        return 0.5 ** int(share / self.every + 1e-9)


class Steps(Config):
    """Multiplied by a factor at given shares of the training (AdaSample: 0.1 at epochs 30, 60 and 80 of 90)."""

    kind: Literal["steps"] = "steps"
    """Which schedule this configures."""
    at: tuple[Share, ...] = (30 / 90, 60 / 90, 80 / 90)
    """Shares of the training at which the learning rate is multiplied by gamma, in [0, 1]."""
    gamma: Factor = 0.1
    """Factor applied to the learning rate at each step."""

    def factor(self, share: float) -> float:
        return self.gamma ** sum(share >= place - 1e-9 for place in self.at)


class Cosine(Config):
    """Linear warm-up, then cosine decay (Loshchilov and Hutter: SGDR, 2017, eq. 5, without restarts)."""

    kind: Literal["cosine"] = "cosine"
    """Which schedule this configures."""
    rise: Share = Field(0.01, lt=1)
    """Share of the training spent on the linear warm-up from 0."""
    end: Share = 0.01
    """Final learning rate as a fraction of the full one."""

    def factor(self, share: float) -> float:
        if share < self.rise:
            return share / self.rise
        done = (share - self.rise) / (1 - self.rise)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * done)) / 2


Schedule = Annotated[Constant | Linear | Halve | Steps | Cosine, Field(discriminator="kind")]


# ----------------------------------------------------------------------------------------------------------------------
# The configuration of every training: optimiser, schedule, length, precision, records.
#
# Durations are shares of the training, so that `--steps` and `--budget` keep the paper's proportions.


Precision = Literal["fp32", "bf16"]
AskedPrecision = Literal["auto", "fp32", "bf16"]


class Sgd(Config):
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    """Which optimiser this configures."""
    learning_rate: Factor
    """Learning rate before the schedule's factor."""
    momentum: Share = Field(0.9, lt=1)
    """Momentum."""
    dampening: Share = 0.0
    """Dampening of the momentum, as in torch.optim.SGD. HardNet's code: 0.9."""
    weight_decay: FactorOrZero = 1e-4
    """Weight decay (L2 penalty added to the gradients)."""
    reference_batch: Count | None = None
    """Batch size that the learning rate refers to; the rate scales linearly with `batch_size` (DOAP, appendix D).
    None: no scaling."""


class Adam(Config):
    """Adam with PyTorch's default betas; its steps do not depend on the scale of the loss."""

    kind: Literal["adam"] = "adam"
    """Which optimiser this configures."""
    learning_rate: Factor
    """Learning rate before the schedule's factor."""
    weight_decay: FactorOrZero = 0.0
    """Weight decay (L2 penalty added to the gradients)."""
    reference_batch: Count | None = None
    """Batch size that the learning rate refers to, as for Sgd."""


class Measured(Config):
    """How often a training is evaluated on its validation set."""

    every: PositiveShare = 0.05
    """Share of the training between two evaluations, in (0, 1]."""


class TrainingConfig(Config):
    """Fields that the training loop reads."""

    optimiser: Annotated[Sgd | Adam, Field(discriminator="kind")]
    """Optimiser and its learning rate."""
    schedule: Schedule = Constant()
    """Learning-rate schedule."""
    batch_size: Count
    """Batch size, in pairs or patches."""
    steps: Count
    """Length of the training, in batches."""
    budget: str = ""
    """Time budget given by `--budget`; `steps` is then measured on this machine. Empty: none."""
    max_gradient: Factor | None = None
    """Maximum gradient norm over all parameters; larger gradients are clipped. None: no clipping."""
    average: Share = Field(0.0, lt=1)
    """Decay of the exponential moving average of the network's weights; 0: no averaging. The averaged network is
    evaluated, shown and exported (Polyak and Juditsky 1992; 0.999 is common)."""
    held_out: Measured = Measured()
    """The validation set and how often it is evaluated."""
    precision: AskedPrecision = "auto"
    """Precision of the network; distances, norms and losses are always float32. auto: bf16 if timing before the
    training finds it faster (task.py). A resumed run with auto keeps the precision stored in its checkpoint."""
    seed: Seed = 0
    """Random seed, for the initial weights and all sampling."""
    compile: Runtime[bool] = False
    """Compile network and, where it pays, loss with torch.compile; needs a C++ compiler."""
    timeout_s: Runtime[Seconds] = 600.0
    """Seconds that a process waits for the others before it gives up. Must exceed the time of one validation, which
    rank 0 runs alone."""
    save_every_s: Runtime[Seconds] = 120.0
    """Seconds between two checkpoints."""
    save_every: Runtime[CountOrZero] = 0
    """Steps between two checkpoints, in addition to `save_every_s`; 0: only by time."""
    log_every: Runtime[CountOrZero] = 0
    """Steps between two rows of metrics.csv; 0: one thousandth of the training."""
    snapshots: Runtime[int] = Field(0, ge=0, le=10**6)
    """Number of evenly spaced snapshots of the network to keep in RUN/snapshots."""


# ----------------------------------------------------------------------------------------------------------------------
# Optimisers from their configurations.


def build_optimiser(config: Sgd | Adam, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Build the optimiser for parameter groups whose learning rates are given as `lr`."""
    for group in groups:
        group["full_lr"] = group["lr"]  # what the schedule's factor is applied to
    if isinstance(config, Sgd):
        return torch.optim.SGD(
            groups, momentum=config.momentum, dampening=config.dampening, weight_decay=config.weight_decay
        )
    return torch.optim.Adam(groups, weight_decay=config.weight_decay)


def set_learning_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its full rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["full_lr"] * factor
