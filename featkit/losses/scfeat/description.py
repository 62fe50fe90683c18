"""SCFeat's description loss: matches found in the line-to-window search should lie on their epipolar lines.

In words: the mean distance of the matches from the lines of their query points, the sure matches counting more; from
image 0 to image 1 plus the other way round.

    L_desc = sum_i M_i / sigma_i dist(y_hat_i, F x_i) / sum_i M_i / sigma_i                              (eq. 14, 15)

    x_i      one random pixel in every cell of 16 x 16 pixels
    y_hat_i  its match, sigma_i how unsure it is: see line_to_window.py; the weights 1/sigma_i have no gradient
    M_i      1 where the line crosses the image, the window lies in it, and the match is not hopelessly far off

Sun, Zhu, Ji: Shared Coupling-bridge for Weakly Supervised Local Feature Learning, III-D (1). The sums run over all
queries of the batch, as in the authors' code; their second, coarse term has weight 0 there and is left out.
Shapes: maps (b, c, h, w), fundamental (b, 3, 3) -> a scalar in pixels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from featkit.geometry.epipolar_lines import point_line_distance
from featkit.losses.base import LossResult, Total, alone
from featkit.losses.scfeat.line_to_window import LineToWindowConfig, WindowMatches, search_line_to_window
from featkit.losses.scfeat.points import Draws, mask_at, query_points


class DescriptionLossConfig(LineToWindowConfig):
    cell_px: int = Field(16, ge=1)
    """Side of the cells with one query point each, in pixels of the image (authors' code)."""
    mask_share: float = Field(0.1, gt=0)
    """Matches farther from their line than this share of the image's shorter edge do not count (authors' code)."""
    weight: Literal["deviation", "variance", "none"] = "deviation"
    """What a match's weight is the inverse of; the paper writes sigma and says variance, the code has the deviation."""


class OneWay(NamedTuple):
    """The loss from one image to the other, and what it was computed from: pictures of the training show that too.

    distance: of the matches from their lines, in pixels, no gradient. counted: M_i; valid: without the last condition.
    """

    loss: Float[Tensor, ""]
    points0: Float[Tensor, "b n 2"]
    matches: WindowMatches
    distance: Float[Tensor, "b n"]
    valid: Bool[Tensor, "b n"]
    counted: Bool[Tensor, "b n"]


def description_loss(
    map0: Float[Tensor, "b c h w"],
    map1: Float[Tensor, "b c h w"],
    fundamental01: Float[Tensor, "b 3 3"],
    image_size: tuple[int, int],
    config: DescriptionLossConfig,
    generator: Draws,
    valid0: Bool[Tensor, "b 1 h w"] | None = None,
    valid1: Bool[Tensor, "b 1 h w"] | None = None,
    total: Total = alone,
) -> LossResult:
    """L_desc above. valid0, valid1: pixels of the images that show anything, at image resolution; None: all.

    Without any match that counts the loss is 0, with a gradient of 0.
    total: the maps are then a part of a batch; losses and statistics of all parts add up to those of the whole.
    """
    there = one_way(map0, map1, fundamental01, image_size, config, generator, valid0, valid1, total)
    back = one_way(map1, map0, fundamental01.mT, image_size, config, generator, valid1, valid0, total)
    return LossResult(there.loss + back.loss, _statistics(there, back, total=total))


def one_way(
    map0: Float[Tensor, "b c h w"],
    map1: Float[Tensor, "b c h w"],
    fundamental01: Float[Tensor, "b 3 3"],
    image_size: tuple[int, int],
    config: DescriptionLossConfig,
    generator: Draws,
    valid0: Bool[Tensor, "b 1 h w"] | None = None,
    valid1: Bool[Tensor, "b 1 h w"] | None = None,
    total: Total = alone,
) -> OneWay:
    """Query points of image 0, their matches in image 1, and eq. 14 of them (with `total`: their share of it)."""
    points0 = query_points(len(map0), image_size, config.cell_px, generator, map0.device)
    points0 = points0.to(torch.promote_types(map0.dtype, torch.float32))
    matches = search_line_to_window(map0, map1, points0, fundamental01, image_size, config, generator, valid1)
    distance = point_line_distance(matches.positions, matches.lines)  # eq. 15
    too_far = distance.detach() >= config.mask_share * min(image_size)  # written so that NaN is not masked away
    valid = matches.valid & mask_at(valid0, points0)
    counted = valid & ~too_far
    weight = torch.where(counted, _weight(matches.deviation, config), 0.0)
    weighted = (weight * torch.where(counted, distance, 0.0)).sum()
    loss = weighted / total(weight.sum()).clamp(min=torch.finfo(weight.dtype).tiny)
    return OneWay(loss, points0, matches, distance.detach(), valid, counted)


def _weight(deviation: Float[Tensor, "b n"], config: DescriptionLossConfig) -> Float[Tensor, "b n"]:
    if config.weight == "none":
        return torch.ones_like(deviation)
    return 1 / (deviation if config.weight == "deviation" else deviation.square())


def _statistics(*ways: OneWay, total: Total) -> dict[str, Tensor]:
    """Over all queries whose line crosses the other image, both ways; 0 when there are none."""
    valid = torch.cat([way.valid for way in ways])
    counted = torch.cat([way.counted for way in ways])
    distance = torch.cat([way.distance for way in ways])
    deviation = torch.cat([way.matches.deviation for way in ways])
    valid_queries, queries = total(torch.stack([valid.sum(), torch.ones_like(valid).sum()]))
    number = valid_queries.clamp(min=1)
    return {
        "epipolar_distance_px": torch.where(valid, distance, 0.0).sum() / number,
        "deviation_px": torch.where(valid, deviation, 0.0).sum() / number,
        "valid_share": valid.sum() / queries,
        "counted_share": counted.sum() / queries,
    }
