"""Retrieval by anybody's global descriptors, from files in hloc's layout: NetVLAD, OpenIBL, MegaLoc and their like.

Compared as hloc compares them: by the dot product of the vectors as they are stored. All are in memory as float32:
1.5 GiB for 100,000 images of 4,096 numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from featkit.errors import UsageError
from featkit.store.global_descriptors import read_global_descriptors
from featkit.types import Pair

MAX_FILES = 2
BLOCK = 256  # queries at a time: their similarities to 100,000 images take 100 MB


def retrieve_given(
    files: Sequence[Path], query_names: Sequence[str], database_names: Sequence[str], num: int
) -> list[Pair]:
    """Pairs (query, database image): for every query, in their order, its `num` most similar images, best first.

    files: one that has all images, or the database's and the queries' (which of both is looked into first where both
    have a name). Raises BadInputError, which names the images that have no descriptor, and UsageError for three files.
    """
    check_files(files)
    database = read_global_descriptors(files, database_names)
    queries = read_global_descriptors(list(files)[::-1], query_names)
    best = most_similar_rows(queries, database, num)
    return [
        Pair(name, database_names[index])
        for name, row in zip(query_names, best, strict=True)
        for index in row[row >= 0].tolist()
    ]


def check_files(files: Sequence[Path]) -> None:
    """Raise UsageError unless there are one or two files."""
    if not 1 <= len(files) <= MAX_FILES:
        raise UsageError(
            f"--retrieval takes one file of all images, or two (the map's, the queries'); {len(files)} given"
        )


def most_similar_rows(
    queries: Float32[np.ndarray, "q d"], database: Float32[np.ndarray, "n d"], num: int, *, not_itself: bool = False
) -> Int64[np.ndarray, "q num"]:
    """For every query the `num` rows of the database with the largest dot product, best first; else -1.

    Of equal ones the lower index comes first. not_itself: queries and database are the same images, and none finds
    itself. Raises UsageError for vectors of different lengths.
    """
    if len(queries) and len(database) and queries.shape[1] != database.shape[1]:
        raise UsageError(
            f"--retrieval: descriptors of {queries.shape[1]} and {database.shape[1]} numbers cannot be compared;"
            " describe queries and map with one method"
        )
    found = np.full((len(queries), num), -1, np.int64)
    for start in range(0, len(queries), BLOCK):
        similarities = queries[start : start + BLOCK] @ database.T
        if not_itself:
            rows = np.arange(len(similarities))
            similarities[rows, start + rows] = -np.inf
        order = np.argsort(-similarities, axis=1, kind="stable")[:, : min(num, len(database) - not_itself)]
        found[start : start + len(order), : order.shape[1]] = order
    return found
