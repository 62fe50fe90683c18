"""Matching descriptors of two images one by one, and the precision-recall curve of the matches ranked by distance.

nearest: every feature of image 0 with its nearest neighbour in image 1 (Mikolajczyk and Schmid, PAMI 2005, "nearest
neighbor matching"). one_to_one: the nearest pair of all, then the nearest of what is left, and so on, so that no
feature of image 1 is matched twice (what VLBenchmarks does under the same name).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped

from featkit.evaluation.descriptor_distances import pair_distances
from featkit.matching.packed_bits import is_packed, unpack_signs
from featkit.matching.top_two import top_two
from featkit.matching.turns import moved_round, turn_of_pair
from featkit.types import Features

MatchingRule = Literal["nearest", "one_to_one"]


@dataclass(frozen=True)
class Ranking:
    """Matches with the distance of their descriptors (Euclidean, or Hamming for packed bits)."""

    index0: Int[np.ndarray, " m"]
    index1: Int[np.ndarray, " m"]
    distances: Float[np.ndarray, " m"]


@dataclass(frozen=True)
class Correspondences:
    """All pairs of features that would be right, and how well each fits (smaller is better)."""

    index0: Int[np.ndarray, " k"]
    index1: Int[np.ndarray, " k"]
    error: Float[np.ndarray, " k"]

    def to_be_found(self, rule: MatchingRule) -> int:
        """How many right matches there could be under a rule: what a recall of 1 means.

        nearest: features of image 0 that have a right partner. one_to_one: pairs that remain when the best fitting pair
        of all takes its two features out, then the best of the rest, and so on (VLBenchmarks).
        """
        if rule == "nearest":
            return len(np.unique(self.index0))
        free0 = np.ones(int(self.index0.max(initial=-1)) + 1, bool)
        free1 = np.ones(int(self.index1.max(initial=-1)) + 1, bool)
        order = np.argsort(self.error, kind="stable")
        for i, j in zip(self.index0[order].tolist(), self.index1[order].tolist(), strict=True):
            if free0[i] and free1[j]:
                free0[i] = free1[j] = False
        return int(np.count_nonzero(~free0))

    def hold(self, ranking: Ranking) -> Bool[np.ndarray, " m"]:
        """Which matches are right."""
        width = int(max(self.index1.max(initial=0), ranking.index1.max(initial=0))) + 1
        return np.isin(ranking.index0 * width + ranking.index1, self.index0 * width + self.index1)


def rank_matches(
    descriptors0: Shaped[np.ndarray, "n d"], descriptors1: Shaped[np.ndarray, "m d"], rule: MatchingRule
) -> Ranking:
    """Match by a rule. Rows are unit vectors or packed bits; of equally near ones the first counts."""
    nothing = np.zeros(0, np.int64)
    if not len(descriptors0) or not len(descriptors1):
        return Ranking(nothing, nothing, np.zeros(0))
    rows0, rows1 = _as_tensor(descriptors0), _as_tensor(descriptors1)
    if rule == "nearest":
        index0, index1 = np.arange(len(rows0)), top_two(rows0, rows1)[0].index.numpy()
    else:
        index0, index1 = _one_to_one(rows0, rows1)
    return Ranking(index0, index1, pair_distances(descriptors0[index0], descriptors1[index1]))


def turned_alike(first: Features, second: Features) -> Features:
    """`second` with the descriptors of turned images (`Features.turns`) as they fit those of `first`, as when matched.

    To be asked of all features of two images, before some are left out. Raises BadInputError for other turns.
    """
    places = turn_of_pair(first, second, _as_tensor(first.descriptors), _as_tensor(second.descriptors))
    if places == 0:
        return second
    rows = torch.from_numpy(np.ascontiguousarray(second.descriptors))
    return replace(second, descriptors=moved_round(rows, second.turns, places).numpy())


def _as_tensor(descriptors: np.ndarray) -> torch.Tensor:
    rows = unpack_signs(descriptors) if is_packed(descriptors) else descriptors.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(rows))


def _one_to_one(rows0: torch.Tensor, rows1: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that are nearest to each other are what the greedy rule would take; they are taken at once, then again."""
    left0, left1 = torch.arange(len(rows0)), torch.arange(len(rows1))
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    while len(left0) and len(left1):
        across, down = top_two(rows0[left0], rows1[left1])
        mutual = down.index[across.index] == torch.arange(len(left0))
        found.append((left0[mutual], left1[across.index[mutual]]))
        taken = torch.zeros(len(left1), dtype=torch.bool)
        taken[across.index[mutual]] = True
        left0, left1 = left0[~mutual], left1[~taken]
    return torch.cat([i for i, _ in found]).numpy(), torch.cat([j for _, j in found]).numpy()


def average_precision_of_matches(
    distances: Float[np.ndarray, " m"], right: Bool[np.ndarray, " m"], to_be_found: int
) -> float:
    """Area in [0, 1] under the precision-recall curve of matches ranked by distance; 0 when nothing is to be found.

    Straight lines join the points of the curve, the first one being (recall 0, precision 1) (vl_pr's `auc`). Matches of
    equal distance are one step, so that their order does not count: binary descriptors have many.
    """
    if to_be_found == 0 or len(distances) == 0:
        return 0.0
    order = np.argsort(distances, kind="stable")
    distances, right = distances[order], np.asarray(right, bool)[order]
    last = np.flatnonzero(np.append(distances[1:] != distances[:-1], True))
    true = np.cumsum(right)[last]
    precision = np.concatenate([[1.0], true / (last + 1)])
    recall = np.concatenate([[0.0], true / to_be_found])
    return float(np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2))
