"""Patch retrieval on RomePatches (Paulin et al., ICCV 2015; DOAP, section 5.3).

Each query is searched among the patches that are no queries; right are those of its group, 9 of 9,000. The score is the
mean AP over the 1,000 queries, of the training set and of the test set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featkit.data.rome import RomePatches
from featkit.evaluation.descriptor_distances import distance_matrix
from featkit.evaluation.patch_describers import PatchDescriber
from featkit.evaluation.retrieval_ap import ApRule, average_precision

QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class RomeScore:
    """mean_ap: share in [0, 1]."""

    mean_ap: float
    queries: int
    searched: int


def evaluate_rome(data: RomePatches, method: PatchDescriber, rule: ApRule = "trapezoid") -> RomeScore:
    """Mean AP of one set. rule: "trapezoid" as scripts of image retrieval have it; "precision" is DOAP's eq. 2."""
    descriptors = method.describe(data.patches)
    num = data.num_queries
    aps = []
    for start in range(0, num, QUERIES_AT_ONCE):
        part = slice(start, min(start + QUERIES_AT_ONCE, num))
        distances = distance_matrix(descriptors[part], descriptors[num:])
        relevant = data.labels[part, None] == data.labels[None, num:]
        aps += [average_precision(*row, rule=rule) for row in zip(distances, relevant, strict=True)]
    return RomeScore(float(np.mean(aps)), num, len(descriptors) - num)
