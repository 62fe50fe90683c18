"""What every loss on patch descriptors takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
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


class HingeConfig(Config):
    """Of a hinge loss on pairs that AdaSample's sampler can go by (Zhang et al. 2019, section 3.2)."""

    margin: float = Field(1.0, gt=0)
    """By how much the negative must be farther than the positive, in the units that the loss compares."""
    scale_weights: bool = True
    """Give the sampler's weights mean 1 in every batch: eq. 13 fixes them up to a factor, and the learning rate was
    found with weights of 1. False: as the sampler gives them."""
    average_start: float | None = Field(None, gt=0)
    """L_avg before the first batch; None: the margin, the loss of a network that cannot tell patches apart (the paper
    gives none)."""
    average_memory: float = Field(0.99, ge=0, lt=1)
    """Share of L_avg that a batch leaves as it was: an average over about the last 100 batches, 0.1 % of the paper's
    training (the paper gives none). Not scaled to shorter trainings: in some hundred steps L_avg lags behind the loss,
    and distant pairs are preferred a little less than the paper would."""


class HingeLoss(PatchLoss):
    """Base of the losses that AdaSample's sampler can go by: the buffer `average_loss` is L_avg of its eq. 13.

    `distance`: what the loss compares, and with it the d of eq. 13 (section 3.4).
    """

    batch_kind = "pairs"
    average_loss: Tensor

    def __init__(self, config: HingeConfig, distance: Literal["angular", "euclidean"]):
        super().__init__()
        self.distance = distance
        self._memory, self._scale_weights = config.average_memory, config.scale_weights
        start = config.margin if config.average_start is None else config.average_start
        self.register_buffer("average_loss", torch.tensor(start, dtype=torch.float32))

    def remember(self, losses: Float[Tensor, " n"]) -> None:
        """Move L_avg towards the unweighted mean of a batch's losses; evaluation leaves it alone."""
        if self.training:
            self.average_loss.mul_(self._memory).add_((1.0 - self._memory) * losses.detach().mean())

    def weights_of(self, batch: PairBatch) -> Float[Tensor, " n"] | float:
        """The factor of each pair's loss."""
        if batch.weights is None:
            return 1.0
        return batch.weights / batch.weights.mean() if self._scale_weights else batch.weights
