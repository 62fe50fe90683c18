"""Peakiness (`models/scfeat/peakiness.py`) some rows at a time, so that what lies between stays in the cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from featkit.models.scfeat.peakiness import FLOOR

CHUNK_VALUES = 1 << 18  # 1 MB
FEW_CHANNELS = 8
"""Sums over so few channels are faster when each channel lies by itself."""


def fast_peakiness(maps: Float[Tensor, "1 c h w"], largest: float) -> Float[Tensor, "1 1 h w"]:
    """largest: the maps' maximum over the whole image."""
    _, channels, height, width = maps.shape
    mirrored = torch.arange(-1, height + 1, device=maps.device).abs()
    mirrored[-1] = height - 2
    found = maps.new_empty((1, 1, height, width))
    step = max(1, CHUNK_VALUES // (width * channels))
    for first in range(0, height, step):
        last = min(first + step, height)
        y = _rows(maps, mirrored[first : last + 2]).mul_(1 / max(largest, FLOOR))
        inner = y[:, :, 1:-1]
        zeta = F.softplus(inner - _neighbour_mean(y))
        eta = F.softplus(inner - inner.mean(1, keepdim=True))
        found[:, :, first:last] = zeta.mul_(eta).amax(1, keepdim=True)
    return found


def _rows(maps: Float[Tensor, "1 c h w"], index: Int[Tensor, " n"]) -> Float[Tensor, "1 c n w"]:
    """Copies of rows, in the layout that is faster to work on."""
    if maps.shape[1] <= FEW_CHANNELS:
        return maps.index_select(2, index).contiguous()
    return maps[0].permute(1, 2, 0)[index].permute(2, 0, 1)[None]


def _neighbour_mean(y: Float[Tensor, "1 c h+2 w"]) -> Float[Tensor, "1 c h w"]:
    """Of 3x3 pixels, the first and the last column mirrored."""
    columns = y[:, :, :-2] + y[:, :, 1:-1]
    columns += y[:, :, 2:]
    total = columns.clone()
    total[..., 1:] += columns[..., :-1]
    total[..., :-1] += columns[..., 1:]
    total[..., 0] += columns[..., 1]
    total[..., -1] += columns[..., -2]
    return total.div_(9)
