"""Shared by the losses on patch descriptors: input, distances, hardest negatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from featkit.core.config import Config, Factor, Share

# ----------------------------------------------------------------------------------------------------------------------
# Input and output of the losses on patch descriptors.


Total = Callable[[Tensor], Tensor]
"""Sums values, without gradient, over the processes that each have a part of the batch."""


def local_total(values: Tensor) -> Tensor:
    """The `Total` of a single process, which has the complete batch."""
    return values


@dataclass(frozen=True)
class PairBatch:
    """n pairs of matching patches, all of different classes: row i of `anchor` matches row i of `positive`.

    anchor, positive: descriptors with unit rows. anchor_raw, positive_raw: the same before normalisation.
    weights: factor of each pair's loss; None: 1.
    """

    anchor: Float[Tensor, "n d"]
    positive: Float[Tensor, "n d"]
    anchor_raw: Float[Tensor, "n d"]
    positive_raw: Float[Tensor, "n d"]
    weights: Float[Tensor, " n"] | None = None


@dataclass(frozen=True)
class GroupBatch:
    """m patches in complete groups: two patches match if their labels are equal.

    descriptors: unit rows, or rows of tanh in (-1, 1) for a binary descriptor.
    ignored: pairs that count neither as match nor as non-match (the diagonal never counts).
    """

    descriptors: Float[Tensor, "m d"]
    labels: Int[Tensor, " m"]
    ignored: Bool[Tensor, "m m"] | None = None


@dataclass(frozen=True)
class LossResult:
    """loss: differentiable. statistics: detached scalars to log, by name."""

    loss: Float[Tensor, ""]
    statistics: dict[str, Tensor] = field(default_factory=dict)


class PatchLoss(nn.Module):
    """Base of the losses, built as `cls(config)`. Running statistics are buffers, so that they are in checkpoints.

    A subclass declares `Config` and `batch_kind`, and defines `forward(batch, progress) -> LossResult`, where
    `progress` in [0, 1) is the completed share of the training (for warm-up).
    """

    Config: ClassVar[type[Config]]
    batch_kind: ClassVar[Literal["pairs", "groups"]]


class HingeConfig(Config):
    """Fields of hinge losses on pairs that AdaSample's sampler can use (Zhang et al. 2019, section 3.2)."""

    margin: Factor = 1.0
    """Margin by which the negative must be farther than the positive, in units of the loss's distance."""
    scale_weights: bool = True
    """Scale the sampler's pair weights to mean 1 in every batch. Eq. 13 defines them up to a factor, and the learning
    rate was tuned with weights of 1. False: unscaled."""
    average_start: Factor | None = None
    """Initial value of L_avg. None: the margin, which is the loss of a network that cannot distinguish patches (not
    given in the paper)."""
    average_memory: Share = Field(0.99, lt=1)
    """Decay of the moving average L_avg: about the last 100 batches, 0.1 % of the paper's training (not given in the
    paper). It is not scaled to shorter trainings: in trainings of some hundred steps L_avg lags behind the loss, and
    distant pairs are preferred slightly less than in the paper."""


class HingeLoss(PatchLoss):
    """Base of the losses that AdaSample's sampler can use: the buffer `average_loss` is L_avg of its eq. 13.

    `distance`: the distance of the loss, which is also d of eq. 13 (section 3.4).
    """

    batch_kind = "pairs"
    average_loss: Tensor

    def __init__(self, config: HingeConfig, distance: Literal["angular", "euclidean"]):
        super().__init__()
        self.distance = distance
        self._memory, self._scale_weights = config.average_memory, config.scale_weights
        start = config.margin if config.average_start is None else config.average_start
        self.register_buffer("average_loss", torch.tensor(start, dtype=torch.float32))

    def update_average(self, losses: Float[Tensor, " n"]) -> None:
        """Update L_avg with the unweighted mean of a batch's losses; only in training mode."""
        if self.training:
            self.average_loss.mul_(self._memory).add_((1.0 - self._memory) * losses.detach().mean())

    def pair_factors(self, batch: PairBatch) -> Float[Tensor, " n"] | float:
        """Factor of each pair's loss."""
        if batch.weights is None:
            return 1.0
        return batch.weights / batch.weights.mean() if self._scale_weights else batch.weights


# ----------------------------------------------------------------------------------------------------------------------
# Distances between unit descriptors, in full precision and with finite gradients everywhere.
#
# Similarity is the inner product of unit vectors, the cosine of the angle between them. Its other forms are
#     Euclidean  d = sqrt(2 - 2 s)   in [0, 2]
#     angular    theta = acos(s)     in [0, pi] radians
# Both have an infinite slope at s = 1 (equal descriptors), so the first takes an epsilon and the second a limit.


