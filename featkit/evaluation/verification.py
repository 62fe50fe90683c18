"""Patch verification: is a pair of patches a match? Curves over a threshold on the distance, and FPR95.

FPR95 is UBC's measure (Winder et al., CVPR 2009): the share of non-matching pairs that a threshold lets through when
it keeps 95 % of the matching ones. Curves walk along the pairs in order of distance; pairs of equal distance are one
step, so that nothing depends on the order in which the pairs are listed (binary descriptors have many ties).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from featkit.errors import BadInputError

RECALL = 0.95  # UBC's operating point
ROUNDING = 1e-9  # 0.95 n must not reach the next integer through rounding


@dataclass(frozen=True)
class Curve:
    """Counts of matches and non-matches within each distinct distance, ascending; the first row is (-inf, 0, 0)."""

    distance: Float[np.ndarray, " k"]
    true_positives: Float[np.ndarray, " k"]
    false_positives: Float[np.ndarray, " k"]

    @property
    def recall(self) -> Float[np.ndarray, " k"]:
        """Share of the matches found; also the true positive rate."""
        return self.true_positives / self.true_positives[-1]

    @property
    def false_positive_rate(self) -> Float[np.ndarray, " k"]:
        return self.false_positives / self.false_positives[-1]

    @property
    def precision(self) -> Float[np.ndarray, " k"]:
        """Share of matches among the pairs let through; 1 where none is."""
        found = self.true_positives + self.false_positives
        return np.divide(self.true_positives, found, out=np.ones_like(found), where=found > 0)

    @property
    def auc(self) -> float:
        """Area under the ROC curve: how often a match is nearer than a non-match, a tie counting one half."""
        x, y = self.false_positive_rate, self.recall
        return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def fpr95(
    distances: Float[np.ndarray, " n"],
    match: Bool[np.ndarray, " n"],
    recall: float = RECALL,
    rule: Literal["rank", "index"] = "rank",
) -> float:
    """Share in [0, 1] of the non-matches within the distance that holds `recall` of the matches.

    rule "rank" (HardNet, SDGMNet): the distance of the first match at which the recall is reached, the
    ceil(0.95 m)-th of m. "index" (HyNet): that of the one after it. Non-matches of just that distance count as let
    through under both. Raises BadInputError without matches, without non-matches, and for distances that are no
    numbers.
    """
    distances, match = _checked(distances, match)
    matching = distances[match]
    needed = math.ceil(recall * len(matching) - ROUNDING)
    rank = needed - 1 if rule == "rank" else needed
    rank = min(max(rank, 0), len(matching) - 1)
    threshold = np.partition(matching, rank)[rank]
    return float(np.mean(distances[~match] <= threshold))


def curve(distances: Float[np.ndarray, " n"], match: Bool[np.ndarray, " n"]) -> Curve:
    """All thresholds at once, for ROC and precision-recall plots. Raises BadInputError as `fpr95` does."""
    distances, match = _checked(distances, match)
    order = np.argsort(distances, kind="stable")
    distances, match = distances[order], match[order]
    last = np.flatnonzero(np.r_[distances[1:] != distances[:-1], True])
    true = np.cumsum(match)[last]
    return Curve(
        np.r_[-np.inf, distances[last]],
        np.r_[0.0, true],
        np.r_[0.0, last + 1 - true],
    )


def _checked(distances: np.ndarray, match: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distances, match = np.asarray(distances).reshape(-1), np.asarray(match).reshape(-1).astype(bool)
    if len(distances) != len(match):
        raise ValueError(f"{len(distances)} distances for {len(match)} pairs")
    broken = int(np.count_nonzero(~np.isfinite(distances)))
    if broken:
        raise BadInputError(f"{broken} of {len(distances)} distances are not finite; the descriptors are broken")
    matches = int(np.count_nonzero(match))
    if matches in {0, len(match)}:
        raise BadInputError(f"{matches} of {len(match)} test pairs match; verification needs both kinds")
    return distances, match
