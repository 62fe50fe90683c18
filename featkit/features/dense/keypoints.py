"""Score map -> keypoints (SCFeat III-E): local maxima above a threshold, the best of them, between the pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

REFINE_PX = 3


class ScoredPoints(NamedTuple):
    """In pixels of the score map, best first. scores: at the pixel."""

    points: Float[Tensor, "n 2"]
    scores: Float[Tensor, " n"]


def find_keypoints(
    scores: Float[Tensor, "h w"],
    threshold: float,
    nms_window: int,
    border_px: int,
    max_keypoints: int,
    min_keypoints: int = 0,
    refine: bool = True,
) -> ScoredPoints:
    """Local maxima with a score above `threshold`; equal scores in the order of rows.

    nms_window: side of the square in which a pixel is the maximum, odd. border_px: pixels at the image's edge that are
    passed over. min_keypoints: the best maxima below the threshold fill up to so many. refine: see `refined`; takes
    away a border of a pixel at least.
    """
    border_px = max(border_px, REFINE_PX // 2) if refine else border_px
    allowed = local_maxima(scores, nms_window) & _within(scores, border_px)
    if min_keypoints == 0:
        allowed &= scores > threshold
    index = torch.nonzero(allowed.flatten())[:, 0]
    values, order = torch.sort(scores.flatten()[index], descending=True, stable=True)
    count = min(max(int((values > threshold).sum()), min_keypoints), max_keypoints)
    index, values = index[order[:count]], values[:count]
    pixels = torch.stack([index % scores.shape[1], index // scores.shape[1]], dim=1)
    return ScoredPoints(refined(scores, pixels) if refine else pixels.to(scores.dtype), values)


def local_maxima(scores: Float[Tensor, "h w"], window: int) -> Bool[Tensor, "h w"]:
    """Pixels that are the largest of the window around them; of equal ones the first counts."""
    if window == 1:
        return torch.ones_like(scores, dtype=torch.bool)
    _, first = F.max_pool2d(scores[None, None], window, stride=1, padding=window // 2, return_indices=True)
    own = torch.arange(scores.numel(), device=scores.device).view_as(scores)
    return first[0, 0] == own


def refined(scores: Float[Tensor, "h w"], pixels: Int[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Mean position in the 3x3 pixels around each, weighted by their scores (authors' code). No pixel at the edge."""
    steps = torch.arange(REFINE_PX, device=scores.device) - REFINE_PX // 2
    rows = pixels[:, 1, None, None] + steps[:, None]
    columns = pixels[:, 0, None, None] + steps
    weights = scores[rows, columns]
    shares = weights / weights.sum(dim=(1, 2), keepdim=True)
    offsets = torch.stack([(shares.sum(1) * steps).sum(1), (shares.sum(2) * steps).sum(1)], dim=1)
    return pixels + offsets


def _within(scores: Float[Tensor, "h w"], border_px: int) -> Bool[Tensor, "h w"]:
    inside = torch.zeros_like(scores, dtype=torch.bool)
    height, width = scores.shape
    inside[border_px : max(height - border_px, 0), border_px : max(width - border_px, 0)] = True
    return inside
