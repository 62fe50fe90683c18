"""HyNet: triplet loss on a hybrid of Euclidean distance and inner product, with a penalty on unequal norms in a pair.

In words: the compared distance is the Euclidean distance plus alpha times one minus the inner product, so that the
gradient neither vanishes for close pairs (as with the inner product) nor is flat (as with the distance). In addition,
the two descriptors of a pair should have the same norm before normalisation, regardless of their patches' contrast.

    s   = (d + alpha (1 - x.y)) / Z = (d + alpha d^2 / 2) / Z          hybrid similarity measure
    L_T = 1/n sum_i max(0, m + s(a_i, p_i) - s_i^-)                    s_i^-: of the hardest negative
    R   = 1/n sum_i (|a_i| - |p_i|)^2                                  of the raw vectors
    L   = L_T + gamma R

Z makes the largest slope of s over the angle 1.

Tian, Barroso Laguna, Ng, Balntas, Mikolajczyk: HyNet (NeurIPS 2020), the sections on the hybrid similarity measure and
on the loss; alpha 2, m 1.2, gamma 0.1 are theirs. Shapes: anchor, positive (n, d) with unit rows, anchor_raw,
positive_raw (n, d) -> a scalar.
"""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from featkit.core.config import Config, Epsilon, Factor, FactorOrZero
from featkit.losses.base import (
    Candidates,
    LossResult,
    PairBatch,
    PatchLoss,
    euclidean,
    full_precision,
    hardest_negatives,
    mean_where,
    pair_weights,
    paired_similarity,
    similarity_at,
)


class HyNetLossConfig(Config):
    name: Literal["hynet"] = "hynet"
    """Which loss this configures."""
    alpha: FactorOrZero = 2.0
    """Weight alpha of the inner product in the hybrid similarity (paper; 0: Euclidean distance alone)."""
    margin: Factor = 1.2
    """Margin by which the negative must be farther, in units of the hybrid similarity (paper)."""
    normalise: bool = True
    """Divide the hybrid similarity by Z (paper). The authors' code does not, so its effective margin is Z = 2.74 times
    smaller."""
    norm_weight: FactorOrZero = 0.1
    """Weight gamma of the norm term (paper)."""
    reduction: Literal["mean", "sum"] = "mean"
    """Reduction over the pairs, for both terms: the paper's mean, or the authors' sum (equivalent under Adam)."""
    negatives: Candidates = "all"
    """Candidates for the hardest negative (authors' code: all four matrices); see base.py."""
    false_negative_distance: FactorOrZero = Field(0.008, lt=2)
    """Patches nearer than this (Euclidean) are assumed to show the same point and not used as negatives (authors'
    code)."""
    epsilon: Epsilon = 1e-6
    """Added to squared distances for a finite gradient at equal descriptors (authors' code)."""


class HyNetLoss(PatchLoss):
    """See the module."""

    Config = HyNetLossConfig
    batch_kind = "pairs"

    def __init__(self, config: HyNetLossConfig):
        super().__init__()
        self.config = config
        self.divisor = largest_slope(config.alpha) if config.normalise else 1.0

    def forward(self, batch: PairBatch, progress: float) -> LossResult:
        """Pairs without a negative contribute only their norm term. Raises ValueError for fewer than two pairs."""
        config = self.config
        hardest = hardest_negatives(batch, config.negatives, similarity_at(config.false_negative_distance))
        positive = self._hybrid(paired_similarity(batch.anchor, batch.positive))
        negative = self._hybrid(hardest.similarity)
        hinge = (config.margin + positive - negative).clamp(min=0.0) * hardest.found  # L_T
        norms = (_norm(batch.anchor_raw) - _norm(batch.positive_raw)).square()  # R
        per_pair = pair_weights(batch) * (hinge + config.norm_weight * norms)
        statistics = {
            "positive_similarity": positive.detach().mean(),
            "negative_similarity": mean_where(negative, hardest.found),
            "active_share": (hinge.detach() > 0).float().mean(),
            "norm_difference": norms.detach().mean(),
            "negatives_found": hardest.share,
        }
        return LossResult(per_pair.mean() if config.reduction == "mean" else per_pair.sum(), statistics)

    def _hybrid(self, similarity: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        distance = euclidean(similarity, self.config.epsilon)
        return (distance + 0.5 * self.config.alpha * distance.square()) / self.divisor  # s


def largest_slope(alpha: float) -> float:
    """Z: the maximum over all angles of the derivative of d + alpha d^2 / 2, which is (1 + alpha d) sqrt(1 - d^2 / 4).

    The maximum is at 2 alpha d^2 + d - 4 alpha = 0.
    """
    distance = (math.sqrt(1.0 + 32.0 * alpha * alpha) - 1.0) / (4.0 * alpha) if alpha > 0 else 0.0
    return (1.0 + alpha * distance) * math.sqrt(1.0 - 0.25 * distance * distance)


def _norm(raw: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    return full_precision(raw).norm(dim=1)
