"""Reading maps at points given in pixels of the image: bilinear, in the one pixel convention.

A map of any resolution covers the image from corner to corner: a point x of an image of width W lies at
(x + 0.5) * w / W - 0.5 in a map of width w.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Padding = Literal["border", "zeros"]


def sample_map(
    maps: Float[Tensor, "b c h w"],
    points: Float[Tensor, "b n 2"],
    image_size: tuple[int, int],
    padding: Padding = "border",
) -> Float[Tensor, "b n c"]:
    """Values of maps at points. image_size: width and height of the image whose pixels the points are in."""
    found = F.grid_sample(
        maps, to_grid(points, image_size)[:, :, None].to(maps.dtype), "bilinear", padding, align_corners=False
    )
    return found[..., 0].transpose(1, 2)


def to_grid(points: Float[Tensor, "*b 2"], image_size: tuple[int, int]) -> Float[Tensor, "*b 2"]:
    """Pixels -> torch's normalised coordinates without aligned corners: -1 and 1 are the image's corners."""
    size = torch.tensor(image_size, dtype=points.dtype, device=points.device)
    return (2 * points + 1) / size - 1


def from_grid(grid: Float[Tensor, "*b 2"], image_size: tuple[int, int]) -> Float[Tensor, "*b 2"]:
    """The way back from `to_grid`."""
    size = torch.tensor(image_size, dtype=grid.dtype, device=grid.device)
    return ((grid + 1) * size - 1) / 2
