"""Sampled descriptor vectors -> rows of length 1 (SCFeat III-E, eq. 22; IV-B, eq. 25)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Normalisation = Literal["l2", "fusion"]
FUSED_NORMS = 4
"""m of eq. 25; the weight of the L_p norm is p (section IV-B)."""
LEAST_NORM = 1e-12
LIFT_RADIUS = 8.0
"""Of the sphere that fused vectors (at most 2.3 long, most 1.6) are put on."""


def normalised_rows(vectors: Float[Tensor, "n d"], normalisation: Normalisation) -> Float[Tensor, "n d2"]:
    """l2: d2 = d. fusion: d2 = d + 1, see `lifted`."""
    if normalisation == "l2":
        return F.normalize(vectors, dim=1)
    return lifted(fusion(vectors))


def fusion(vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Eq. 25: the mean of the vectors over their L_1 to L_4 norms, weighted by 1 to 4. Not of unit length.

    The norms are those of the absolute values: the paper's formula has roots of negative numbers for odd p.
    """
    orders = range(1, FUSED_NORMS + 1)
    scale = sum(p / torch.linalg.vector_norm(vectors, p, dim=1, keepdim=True).clamp_min(LEAST_NORM) for p in orders)
    return vectors * scale / sum(orders)


def lifted(vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d+1"]:
    """Vectors of any length as unit ones with one more value, so that distances order pairs as before.

    Matchers take unit rows. (v, sqrt(R^2 - |v|^2)) / R has length 1, and the squared distance of two of them is
    (|a - b|^2 + e) / R^2, where e, at most ((|a|^2 - |b|^2) / (2 R))^2 or so, is a hundredth of |a - b|^2 at R = 8.
    """
    height = torch.sqrt(LIFT_RADIUS**2 - vectors.square().sum(dim=1, keepdim=True))
    return torch.cat([vectors, height], dim=1) / LIFT_RADIUS
