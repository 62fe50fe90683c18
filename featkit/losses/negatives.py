"""The hardest negative of every pair in a batch: of the patches of other pairs, the one most similar to it.

The candidates of pair i are, for all j != i (a: anchor, p: positive):
    cross      a_i with p_j, and p_i with a_j   (row and column of the anchor-positive matrix: HardNet)
    same_side  a_i with a_j, and p_i with p_j   (AdaSample, eq. 14)
    all        both                             (HyNet, SDGMNet)
A candidate that is too similar is taken for a patch of the same point under another label, and passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from featkit.losses.base import PairBatch
from featkit.losses.distances import paired_similarity, similarity_matrix

Candidates = Literal["cross", "same_side", "all"]
NONE = -2.0  # below every similarity

# Sides of the two patches that are compared: 0 anchors, 1 positives.
SIDES: dict[Candidates, tuple[tuple[int, int], ...]] = {
    "cross": ((0, 1), (1, 0)),
    "same_side": ((0, 0), (1, 1)),
    "all": ((0, 1), (1, 0), (0, 0), (1, 1)),
}


@dataclass(frozen=True)
class HardNegatives:
    """similarity: of each pair's hardest negative, differentiable; 0 without gradient where none is `found`.

    ends: the two patches it lies between, the pair's own first; i is the anchor of pair i, n + i its positive.
    """

    similarity: Float[Tensor, " n"]
    found: Bool[Tensor, " n"]
    ends: Int[Tensor, "n 2"]

    @property
    def share(self) -> Float[Tensor, ""]:
        """Share of the pairs that have a negative."""
        return self.found.float().mean()


def hardest_negatives(batch: PairBatch, candidates: Candidates, below: float) -> HardNegatives:
    """The most similar candidate of each pair whose similarity is less than `below`.

    Only the n products that are chosen are differentiated, not the n x n matrices they are chosen from.
    Raises ValueError for a batch of fewer than two pairs, which has no negatives.
    """
    n = len(batch.anchor)
    if n < 2:
        raise ValueError(f"a batch of {n} pair(s) has no negatives; give at least 2 pairs of different classes")
    sides = (batch.anchor, batch.positive)
    with torch.no_grad():
        best = [_best(sides[first], sides[second], below) for first, second in SIDES[candidates]]
        values, which = torch.stack([value for value, _ in best]).max(0)
        partners = torch.stack([partner for _, partner in best]).gather(0, which[None])[0]
        found = values > NONE
        code = torch.tensor(SIDES[candidates], device=values.device)[which]  # (n, 2)
        ends = torch.stack([torch.arange(n, device=values.device), partners], 1) + n * code
    both = torch.cat(sides)  # (2n, d)
    similarity = paired_similarity(both[ends[:, 0]], both[ends[:, 1]])
    return HardNegatives(torch.where(found, similarity, torch.zeros_like(similarity)), found, ends)


def _best(
    rows: Float[Tensor, "n d"], columns: Float[Tensor, "n d"], below: float
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Per row the largest similarity to another pair's column, and that pair's number."""
    similarity = similarity_matrix(rows, columns)
    similarity = similarity.masked_fill(similarity >= below, NONE).fill_diagonal_(NONE)
    best = similarity.max(1)
    return best.values, best.indices


def pair_weights(batch: PairBatch) -> Float[Tensor, " n"] | float:
    """The factor of each pair's loss."""
    return 1.0 if batch.weights is None else batch.weights


def mean_where(values: Float[Tensor, " n"], chosen: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """Mean of the chosen values, without gradient; 0 when none is chosen."""
    values = values.detach()
    return torch.where(chosen, values, torch.zeros_like(values)).sum() / chosen.sum().clamp(min=1)
