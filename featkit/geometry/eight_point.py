"""Fundamental matrices of many sets of eight pairs at once (Hartley and Zisserman, algorithm 11.1), without loops.

Every set gives eight equations x1^T F x0 = 0 in the nine entries of F. Instead of a singular value decomposition of
each set, a ninth equation r . f = 1 makes the system square: one batched LU solves all, and for a generic r the
solution is as near to the null vector as the equations allow. The nearest matrix of rank 2 is F (I - v v^T), v the
right singular vector of the smallest singular value, in closed form. All in float64.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from featkit.geometry.epipolar_lines import homogeneous

PAIRS = 8
TINY = 1e-300  # keeps 0 / 0 out of sets that are degenerate anyway
# Square roots of primes, less their whole parts: a direction that no camera's F is at right angles to by construction.
NINTH = tuple(math.sqrt(p) % 1.0 - 0.5 for p in (2, 3, 5, 7, 11, 13, 17, 19, 23))


def fundamental_of_eight(
    points0: Float[Tensor, "*b 8 2"], points1: Float[Tensor, "*b 8 2"], normalise: bool = True
) -> Float[Tensor, "*b 3 3"]:
    """F of rank 2 and Frobenius norm 1 with x1^T F x0 = 0, in float64; NaN or arbitrary for degenerate sets.

    normalise: Hartley's, each set's points moved to mean 0 and mean distance sqrt(2). The sign of F is arbitrary.
    """
    both = torch.stack([points0, points1]).double()
    if not normalise:
        return unit_norm(nearest_rank_two(_null_matrix(homogeneous(both))))
    similarity = hartley(both)
    found = nearest_rank_two(_null_matrix(homogeneous(both) @ similarity.mT))
    return unit_norm(similarity[1].mT @ found @ similarity[0])


def hartley(points: Float[Tensor, "*b n 2"]) -> Float[Tensor, "*b 3 3"]:
    """The similarity that moves points to mean 0 and mean distance sqrt(2) from it."""
    mean = points.mean(-2, keepdim=True)
    distance = torch.linalg.vector_norm(points - mean, dim=-1).mean(-1)
    scale = math.sqrt(2.0) / distance.clamp(min=TINY)
    similarity = torch.diag_embed(torch.stack([scale, scale, torch.ones_like(scale)], dim=-1))
    similarity[..., :2, 2] = -scale[..., None] * mean[..., 0, :]
    return similarity


def unit_norm(matrices: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    """Matrices divided by their Frobenius norms."""
    return matrices / _norm(matrices)


def _norm(matrices: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 1 1"]:
    return torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)


def _null_matrix(points: Float[Tensor, "2 *b 8 3"]) -> Float[Tensor, "*b 3 3"]:
    """F, of any rank and norm, that eight pairs fulfil exactly; points: homogeneous, of image 0 and of image 1."""
    equations = (points[1][..., :, None] * points[0][..., None, :]).flatten(-2)
    ninth = torch.tensor(NINTH, dtype=equations.dtype, device=equations.device).expand(*equations.shape[:-2], 1, 9)
    right = torch.eye(9, dtype=equations.dtype, device=equations.device)[:, 8:]
    solution = torch.linalg.solve_ex(torch.cat([equations, ninth], dim=-2), right).result
    return solution.unflatten(-2, (3, 3))[..., 0]


def nearest_rank_two(matrices: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    """The matrix of rank 2 nearest to each in Frobenius norm.

    The right singular vectors belong to the cofactors' matrix too, the weakest to its largest singular value.
    """
    unit = unit_norm(matrices)
    cofactors = torch.linalg.cross(unit.roll(-1, dims=-2), unit.roll(-2, dims=-2))
    cofactors = cofactors / _norm(cofactors).clamp(min=TINY)
    weakest = _strongest_direction(cofactors.mT @ cofactors)
    return matrices - (matrices @ weakest[..., None]) * weakest[..., None, :]


def _strongest_direction(symmetric: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3"]:
    """Unit eigenvector of the largest eigenvalue of positive semidefinite matrices with a trace of 1.

    The eigenvalue is the trigonometric root of the cubic, which is exact where the other two are small.
    """
    identity = torch.eye(3, dtype=symmetric.dtype, device=symmetric.device)
    spread = symmetric - identity / 3
    radius = _norm(spread).clamp(min=TINY) / math.sqrt(6)
    a, b, c = (spread / radius).unbind(-2)
    half_determinant = (a * torch.linalg.cross(b, c)).sum(-1)[..., None, None] / 2
    angle = half_determinant.clamp(-1, 1).acos() / 3
    # Rows of a singular matrix span the plane at right angles to its null vector; the longest product is the safest.
    rows = spread - 2 * radius * torch.cos(angle) * identity
    normals = torch.linalg.cross(rows, rows.roll(1, dims=-2))
    lengths = torch.linalg.vector_norm(normals, dim=-1, keepdim=True)
    longest = lengths.argmax(-2, keepdim=True).expand_as(normals)[..., :1, :]
    chosen = normals.gather(-2, longest)[..., 0, :]
    return chosen / torch.linalg.vector_norm(chosen, dim=-1, keepdim=True).clamp(min=TINY)
