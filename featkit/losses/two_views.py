"""Shared by the losses on image pairs: the two views, random sampling and sums over processes, points in pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from featkit.geometry.batched import sample_map
from featkit.losses.base import Total, full_precision, local_total


@dataclass(frozen=True)
class TwoViews:
    """b pairs of images, the input of a loss.

    map0, map1: descriptor maps at any resolution. geometry01: fundamental matrices of image 0 to image 1
    (x1^T F x0 = 0), or homographies, depending on the loss. image_size: width and height in pixels.
    valid0, valid1: valid pixels of the images; None: all.
    """

    map0: Float[Tensor, "b c h w"]
    map1: Float[Tensor, "b c h w"]
    geometry01: Float[Tensor, "b 3 3"]
    image_size: tuple[int, int]
    valid0: Bool[Tensor, "b 1 y x"] | None = None
    valid1: Bool[Tensor, "b 1 y x"] | None = None

    @property
    def transposed(self) -> TwoViews:
        """The same pairs from image 1 to image 0, for fundamental matrices."""
        return TwoViews(self.map1, self.map0, self.geometry01.mT, self.image_size, self.valid1, self.valid0)


def descriptors_at(
    maps: Float[Tensor, "b c h w"], points: Float[Tensor, "b n 2"], image_size: tuple[int, int]
) -> Float[Tensor, "b n c"]:
    """Map values at points in pixels of the image: interpolated, then normalised, in at least float32."""
    return F.normalize(sample_map(full_precision(maps), points, image_size), dim=2)


@dataclass(frozen=True)
class PartOfDraws:
    """Random numbers for some rows of a batch, equal to those drawn for the complete batch. rows: which, of `count`.

    All processes have a generator in the same state, which each advances by the complete batch.
    """

    generator: torch.Generator
    rows: slice
    count: int


Draws: TypeAlias = torch.Generator | PartOfDraws


@dataclass(frozen=True)
class LossContext:
    """Random numbers and process group of a loss. total: sums over processes if the batch is one part of several;
    losses and statistics of all parts then add up to those of the complete batch."""

    draws: Draws
    total: Total = local_total


def draw_uniform(shape: tuple[int, ...], draws: Draws, device: torch.device | str) -> Float[Tensor, "..."]:
    """Uniform numbers in [0, 1), drawn on the generator's device: a CPU generator gives every device the same numbers.

    The first axis is the batch.
    """
    if isinstance(draws, PartOfDraws):
        return draw_uniform((draws.count, *shape[1:]), draws.generator, device)[draws.rows]
    return torch.rand(shape, generator=draws, device=draws.device).to(device)


def query_points(
    b: int, image_size: tuple[int, int], cell: int, generator: Draws, device: torch.device | str = "cpu"
) -> Float[Tensor, "b n 2"]:
    """A uniformly random pixel of every complete cell of `cell` x `cell` pixels, row by row, for each of `b` images.

    Raises ValueError for an image (width, height) smaller than a cell.
    """
    columns, rows = image_size[0] // cell, image_size[1] // cell
    if columns < 1 or rows < 1:
        raise ValueError(
            f"an image of {image_size[0]} x {image_size[1]} px has no cell of {cell} px; use larger images"
        )
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    corners = cell * torch.stack([x, y], dim=-1).view(1, -1, 2)
    within = (cell * draw_uniform((b, rows * columns, 2), generator, device)).floor().clamp(max=cell - 1)
    return corners + within


def inside_image(points: Float[Tensor, "*b 2"], image_size: tuple[int, int]) -> Bool[Tensor, "*b"]:
    """Which points are between the centres of the first and the last pixels."""
    width, height = image_size
    x, y = points[..., 0], points[..., 1]
    return (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)


def mask_at(mask: Bool[Tensor, "b 1 h w"] | None, points: Float[Tensor, "b n 2"]) -> Bool[Tensor, "b n"]:
    """The mask (at image resolution) at the pixel nearest to each point; False outside. No mask is True everywhere."""
    if mask is None:
        return torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    height, width = mask.shape[2:]
    nearest = points.detach().nan_to_num(-2.0).round()
    x, y = nearest[..., 0].clamp(0, width - 1).long(), nearest[..., 1].clamp(0, height - 1).long()
    found = mask.flatten(1).gather(1, y * width + x)
    return found & (nearest[..., 0] == x) & (nearest[..., 1] == y)
