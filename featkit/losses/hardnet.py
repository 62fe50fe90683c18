"""HardNet: triplet margin loss with the hardest negative in the batch.

In words: a pair's patches should be closer to each other, by a margin, than either of them is to the closest patch of
any other pair in the batch; the loss is the mean violation.

    L = 1/n sum_i max(0, 1 + d(a_i, p_i) - min(d(a_i, p_jmin), d(a_kmin, p_i))),    d(a, p) = sqrt(2 - 2 a.p)

with j, k != i the nearest in row i and column i of the n x n matrix of anchor-positive distances.

With AdaSample's sampler each hinge is multiplied by its pair's weight, and the loss keeps the average that the sampler
uses (`HingeLoss`): AdaSample's table 1 has HardNet on generated positives.

Mishchuk, Mishkin, Radenovic, Matas: Working hard to know your neighbor's margins (NeurIPS 2017), section 3.1 and its
loss, the paper's only one. Shapes: anchor, positive (n, d) with unit rows -> a scalar.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from featkit.core.config import Epsilon, Factor, FactorOrZero
from featkit.losses.base import (
    Candidates,
    HingeConfig,
    HingeLoss,
    LossResult,
    PairBatch,
    euclidean,
    hardest_negatives,
    mean_where,
    paired_similarity,
    similarity_at,
)


class HardNetLossConfig(HingeConfig):
    name: Literal["hardnet"] = "hardnet"
    """Which loss this configures."""
    margin: Factor = 1.0
    """Margin by which the negative must be farther than the positive, Euclidean distance (paper, section 3.1)."""
    negatives: Candidates = "cross"
    """Candidates for the hardest negative (paper: row and column of the anchor-positive matrix); see base.py."""
    false_negative_distance: FactorOrZero = Field(0.008, lt=2)
    """Patches nearer than this (Euclidean) are assumed to show the same point and not used as negatives (authors' code;
    0: paper). For SDGMNet's baseline 2 sin(0.3) = 0.591, its anti-noise threshold of 0.6 rad (section III-E)."""
    epsilon: Epsilon = 1e-6
    """Added to squared distances for a finite gradient at equal descriptors (authors' code)."""


class HardNetLoss(HingeLoss):
    """See the module."""

    Config = HardNetLossConfig

    def __init__(self, config: HardNetLossConfig):
        super().__init__(config, "euclidean")
        self.config = config

    def forward(self, batch: PairBatch, progress: float) -> LossResult:
        """Pairs without a negative contribute nothing. Raises ValueError for fewer than two pairs."""
        config = self.config
        hardest = hardest_negatives(batch, config.negatives, similarity_at(config.false_negative_distance))
        positive = euclidean(paired_similarity(batch.anchor, batch.positive), config.epsilon)
        negative = euclidean(hardest.similarity, config.epsilon)
        hinge = (config.margin + positive - negative).clamp(min=0.0) * hardest.found  # the paper's L
        self.update_average(hinge)
        statistics = {
            "positive_distance": positive.detach().mean(),
            "negative_distance": mean_where(negative, hardest.found),
            "active_share": (hinge.detach() > 0).float().mean(),
            "average_loss": self.average_loss.detach().clone(),
            "negatives_found": hardest.share,
        }
        return LossResult((self.pair_factors(batch) * hinge).mean(), statistics)
