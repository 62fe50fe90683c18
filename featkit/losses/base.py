"""What every loss on patch descriptors takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from featkit.config import Config

Total = Callable[[Tensor], Tensor]
"""Adds values without gradient up over the processes that have a part of the batch each."""


def alone(values: Tensor) -> Tensor:
    """The `Total` of a process that has the whole batch."""
    return values


@dataclass(frozen=True)
class PairBatch:
    """n pairs of matching patches, all of different classes: row i of `anchor` matches row i of `positive`.

    anchor, positive: descriptors with unit rows. anchor_raw, positive_raw: the same before they were normalised.
    weights: factor of each pair's loss; None: 1.
    """

    anchor: Float[Tensor, "n d"]
    positive: Float[Tensor, "n d"]
    anchor_raw: Float[Tensor, "n d"]
    positive_raw: Float[Tensor, "n d"]
    weights: Float[Tensor, " n"] | None = None


@dataclass(frozen=True)
class GroupBatch:
    """m patches in whole groups: two patches match when their labels are equal.

    descriptors: unit rows, or rows of tanh in (-1, 1) for a binary descriptor.
    ignored: pairs that count neither as match nor as non-match (not the diagonal: it never counts).
    """

    descriptors: Float[Tensor, "m d"]
    labels: Int[Tensor, " m"]
    ignored: Bool[Tensor, "m m"] | None = None


@dataclass(frozen=True)
class LossResult:
    """loss: what is differentiated. statistics: detached scalars worth a curve, by name."""

    loss: Float[Tensor, ""]
    statistics: dict[str, Tensor] = field(default_factory=dict)


class PatchLoss(nn.Module):
    """Base of the losses: built as `cls(config)`; running statistics are buffers, so that checkpoints hold them.

    A subclass declares `Config` and `batch_kind`, and defines `forward(batch, progress) -> LossResult`, where
    `progress` in [0, 1) is the share of the training that is done (for warm-up).
    """

    Config: ClassVar[type[Config]]
    batch_kind: ClassVar[Literal["pairs", "groups"]]
