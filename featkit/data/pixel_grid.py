"""Which points of an image lie near which others: buckets of pixels, without a further library."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

LARGEST_GRID = 1 << 20  # cells a side


class PixelGrid:
    """Points sorted into square cells of one side, px, for queries within a radius up to that side."""

    def __init__(self, points: Float[np.ndarray, "n 2"], cell_px: float):
        self._points, self._cell = np.asarray(points, dtype=np.float64), cell_px
        finite = np.flatnonzero(np.isfinite(self._points).all(axis=1))
        keys = self._keys(self._cells(self._points[finite]))
        order = np.argsort(keys, kind="stable")
        self._order, self._keys_sorted = finite[order], keys[order]

    def _cells(self, points: np.ndarray) -> np.ndarray:
        return np.floor(points / self._cell).astype(np.int64)

    @staticmethod
    def _keys(cells: np.ndarray) -> np.ndarray:
        return cells[:, 1] * LARGEST_GRID + cells[:, 0]

    def pairs_within(
        self, queries: Float[np.ndarray, "q 2"], radius_px: float
    ) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """(query, point, distance) of all pairs within a radius, ascending by query. NaN queries have none."""
        if radius_px > self._cell:
            raise ValueError(f"radius {radius_px} px is larger than the cells of {self._cell} px")
        finite = np.flatnonzero(np.isfinite(queries).all(axis=1))
        cells = self._cells(queries[finite])
        found_queries, found_points = [], []
        for row in (-1, 0, 1):  # three neighbouring cells of a row are one run of keys
            first = np.searchsorted(self._keys_sorted, self._keys(cells + np.array([-1, row])), side="left")
            last = np.searchsorted(self._keys_sorted, self._keys(cells + np.array([1, row])), side="right")
            which, places = expand(first, last - first)
            found_queries.append(finite[which])
            found_points.append(self._order[places])
        query, point = np.concatenate(found_queries), np.concatenate(found_points)
        distance = np.linalg.norm(queries[query] - self._points[point], axis=1)
        near = np.flatnonzero(distance <= radius_px)
        near = near[np.lexsort((point[near], query[near]))]
        return query[near], point[near], distance[near]


def expand(
    starts: Int[np.ndarray, " n"], counts: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Runs as single places: for every place of every run (number of the run, place)."""
    which = np.repeat(np.arange(len(starts)), counts)
    within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return which, starts[which] + within
