"""Average precision of a ranking.

Two readings of the area under the precision-recall curve are in use: "trapezoid" joins the points of the curve by
straight lines, the first one being (recall 0, precision 1) (HPatches' and RomePatches' scripts); "precision" is the
mean of the precisions at the relevant items (DOAP, eq. 2).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

ApRule = Literal["trapezoid", "precision"]


def average_precision(
    distances: Float[np.ndarray, " n"],
    relevant: Bool[np.ndarray, " n"],
    num_relevant: int | None = None,
    rule: ApRule = "trapezoid",
) -> float:
    """AP in [0, 1] of items ranked by distance; items of equal distance stay in the order of the list.

    num_relevant: how many there are to be found, when some of them are not in the list; they count as never found.
    """
    ranked = np.asarray(relevant, bool)[np.argsort(distances, kind="stable")]
    places = np.flatnonzero(ranked)
    before = places - np.arange(len(places))
    return float(ap_of_counts(before, len(places) if num_relevant is None else num_relevant, rule))


def ap_of_counts(
    before: Int[np.ndarray, "*b r"], num_relevant: int | None = None, rule: ApRule = "trapezoid"
) -> Float[np.ndarray, "*b"]:
    """AP from the number of irrelevant items ahead of each relevant one, ascending along the last axis."""
    found = before.shape[-1]
    total = found if num_relevant is None else num_relevant
    if total == 0:
        return np.zeros(before.shape[:-1])
    rank = np.arange(1, found + 1)
    precision = rank / (rank + before)
    if rule == "trapezoid":
        ahead = rank - 1 + before  # the items up to the one just before
        previous = np.divide(rank - 1, ahead, out=np.ones_like(precision), where=ahead > 0)
        precision = (precision + previous) / 2
    return precision.sum(axis=-1) / total
