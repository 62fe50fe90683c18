"""Differentiable batched epipolar geometry on tensors: eight-point algorithm, lines, sampling maps at points."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

# ----------------------------------------------------------------------------------------------------------------------
# Fundamental matrices of many sets of eight pairs at once (Hartley and Zisserman, algorithm 11.1), without loops.
#
# Every set gives eight equations x1^T F x0 = 0 in the nine entries of F. Instead of a singular value decomposition of
# each set, a ninth equation r . f = 1 makes the system square: one batched LU solves all, and for a generic r the
# solution is as near to the null vector as the equations allow. The nearest matrix of rank 2 is F (I - v v^T), v the
# right singular vector of the smallest singular value, in closed form. All in float64.


PAIRS = 8
TINY = 1e-300  # keeps 0 / 0 out of sets that are degenerate anyway
# Fractional parts of square roots of primes: a generic direction, orthogonal to no F of a real camera by construction.
NINTH = tuple(math.sqrt(p) % 1.0 - 0.5 for p in (2, 3, 5, 7, 11, 13, 17, 19, 23))


def fundamental_of_eight(
    points0: Float[Tensor, "*b 8 2"], points1: Float[Tensor, "*b 8 2"], normalise: bool = True
) -> Float[Tensor, "*b 3 3"]:
    """Eight-point F of rank 2 and Frobenius norm 1 with x1^T F x0 = 0, in float64; NaN or arbitrary if degenerate.

    normalise: Hartley's, each set's points get mean 0 and mean distance sqrt(2). The sign of F is arbitrary.
    """
    points = torch.stack([points0, points1]).double()
    if not normalise:
        return unit_norm(nearest_rank_two(_null_matrix(homogeneous(points))))
    similarity = hartley(points)
    fundamental = nearest_rank_two(_null_matrix(homogeneous(points) @ similarity.mT))
    return unit_norm(similarity[1].mT @ fundamental @ similarity[0])


def hartley(points: Float[Tensor, "*b n 2"]) -> Float[Tensor, "*b 3 3"]:
    """Similarity that gives points mean 0 and mean distance sqrt(2) from the origin."""
    mean = points.mean(-2, keepdim=True)
    distance = torch.linalg.vector_norm(points - mean, dim=-1).mean(-1)
    scale = math.sqrt(2.0) / distance.clamp(min=TINY)
    similarity = torch.diag_embed(torch.stack([scale, scale, torch.ones_like(scale)], dim=-1))
    similarity[..., :2, 2] = -scale[..., None] * mean[..., 0, :]
    return similarity


def unit_norm(matrices: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    """Matrices divided by their Frobenius norms."""
    return matrices / _frobenius_norm(matrices)


def _frobenius_norm(matrices: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 1 1"]:
    return torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)


def _null_matrix(points: Float[Tensor, "2 *b 8 3"]) -> Float[Tensor, "*b 3 3"]:
    """F of any rank and norm that satisfies eight pairs exactly; points: homogeneous, of image 0 and image 1."""
    equations = (points[1][..., :, None] * points[0][..., None, :]).flatten(-2)
    ninth = torch.tensor(NINTH, dtype=equations.dtype, device=equations.device).expand(*equations.shape[:-2], 1, 9)
    right_side = torch.eye(9, dtype=equations.dtype, device=equations.device)[:, 8:]
    solution = torch.linalg.solve_ex(torch.cat([equations, ninth], dim=-2), right_side).result
    return solution.unflatten(-2, (3, 3))[..., 0]


def nearest_rank_two(matrices: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    """Nearest matrix of rank 2 in Frobenius norm.

    The cofactor matrix has the same right singular vectors; the weakest one belongs to its largest singular value.
    """
    unit = unit_norm(matrices)
    cofactors = torch.linalg.cross(unit.roll(-1, dims=-2), unit.roll(-2, dims=-2))
    cofactors = cofactors / _frobenius_norm(cofactors).clamp(min=TINY)
    weakest = _strongest_direction(cofactors.mT @ cofactors)
    return matrices - (matrices @ weakest[..., None]) * weakest[..., None, :]


def _strongest_direction(symmetric: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3"]:
    """Unit eigenvector of the largest eigenvalue of positive semidefinite matrices with a trace of 1.

    The eigenvalue is the trigonometric root of the cubic, which is exact where the other two are small.
    """
    identity = torch.eye(3, dtype=symmetric.dtype, device=symmetric.device)
    spread = symmetric - identity / 3
    radius = _frobenius_norm(spread).clamp(min=TINY) / math.sqrt(6)
    a, b, c = (spread / radius).unbind(-2)
    half_determinant = (a * torch.linalg.cross(b, c)).sum(-1)[..., None, None] / 2
    angle = half_determinant.clamp(-1, 1).acos() / 3
    # Rows of a singular matrix span the plane orthogonal to its null vector; the longest cross product is most exact.
    rows = spread - 2 * radius * torch.cos(angle) * identity
    normals = torch.linalg.cross(rows, rows.roll(1, dims=-2))
    lengths = torch.linalg.vector_norm(normals, dim=-1, keepdim=True)
    longest = lengths.argmax(-2, keepdim=True).expand_as(normals)[..., :1, :]
    chosen = normals.gather(-2, longest)[..., 0, :]
    return chosen / torch.linalg.vector_norm(chosen, dim=-1, keepdim=True).clamp(min=TINY)


# ----------------------------------------------------------------------------------------------------------------------
# Epipolar lines of batches of points in pixels, as tensors.
#
# A line (a, b, c) is the set of points with a x + b y + c = 0; its normal (a, b) has length 1, so that the left side is
# a signed distance in pixels. Where there is no line (a point at the epipole, a pair without a baseline) it is (0, 0,
# inf), infinitely far from every point.
#
# `fundamental` satisfies x1^T F x0 = 0 for homogeneous featkit pixels: the line of x0 in image 1 is F x0, the line of
# x1 in image 0 is F^T x1. Lines are computed in float64, since the entries of F in pixels differ by many orders.


LARGEST_DISTANCE_PX = 1e9  # distance of a line from pixel (0, 0): beyond it the normal is only rounding error
SMALLEST_DIRECTION = 1e-12  # component of a unit vector: below it a line counts as parallel to an axis


def homogeneous(points: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b 3"]:
    """Points with a third coordinate of 1."""
    return torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)


def epipolar_lines(points: Float[Tensor, "b n 2"], fundamental: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b n 3"]:
    """The line F x of every point, with the dtype of `points`."""
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
    """Where lines enter and leave the image, and which lines cross it; the others get the image centre as ends.

    The image (width, height) extends from the centres of its first pixels to those of its last.
    """
    lines64 = lines.double()
    normal, offset = lines64[..., :2], lines64[..., 2:]
    half = torch.tensor([(image_size[0] - 1) / 2, (image_size[1] - 1) / 2], dtype=lines64.dtype, device=lines64.device)
    foot = -normal * ((normal * half).sum(-1, keepdim=True) + offset)  # nearest point, relative to the centre
    direction = torch.stack([-normal[..., 1], normal[..., 0]], dim=-1)
    slope = torch.where(direction < 0, -1.0, 1.0) * direction.abs().clamp(min=SMALLEST_DIRECTION)
    borders = torch.stack([(-half - foot) / slope, (half - foot) / slope], dim=-1)  # px along the line: (b, n, axis, 2)
    enters, leaves = borders.amin(-1).amax(-1), borders.amax(-1).amin(-1)
    crosses = (enters < leaves) & (normal != 0).any(-1)
    along = torch.stack([enters, leaves], dim=-1)[..., None]
    ends = half + foot[..., None, :] + along * direction[..., None, :]
    ends = torch.where(crosses[..., None, None], ends, half)
    return torch.minimum(ends.clamp(min=0.0), 2 * half).to(lines.dtype), crosses


# ----------------------------------------------------------------------------------------------------------------------
# Sampling maps at points given in pixels of the image: bilinear, in the one pixel convention.
#
# A map of any resolution covers the image from corner to corner: a point x of an image of width W is at
# (x + 0.5) * w / W - 0.5 in a map of width w.


Padding = Literal["border", "zeros"]


def sample_map(
    maps: Float[Tensor, "b c h w"],
    points: Float[Tensor, "b n 2"],
    image_size: tuple[int, int],
    padding: Padding = "border",
) -> Float[Tensor, "b n c"]:
    """Sample maps at points. image_size: width and height of the image in whose pixels the points are given."""
    sampled = F.grid_sample(
        maps, to_grid(points, image_size)[:, :, None].to(maps.dtype), "bilinear", padding, align_corners=False
    )
    return sampled[..., 0].transpose(1, 2)


def to_grid(points: Float[Tensor, "*b 2"], image_size: tuple[int, int]) -> Float[Tensor, "*b 2"]:
    """Pixels -> torch's normalised coordinates with align_corners=False: -1 and 1 are the image's corners."""
    size = torch.tensor(image_size, dtype=points.dtype, device=points.device)
    return (2 * points + 1) / size - 1


def from_grid(grid: Float[Tensor, "*b 2"], image_size: tuple[int, int]) -> Float[Tensor, "*b 2"]:
    """Inverse of `to_grid`."""
    size = torch.tensor(image_size, dtype=grid.dtype, device=grid.device)
    return ((grid + 1) * size - 1) / 2