def full_precision(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The values in at least float32: bfloat16 cannot distinguish a similarity of 0.999 from 1."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def similarity_matrix(rows: Float[Tensor, "n d"], columns: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Inner products of every row with every column's vector; in full precision under autocast too."""
    with torch.autocast(rows.device.type, enabled=False):
        return full_precision(rows) @ full_precision(columns).T


def paired_similarity(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Inner product of row i of `first` with row i of `second`."""
    return (full_precision(first) * full_precision(second)).sum(1)


def euclidean(similarity: Float[Tensor, "..."], epsilon: float) -> Float[Tensor, "..."]:
    """Euclidean distance of unit vectors with this similarity; `epsilon` is added under the root."""
    return ((2.0 - 2.0 * similarity).clamp(min=0.0) + epsilon).sqrt()


def angle(similarity: Float[Tensor, "..."], limit: float) -> Float[Tensor, "..."]:
    """Angle in radians; similarities are clamped to +-limit (below 1), where they have no gradient."""
    return similarity.clamp(-limit, limit).acos()


def similarity_at(distance: float) -> float:
    """The similarity of unit vectors at this Euclidean distance."""
    return 1.0 - 0.5 * distance * distance


# ----------------------------------------------------------------------------------------------------------------------
# The hardest negative of every pair in a batch: the most similar patch of all other pairs.
#
# The candidates of pair i are, for all j != i (a: anchor, p: positive):
#     cross      a_i with p_j, and p_i with a_j   (row and column of the anchor-positive matrix: HardNet)
#     same_side  a_i with a_j, and p_i with p_j   (AdaSample, eq. 14)
#     all        both                             (HyNet, SDGMNet)
# A candidate that is too similar is assumed to be the same point under another label, and skipped.


Candidates = Literal["cross", "same_side", "all"]
NONE = -2.0  # below every similarity

# Sides of the two patches that are compared: 0 anchors, 1 positives.
SIDES: dict[Candidates, tuple[tuple[int, int], ...]] = {
    "cross": ((0, 1), (1, 0)),
    "same_side": ((0, 0), (1, 1)),
    "all": ((0, 1), (1, 0), (0, 0), (1, 1)),
}


@dataclass(frozen=True)
class HardNegatives:
    """similarity: of each pair's hardest negative, differentiable; 0 without gradient if none is `found`.

    ends: the two patches compared, the pair's own first; i is the anchor of pair i, n + i its positive.
    """

    similarity: Float[Tensor, " n"]
    found: Bool[Tensor, " n"]
    ends: Int[Tensor, "n 2"]

    @property
    def share(self) -> Float[Tensor, ""]:
        """Share of the pairs that have a negative."""
        return self.found.float().mean()


def hardest_negatives(batch: PairBatch, candidates: Candidates, below: float) -> HardNegatives:
    """The most similar candidate of each pair with a similarity less than `below`.

    Only the n selected products are differentiated, not the n x n matrices they are selected from.
    Raises ValueError for a batch of fewer than two pairs, which has no negatives.
    """
    n = len(batch.anchor)
    if n < 2:
        raise ValueError(f"a batch of {n} pair(s) has no negatives; give at least 2 pairs of different classes")
    sides = (batch.anchor, batch.positive)
    with torch.no_grad():
        best = [_most_similar(sides[first], sides[second], below) for first, second in SIDES[candidates]]
        values, which = torch.stack([value for value, _ in best]).max(0)
        partners = torch.stack([partner for _, partner in best]).gather(0, which[None])[0]
        found = values > NONE
        code = torch.tensor(SIDES[candidates], device=values.device)[which]  # (n, 2)
        ends = torch.stack([torch.arange(n, device=values.device), partners], 1) + n * code
    both = torch.cat(sides)  # (2n, d)
    similarity = paired_similarity(both[ends[:, 0]], both[ends[:, 1]])
    return HardNegatives(torch.where(found, similarity, torch.zeros_like(similarity)), found, ends)


def _most_similar(
    rows: Float[Tensor, "n d"], columns: Float[Tensor, "n d"], below: float
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Per row, the largest similarity to another pair's column, and that pair's index."""
    similarity = similarity_matrix(rows, columns)
    similarity = similarity.masked_fill(similarity >= below, NONE).fill_diagonal_(NONE)
    best = similarity.max(1)
    return best.values, best.indices


def pair_weights(batch: PairBatch) -> Float[Tensor, " n"] | float:
    """The factor of each pair's loss."""
    return 1.0 if batch.weights is None else batch.weights


def mean_where(values: Float[Tensor, " n"], chosen: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """Mean of the chosen values, without gradient; 0 if none is chosen."""
    values = values.detach()
    return torch.where(chosen, values, torch.zeros_like(values)).sum() / chosen.sum().clamp(min=1)
