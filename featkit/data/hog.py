"""Histograms of oriented gradients as DOAP's label mining describes patches with: 31 values per cell of 8 x 8 pixels.

Source: Felzenszwalb et al., Object Detection with Discriminatively Trained Part-Based Models (PAMI 2010), section 6,
without its reduction to principal components: 18 signed and 9 unsigned orientations and 4 texture sums, each cell
normalised by the gradient energy of the four 2 x 2 blocks of cells it lies in.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CELL_PX = 8
SIGNED = 18  # orientations over the full circle; 9 over the half
TRUNCATED = 0.2  # normalised values are cut there (section 6)
TEXTURE = 0.2357  # factor of the four sums: 1 / sqrt(18), so that they weigh as one orientation does
EPSILON = 1e-4


def hog(patches: Float[Tensor, "n s s"]) -> Float[Tensor, "n f"]:
    """Features of patches in [0, 1] whose side is a multiple of 8 px: 31 per cell, f = 31 (s / 8)^2."""
    cells = _cells(patches)  # (n, 18, s/8, s/8)
    unsigned = cells[:, :9] + cells[:, 9:]
    energy = F.pad(unsigned.square().sum(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    blocks = 4.0 * F.avg_pool2d(energy, 2, stride=1)  # (n, 1, s/8 + 1, s/8 + 1), one per corner of a cell
    corners = (blocks[..., :-1, :-1], blocks[..., :-1, 1:], blocks[..., 1:, :-1], blocks[..., 1:, 1:])
    scales = torch.cat([(corner + EPSILON).rsqrt() for corner in corners], 1)[:, :, None]  # (n, 4, 1, h, w)
    sensitive = (cells[:, None] * scales).clamp(max=TRUNCATED)
    insensitive = (unsigned[:, None] * scales).clamp(max=TRUNCATED)
    parts = (0.5 * sensitive.sum(1), 0.5 * insensitive.sum(1), TEXTURE * sensitive.sum(2))
    return torch.cat(parts, 1).flatten(1)


def _cells(patches: Float[Tensor, "n s s"]) -> Float[Tensor, "n 18 c c"]:
    """Gradient magnitudes by orientation; a pixel votes for the cells around it by its distance from their middles."""
    framed = F.pad(patches[:, None], (1, 1, 1, 1), mode="replicate")
    dx = 0.5 * (framed[..., 1:-1, 2:] - framed[..., 1:-1, :-2])
    dy = 0.5 * (framed[..., 2:, 1:-1] - framed[..., :-2, 1:-1])
    orientation = torch.round(torch.atan2(dy, dx) * (SIGNED / (2 * math.pi))).long() % SIGNED
    votes = torch.zeros((len(patches), SIGNED, *patches.shape[1:]), device=patches.device)
    votes.scatter_(1, orientation, torch.sqrt(dx * dx + dy * dy))
    offset = torch.arange(2 * CELL_PX, device=patches.device) - (CELL_PX - 0.5)
    tent = 1.0 - offset.abs() / CELL_PX
    kernel = (tent[:, None] * tent[None, :]).expand(SIGNED, 1, -1, -1)
    return F.conv2d(votes, kernel, stride=CELL_PX, padding=CELL_PX // 2, groups=SIGNED)
