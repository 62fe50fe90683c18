"""Warm-up of the descriptor on known homographies: contrastive loss between an image and its warped copy.

In words: sample points of image 0 and map them to image 1; each descriptor should be most similar to its own
correspondence among all points of the other image, both ways.

    L = 1/2 (row term + column term),     row term = - 1/n sum_i log( exp(T q_i.k_i) / sum_{j in N_i} exp(T q_i.k_j) )

    q_i, k_i  unit descriptors of point x_i in image 0, and of its exact image y_i = H x_i in image 1
    N_i       i itself, and all j whose y_j is at least r away from y_i (column term: x_j from x_i)
    T         inverse temperature;  r: radius within which points are expected to look alike

The InfoNCE loss (van den Oord, Li, Vinyals: Representation Learning with Contrastive Predictive Coding, 2018, eq. 4)
over points of one pair of images. Not part of the SCFeat paper, which starts from an ImageNet encoder.
Shapes: maps (b, c, h, w), homographies (b, 3, 3) from pixels of image 0 to those of image 1 -> a scalar. The sign of a
homography counts: points with a positive third coordinate are in front.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from featkit.core.config import Config, Factor, PixelsOrZero, Side
from featkit.geometry.batched import homogeneous
from featkit.losses.base import LossResult
from featkit.losses.two_views import LossContext, TwoViews, descriptors_at, inside_image, mask_at, query_points

InfoNce: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
NO_CANDIDATE = -1e4  # logit of a point that is not in N_i


class ContrastiveLossConfig(Config):
    cell_px: Side = 16
    """Side in pixels of the cells of image 0, with one point each (as in SCFeat's description loss)."""
    temperature: Factor = 20.0
    """Inverse temperature of the cosines (ours; common values are 10 to 60, SCFeat's own losses have 60)."""
    exclusion_px: PixelsOrZero = 12.0
    """Points nearer than this to the true one, in pixels, are not negatives (ours: three cells of a map at 1/4
    resolution)."""


def contrastive_loss(
    views: TwoViews, config: ContrastiveLossConfig, context: LossContext, function: InfoNce | None = None
) -> LossResult:
    """L above, for views related by homographies.

    Points not visible in image 1 are neither queries nor negatives. Without visible points the loss is 0.
    function: `info_nce`, compiled; None: as it is.
    """
    function = function or info_nce
    size, device = views.image_size, views.map0.device
    points0 = query_points(len(views.map0), size, config.cell_px, context.draws, device)
    points1, front = map_points(views.geometry01, points0)
    shown = front & inside_image(points1, size) & mask_at(views.valid0, points0) & mask_at(views.valid1, points1)
    points1 = torch.where(shown[..., None], points1, points0)  # somewhere finite
    with torch.autocast(device.type, enabled=False):
        cosine = descriptors_at(views.map0, points0, size) @ descriptors_at(views.map1, points1, size).mT
        rows, row_hits = function(cosine, points1, shown, config)
        columns, column_hits = function(cosine.mT, points0, shown, config)
    points, all_points = context.total(torch.stack([shown.sum(), torch.ones_like(shown).sum()]))
    number = points.clamp(min=1)
    own = torch.where(shown, cosine.detach().diagonal(dim1=1, dim2=2), 0.0).sum()
    statistics = {
        "own_similarity": own / number,
        "found_share": (row_hits + column_hits) / (2 * number),
        "shown_share": shown.sum() / all_points,
    }
    return LossResult((rows / number + columns / number) / 2, statistics)


def map_points(
    homography01: Float[Tensor, "b 3 3"], points0: Float[Tensor, "b n 2"]
) -> tuple[Float[Tensor, "b n 2"], Bool[Tensor, "b n"]]:
    """Points of image 0 mapped to image 1 (computed in float64), and which of them have positive depth."""
    moved = homogeneous(points0.double()) @ homography01.double().mT
    front = moved[..., 2] > 0
    return (moved[..., :2] / torch.where(front, moved[..., 2], 1.0)[..., None]).to(points0.dtype), front


def info_nce(
    cosine: Float[Tensor, "b n n"],
    targets: Float[Tensor, "b n 2"],
    shown: Bool[Tensor, "b n"],
    config: ContrastiveLossConfig,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The row term summed over points, and the number of points matched correctly."""
    own = torch.eye(cosine.shape[1], dtype=torch.bool, device=cosine.device)
    x, y = targets.unbind(2)
    squared_distance = (x[:, :, None] - x[:, None]).square() + (y[:, :, None] - y[:, None]).square()
    far = squared_distance >= config.exclusion_px**2
    candidates = own | (far & shown[:, None])
    logits = (config.temperature * cosine).masked_fill(~candidates, NO_CANDIDATE)
    loss = logits.logsumexp(2) - logits.diagonal(dim1=1, dim2=2)
    best = logits.detach().argmax(2) == torch.arange(cosine.shape[1], device=cosine.device)
    return torch.where(shown, loss, 0.0).sum(), (best & shown).sum()
