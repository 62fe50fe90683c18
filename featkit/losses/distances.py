"""Distances between unit descriptors, in full precision and with finite gradients everywhere.

Similarity is the inner product of unit vectors, the cosine of the angle between them. Its other forms are
    Euclidean  d = sqrt(2 - 2 s)   in [0, 2]
    angular    theta = acos(s)     in [0, pi] radians
Both have an infinite slope at s = 1 (equal descriptors), so the first takes an epsilon and the second a limit.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def full_precision(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The values in float32 at least: bfloat16 cannot tell a similarity of 0.999 from 1."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def similarity_matrix(rows: Float[Tensor, "n d"], columns: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Inner products of every row with every column's vector; in full precision under autocast too."""
    with torch.autocast(rows.device.type, enabled=False):
        return full_precision(rows) @ full_precision(columns).T


def paired_similarity(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Inner product of row i of `first` with row i of `second`."""
    return (full_precision(first) * full_precision(second)).sum(1)


def euclidean(similarity: Float[Tensor, "..."], epsilon: float) -> Float[Tensor, "..."]:
    """Euclidean distance of unit vectors with this similarity; `epsilon` is added below the root."""
    return ((2.0 - 2.0 * similarity).clamp(min=0.0) + epsilon).sqrt()


def angle(similarity: Float[Tensor, "..."], limit: float) -> Float[Tensor, "..."]:
    """Angle in radians; similarities beyond +-limit (below 1) are cut off there and get no gradient."""
    return similarity.clamp(-limit, limit).acos()


def similarity_at(distance: float) -> float:
    """The similarity of unit vectors that are so far apart (Euclidean)."""
    return 1.0 - 0.5 * distance * distance
