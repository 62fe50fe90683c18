"""SOSNet's second-order term: both patches of a pair should have the same distances to the rest of the batch.

In words: for each pair, take the pairs that are among the nearest neighbours of its anchor or of its positive; the
distances from the anchor to their anchors should equal those from the positive to their positives.

    d2(i) = sqrt( sum_{j in c_i} (d(a_i, a_j) - d(p_i, p_j))^2 )       second-order distance
    R     = 1/n sum_i d2(i)
    c_i   = { j != i : a_j among the k nearest of a_i, or p_j among the k nearest of p_i }

A regulariser, added to any loss on pairs with a weight chosen by the caller (the paper: weight 1, with the quadratic
hinge triplet loss).

Tian, Yu, Fan, Wu, Heijnen, Balntas: SOSNet (CVPR 2019), the section on second order similarity regularisation; k = 8.
Shapes: anchor, positive (n, d) with unit rows -> a scalar.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from featkit.losses.base import PairBatch, euclidean, similarity_matrix

EPSILON = 1e-6  # added below roots: two pairs at equal distances have a finite gradient


def second_order_term(
    batch: PairBatch,
    neighbours: int = 8,
    neighbourhood: Literal["paper", "authors"] = "paper",
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    """R above. neighbours: the number k of nearest neighbours (paper: 8), at most all others.

    neighbourhood: "authors" adds the nearest across the sides (a_i to p_j and p_i to a_j), as in their code.
    reduction: the paper's mean, or the sum of their code. Raises ValueError for fewer than two pairs.
    """
    n = len(batch.anchor)
    if n < 2:
        raise ValueError(f"a batch of {n} pair(s) has no second-order distances; give at least 2 pairs")
    anchors = euclidean(similarity_matrix(batch.anchor, batch.anchor), EPSILON)
    positives = euclidean(similarity_matrix(batch.positive, batch.positive), EPSILON)
    with torch.no_grad():
        near = _nearest(anchors, neighbours) | _nearest(positives, neighbours)  # c_i
        if neighbourhood == "authors":
            across = euclidean(similarity_matrix(batch.anchor, batch.positive), EPSILON)
            near |= _nearest(across, neighbours) | _nearest(across.T, neighbours)
    squares = (anchors - positives).square() * near
    distances = (squares.sum(1) + EPSILON).sqrt()  # d2
    return distances.mean() if reduction == "mean" else distances.sum()


def _nearest(distances: Float[Tensor, "n n"], neighbours: int) -> Bool[Tensor, "n n"]:
    """Which columns are among the nearest of each row, excluding itself."""
    others = distances.detach().clone().fill_diagonal_(torch.inf)
    columns = others.topk(min(neighbours, len(distances) - 1), dim=1, largest=False).indices
    return torch.zeros_like(others, dtype=torch.bool).scatter_(1, columns, True)
