"""DOAP: descriptors optimised for average precision, with differentiable histograms of distances.

In words: every patch is a query for its matches among all others of the batch. Its distances are binned, each distance
shared between its two nearest bins; precision is computed at every bin and averaged over the matches. The loss is one
minus the mean over all patches.

    Prec@K = 1/K sum_{i <= K} [x_i matches q],   AP = 1/|S+| sum_K [x_K matches q] Prec@K       eq. 1, 2
    h+_k = sum_{x in S+} delta(D(q, x), k),      h_k: the same over S+ and S-                   eq. 3
    D(x, y) = (b - F(x).F(y)) / 2 in [0, b], F = tanh of the network    binary descriptors      eq. 6 to 8
    D(x, y) = sqrt(2 - 2 F(x).F(y)) in [0, 2], |F| = 1                  real-valued             eq. 9
    AP = 1/|S+| sum_k h+_k (H+_{k-1} + H+_k + 1) / (H_{k-1} + H_k + 1),   H, H+: cumulated h, h+

The last line is the closed form for ties, relaxed to any h >= 0, of He, Cakir, Bargal, Sclaroff: Hashing as tie-aware
learning to rank (CVPR 2018), which section 3.2 builds on: the expected precision at the middle rank of the items tied
in bin k. With at most one item per bin it equals eq. 2.

He, Lu, Sclaroff: Local descriptors optimized for average precision (CVPR 2018), section 3.2 and appendix A.
Shapes: descriptors (m, d), labels (m,), ignored (m, m) -> a scalar. Memory grows with m x m and m x bins.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from featkit.core.config import Config, Epsilon, PositiveShare
from featkit.losses.base import GroupBatch, LossResult, PatchLoss, euclidean, similarity_matrix


class AveragePrecisionConfig(Config):
    name: Literal["average_precision"] = "average_precision"
    """Which loss this configures."""
    descriptor: Literal["real", "binary"] = "real"
    """Kind of descriptor: unit vectors with Euclidean distances (eq. 9), or tanh values with Hamming distances (eq. 6
    to 8)."""
    bins: int = Field(25, ge=2, le=65536)
    """Histogram bins over [0, 2] for real-valued descriptors (section 3.2: up to 25). Binary descriptors have one bin
    per distance."""
    bin_overlap: PositiveShare = 1.0
    """Overlap of neighbouring bins as a share of their spacing. 1: triangular bins (paper, after Ustinova and
    Lempitsky); towards 0 the histogram, and the AP, become exact and lose their gradient."""
    epsilon: Epsilon = 1e-6
    """Added to squared Euclidean distances for a finite gradient at equal descriptors (as in HardNet's code)."""


class AveragePrecisionLoss(PatchLoss):
    """See the module."""

    Config = AveragePrecisionConfig
    batch_kind = "groups"

    def __init__(self, config: AveragePrecisionConfig):
        super().__init__()
        self.config = config

    def forward(self, batch: GroupBatch, progress: float) -> LossResult:
        """Patches without a match are not used as queries.

        Raises ValueError if no patch has a match, or none has a non-match (every ranking would be correct).
        """
        match = batch.labels[:, None] == batch.labels[None, :]
        counted = ~torch.eye(len(match), dtype=torch.bool, device=match.device)
        if batch.ignored is not None:
            counted = counted & ~batch.ignored
        relevant = match & counted
        wanted = relevant.sum(1)
        if not relevant.any() or torch.equal(relevant, counted):
            missing = "non-matching" if relevant.any() else "matching"
            raise ValueError(f"no two {missing} patches in the batch; give at least 2 groups of at least 2 patches")
        position, bins = self._positions(batch.descriptors)
        histogram = soft_histogram(position, relevant, counted, bins, self.config.bin_overlap)
        precision = ap_of_histograms(histogram[:, 1], histogram.sum(1), wanted)
        asks = wanted > 0
        mean = torch.where(asks, precision, torch.zeros_like(precision)).sum() / asks.sum()
        return LossResult(1.0 - mean, {"mean_average_precision": mean.detach()})

    def _positions(self, descriptors: Float[Tensor, "m d"]) -> tuple[Float[Tensor, "m m"], int]:
        """Distances in units of bins (the centre of bin k is at k), and the number of bins."""
        products = similarity_matrix(descriptors, descriptors)
        if self.config.descriptor == "binary":
            bits = descriptors.shape[1]
            return 0.5 * (bits - products), bits + 1  # eq. 6
        return euclidean(products, self.config.epsilon) * (0.5 * (self.config.bins - 1)), self.config.bins  # eq. 9


def soft_histogram(
    position: Float[Tensor, "m m"],
    relevant: Bool[Tensor, "m m"],
    counted: Bool[Tensor, "m m"],
    bins: int,
    overlap: float,
) -> Float[Tensor, "m 2 bins"]:
    """Per row, histograms of the counted entries that are not relevant and of those that are. Eq. 3.

    Every entry touches two bins, so it is scattered to them; no m x m x bins array exists.
    """
    low = position.detach().nan_to_num().floor().clamp(0, bins - 2)  # NaN stays in the shares and so in the loss
    share = ((position - low - 0.5) / overlap + 0.5).clamp(0.0, 1.0) * counted  # of the upper bin
    column = low.long() + bins * relevant
    flat = position.new_zeros(len(position), 2 * bins)
    flat = flat.scatter_add(1, column, counted.to(share.dtype) - share).scatter_add(1, column + 1, share)
    return flat.view(-1, 2, bins)


def ap_of_histograms(
    positives: Float[Tensor, "m bins"], everything: Float[Tensor, "m bins"], wanted: Float[Tensor, " m"]
) -> Float[Tensor, " m"]:
    """AP of every row from its histograms, nearest bin first. wanted: number of positives; 0 gives AP 0."""
    ranked_positives, ranked = positives.cumsum(1), everything.cumsum(1)
    precision = (2.0 * ranked_positives - positives + 1.0) / (2.0 * ranked - everything + 1.0)
    return (positives * precision).sum(1) / wanted.clamp(min=1)  # eq. 2
