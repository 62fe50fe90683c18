"""How well the pairs that agree with the poses determine the fundamental matrix: SCFeat's extra reward.

In words: draw eight good pairs a hundred times, estimate the fundamental matrix of each draw, compare with the truth,
keep the smallest error.

    L_fme = min over draws of SmoothL1(F_hat, F)                                              (algorithm 1, eq. 19)

    F_hat  normalised eight-point algorithm, rank 2, Frobenius norm 1, its sign that of the truth F
    SmoothL1(a, b)  mean over the nine entries of  d^2 / 2 where d = |a - b| < 1,  d - 1/2 beyond

Sun, Zhu, Ji: Shared Coupling-bridge for Weakly Supervised Local Feature Learning, III-D (2). One set of indices serves
both images: the paper's two independent sets would pair unrelated points. F is compared in units of the image (its
middle is 0, half the longer side 1), since in pixels most of its entries are next to nothing beside the largest.
Of 100 draws among pairs within 2 px of their lines the best one is very good: L_fme then is some 1e-6 to 1e-5, whatever
the descriptors; rewards.py says what that means.
Shapes: good pairs (b, n, m), points (b, n, 2) and (b, m, 2) in pixels, F (b, 3, 3) -> (b,). No gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from featkit.config import Config
from featkit.geometry.eight_point import PAIRS, fundamental_of_eight, unit_norm
from featkit.losses.base import Total, alone
from featkit.losses.scfeat.points import Draws, uniform

Scale = Literal["image", "pixels", "authors"]


class FundamentalErrorConfig(Config):
    draws: int = Field(100, ge=1)
    """Draws of eight pairs (algorithm 1: n_iter). In the authors' code all repeat the same draw: 1 does as they do."""
    scale: Scale = "image"
    """image, pixels: units in which F has norm 1. authors: points not normalised, in pixels, F divided by F[2, 2]."""
    beta: float = Field(1.0, gt=0)
    """Where smooth L1 turns from quadratic to linear (PyTorch's default, as in the authors' code)."""
    over: Literal["pair", "batch"] = "pair"
    """Whether a pair of images is rewarded by its own error, or by the batch's sum (authors' code)."""


@dataclass(frozen=True)
class FundamentalError:
    """value: L_fme of each pair of images; 0 where it is not `defined`, with fewer than eight good pairs."""

    value: Float[Tensor, " b"]
    defined: Bool[Tensor, " b"]


@torch.no_grad()
def fundamental_error(
    points0: Float[Tensor, "b n 2"],
    points1: Float[Tensor, "b m 2"],
    good: Bool[Tensor, "b n m"],
    fundamental01: Float[Tensor, "b 3 3"],
    image_size: tuple[int, int],
    config: FundamentalErrorConfig,
    generator: Draws,
    total: Total = alone,
) -> FundamentalError:
    """L_fme above, with the good pairs' indices drawn at random; draws that determine no F are passed over.

    total: the batch's sum, where this is a part of one, is that of all parts.
    """
    chosen, enough = draw_sets(good, config.draws, generator)
    sets0, sets1 = (_picked(points, chosen[..., side]) for side, points in enumerate((points0, points1)))
    errors = set_errors(sets0, sets1, fundamental01, image_size, config)
    value = torch.where(errors.isnan(), torch.inf, errors).amin(1).to(points0.dtype)
    defined = enough & value.isfinite()
    value = torch.where(defined, value, 0.0)
    return FundamentalError(total(value.sum()).expand_as(value) if config.over == "batch" else value, defined)


def _picked(points: Float[Tensor, "b n 2"], which: Int[Tensor, "b draws 8"]) -> Float[Tensor, "b draws 8 2"]:
    found = points.gather(1, which.flatten(1)[..., None].expand(-1, -1, 2))
    return found.unflatten(1, which.shape[1:])


def set_errors(
    sets0: Float[Tensor, "b draws 8 2"],
    sets1: Float[Tensor, "b draws 8 2"],
    fundamental01: Float[Tensor, "b 3 3"],
    image_size: tuple[int, int],
    config: FundamentalErrorConfig,
) -> Float[Tensor, "b draws"]:
    """SmoothL1(F_hat, F) of every set of eight pairs, in float64; NaN where they determine no F."""
    truth = fundamental01.double()
    if config.scale == "authors":
        found = fundamental_of_eight(sets0, sets1, normalise=False)
        return _smooth_l1(found / found[..., 2:, 2:], (truth / (truth[:, 2:, 2:] + 1e-10))[:, None], config.beta)
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
    return _smooth_l1(torch.where(opposite, -found, found), truth, config.beta)


def _smooth_l1(found: Float[Tensor, "b draws 3 3"], truth: Float[Tensor, "b 1 3 3"], beta: float) -> Tensor:
    return F.smooth_l1_loss(found, truth.expand_as(found), reduction="none", beta=beta).mean((-2, -1))


def draw_sets(
    good: Bool[Tensor, "b n m"], draws: int, generator: Draws
) -> tuple[Int[Tensor, "b draws 8 2"], Bool[Tensor, " b"]]:
    """Row and column of eight different good pairs per draw, all subsets equally likely; and who has eight.

    Where there are fewer than eight the sets are arbitrary.
    """
    if not good[0].numel():
        empty = torch.zeros((len(good), draws, PAIRS, 2), dtype=torch.long, device=good.device)
        return empty, torch.zeros(len(good), dtype=torch.bool, device=good.device)
    before = F.pad(good.sum(2).cumsum(1), (1, 0))  # good pairs in the rows above each
    counts = before[:, -1]
    numbers = _subsets(counts, draws, generator).flatten(1)
    rows = (torch.searchsorted(before, numbers, right=True) - 1).clamp(max=good.shape[1] - 1)
    in_row = numbers - before.gather(1, rows)
    found = good[torch.arange(len(good), device=good.device)[:, None], rows].cumsum(2, dtype=torch.int32)
    columns = torch.searchsorted(found, in_row[..., None].int(), right=True)[..., 0].clamp(max=good.shape[2] - 1)
    return torch.stack([rows, columns], dim=-1).unflatten(1, (draws, PAIRS)), counts >= PAIRS


def _subsets(counts: Int[Tensor, " b"], draws: int, generator: Draws) -> Int[Tensor, "b draws 8"]:
    """Eight different numbers below each count, by Floyd's algorithm: any up to the k-th of the last 8, or that one."""
    u = uniform((len(counts), draws, PAIRS), generator, counts.device).double()
    last = (counts[:, None] - PAIRS + torch.arange(PAIRS, device=counts.device)).clamp(min=0)  # (b, 8)
    found = (u * (last + 1)[:, None]).long().clamp(max=last[:, None])
    for k in range(1, PAIRS):
        taken = (found[..., :k] == found[..., k : k + 1]).any(2)
        found[..., k] = torch.where(taken, last[:, None, k], found[..., k])
    return found
