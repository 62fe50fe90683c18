"""SCFeat's description loss: matches found by the line-to-window search should be on their epipolar lines.

In words: the mean distance of the matches from their query points' epipolar lines, weighted by certainty; from image 0
to image 1 plus the reverse.

    L_desc = sum_i M_i / sigma_i dist(y_hat_i, F x_i) / sum_i M_i / sigma_i                              (eq. 14, 15)

    x_i      one random pixel in every cell of 16 x 16 pixels
    y_hat_i  its match, sigma_i its uncertainty, see below; the weights 1/sigma_i have no gradient
    M_i      1 if the line crosses the image, the window is inside it, and the match is not too far off

Sun, Zhu, Ji: Shared Coupling-bridge for Weakly Supervised Local Feature Learning, III-D (1). The sums run over all
queries of the batch, as in the authors' code; their second, coarse term has weight 0 there and is left out.
Shapes: maps (b, c, h, w), fundamental (b, 3, 3) -> a scalar in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from featkit.core.config import Config, Factor, FactorOrZero, Pixels, PositiveShare, Side
from featkit.geometry.batched import clip_to_image, epipolar_lines, point_line_distance, sample_map
from featkit.losses.base import LossResult, Total, full_precision
from featkit.losses.two_views import Draws, LossContext, TwoViews, draw_uniform, inside_image, mask_at, query_points

# ----------------------------------------------------------------------------------------------------------------------
# SCFeat's line-to-window search: locates a query point in the other image, given only its epipolar line.
#
# In words: the sample along the visible part of the line that is most similar to the query is selected, without
# gradient. A window is placed around it, randomly shifted so that the match is not always in its centre; the match is
# the expected position under a softmax of the similarities in the window:
#
#     y_hat_i = sum_k p_ik y_ik,     p_i = softmax_k( T q_i . D1(y_ik) ),     y_ik: grid of the window,  T = 60
#     sigma_i = sqrt(var_x) + sqrt(var_y) of the same distribution            uncertainty of the match, in pixels
#
# The authors add the deviations relative to width and height instead, so that those in y count more in a wide image.
#
# Sun, Zhu, Ji: Shared Coupling-bridge for Weakly Supervised Local Feature Learning, III-D (1); the search is PoSFeat's
# (Li et al., CVPR 2022) and CAPS' (Wang et al., ECCV 2020), the constants are the authors' code.
# Shapes: maps (b, c, h, w) at any resolution, query points (b, n, 2) in pixels -> positions (b, n, 2) in pixels.
#
# Map vectors are normalised before they are interpolated (authors' code), so that interpolating similarities is the
# same as interpolating vectors. The similarities of every query with the complete map are one matrix product, which
# line and window sample.


class LineToWindowConfig(Config):
    temperature: Factor = 60.0
    """Inverse temperature of the cosines in the window's softmax (authors' code)."""
    line_samples: int = Field(100, ge=2, le=10**6)
    """Number of samples along the epipolar line, including both ends (authors' code)."""
    window_share: PositiveShare = 0.1
    """Width and height of the window as shares of the image's, and of the map's samples (authors' code)."""
    min_window_samples: int = Field(3, ge=2, le=10**4)
    """Minimum samples of the window along each axis; ours, for images below 120 px."""
    jitter: FactorOrZero = 0.707
    """Maximum random shift of the window along each axis, as a share of half its size (authors' code)."""
    min_deviation_px: Pixels = 0.003
    """Lower bound of the standard deviation along each axis, pixels (authors' code: 1e-5 of half the image)."""


@dataclass(frozen=True)
class WindowMatches:
    """positions: of the matches, in pixels of the other image, differentiable. deviation: in pixels, no gradient.

    valid: whether line and window centre are inside the other image. lines: epipolar lines of the query points.
    """

    positions: Float[Tensor, "b n 2"]
    deviation: Float[Tensor, "b n"]
    valid: Bool[Tensor, "b n"]
    lines: Float[Tensor, "b n 3"]


def search_line_to_window(
    views: TwoViews, points0: Float[Tensor, "b n 2"], config: LineToWindowConfig, draws: Draws
) -> WindowMatches:
    """Matches in image 1 of query points of image 0, for images related by fundamental matrices."""
    size, map1 = views.image_size, full_precision(views.map1)
    with torch.autocast(map1.device.type, enabled=False):
        similarity = _similarities(full_precision(views.map0), map1, points0, size)
        with torch.no_grad():
            lines = epipolar_lines(points0, views.geometry01)
            best, on_line = _best_on_line(similarity, lines, size, config.line_samples, views.valid1)
            centres = best + _jitter(points0.shape[:2], size, config, draws, best)
            offsets = _window_offsets(size, map1.shape[2:], config, best)
        positions, deviation = _expectation(similarity, centres, offsets, size, config, views.valid1)
    return WindowMatches(positions, deviation, on_line & inside_image(centres, size), lines)


def _similarities(
    map0: Float[Tensor, "b c h w"],
    map1: Float[Tensor, "b c h w"],
    points0: Float[Tensor, "b n 2"],
    image_size: tuple[int, int],
) -> Float[Tensor, "b*n 1 h w"]:
    """Cosine similarities of every query point's descriptor with every vector of the other map."""
    queries = F.normalize(sample_map(map0, points0, image_size), dim=2)
    similarity = queries @ F.normalize(map1, dim=1).flatten(2)
    return similarity.view(-1, 1, *map1.shape[2:])


def _best_on_line(
    similarity: Float[Tensor, "b*n 1 h w"],
    lines: Float[Tensor, "b n 3"],
    image_size: tuple[int, int],
    samples: int,
    valid1: Bool[Tensor, "b 1 h w"] | None,
) -> tuple[Float[Tensor, "b n 2"], Bool[Tensor, "b n"]]:
    """The sample of each line most similar to its query, and whether any sample is valid."""
    b, n = lines.shape[:2]
    ends, crosses = clip_to_image(lines, image_size)
    share = torch.linspace(0, 1, samples, dtype=ends.dtype, device=ends.device)[:, None]
    points = ends[:, :, :1] + share * (ends[:, :, 1:] - ends[:, :, :1])  # (b, n, samples, 2)
    found = sample_map(similarity, points.flatten(0, 1), image_size).view(b, n, samples)
    shown = mask_at(valid1, points.flatten(1, 2)).view(b, n, samples)
    winner = found.masked_fill(~shown, -torch.inf).argmax(2)
    best = points.gather(2, winner[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
    return best, crosses & shown.any(2)


def _half_window(image_size: tuple[int, int], config: LineToWindowConfig, like: Tensor) -> Float[Tensor, "2"]:
    return torch.tensor(image_size, dtype=like.dtype, device=like.device) * (config.window_share / 2)


def _jitter(
    shape: torch.Size,
    image_size: tuple[int, int],
    config: LineToWindowConfig,
    draws: Draws,
    like: Tensor,
) -> Float[Tensor, "b n 2"]:
    """Uniform shifts within +-jitter of half the window, along both axes independently, in pixels."""
    moves = 2 * draw_uniform((*shape, 2), draws, like.device).to(like.dtype) - 1
    return config.jitter * _half_window(image_size, config, like) * moves


def _window_offsets(
    image_size: tuple[int, int], map_shape: torch.Size, config: LineToWindowConfig, like: Tensor
) -> Float[Tensor, "k 2"]:
    """The window's samples relative to its centre, in pixels: a regular grid from border to border."""
    rows, columns = (max(config.min_window_samples, int(config.window_share * size)) for size in map_shape)
    half = _half_window(image_size, config, like)
    x = half[0] * torch.linspace(-1, 1, columns, dtype=like.dtype, device=like.device)
    y = half[1] * torch.linspace(-1, 1, rows, dtype=like.dtype, device=like.device)
    return torch.cartesian_prod(x, y)


def _expectation(
    similarity: Float[Tensor, "b*n 1 h w"],
    centres: Float[Tensor, "b n 2"],
    offsets: Float[Tensor, "k 2"],
    image_size: tuple[int, int],
    config: LineToWindowConfig,
    valid1: Bool[Tensor, "b 1 h w"] | None,
) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n"]]:
    """y_hat and sigma above. Samples outside the valid pixels have similarity 0 (authors' code: zero padding)."""
    b, n = centres.shape[:2]
    points = centres[:, :, None] + offsets  # (b, n, k, 2)
    found = sample_map(similarity, points.flatten(0, 1), image_size, "zeros").view(b, n, -1)
    if valid1 is not None:
        found = found * mask_at(valid1, points.flatten(1, 2)).view(b, n, -1)
    probability = (config.temperature * found).softmax(2)
    expected = probability @ offsets  # relative to the centre
    with torch.no_grad():
        variance = probability @ offsets.square() - expected.square()
        deviation = variance.clamp(min=config.min_deviation_px**2).sqrt().sum(2)
    return centres + expected, deviation


# ----------------------------------------------------------------------------------------------------------------------
# The description loss (eq. 14, 15).


class DescriptionLossConfig(LineToWindowConfig):
    cell_px: Side = 16
    """Side in image pixels of the cells with one query point each (authors' code)."""
    mask_share: Factor = 0.1
    """Matches farther from their line than this share of the image's shorter side are ignored (authors' code)."""
    weight: Literal["deviation", "variance", "none"] = "deviation"
    """Quantity whose inverse weights a match. The paper writes sigma but calls it variance; the code has the
    deviation."""


class OneWay(NamedTuple):
    """The loss from one image to the other, and its intermediate results, for visualisation.

    distance: of the matches from their lines, in pixels, no gradient. counted: M_i; valid: without the last condition.
    """

    loss: Float[Tensor, ""]
    points0: Float[Tensor, "b n 2"]
    matches: WindowMatches
    distance: Float[Tensor, "b n"]
    valid: Bool[Tensor, "b n"]
    counted: Bool[Tensor, "b n"]


def description_loss(views: TwoViews, config: DescriptionLossConfig, context: LossContext) -> LossResult:
    """L_desc above, for views related by fundamental matrices.

    Without any counted match the loss and its gradient are 0.
    """
    there = one_way_loss(views, config, context)
    back = one_way_loss(views.transposed, config, context)
    return LossResult(there.loss + back.loss, _statistics(there, back, total=context.total))


def one_way_loss(views: TwoViews, config: DescriptionLossConfig, context: LossContext) -> OneWay:
    """Query points of image 0, their matches in image 1, and eq. 14 (for a part of a batch: its contribution)."""
    map0, size = views.map0, views.image_size
    points0 = query_points(len(map0), size, config.cell_px, context.draws, map0.device)
    points0 = points0.to(torch.promote_types(map0.dtype, torch.float32))
    matches = search_line_to_window(views, points0, config, context.draws)
    distance = point_line_distance(matches.positions, matches.lines)  # eq. 15
    too_far = distance.detach() >= config.mask_share * min(size)  # written so that NaN is not masked away
    valid = matches.valid & mask_at(views.valid0, points0)
    counted = valid & ~too_far
    weight = torch.where(counted, _weight(matches.deviation, config), 0.0)
    weighted = (weight * torch.where(counted, distance, 0.0)).sum()
    loss = weighted / context.total(weight.sum()).clamp(min=torch.finfo(weight.dtype).tiny)
    return OneWay(loss, points0, matches, distance.detach(), valid, counted)


def _weight(deviation: Float[Tensor, "b n"], config: DescriptionLossConfig) -> Float[Tensor, "b n"]:
    if config.weight == "none":
        return torch.ones_like(deviation)
    return 1 / (deviation if config.weight == "deviation" else deviation.square())


def _statistics(*ways: OneWay, total: Total) -> dict[str, Tensor]:
    """Statistics over all queries whose line crosses the other image, both ways; 0 if there are none."""
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
