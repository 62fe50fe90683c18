"""What the configuration of every training has: optimiser, schedule, length, precision, records.

Lengths are shares of the whole training, so that `--steps` and `--budget` keep the paper's shape.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from featkit.config import Config, Runtime
from featkit.training.schedule import Constant, Schedule


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
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network; descriptors and losses are float32 always."""
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
