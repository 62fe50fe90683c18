"""Peakiness (`models/scfeat/peakiness.py`) some rows at a time, so that what lies between stays in the cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from featkit.models.scfeat.peakiness import FLOOR

CHUNK_VALUES = 1 << 18  # 1 MB


def fast_peakiness(maps: Float[Tensor, "1 c h w"], largest: float) -> Float[Tensor, "1 1 h w"]:
    """largest: the maps' maximum over the whole image."""
    pixels = maps[0].permute(1, 2, 0)  # rows, columns, channels
    height, width, channels = pixels.shape
    mirrored = torch.arange(-1, height + 1, device=maps.device).abs()
    mirrored[-1] = height - 2
    found = maps.new_empty((height, width))
    step = max(1, CHUNK_VALUES // (width * channels))
    for first in range(0, height, step):
        last = min(first + step, height)
        y = pixels[mirrored[first : last + 2]] / max(largest, FLOOR)
        zeta = _softplus(y[1:-1] - _neighbour_mean(y))
        eta = _softplus(y[1:-1] - y[1:-1].mean(2, keepdim=True))
        torch.amax(zeta.mul_(eta), dim=2, out=found[first:last])
    return found[None, None]


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x)


def _neighbour_mean(y: Float[Tensor, "h+2 w c"]) -> Float[Tensor, "h w c"]:
    """Of 3x3 pixels, the first and the last column mirrored."""
    column_sums = y[:-2] + y[1:-1]
    column_sums += y[2:]
    total = column_sums.clone()
    total[:, 1:] += column_sums[:, :-1]
    total[:, :-1] += column_sums[:, 1:]
    total[:, 0] += column_sums[:, 1]
    total[:, -1] += column_sums[:, -2]
    return total.div_(9)
