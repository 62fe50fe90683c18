"""SCFeat's detection loss: keypoints that match well, by policy gradient.

In words: draw keypoints in both images, match them by their descriptors, and make keypoints whose matches agree with
the poses more probable, the others less.

    L_kp = - 1 / (|Q_0| + |Q_1|) * ( sum_ij p_ij r_ij log(P_kp(x_i) P_kp(y_j))
                                     + lambda L_fme (sum_i log P_kp(x_i) + sum_j log P_kp(y_j)) )           (eq. 21)

    Q, P_kp  keypoints of an image and their probabilities: grid_policy.py
    p_ij     probability that x_i and y_j match: softmax over row i times softmax over column j of -60 (1 - cos_ij)
    r_ij     reward of the pair (eq. 20), from the match matrix (eq. 16 to 18) and L_fme (eq. 19)
    lambda   -0.001: a small price of every keypoint; tanh L_fme stands for L_fme there (rewards.py), and 1 where it is
             not defined or not used

The paper leaves the sign and p_ij to PoSFeat: minus, since the loss is minimised, and the sum weighted by p_ij, through
which no gradient flows. Descriptors have no gradient either: their network is frozen.

Sun, Zhu, Ji: Shared Coupling-bridge for Weakly Supervised Local Feature Learning, III-D (2).
Shapes: scores (b, 1, h, w) at image resolution, maps (b, c, h', w'), F (b, 3, 3) -> a scalar, the mean over b pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from featkit.config import Config
from featkit.geometry.sampling import sample_map
from featkit.losses.base import LossResult, Total, alone
from featkit.losses.distances import full_precision
from featkit.losses.scfeat.epipolar_matches import match_matrix
from featkit.losses.scfeat.fundamental_error import FundamentalError, FundamentalErrorConfig, fundamental_error
from featkit.losses.scfeat.grid_policy import GridPolicyConfig, KeypointSample, accepted_first, sample_keypoints
from featkit.losses.scfeat.points import Draws
from featkit.losses.scfeat.rewards import RewardConfig, regulariser_factor, rewards

NOT_DRAWN = -1e3  # instead of a cosine: beside anything that was drawn its probability is 0


class DetectionLossConfig(Config):
    policy: GridPolicyConfig = GridPolicyConfig()
    """How keypoints are drawn."""
    epsilon_px: float = Field(2.0, gt=0)
    """Good pairs are nearer than this to their epipolar lines in both images (paper, eq. 18)."""
    temperature: float = Field(60.0, gt=0)
    """Factor of the cosines in the match probabilities (authors' code)."""
    error: FundamentalErrorConfig = FundamentalErrorConfig()
    """How the error of the fundamental matrix is estimated."""
    reward: RewardConfig = RewardConfig()
    """What pairs earn."""
    regulariser: float = -0.001
    """lambda_reg (authors' code)."""
    per_keypoint: bool = True
    """Whether the sums are divided by |Q_0| + |Q_1| (paper), or left as they are (authors' code)."""


class Matches(NamedTuple):
    """Of the keypoints of both images. Nothing here has a gradient.

    drawn: pairs of two keypoints, not of what merely fills a row. good: P_m. mutual: each other's nearest.
    probability: p_ij; 0 for what was not drawn.
    """

    drawn: Bool[Tensor, "b n m"]
    good: Bool[Tensor, "b n m"]
    mutual: Bool[Tensor, "b n m"]
    probability: Float[Tensor, "b n m"]


def detection_loss(
    scores0: Float[Tensor, "b 1 h w"],
    scores1: Float[Tensor, "b 1 h w"],
    map0: Float[Tensor, "b c h2 w2"],
    map1: Float[Tensor, "b c h2 w2"],
    fundamental01: Float[Tensor, "b 3 3"],
    image_size: tuple[int, int],
    config: DetectionLossConfig,
    generator: Draws,
    valid0: Bool[Tensor, "b 1 h w"] | None = None,
    valid1: Bool[Tensor, "b 1 h w"] | None = None,
    total: Total = alone,
) -> LossResult:
    """L_kp above. valid0, valid1: pixels of the images that show anything; None: all.
    total: the scores are then a part of a batch; losses and statistics of all parts add up to those of the whole.

    Raises ValueError for scores that are not at the images' resolution.
    """
    if tuple(scores0.shape[2:]) != image_size[::-1] or scores0.shape != scores1.shape:
        raise ValueError(f"scores of {tuple(scores0.shape)} and {tuple(scores1.shape)} for images of {image_size}")
    sample0 = accepted_first(sample_keypoints(scores0, config.policy, generator, valid0))
    sample1 = accepted_first(sample_keypoints(scores1, config.policy, generator, valid1))
    with torch.no_grad(), torch.autocast(map0.device.type, enabled=False):
        matches = matched(sample0, sample1, map0, map1, fundamental01, image_size, config)
        candidates = drawn_from(matches, config.error)
        points = (sample0.points, sample1.points)
        error = fundamental_error(*points, candidates, fundamental01, image_size, config.error, generator, total)
        gain = matches.probability * rewards(matches.good, error, config.reward)
        statistics = _statistics(sample0, sample1, matches, gain, error, total)
    factor = regulariser_factor(error, config.reward)
    return LossResult(policy_loss(sample0, sample1, gain, factor, config, total), statistics)


def policy_loss(
    sample0: KeypointSample,
    sample1: KeypointSample,
    gain: Float[Tensor, "b n m"],
    factor: Float[Tensor, " b"],
    config: DetectionLossConfig,
    total: Total = alone,
) -> Float[Tensor, ""]:
    """Eq. 21 with gain_ij = p_ij r_ij and factor = L_fme: the gradient reaches the scores through log P_kp alone."""
    log0 = torch.where(sample0.accepted, sample0.log_probability, 0.0)
    log1 = torch.where(sample1.accepted, sample1.log_probability, 0.0)
    earned = (log0 * gain.sum(2)).sum(1) + (log1 * gain.sum(1)).sum(1)  # sum_ij gain_ij (log0_i + log1_j)
    gained = earned + config.regulariser * factor * (log0.sum(1) + log1.sum(1))
    if not config.per_keypoint:
        return -gained.sum()
    each = gained / (sample0.accepted.sum(1) + sample1.accepted.sum(1)).clamp(min=1)
    return -each.sum() / total(torch.ones_like(each).sum())


def matched(
    sample0: KeypointSample,
    sample1: KeypointSample,
    map0: Float[Tensor, "b c h2 w2"],
    map1: Float[Tensor, "b c h2 w2"],
    fundamental01: Float[Tensor, "b 3 3"],
    image_size: tuple[int, int],
    config: DetectionLossConfig,
) -> Matches:
    """How the keypoints that were drawn match, by their descriptors and by the poses."""
    points = (sample0.points, sample1.points)
    drawn = sample0.accepted[:, :, None] & sample1.accepted[:, None]
    good = match_matrix(*points, fundamental01, config.epsilon_px) & drawn
    first, second = (
        F.normalize(sample_map(full_precision(maps), at, image_size), dim=2)
        for maps, at in zip((map0, map1), points, strict=True)
    )
    cosine = (first @ second.mT).masked_fill_(~drawn, NOT_DRAWN)
    return Matches(drawn, good, _mutual(cosine, drawn), match_probability(cosine, drawn, config.temperature))


def drawn_from(matches: Matches, config: FundamentalErrorConfig) -> Bool[Tensor, "b n m"] | Float[Tensor, "b n m"]:
    """The pairs that L_fme draws its sets of eight from."""
    if config.pairs == "mutual":
        return matches.mutual
    return matches.probability if config.pairs == "likely" else matches.good


def _statistics(
    sample0: KeypointSample,
    sample1: KeypointSample,
    matches: Matches,
    gain: Float[Tensor, "b n m"],
    error: FundamentalError,
    total: Total,
) -> dict[str, Tensor]:
    """Shares and means over the whole batch, of which this may be a part."""
    defined = error.defined.sum()
    own = (matches.mutual.sum(), defined, matches.probability.sum(), torch.ones_like(error.value).sum())
    mutual, all_defined, probability, pairs = total(torch.stack([number.to(gain.dtype) for number in own]))
    good = (matches.mutual & matches.good).sum()
    return {
        "keypoints": (sample0.accepted.sum() + sample1.accepted.sum()) / (2 * pairs),
        "good_share": good / mutual.clamp(min=1),
        "good_matches": good / pairs,
        "fundamental_error": torch.where(error.defined, error.value, 0.0).sum() / all_defined.clamp(min=1),
        "error_defined_share": defined / pairs,
        "reward": gain.sum() / probability.clamp(min=torch.finfo(gain.dtype).tiny),
    }


def match_probability(
    cosine: Float[Tensor, "b n m"], drawn: Bool[Tensor, "b n m"], temperature: float
) -> Float[Tensor, "b n m"]:
    """p_ij above, over the keypoints that were drawn; 0 for the others, whose cosines are NOT_DRAWN."""
    affinity = temperature * cosine
    return affinity.softmax(2).mul_(affinity.softmax(1)).mul_(drawn)


def _mutual(cosine: Float[Tensor, "b n m"], drawn: Bool[Tensor, "b n m"]) -> Bool[Tensor, "b n m"]:
    """Which keypoints are each other's nearest."""
    nearest = cosine.argmax(2, keepdim=True)
    mutual = cosine.gather(2, nearest) == cosine.amax(1)[:, None].mT.gather(1, nearest)
    return torch.zeros_like(drawn).scatter_(2, nearest, mutual) & drawn
