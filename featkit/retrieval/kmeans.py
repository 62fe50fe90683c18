"""Lloyd's k-means over integer points (see `fixed_point`): the nearest centroid by faiss or torch, with one result.

Source: Lloyd, Least squares quantization in PCM, 1982. Centroids are rounded to integers after each step, so that all
distances are exact and neither the library nor the number of threads can move a point to another cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int64

from featkit.device import torch_device
from featkit.retrieval.backend import Backend, choose_backend

if TYPE_CHECKING:
    import torch

ROWS_AT_ONCE = 65536  # points per product: 16 MiB of distances at 64 centroids


def kmeans(
    points: Float32[np.ndarray, "n d"],
    num_clusters: int,
    generator: np.random.Generator,
    *,
    iterations: int = 20,
    backend: Backend = "auto",
    device: str = "auto",
) -> Float32[np.ndarray, "k d"]:
    """Centroids of `points`, both integer-valued with norms of at most `fixed_point.DISTANCE_NORM`.

    It starts from `num_clusters` points drawn from the generator (all points, when there are fewer) and ends after
    `iterations` steps or when no point changes its cluster. An empty cluster takes the point that lies
    farthest from its centroid.
    """
    k = min(num_clusters, len(points))
    chosen = np.sort(generator.choice(len(points), size=k, replace=False))
    centroids = points[chosen].copy()
    before: np.ndarray | None = None
    for _ in range(iterations):
        labels = nearest_centroid(points, centroids, backend=backend, device=device)
        if before is not None and np.array_equal(labels, before):
            break
        centroids = _means(points, labels, centroids)
        before = labels
    return centroids


def nearest_centroid(
    points: Float32[np.ndarray, "n d"],
    centroids: Float32[np.ndarray, "k d"],
    *,
    backend: Backend = "auto",
    device: str = "auto",
) -> Int64[np.ndarray, " n"]:
    """Index of the nearest centroid of every point (L2); of two equally near ones the lower index."""
    library = choose_backend(backend, device)
    labels = np.empty(len(points), np.int64)
    for start in range(0, len(points), ROWS_AT_ONCE):
        some = np.ascontiguousarray(points[start : start + ROWS_AT_ONCE], dtype=np.float32)
        if library == "faiss":
            labels[start : start + len(some)] = _nearest_faiss(some, centroids)
        else:
            labels[start : start + len(some)] = _nearest_torch(some, centroids, torch_device(device))
    return labels


def _nearest_faiss(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    import faiss

    # Two neighbours, not one: faiss does not promise which of two equally near centroids comes first.
    count = min(2, len(centroids))
    distances, index = faiss.knn(points, centroids, count)
    labels = index[:, 0].copy()
    for row in np.flatnonzero(distances[:, 0] == distances[:, -1]) if count == 2 else ():
        labels[row] = int(np.argmin(((centroids - points[row]) ** 2).sum(axis=1)))
    return labels


def _nearest_torch(points: np.ndarray, centroids: np.ndarray, device: torch.device) -> np.ndarray:
    import torch

    x, c = torch.from_numpy(points).to(device), torch.from_numpy(centroids).to(device)
    # |x|^2 is the same for all centroids; what is left is exact in float32. argmin takes the first of equals.
    distances = (c * c).sum(dim=1)[None, :] - 2.0 * (x @ c.T)
    return torch.argmin(distances, dim=1).cpu().numpy()


def _means(points: np.ndarray, labels: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The rounded mean of every cluster."""
    moved = centroids.copy()
    counts = np.bincount(labels, minlength=len(centroids))
    for cluster in np.flatnonzero(counts):
        total = points[labels == cluster].sum(axis=0, dtype=np.float64)  # exact: integers below 2^53
        moved[cluster] = np.rint(total / counts[cluster])
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        distances = ((points - centroids[labels]) ** 2).sum(axis=1)
        farthest = np.argsort(-distances, kind="stable")[: len(empty)]
        moved[empty] = points[farthest]
    return moved
