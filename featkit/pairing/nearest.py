"""The nearest of a set of places, exactly and in a reproducible order."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64


def nearest(
    places: Float[np.ndarray, "n d"],
    num: int,
    max_distance: float | None = None,
    directions: Float[np.ndarray, "n 3"] | None = None,
    max_angle_deg: float = 180.0,
) -> Int64[np.ndarray, "n num"]:
    """For every place its `num` nearest others, nearest first, the lower index first of equal ones; else -1.

    max_distance: none further away, in the unit of the places. directions: unit vectors; only places whose directions
    differ by at most the angle. Time grows with n^2; one row of distances is in memory at a time.
    """
    found = np.full((len(places), num), -1, np.int64)
    min_cosine = np.cos(np.radians(max_angle_deg))
    for row, place in enumerate(places):
        squares = ((places - place) ** 2).sum(axis=1)
        squares[row] = np.inf
        if directions is not None:
            squares[directions @ directions[row] < min_cosine] = np.inf
        if max_distance is not None:
            squares[squares > max_distance**2] = np.inf
        best = _smallest(squares, num)
        found[row, : len(best)] = best
    return found


def _smallest(values: Float[np.ndarray, " n"], num: int) -> Int64[np.ndarray, " m"]:
    """Indices of the `num` smallest finite values in order; without sorting all of them."""
    candidates = np.flatnonzero(np.isfinite(values))
    if len(candidates) > num:
        bound = np.partition(values[candidates], num - 1)[num - 1]
        candidates = candidates[values[candidates] <= bound]  # those equal to the last one too
    return candidates[np.argsort(values[candidates], kind="stable")][:num]
