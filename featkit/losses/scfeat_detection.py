"""SCFeat's detection loss: policy gradient that rewards keypoints that match well.

In words: sample keypoints in both images, match them by their descriptors, and increase the probability of keypoints
whose matches agree with the poses; decrease that of the others.

    L_kp = - 1 / (|Q_0| + |Q_1|) * ( sum_ij p_ij r_ij log(P_kp(x_i) P_kp(y_j))
                                     + lambda L_fme (sum_i log P_kp(x_i) + sum_j log P_kp(y_j)) )           (eq. 21)

    Q, P_kp  keypoints of an image and their probabilities, see GridPolicyConfig
    p_ij     probability that x_i and y_j match: softmax over row i times softmax over column j of -60 (1 - cos_ij)
    r_ij     reward of the pair (eq. 20), from the match matrix (eq. 16 to 18) and L_fme (eq. 19)
    lambda   -0.001: a small cost of every keypoint. Its factor is tanh L_fme instead of L_fme (see RewardConfig), and 1
             if L_fme is not defined or not used

The paper leaves the sign and p_ij to PoSFeat: minus, since the loss is minimised, and the sum weighted by p_ij, through
which no gradient flows. Descriptors have no gradient either: their network is frozen.

Sun, Zhu, Ji: Shared Coupling-bridge for Weakly Supervised Local Feature Learning, III-D (2).
Shapes: scores (b, 1, h, w) at image resolution, maps (b, c, h', w'), F (b, 3, 3) -> a scalar, the mean over b pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from featkit.core.config import Config, Factor, Number, Pixels, Side
from featkit.geometry.batched import distances_to_lines, epipolar_lines
from featkit.losses.base import LossResult, Total, full_precision, local_total
from featkit.losses.scfeat_fundamental import FundamentalError, FundamentalErrorConfig, fundamental_error
from featkit.losses.two_views import Draws, LossContext, TwoViews, descriptors_at, draw_uniform, mask_at

# ----------------------------------------------------------------------------------------------------------------------
# SCFeat's keypoint policy: at most one keypoint in every cell of the score map, drawn from the scores.
#
# In words: one of the 64 pixels of a cell is proposed, by the softmax of their scores; the proposal is accepted with
# probability sigmoid(score). So a pixel of score s becomes a keypoint with probability
#
#     P_kp(x_s) = exp(s) / sum_t exp(t) * 1 / (1 + exp(-s)),          s, t: scores of the pixels of the cell
#
# Sun, Zhu, Ji: Shared Coupling-bridge for Weakly Supervised Local Feature Learning, III-D (2), after PoSFeat and DISK
# (Tyszkiewicz et al., NeurIPS 2020, section 3.1); the side of 8 px is the authors' code. SCFeat's scores are positive,
# so that more than half of the proposals are accepted; DISK's are not. Shapes: scores (b, 1, h, w) at image resolution
# -> one proposal per cell, n = (h // 8) (w // 8).


class GridPolicyConfig(Config):
    cell_px: Side = 8
    """Side g_k in pixels of the cells with at most one keypoint each (authors' code)."""


@dataclass(frozen=True)
class KeypointSample:
    """points: the proposals, in pixels. log_probability: log P_kp, differentiable. accepted: which are keypoints."""

    points: Float[Tensor, "b n 2"]
    log_probability: Float[Tensor, "b n"]
    accepted: Bool[Tensor, "b n"]


def sample_keypoints(
    scores: Float[Tensor, "b 1 h w"],
    config: GridPolicyConfig,
    generator: Draws,
    valid: Bool[Tensor, "b 1 h w"] | None = None,
) -> KeypointSample:
    """One sample of the policy, cells row by row. valid: pixels that may become keypoints; None: all.

    Raises ValueError for a score map smaller than a cell.
    """
    logits, corners = _cells(full_precision(scores), config.cell_px)
    with torch.no_grad():
        heights = logits.softmax(2).cumsum(2)
        u = draw_uniform((*logits.shape[:2], 2), generator, scores.device).to(logits.dtype)
        proposed = (heights <= u[..., :1] * heights[..., -1:]).sum(2).clamp(max=logits.shape[2] - 1)
        within = torch.stack([proposed % config.cell_px, proposed // config.cell_px], dim=2)
        points = (corners + within).to(logits.dtype)
    score = logits.gather(2, proposed[..., None])[..., 0]
    log_probability = logits.log_softmax(2).gather(2, proposed[..., None])[..., 0] + F.logsigmoid(score)
    kept = (u[..., 1] < score.detach().sigmoid()) | log_probability.isnan()  # a loss must show NaN
    return KeypointSample(points, log_probability, kept & mask_at(valid, points))


def _cells(scores: Float[Tensor, "b 1 h w"], cell_px: int) -> tuple[Float[Tensor, "b n pixels"], Int[Tensor, "n 2"]]:
    """Scores of every complete cell, its pixels row by row, and its top-left pixel."""
    rows, columns = scores.shape[2] // cell_px, scores.shape[3] // cell_px
    if rows < 1 or columns < 1:
        raise ValueError(f"a score map of {scores.shape[3]} x {scores.shape[2]} px has no cell of {cell_px} px")
    whole = scores[:, 0, : rows * cell_px, : columns * cell_px]
    cells = whole.unflatten(2, (columns, cell_px)).unflatten(1, (rows, cell_px)).transpose(2, 3)
    y, x = torch.meshgrid(
        torch.arange(rows, device=scores.device), torch.arange(columns, device=scores.device), indexing="ij"
    )
    return cells.flatten(3).flatten(1, 2), cell_px * torch.stack([x, y], dim=2).view(-1, 2)


def sort_accepted_first(sample: KeypointSample) -> KeypointSample:
    """The sample with keypoints first, in their order, truncated to the largest number of keypoints of an image."""
    order = sample.accepted.int().argsort(dim=1, descending=True, stable=True)
    order = order[:, : max(1, int(sample.accepted.sum(1).max()))]
    return KeypointSample(
        sample.points.gather(1, order[..., None].expand(-1, -1, 2)),
        sample.log_probability.gather(1, order),
        sample.accepted.gather(1, order),
    )


# ----------------------------------------------------------------------------------------------------------------------
# The reward of a matched pair of keypoints in SCFeat's detection training.
#
#     r(x_i, y_j) = (1 - tanh L_fme) P_m(x_i, y_j) - tanh(L_fme) (-P_m(x_i, y_j))                              (eq. 20)
#
# Taken literally, the last factor is minus P_m: bad pairs earn 0 and good ones exactly 1, since L_fme cancels. So -P_m
# is interpreted as "not P_m", as in the authors' code:
#
#     good pair (P_m true):    1 - tanh L_fme        closer to 1 the better the matches determine F
#     bad pair  (P_m false):     - tanh L_fme        more costly the worse they determine F
#
# That is r = P_m - tanh L_fme: the error is a baseline, the reward that a pair must exceed to be encouraged. L_fme:
# scfeat_fundamental.py, the same for all pairs of keypoints of two images. Where it is not defined, or without the
# error factor (the paper's ablation), the constants `good` and `bad`: PoSFeat's +1 and -0.25.
#
# If L_fme is nearly 0 (about 1e-5 with the pairs and the scale of algorithm 1), the reward is 1 or 0 and there is no
# regulariser. `error_factor: false, good: 1, bad: 0` with a regulariser of 0 gives exactly this: the recipe scfeat-s,
# with which benchmarks/scfeat_ablation.py compares the factor. `error_factor: false` alone changes two more things:
# -0.25 for bad pairs, and a regulariser of -0.001.
#
# Sun, Zhu, Ji: Shared Coupling-bridge for Weakly Supervised Local Feature Learning, III-D (2).
# Shapes: P_m (b, n, m), L_fme (b,) -> (b, n, m). No gradients.


class RewardConfig(Config):
    error_factor: bool = True
    """Whether rewards depend on L_fme (paper); otherwise they are PoSFeat's."""
    good: Number = 1.0
    """Reward of a good pair without L_fme (PoSFeat's code, from DISK)."""
    bad: Number = -0.25
    """Reward of a bad pair without L_fme (PoSFeat's code, from DISK)."""
    regulariser: Literal["tanh", "error"] = "tanh"
    """Factor of the regulariser in eq. 21. tanh: tanh L_fme (authors' code), at most PoSFeat's. error: L_fme (paper),
    which is unbounded for errors in pixels over a tolerance."""


@torch.no_grad()
def rewards(good: Bool[Tensor, "b n m"], error: FundamentalError, config: RewardConfig) -> Float[Tensor, "b n m"]:
    """Reward r above for every pair of keypoints."""
    factor = error.value.tanh()
    known = error.defined if config.error_factor else torch.zeros_like(error.defined)
    of_good = torch.where(known, 1 - factor, config.good)[:, None, None]
    of_bad = torch.where(known, -factor, config.bad)[:, None, None]
    return torch.where(good, of_good, of_bad)


def regulariser_factor(error: FundamentalError, config: RewardConfig) -> Float[Tensor, " b"]:
    """Factor of the regulariser in eq. 21: tanh L_fme or L_fme, or 1 without it (PoSFeat)."""
    known = error.defined if config.error_factor else torch.zeros_like(error.defined)
    return torch.where(known, error.value.tanh() if config.regulariser == "tanh" else error.value, 1.0)


# ----------------------------------------------------------------------------------------------------------------------
# The detection loss (eq. 21).


NOT_DRAWN = -1e3  # instead of a cosine: its match probability is 0 next to any sampled keypoint


class DetectionLossConfig(Config):
    policy: GridPolicyConfig = GridPolicyConfig()
    """How keypoints are sampled."""
    epsilon_px: Pixels = 2.0
    """Good pairs are closer than this to their epipolar lines in both images, pixels (paper, eq. 18)."""
    temperature: Factor = 60.0
    """Inverse temperature of the cosines in the match probabilities (authors' code)."""
    error: FundamentalErrorConfig = FundamentalErrorConfig()
    """How the error of the fundamental matrix is estimated."""
    reward: RewardConfig = RewardConfig()
    """Rewards of the pairs."""
    regulariser: Number = -0.001
    """Weight lambda of the regulariser (authors' code)."""
    per_keypoint: bool = True
    """Whether the sums are divided by |Q_0| + |Q_1| (paper) or not (authors' code)."""


class MatchedKeypoints(NamedTuple):
    """Matches between the keypoints of both images, without gradients.

    drawn: pairs of two keypoints, without padding. good: P_m. mutual: mutual nearest neighbours. probability: p_ij; 0
    for padding.
    """

    drawn: Bool[Tensor, "b n m"]
    good: Bool[Tensor, "b n m"]
    mutual: Bool[Tensor, "b n m"]
    probability: Float[Tensor, "b n m"]


def detection_loss(
    scores0: Float[Tensor, "b 1 h w"],
    scores1: Float[Tensor, "b 1 h w"],
    views: TwoViews,
    config: DetectionLossConfig,
    context: LossContext,
) -> LossResult:
    """L_kp above, for views related by fundamental matrices.

    Raises ValueError for scores that are not at the images' resolution.
    """
    size = views.image_size
    if tuple(scores0.shape[2:]) != size[::-1] or scores0.shape != scores1.shape:
        raise ValueError(f"scores of {tuple(scores0.shape)} and {tuple(scores1.shape)} for images of {size}")
    sample0 = sort_accepted_first(sample_keypoints(scores0, config.policy, context.draws, views.valid0))
    sample1 = sort_accepted_first(sample_keypoints(scores1, config.policy, context.draws, views.valid1))
    with torch.no_grad(), torch.autocast(scores0.device.type, enabled=False):
        matches = match_keypoints(sample0, sample1, views, config)
        candidates = candidate_pairs(matches, config.error)
        points = (sample0.points, sample1.points)
        error = fundamental_error(*points, candidates, views.geometry01, size, config.error, context)
        gain = matches.probability * rewards(matches.good, error, config.reward)
        statistics = _statistics(sample0, sample1, matches, gain, error, context.total)
    factor = regulariser_factor(error, config.reward)
    return LossResult(policy_loss(sample0, sample1, gain, factor, config, context.total), statistics)


def policy_loss(
    sample0: KeypointSample,
    sample1: KeypointSample,
    gain: Float[Tensor, "b n m"],
    factor: Float[Tensor, " b"],
    config: DetectionLossConfig,
    total: Total = local_total,
) -> Float[Tensor, ""]:
    """Eq. 21 with gain_ij = p_ij r_ij and factor = L_fme; the gradient reaches the scores only through log P_kp."""
    log0 = torch.where(sample0.accepted, sample0.log_probability, 0.0)
    log1 = torch.where(sample1.accepted, sample1.log_probability, 0.0)
    earned = (log0 * gain.sum(2)).sum(1) + (log1 * gain.sum(1)).sum(1)  # sum_ij gain_ij (log0_i + log1_j)
    gained = earned + config.regulariser * factor * (log0.sum(1) + log1.sum(1))
    if not config.per_keypoint:
        return -gained.sum()
    each = gained / (sample0.accepted.sum(1) + sample1.accepted.sum(1)).clamp(min=1)
    return -each.sum() / total(torch.ones_like(each).sum())


def match_keypoints(
    sample0: KeypointSample, sample1: KeypointSample, views: TwoViews, config: DetectionLossConfig
) -> MatchedKeypoints:
    """Matches of the sampled keypoints, by descriptors and by poses."""
    drawn = sample0.accepted[:, :, None] & sample1.accepted[:, None]
    good = match_matrix(sample0.points, sample1.points, views.geometry01, config.epsilon_px) & drawn
    first = descriptors_at(views.map0, sample0.points, views.image_size)
    second = descriptors_at(views.map1, sample1.points, views.image_size)
    cosine = (first @ second.mT).masked_fill_(~drawn, NOT_DRAWN)
    return MatchedKeypoints(drawn, good, _mutual(cosine, drawn), match_probability(cosine, drawn, config.temperature))


def candidate_pairs(
    matches: MatchedKeypoints, config: FundamentalErrorConfig
) -> Bool[Tensor, "b n m"] | Float[Tensor, "b n m"]:
    """The pairs from which L_fme samples its sets of eight."""
    if config.pairs == "mutual":
        return matches.mutual
    return matches.probability if config.pairs == "likely" else matches.good


def _statistics(
    sample0: KeypointSample,
    sample1: KeypointSample,
    matches: MatchedKeypoints,
    gain: Float[Tensor, "b n m"],
    error: FundamentalError,
    total: Total,
) -> dict[str, Tensor]:
    """Shares and means over the complete batch; a part of a batch gives its contribution."""
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
    """p_ij above, over the sampled keypoints; 0 for padding, whose cosines are NOT_DRAWN."""
    affinity = temperature * cosine
    return affinity.softmax(2).mul_(affinity.softmax(1)).mul_(drawn)


def _mutual(cosine: Float[Tensor, "b n m"], drawn: Bool[Tensor, "b n m"]) -> Bool[Tensor, "b n m"]:
    """Which pairs are mutual nearest neighbours."""
    nearest = cosine.argmax(2, keepdim=True)
    mutual = cosine.gather(2, nearest) == cosine.amax(1)[:, None].mT.gather(1, nearest)
    return torch.zeros_like(drawn).scatter_(2, nearest, mutual) & drawn


# ----------------------------------------------------------------------------------------------------------------------
# The match matrix: pairs of keypoints that agree with the camera poses, each near the epipolar line of the other.
#
#     E_1(y_j, x_i) = dist(y_j, F x_i)  in image 1       E_0(x_i, y_j) = dist(x_i, F^T y_j)  in image 0     (eq. 16, 17)
#     P_m = (E_1 < epsilon) & (E_0^T < epsilon),  epsilon = 2 px                                           (eq. 18)
#
# Sun, Zhu, Ji: Shared Coupling-bridge for Weakly Supervised Local Feature Learning, III-D (2).
# Shapes: points (b, n, 2) and (b, m, 2) in pixels -> (b, n, m). No gradients.


@torch.no_grad()
def two_way_distances(
    points0: Float[Tensor, "b n 2"], points1: Float[Tensor, "b m 2"], fundamental01: Float[Tensor, "b 3 3"]
) -> tuple[Float[Tensor, "b n m"], Float[Tensor, "b n m"]]:
    """Distance of every pair from its epipolar line in image 0 (eq. 17) and in image 1 (eq. 16), in pixels."""
    with torch.autocast(points0.device.type, enabled=False):
        in_image1 = distances_to_lines(points1, epipolar_lines(points0, fundamental01))
        in_image0 = distances_to_lines(points0, epipolar_lines(points1, fundamental01.mT)).mT
    return in_image0, in_image1


def match_matrix(
    points0: Float[Tensor, "b n 2"],
    points1: Float[Tensor, "b m 2"],
    fundamental01: Float[Tensor, "b 3 3"],
    epsilon_px: float,
) -> Bool[Tensor, "b n m"]:
    """P_m above: closer than epsilon_px to the epipolar line in both images."""
    in_image0, in_image1 = two_way_distances(points0, points1, fundamental01)
    return (in_image0 < epsilon_px) & (in_image1 < epsilon_px)
