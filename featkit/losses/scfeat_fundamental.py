"""SCFeat's fundamental matrix error: how well the pairs of keypoints determine the fundamental matrix.

In words: sample eight pairs a hundred times, estimate the fundamental matrix of each sample, compare it with the ground
truth, keep the smallest error.

    L_fme = min over draws of SmoothL1(F_hat, F)                                              (algorithm 1, eq. 19)

    F_hat  normalised eight-point algorithm, rank 2, Frobenius norm 1, its sign that of the truth F
    SmoothL1(a, b)  mean of  d^2 / (2 beta) where d = |a - b| < beta,  d - beta / 2 beyond

Two details that the paper leaves open decide whether L_fme has any effect (`python benchmarks/reward_effect.py`, table
in docs/scfeat.md):

    which pairs  "good" pairs (P_m, algorithm 1) already agree with the poses, so the best F_hat of 100 draws is nearly
                 exact for any descriptors: L_fme is about 1e-5 and eq. 20 becomes a reward of 1 or 0. "likely", the
                 default, draws pairs with the weights of the loss, their match probabilities p_ij, whether they agree
                 with the poses or not. Then L_fme is the error that a robust estimator of F would reach on these
                 matches, and it depends on their quality: the paper's "could also reflect current matching error".
    which scale  "lines", the default: d is the distance of the epipolar lines of F_hat from the true ones, divided by a
                 tolerance (comparison of two fundamental matrices: Zhang, IJCV 1998). For the entries of matrices of
                 norm 1 the mean is at most 1/9, so tanh L_fme is never close to 1.

The same indices are used for both images: the paper's two independent sets pair unrelated points, so that L_fme is pure
chance (`pairs: independent`).

Sun, Zhu, Ji: Shared Coupling-bridge for Weakly Supervised Local Feature Learning, III-D (2).
Shapes: pairs (b, n, m), points (b, n, 2) and (b, m, 2) in pixels, F (b, 3, 3) -> (b,). No gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from featkit.core.config import Config, Factor, Share, Trials
from featkit.geometry.batched import PAIRS, clip_to_image, epipolar_lines, fundamental_of_eight, unit_norm
from featkit.losses.two_views import Draws, LossContext, draw_uniform

Scale = Literal["lines", "image", "pixels", "authors"]
Pairs = Literal["mutual", "likely", "good", "independent"]


class FundamentalErrorConfig(Config):
    pairs: Pairs = "likely"
    """Pairs from which sets of eight are sampled. likely: all pairs, by match probability p_ij. mutual: mutual nearest
    neighbours, uniformly; similar results in measurements. good: pairs that agree with the poses (algorithm 1,
    literally); has no effect. independent: like good, with two index sets as printed in algorithm 1; pairs unrelated
    points."""
    draws: Trials = 100
    """Number of samples of eight pairs (algorithm 1: n_iter). The authors' code repeats the same sample, equivalent to
    1."""
    quantile: Share = 0.0
    """Quantile of the samples' errors used as L_fme: 0 is the smallest (algorithm 1); 0.5 the median, which is larger
    and less informative about the matches."""
    scale: Scale = "lines"
    """How matrices are compared. lines: distance of epipolar lines over tolerance_share. image, pixels: entries of F
    with norm 1, in these units. authors: unnormalised points in pixels, F divided by F[2, 2]."""
    tolerance_share: Factor = 0.3
    """Distance between lines that corresponds to d = 1, as a share of the image's longer side (scale: lines). Measured,
    not from the paper: at 0.1 tanh L_fme exceeds the share of good matches, so that matches have negative rewards on
    average (eq. 20) and the gradient rotates by more than 90 degrees; at 0.5 the factor changes a tenth of it."""
    lines_side: int = Field(5, ge=1, le=1000)
    """Points per side of the grid in each image whose epipolar lines are compared (scale: lines)."""
    beta: Factor = 1.0
    """Threshold of smooth L1 between quadratic and linear (PyTorch's default, as in the authors' code)."""
    over: Literal["pair", "batch"] = "pair"
    """Whether an image pair is rewarded by its own error, or by the batch's sum (authors' code)."""


@dataclass(frozen=True)
class FundamentalError:
    """value: L_fme of each image pair; 0 if not `defined`, with fewer than eight pairs to sample from."""

    value: Float[Tensor, " b"]
    defined: Bool[Tensor, " b"]


@torch.no_grad()
def fundamental_error(
    points0: Float[Tensor, "b n 2"],
    points1: Float[Tensor, "b m 2"],
    pairs: Bool[Tensor, "b n m"] | Float[Tensor, "b n m"],
    fundamental01: Float[Tensor, "b 3 3"],
    image_size: tuple[int, int],
    config: FundamentalErrorConfig,
    context: LossContext,
) -> FundamentalError:
    """L_fme above; degenerate samples are skipped.

    pairs: the pairs to sample from, uniformly (bool) or in proportion to their values (float).
    """
    draw = draw_sets if pairs.dtype == torch.bool else draw_likely_sets
    chosen, enough = draw(pairs, config.draws, context.draws)
    if config.pairs == "independent":
        other, _ = draw(pairs, config.draws, context.draws)
        chosen = torch.stack([chosen[..., 0], other[..., 1]], dim=-1)
    sets0, sets1 = (_gather_points(points, chosen[..., side]) for side, points in enumerate((points0, points1)))
    errors = set_errors(sets0, sets1, fundamental01, image_size, config)
    unusable = ~errors.isfinite() | _has_repeated(chosen)
    value = errors.masked_fill(unusable, torch.nan).nanquantile(config.quantile, dim=1).to(points0.dtype)
    defined = enough & value.isfinite()
    value = torch.where(defined, value, 0.0)
    return FundamentalError(context.total(value.sum()).expand_as(value) if config.over == "batch" else value, defined)


def _gather_points(points: Float[Tensor, "b n 2"], which: Int[Tensor, "b draws 8"]) -> Float[Tensor, "b draws 8 2"]:
    found = points.gather(1, which.flatten(1)[..., None].expand(-1, -1, 2))
    return found.unflatten(1, which.shape[1:])


def _has_repeated(chosen: Int[Tensor, "b draws 8 2"]) -> Bool[Tensor, "b draws"]:
    """Sets that contain a pair twice: seven equations do not determine F."""
    same = (chosen[:, :, :, None] == chosen[:, :, None]).all(-1)
    return same.sum((2, 3)) > PAIRS


def set_errors(
    sets0: Float[Tensor, "b draws 8 2"],
    sets1: Float[Tensor, "b draws 8 2"],
    fundamental01: Float[Tensor, "b 3 3"],
    image_size: tuple[int, int],
    config: FundamentalErrorConfig,
) -> Float[Tensor, "b draws"]:
    """SmoothL1(F_hat, F) of every set of eight pairs, in float64; NaN for degenerate sets."""
    truth = fundamental01.double()
    if config.scale == "lines":
        found = fundamental_of_eight(sets0, sets1)
        distances = line_distances(found, truth, image_size, config.lines_side)
        return _huber(distances / (config.tolerance_share * max(image_size)), config.beta).nanmean(2)
    if config.scale == "authors":
        found = fundamental_of_eight(sets0, sets1, normalise=False)
        return _entries_error(found / found[..., 2:, 2:], (truth / (truth[:, 2:, 2:] + 1e-10))[:, None], config.beta)
    if config.scale == "image":
        half = max(image_size) / 2
        middle = truth.new_tensor([(image_size[0] - 1) / 2, (image_size[1] - 1) / 2])
        to_pixels = torch.diag(truth.new_tensor([half, half, 1.0]))
        to_pixels[:2, 2] = middle
        sets0, sets1 = ((sets.double() - middle) / half for sets in (sets0, sets1))
        truth = to_pixels.mT @ truth @ to_pixels
    truth = unit_norm(truth)[:, None]
    found = fundamental_of_eight(sets0, sets1)
    opposite = (found * truth).sum((-2, -1), keepdim=True) < 0
    return _entries_error(torch.where(opposite, -found, found), truth, config.beta)


def line_distances(
    found: Float[Tensor, "b draws 3 3"], truth: Float[Tensor, "b 3 3"], image_size: tuple[int, int], side: int
) -> Float[Tensor, "b draws k"]:
    """Distances of the ends of true epipolar lines from the estimated lines, pixels; NaN without a line.

    For a grid of side x side points in each image. The ends are the intersections of the true line with the border of
    the other image. Distances are clamped to the image's diagonal. k = 4 side^2.
    """
    along = (torch.arange(side, device=truth.device, dtype=truth.dtype) + 0.5) / side
    y, x = torch.meshgrid(along, along, indexing="ij")
    last = truth.new_tensor([image_size[0] - 1, image_size[1] - 1])
    grid = (torch.stack([x, y], dim=-1).view(1, -1, 2) * last).expand(len(truth), -1, -1)
    every = grid.repeat_interleave(found.shape[1], 0)
    distances = []
    for true, estimated in ((truth, found), (truth.mT, found.mT)):
        ends, crosses = clip_to_image(epipolar_lines(grid, true), image_size)
        lines = epipolar_lines(every, estimated.flatten(0, 1)).unflatten(0, found.shape[:2])  # (b, draws, n, 3)
        off = torch.einsum("bkei,bdki->bdke", ends, lines[..., :2]) + lines[..., 2:]
        off = off.abs().clamp(max=float(last.norm()))
        distances.append(off.masked_fill(~crosses[:, None, :, None], torch.nan).flatten(2))
    unknown = ~found.isfinite().all(-1).all(-1)
    return torch.cat(distances, 2).masked_fill(unknown[..., None], torch.nan)


def _huber(gaps: Float[Tensor, "*b"], beta: float) -> Float[Tensor, "*b"]:
    return F.smooth_l1_loss(gaps, torch.zeros_like(gaps), reduction="none", beta=beta)


def _entries_error(found: Float[Tensor, "b draws 3 3"], truth: Float[Tensor, "b 1 3 3"], beta: float) -> Tensor:
    return _huber(found - truth, beta).mean((-2, -1))


def draw_sets(
    good: Bool[Tensor, "b n m"], draws: int, generator: Draws
) -> tuple[Int[Tensor, "b draws 8 2"], Bool[Tensor, " b"]]:
    """Row and column of eight distinct good pairs per sample, uniform over subsets; and which images have eight.

    With fewer than eight the sets are arbitrary.
    """
    if not good[0].numel():
        empty = torch.zeros((len(good), draws, PAIRS, 2), dtype=torch.long, device=good.device)
        return empty, torch.zeros(len(good), dtype=torch.bool, device=good.device)
    before = F.pad(good.sum(2).cumsum(1), (1, 0))  # good pairs in the rows above each
    counts = before[:, -1]
    numbers = _random_subsets(counts, draws, generator).flatten(1)
    rows = (torch.searchsorted(before, numbers, right=True) - 1).clamp(max=good.shape[1] - 1)
    in_row = numbers - before.gather(1, rows)
    found = good[torch.arange(len(good), device=good.device)[:, None], rows].cumsum(2, dtype=torch.int32)
    columns = torch.searchsorted(found, in_row[..., None].int(), right=True)[..., 0].clamp(max=good.shape[2] - 1)
    return torch.stack([rows, columns], dim=-1).unflatten(1, (draws, PAIRS)), counts >= PAIRS


def draw_likely_sets(
    weights: Float[Tensor, "b n m"], draws: int, generator: Draws
) -> tuple[Int[Tensor, "b draws 8 2"], Bool[Tensor, " b"]]:
    """Row and column of eight pairs per sample, in proportion to the weights, and which images have eight.

    Sampled with replacement: a set may contain a pair twice.
    """
    b, n, m = weights.shape
    if not weights[0].numel():
        empty = torch.zeros((b, draws, PAIRS, 2), dtype=torch.long, device=weights.device)
        return empty, torch.zeros(b, dtype=torch.bool, device=weights.device)
    u = draw_uniform((b, draws * PAIRS, 2), generator, weights.device).double()
    heights = weights.sum(2, dtype=torch.float64).cumsum(1)
    rows = torch.searchsorted(heights, u[..., 0] * heights[:, -1:], right=True).clamp(max=n - 1)
    within = weights[torch.arange(b, device=weights.device)[:, None], rows].cumsum(2, dtype=torch.float64)
    columns = torch.searchsorted(within, u[..., 1:] * within[..., -1:], right=True)[..., 0].clamp(max=m - 1)
    enough = (weights > 0).sum((1, 2)) >= PAIRS
    return torch.stack([rows, columns], dim=-1).unflatten(1, (draws, PAIRS)), enough


def _random_subsets(counts: Int[Tensor, " b"], draws: int, generator: Draws) -> Int[Tensor, "b draws 8"]:
    """Eight distinct numbers below each count, by Floyd's algorithm: any up to the k-th of the last 8, or that one."""
    u = draw_uniform((len(counts), draws, PAIRS), generator, counts.device).double()
    last = (counts[:, None] - PAIRS + torch.arange(PAIRS, device=counts.device)).clamp(min=0)  # (b, 8)
    found = (u * (last + 1)[:, None]).long().clamp(max=last[:, None])
    for k in range(1, PAIRS):
        taken = (found[..., :k] == found[..., k : k + 1]).any(2)
        found[..., k] = torch.where(taken, last[:, None, k], found[..., k])
    return found
