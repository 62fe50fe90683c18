"""By how much one image is turned against another, from descriptors of turned images (`Features.turns`).

A row holds k descriptors of one keypoint, in the image turned by 0, 1, ... k - 1 steps. Turning the image moves them
round by as many places, so two rows are compared at each of the k places, and the one at which most keypoints agree
counts for the pair.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from featkit.errors import BadInputError
from featkit.types import Features

TRIED = 1000
"""Keypoints of an image, the best ones, by which the turn is found."""
RATIO = 0.9
"""Largest distance to the nearest neighbour over that to the second, for a match that counts."""


def turn_of_pair(a: Features, b: Features, rows0: Float[Tensor, "n c"], rows1: Float[Tensor, "m c"]) -> int:
    """Places to move the descriptors of `b` round so that they fit those of `a`; 0 for images that were not turned.

    rows0, rows1: their descriptors as real numbers. Raises BadInputError for different numbers of turns.
    """
    if a.turns != b.turns:
        raise BadInputError(f"features of {a.turns} and {b.turns} turns cannot be matched; extract both alike")
    if a.turns == 1 or rows0.shape[1] != rows1.shape[1]:
        return 0
    return relative_turn(rows0[_best_of(a, TRIED)], rows1[_best_of(b, TRIED)], a.turns)


def moved_round(rows: Float[Tensor, "n k*d"], turns: int, places: int) -> Float[Tensor, "n k*d"]:
    """The descriptors of each row moved round by so many places."""
    if places == 0:
        return rows
    return rows.unflatten(1, (turns, -1)).roll(places, dims=1).flatten(1)


def relative_turn(a: Float[Tensor, "n k*d"], b: Float[Tensor, "m k*d"], turns: int) -> int:
    """Places to move the rows of `b` round so that they agree with those of `a`; of equal ones the least.

    Rows without a usable number agree with nothing.
    """
    a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
    if len(a) < 2 or len(b) < 2:
        return 0
    agreeing = [_agreeing(a @ moved_round(b, turns, places).T) for places in range(turns)]
    return max(range(turns), key=lambda places: (agreeing[places], -places))


def _best_of(features: Features, count: int) -> np.ndarray:
    """Indices of the best keypoints, at most `count`."""
    return np.argsort(-features.scores, kind="stable")[:count].copy()


def _agreeing(similarity: Float[Tensor, "n m"]) -> int:
    """Mutual nearest neighbours that pass the ratio test on both sides."""
    across, down = similarity.topk(2, dim=1), similarity.topk(2, dim=0)
    good = down.indices[0][across.indices[:, 0]] == torch.arange(len(similarity), device=similarity.device)
    good &= _clear(across.values[:, 0], across.values[:, 1])
    good &= _clear(down.values[0], down.values[1])[across.indices[:, 0]]
    return int(good.sum())


def _clear(best: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> Tensor:
    """|a - b|^2 = 2 - 2 ab for unit vectors."""
    return (1 - best) < RATIO**2 * (1 - second)
