"""SDGMNet: every pair's gradient is weighted by its angle relative to running statistics of all angles.

In words: the gradients on the angles are designed directly, not derived from a loss. A pair has the largest weight if
its angle is typical (auto-focus), a triplet has a larger weight the harder it is and none among the easiest 60 %
(probabilistic margin), and the total weights of positives and negatives have the ratio 0.9 to 1 (power adjustment).
Running means and standard deviations define what is typical.

    theta = acos(x.y),  theta^r = theta^+ - theta^-                                      eq. 3
    w_s^+ = exp(-(theta^+ - E[theta^+])^2 / (2 (pi/6 + Std[theta^+])^2)),  w_s^- alike   eq. 9, 10
    w_c   = CDF(theta^r) where theta^r > iCDF(m), else 0;  CDF of a normal distribution  eq. 11
    w = w_s w_c,  P^+ = sum w^+,  P^- = sum w^-                                          eq. 12
    L = alpha / E[P^+] sum_i w_i^+ theta_i^+  -  1 / E[P^-] sum_i w_i^- theta_i^-        eq. 15 (gradient: eq. 13)
    beta <- 0.999 beta + 0.001 mu  for E and Std of theta^r, theta^+, theta^-, E[P]      eq. 14

Everything except theta_i is constant for the gradient. In the first 10 % of the training all w are 1. The negative of a
pair is the hardest in the batch that is not nearer than 0.6 rad (anti-noise threshold).

Ma, Deng: SDGMNet, sections III-A to III-E, algorithm 1; figure 6 for what the ablation fields change.
Shapes: anchor, positive (n, d) with unit rows -> a scalar without meaning of its own; watch the statistics instead.

How the statistics scale with a short training: see `scaled_to`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from featkit.core.config import Confidence, Config, Factor, Radians, Share
from featkit.losses.base import (
    Candidates,
    LossResult,
    PairBatch,
    PatchLoss,
    angle,
    hardest_negatives,
    mean_where,
    pair_weights,
    paired_similarity,
)

# Statistics of the loss, in the order of the buffers, with their names in tables II to IV.
ANGLE_STATISTICS = {
    "relative_angle_mean": "E[θʳ]",
    "relative_angle_std": "Std[θʳ]",
    "positive_angle_mean": "E[θ⁺]",
    "positive_angle_std": "Std[θ⁺]",
    "negative_angle_mean": "E[θ⁻]",
    "negative_angle_std": "Std[θ⁻]",
}
POWER_STATISTICS = {"positive_power": "E[P⁺]", "negative_power": "E[P⁻]"}
TABLE_ROWS = {**ANGLE_STATISTICS, **POWER_STATISTICS}
SMALLEST_DEVIATION_RAD = 1e-6  # lower bound of Std[theta^r], for batches of equal angles


class SdgmLossConfig(Config):
    name: Literal["sdgm"] = "sdgm"
    """Which loss this configures."""
    hard_margin: Share = Field(0.6, lt=1)
    """Hard margin m of eq. 11: the share of triplets considered optimal and given no weight (figure 6b)."""
    attenuation: Factor = 0.9
    """Attenuation alpha of eq. 13: ratio of the positives' power to the negatives' (figures 6b, 7)."""
    distance: Literal["theta", "s", "l2"] = "theta"
    """Distance whose derivative multiplies the self weight (figure 6c): angle, 1 (eq. 5); inner product, sqrt(1 - s^2)
    (eq. 6); Euclidean distance, sqrt(4 l^2 - l^4) / 2 l (eq. 7)."""
    auto_focus: bool = True
    """Use the self weights of eq. 9 and 10 (figure 6c, &AF). False: 1 (its rows &theta, &s, &l2, by `distance`)."""
    auto_focus_radius_rad: Radians = Field(math.pi / 6, gt=0)
    """Constant added to the standard deviations in eq. 9 and 10, radians, so that rare angles keep some weight."""
    power_adjustment: bool = True
    """Use the power adjustment of eq. 13 (figure 6c, +PA). False: eq. 8 (-PA), divided by the number of pairs to keep
    the learning rate."""
    coupled_weight: Literal["paper", "authors"] = "paper"
    """Coupled weight above the hard margin: the CDF (eq. 11), or 1 (authors' code)."""
    statistics_memory: Share = Field(0.999, lt=1)
    """Decay of the running statistics in eq. 14, for 200,000 steps; see `scaled_to`."""
    power_start: float = Field(10_000.0, gt=0, le=1e12)
    """Initial value of E[P] (section III-E), for 1024 pairs; see `scaled_to`."""
    relative_mean_start_rad: float = Field(-1.0, ge=-math.pi, le=math.pi)
    """Initial value of E[theta^r], radians (authors' code); the other five start with the first batch's values."""
    warm_up_share: Share = 0.10
    """Share of the training at its start in which all weights are 1 (section III-E)."""
    noise_angle_rad: Radians = Field(0.6, lt=math.pi)
    """Patches nearer than this angle, radians, are not used as negatives (section III-E: anti-noise threshold)."""
    noise_start_share: Share = 0.125
    """Share of the training before the anti-noise threshold applies (authors' code), since early descriptors are all
    similar."""
    similarity_limit: Confidence = 1.0 - 1e-5
    """Upper bound of the cosine similarities (0.0045 rad), and the threshold before `noise_start_share` (authors'
    code)."""
    negatives: Candidates = "all"
    """Candidates for the hardest negative (authors' code: all four matrices; "cross": HardNet's); see base.py."""

    def scaled_to(self, steps: int, pairs: int) -> SdgmLossConfig:
        """The configuration for a training of `steps` batches of `pairs` pairs, in the paper's proportions.

        The paper trains 200,000 steps of 1024 pairs. A decay of 0.999 averages over 1,000 steps, 0.5 % of the
        training. E[P] starts at 10,000, 9.8 times the power of 1024 weights of 1, and reaches that power within about
        2.5 % of the training, which warms up the gradient (section III-E calls it a one cycle policy). Hence the
        average covers 0.5 % of `steps`, but at least 10 steps, and the initial E[P] is proportional to `pairs`.
        Nothing else depends on them. Values that differ from the paper's are kept.
        """
        fitted = {"statistics_memory": 1.0 - 1.0 / max(0.005 * steps, 10.0), "power_start": 10_000.0 * pairs / 1024.0}
        papers = SdgmLossConfig()
        return self.model_copy(
            update={name: value for name, value in fitted.items() if getattr(self, name) == getattr(papers, name)}
        )


class SdgmLoss(PatchLoss):
    """See the module. Evaluation uses the running statistics without updating them."""

    Config = SdgmLossConfig
    batch_kind = "pairs"
    angle_statistics: Tensor
    powers: Tensor
    started: Tensor

    def __init__(self, config: SdgmLossConfig):
        super().__init__()
        self.config = config
        self.register_buffer("angle_statistics", torch.tensor([config.relative_mean_start_rad] + 5 * [0.0]))
        self.register_buffer("powers", torch.full((2,), config.power_start))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, batch: PairBatch, progress: float) -> LossResult:
        """Pairs without a negative contribute nothing. Raises ValueError for fewer than two pairs."""
        config = self.config
        hardest = hardest_negatives(batch, config.negatives, self._noise_similarity(progress))
        positive = angle(paired_similarity(batch.anchor, batch.positive), config.similarity_limit)  # eq. 3
        negative = angle(hardest.similarity, config.similarity_limit)
        with torch.no_grad():
            statistics = self._update_angle_statistics(positive, negative, hardest.found)
            weights = self._weights(positive, negative, statistics, progress < config.warm_up_share)
            weights = weights * hardest.found * pair_weights(batch)
            powers = self._update_powers(weights.sum(1), hardest.found.any())  # eq. 12
            factors = self._factors(weights, powers)
        loss = (factors[0] * positive).sum() - (factors[1] * negative).sum()  # eq. 15
        return LossResult(loss, self._statistics_by_name(statistics, powers) | {"negatives_found": hardest.share})

    def _noise_similarity(self, progress: float) -> float:
        config = self.config
        return config.similarity_limit if progress < config.noise_start_share else math.cos(config.noise_angle_rad)

    def _update_angle_statistics(
        self, positive: Float[Tensor, " n"], negative: Float[Tensor, " n"], found: Bool[Tensor, " n"]
    ) -> Float[Tensor, "6"]:
        """The running statistics after this batch, stored in training mode; unchanged by a batch without negatives."""
        batch = torch.stack(
            [s for values in (positive - negative, positive, negative) for s in _moments(values, found)]
        )
        old = self.angle_statistics.to(batch.dtype)
        memory = self.config.statistics_memory
        new = memory * old + (1.0 - memory) * batch  # eq. 14
        first = torch.cat([new[:1], batch[1:]])  # E[theta^r] has a configured initial value
        new = torch.where(found.any(), torch.where(self.started, new, first), old)
        if self.training:
            self.angle_statistics.copy_(new)
            self.started.logical_or_(found.any())
        return new

    def _weights(
        self,
        positive: Float[Tensor, " n"],
        negative: Float[Tensor, " n"],
        statistics: Float[Tensor, "6"],
        warming: bool,
    ) -> Float[Tensor, "2 n"]:
        """w of the positives and of the negatives."""
        angles = torch.stack([positive, negative])
        if warming:
            return torch.ones_like(angles)
        weights = _slope(angles, self.config.distance)
        if self.config.auto_focus:
            mean, deviation = statistics[2::2, None], statistics[3::2, None]
            radius = self.config.auto_focus_radius_rad + deviation
            weights = weights * torch.exp(-(angles - mean).square() / (2.0 * radius.square()))  # eq. 9, 10
        return weights * self._coupled_weights(positive - negative, statistics[0], statistics[1])

    def _coupled_weights(
        self, relative: Float[Tensor, " n"], mean: Float[Tensor, ""], deviation: Float[Tensor, ""]
    ) -> Float[Tensor, " n"]:
        standard = (relative - mean) / deviation.clamp(min=SMALLEST_DEVIATION_RAD)
        share = torch.special.ndtr(standard)  # CDF of the normal distribution
        weight = share if self.config.coupled_weight == "paper" else torch.ones_like(share)
        return torch.where(share > self.config.hard_margin, weight, torch.zeros_like(share))  # eq. 11

    def _update_powers(self, batch: Float[Tensor, "2"], usable: Bool[Tensor, ""]) -> Float[Tensor, "2"]:
        memory = self.config.statistics_memory
        old = self.powers.to(batch.dtype)
        new = torch.where(usable, memory * old + (1.0 - memory) * batch, old)  # eq. 14
        if self.training:
            self.powers.copy_(new)
        return new

    def _factors(self, weights: Float[Tensor, "2 n"], powers: Float[Tensor, "2"]) -> Float[Tensor, "2 n"]:
        """The factor of each angle's gradient."""
        if not self.config.power_adjustment:
            return weights / weights.shape[1]  # eq. 8
        attenuation = torch.tensor([self.config.attenuation, 1.0], dtype=weights.dtype, device=weights.device)
        return weights * (attenuation / powers)[:, None]  # eq. 13

    def _statistics_by_name(self, angles: Float[Tensor, "6"], powers: Float[Tensor, "2"]) -> dict[str, Tensor]:
        return dict(zip(TABLE_ROWS, torch.cat([angles, powers]), strict=True))


def _moments(values: Float[Tensor, " n"], chosen: Bool[Tensor, " n"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and (unbiased) standard deviation of the chosen values."""
    mean = mean_where(values, chosen)
    squares = mean_where((values - mean).square(), chosen) * chosen.sum()
    return mean, (squares / (chosen.sum() - 1).clamp(min=1)).sqrt()


def _slope(angles: Float[Tensor, "2 n"], distance: str) -> Float[Tensor, "2 n"]:
    """|d distance / d angle|: eq. 5, 6 and 7 without the factor 1/|x|, as functions of the angle."""
    if distance == "theta":
        return torch.ones_like(angles)
    return angles.sin() if distance == "s" else (0.5 * angles).cos()
