"""AdaSample's angular hinge triplet loss, and the moving average of the loss that its sampler uses.

In words: a triplet hinge on squared angles with the hardest negative of the batch. Each pair is weighted by its
sampler, so that preferring distant pairs does not bias the gradient; the loss keeps a moving average of its value, from
which the sampler decides how strongly to prefer distant pairs.

    L_i = max(t + (d_i^pos)^2 - (d_i^neg)^2, 0)                                        eq. 14
    d_i^pos = d(x_i, x_i^+),   d_i^neg = min_{j != i} min(d(x_i, x_j), d(x_i^+, x_j^+))
    d(x, y) = acos(x.y)                                                                eq. 15
    gradient: sum_i w_i grad L_i,   w_i in proportion to 1 / d_i^pos                   eq. 13
    L_avg: moving average of the mean of L_i                                           section 3.2

Zhang, Zhang, Zheng, Liu, Bian, Cheng: AdaSample (2019), sections 3.2 to 3.4, algorithm 1; the extended version's
formulas are the same. Shapes: anchor, positive (n, d) with unit rows, weights (n,) -> a scalar.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from featkit.core.config import Confidence, Factor, FactorOrZero
from featkit.losses.base import (
    Candidates,
    HingeConfig,
    HingeLoss,
    LossResult,
    PairBatch,
    angle,
    hardest_negatives,
    mean_where,
    paired_similarity,
    similarity_at,
)


class AngularTripletConfig(HingeConfig):
    name: Literal["angular_triplet"] = "angular_triplet"
    """Which loss this configures."""
    distance: Literal["angular", "euclidean"] = "angular"
    """Distance d: angle in radians (eq. 15; AHT in table 2), or Euclidean distance (HT in table 2)."""
    margin: Factor = 1.0
    """Margin t, in units of the squared distance (section 5.1)."""
    negatives: Candidates = "same_side"
    """Candidates for the hardest negative (see base.py): eq. 14 as printed compares patches of the same side."""
    false_negative_distance: FactorOrZero = Field(0.008, lt=2)
    """Patches nearer than this (Euclidean) are not used as negatives. The paper follows HardNet, whose code does so."""
    similarity_limit: Confidence = 1.0 - 1e-6
    """Upper bound of the cosine similarities (0.0014 rad), since the slope of acos is infinite at 1."""
    reduction: Literal["mean", "sum"] = "mean"
    """Reduction over the pairs. Algorithm 1 has the sum; the paper's learning rate of 10 is that of HardNet, which
    takes the mean."""


class AngularTripletLoss(HingeLoss):
    """See the module, and `HingeLoss` for L_avg."""

    Config = AngularTripletConfig

    def __init__(self, config: AngularTripletConfig):
        super().__init__(config, config.distance)
        self.config = config

    def forward(self, batch: PairBatch, progress: float) -> LossResult:
        """Pairs without a negative contribute nothing. Raises ValueError for fewer than two pairs."""
        config = self.config
        hardest = hardest_negatives(batch, config.negatives, similarity_at(config.false_negative_distance))
        positive = squared_distance(paired_similarity(batch.anchor, batch.positive), config)
        negative = squared_distance(hardest.similarity, config)
        losses = (config.margin + positive - negative).clamp(min=0.0) * hardest.found  # eq. 14
        self.update_average(losses)  # L_avg
        weighted = losses * self.pair_factors(batch)
        statistics = {
            "positive_distance": positive.detach().sqrt().mean(),
            "negative_distance": mean_where(negative.detach().sqrt(), hardest.found),
            "active_share": (losses.detach() > 0).float().mean(),
            "average_loss": self.average_loss.detach().clone(),
            "negatives_found": hardest.share,
        }
        return LossResult(weighted.mean() if config.reduction == "mean" else weighted.sum(), statistics)


def squared_distance(similarity: Float[Tensor, " n"], config: AngularTripletConfig) -> Float[Tensor, " n"]:
    """d^2 of eq. 14, in squared radians or as squared Euclidean distance."""
    if config.distance == "euclidean":
        return 2.0 - 2.0 * similarity.clamp(max=1.0)
    return angle(similarity, config.similarity_limit).square()  # eq. 15
