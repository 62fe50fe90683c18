"""Epipolar lines of batches of points in pixels, as tensors.

A line (a, b, c) is the set of points with a x + b y + c = 0; its normal (a, b) has length 1, so that the left side is a
signed distance in pixels. Where there is no line (a point at the epipole, a pair without a baseline) it is (0, 0, inf),
infinitely far from every point.

`fundamental` satisfies x1^T F x0 = 0 for homogeneous featkit pixels: the line of x0 in image 1 is F x0, the line of x1
in image 0 is F^T x1. Lines are computed in float64, since the entries of F in pixels differ by many orders.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LARGEST_DISTANCE_PX = 1e9  # of a line from pixel (0, 0): beyond it the normal is nothing but rounding
SMALLEST_DIRECTION = 1e-12  # of a unit vector's component: below it a line is parallel to an axis


def homogeneous(points: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b 3"]:
    """Points with a third coordinate of 1."""
    return torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)


def epipolar_lines(points: Float[Tensor, "b n 2"], fundamental: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b n 3"]:
    """The line F x of every point, in the type of `points`."""
    lines = homogeneous(points.double()) @ fundamental.double().mT
    length = torch.linalg.vector_norm(lines[..., :2], dim=-1, keepdim=True)
    exists = (length > 0) & (lines[..., 2:].abs() <= LARGEST_DISTANCE_PX * length)
    nothing = torch.tensor([0.0, 0.0, torch.inf], dtype=lines.dtype, device=lines.device)
    return torch.where(exists, lines / torch.where(exists, length, 1.0), nothing).to(points.dtype)


def point_line_distance(points: Float[Tensor, "*b 2"], lines: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
    """Distance in pixels of each point to its own line."""
    return ((points * lines[..., :2]).sum(-1) + lines[..., 2]).abs()


def distances_to_lines(points: Float[Tensor, "b m 2"], lines: Float[Tensor, "b n 3"]) -> Float[Tensor, "b n m"]:
    """Distance in pixels of every point (column) to every line (row)."""
    return torch.baddbmm(lines[..., 2:], lines[..., :2], points.mT).abs()


def clip_to_image(
    lines: Float[Tensor, "b n 3"], image_size: tuple[int, int]
) -> tuple[Float[Tensor, "b n 2 2"], Bool[Tensor, "b n"]]:
    """Where lines enter and leave the image, and which lines cross it; the ends of others are the image's middle.

    The image (width, height) is taken from the centres of its first to those of its last pixels.
    """
    wide = lines.double()
    normal, offset = wide[..., :2], wide[..., 2:]
    half = torch.tensor([(image_size[0] - 1) / 2, (image_size[1] - 1) / 2], dtype=wide.dtype, device=wide.device)
    foot = -normal * ((normal * half).sum(-1, keepdim=True) + offset)  # nearest point, seen from the middle
    direction = torch.stack([-normal[..., 1], normal[..., 0]], dim=-1)
    slope = torch.where(direction < 0, -1.0, 1.0) * direction.abs().clamp(min=SMALLEST_DIRECTION)
    borders = torch.stack([(-half - foot) / slope, (half - foot) / slope], dim=-1)  # px along the line: (b, n, axis, 2)
    enters, leaves = borders.amin(-1).amax(-1), borders.amax(-1).amin(-1)
    crosses = (enters < leaves) & (normal != 0).any(-1)
    along = torch.stack([enters, leaves], dim=-1)[..., None]
    ends = half + foot[..., None, :] + along * direction[..., None, :]
    ends = torch.where(crosses[..., None, None], ends, half)
    return torch.minimum(ends.clamp(min=0.0), 2 * half).to(lines.dtype), crosses
