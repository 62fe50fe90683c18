"""VLAD: one vector per image from its local descriptors, with a codebook trained on the images themselves.

Sources: Jégou, Douze, Schmid, Pérez, Aggregating local descriptors into a compact image representation, CVPR 2010
(residuals to the nearest centroid); Jégou et al., Aggregating local image descriptors into compact codes, PAMI 2012
(PCA of the descriptors, signed power of the vector); Arandjelović, Zisserman, All about VLAD, CVPR 2013
(intra-normalisation: the residual sum of each cluster is normalised to length 1 against burstiness).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32, Int16, Int64
from pydantic import Field

from featkit.core.config import Config, Count, PositiveShare, Runtime
from featkit.core.errors import BadInputError
from featkit.core.runtime import torch_device
from featkit.core.types import Features
from featkit.features.base import is_packed, unpack_signs
from featkit.io.features import FeatureStore
from featkit.retrieval.search import Backend, choose_backend

if TYPE_CHECKING:
    import torch


class VladConfig(Config):
    """How images are described and compared. Memory budget and backend do not affect the result."""

    num_clusters: int = Field(64, ge=1, le=2**20)
    """Number of centroids; fewer if the images have few descriptors."""
    descriptor_dims: int = Field(64, ge=0, le=2**20)
    """Dimensions kept by a PCA of the descriptors; 0: all."""
    descriptors_per_image: Count = 4096
    """Maximum descriptors per image, chosen by score."""
    train_descriptors: Count = 100_000
    """Maximum number of descriptors for training the codebook."""
    train_images: Count = 1000
    """Maximum number of images from which these are drawn."""
    min_per_cluster: Count = 8
    """Minimum number of training descriptors per centroid."""
    kmeans_iterations: int = Field(20, ge=1, le=10**6)
    """Maximum number of k-means (Lloyd) iterations."""
    intra_normalize: bool = True
    """Normalize the residual of each cluster to length 1 (Arandjelović 2013)."""
    power: PositiveShare = 0.5
    """Exponent of the signed power of every entry (Jégou 2012); 1: none."""
    backend: Runtime[Backend] = "auto"
    """Library for clustering and search: faiss or torch; auto: faiss if installed."""
    memory_budget_mb: Runtime[int] = Field(1024, ge=1, le=10**6)
    """Memory for the image vectors and the search together, MiB; 100,000 images of 64 x 64 take 781."""


@dataclass(frozen=True)
class Codebook:
    """basis: orthonormal columns onto which descriptors are projected. centroids: integers, see below."""

    basis: Float32[np.ndarray, "d p"]
    centroids: Float32[np.ndarray, "k p"]

    @property
    def dims(self) -> int:
        """Length of an image's vector."""
        return self.centroids.size


def train_codebook(
    store: FeatureStore,
    names: Sequence[str],
    config: VladConfig,
    generator: np.random.Generator,
    *,
    device: str = "auto",
) -> Codebook:
    """PCA and k-means over a sample of the descriptors of `names`.

    Needs about 3 x train_descriptors x d x 4 bytes (147 MiB at 100,000 x 128), freed before vectors are computed.
    Raises BadInputError if no image has a descriptor, or if their lengths differ.
    """
    sample = _sample_descriptors(store, names, config, generator)
    basis = _principal_axes(sample, config.descriptor_dims)
    points = to_fixed_point(sample @ basis, DISTANCE_NORM).astype(np.float32)
    del sample
    clusters = max(1, min(config.num_clusters, len(points) // config.min_per_cluster))
    centroids = kmeans(
        points,
        clusters,
        generator,
        iterations=config.kmeans_iterations,
        backend=config.backend,
        device=device,
    )
    return Codebook(basis, centroids)


def vlad(
    descriptors: Float[np.ndarray, "n d"], codebook: Codebook, config: VladConfig, *, device: str = "auto"
) -> Float32[np.ndarray, " kp"]:
    """The VLAD vector of one image: length 1, or all zeros for an image without descriptors.

    descriptors: unit rows, from `unit_descriptors`.
    """
    k, p = codebook.centroids.shape
    if len(descriptors) == 0:
        return np.zeros(k * p, np.float32)
    points = to_fixed_point(descriptors @ codebook.basis, DISTANCE_NORM).astype(np.float32)
    labels = nearest_centroid(points, codebook.centroids, backend=config.backend, device=device)
    residuals = np.zeros((k, p))
    for cluster in np.unique(labels):
        members = points[labels == cluster]
        residuals[cluster] = members.sum(axis=0, dtype=np.float64) - len(members) * codebook.centroids[cluster]
    if config.intra_normalize:
        residuals = _normalise_rows(residuals)
    powered = np.sign(residuals) * np.abs(residuals) ** config.power
    return _normalise_rows(powered.reshape(1, -1))[0].astype(np.float32)


def unit_descriptors(store: FeatureStore, name: str, limit: int) -> Float32[np.ndarray, "n d"]:
    """Descriptors of one image, also packed bits, as unit rows: the `limit` best-scored ones, without zero rows.

    Ties in score go to the earlier keypoint. Raises BadInputError for NaN or infinite descriptors.
    """
    return unit_rows(store.read(name), limit, f"{store.path}: descriptors of {name!r}")


def unit_rows(features: Features, limit: int, what: str = "descriptors") -> Float32[np.ndarray, "n d"]:
    """`unit_descriptors` of features in memory. what: beginning of error messages."""
    packed = is_packed(features.descriptors)
    rows = unpack_signs(features.descriptors) if packed else np.asarray(features.descriptors, dtype=np.float32)
    if rows.ndim != 2 or not np.all(np.isfinite(rows)):
        raise BadInputError(f"{what} are not rows of finite numbers; extract again")
    if len(rows) > limit:
        rows = rows[np.sort(np.argsort(-features.scores, kind="stable")[:limit])]
    rows = rows[np.any(rows != 0, axis=1)]
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    return _normalise_rows(
        rows / largest
    )  # divided by the largest entry first, as squares of tiny entries would underflow


def _sample_descriptors(
    store: FeatureStore, names: Sequence[str], config: VladConfig, generator: np.random.Generator
) -> Float32[np.ndarray, "n d"]:
    """Unit descriptors of random images, equally many from each unless it has fewer."""
    order = generator.permutation(len(names))
    quota = -(-config.train_descriptors // max(1, min(len(names), config.train_images)))
    parts: list[np.ndarray] = []
    total = used = 0
    for index in order:
        if used == config.train_images or total >= config.train_descriptors:
            break
        rows = unit_descriptors(store, names[index], config.descriptors_per_image)
        if len(rows) == 0:  # an image without descriptors does not count
            continue
        if parts and rows.shape[1] != parts[0].shape[1]:
            raise BadInputError(
                f"{store.path}: {names[index]!r} has descriptors of length {rows.shape[1]},"
                f" other images {parts[0].shape[1]}; extract all images with the same method"
            )
        count = min(quota, len(rows), config.train_descriptors - total)
        parts.append(rows[np.sort(generator.choice(len(rows), size=count, replace=False))])
        total, used = total + count, used + 1
    if not parts:
        raise BadInputError(f"{store.path}: none of {len(names)} images has a keypoint; nothing to compare")
    return np.concatenate(parts)


def _principal_axes(sample: np.ndarray, dims: int) -> Float32[np.ndarray, "d p"]:
    """The directions of largest variance, as columns. The mean is not subtracted, as it cancels in residuals."""
    d = sample.shape[1]
    if dims == 0 or dims >= d:
        return np.eye(d, dtype=np.float32)
    mean = sample.mean(axis=0, dtype=np.float64)
    second = (sample.T @ sample).astype(np.float64) / len(sample)
    _, axes = np.linalg.eigh(second - np.outer(mean, mean))
    axes = axes[:, ::-1][:, :dims]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(dims)])  # the sign of an eigenvector is arbitrary
    return np.ascontiguousarray(axes * signs, dtype=np.float32)


def _normalise_rows(rows: np.ndarray) -> np.ndarray:
    """Normalize rows to length 1; zero rows stay zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


# ----------------------------------------------------------------------------------------------------------------------
# Lloyd's k-means over integer points (see below), with faiss or torch and the same result.
#
# Source: Lloyd, Least squares quantization in PCM, 1982. Centroids are rounded to integers after each step, so that all
# distances are exact and clusters do not depend on the library or the number of threads.


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
    """Centroids of `points`, both integer-valued with norms of at most `vlad.DISTANCE_NORM`.

    Starts from `num_clusters` random points (all points, if there are fewer) and ends after `iterations` steps or when
    no point changes its cluster. An empty cluster is moved to the point that is farthest from its centroid.
    """
    k = min(num_clusters, len(points))
    chosen = np.sort(generator.choice(len(points), size=k, replace=False))
    centroids = points[chosen].copy()
    previous: np.ndarray | None = None
    for _ in range(iterations):
        labels = nearest_centroid(points, centroids, backend=backend, device=device)
        if previous is not None and np.array_equal(labels, previous):
            break
        centroids = _update_centroids(points, labels, centroids)
        previous = labels
    return centroids


def nearest_centroid(
    points: Float32[np.ndarray, "n d"],
    centroids: Float32[np.ndarray, "k d"],
    *,
    backend: Backend = "auto",
    device: str = "auto",
) -> Int64[np.ndarray, " n"]:
    """Index of the nearest centroid of every point (L2); ties go to the lower index."""
    library = choose_backend(backend, device)
    labels = np.empty(len(points), np.int64)
    for start in range(0, len(points), ROWS_AT_ONCE):
        block = np.ascontiguousarray(points[start : start + ROWS_AT_ONCE], dtype=np.float32)
        if library == "faiss":
            labels[start : start + len(block)] = _nearest_centroid_faiss(block, centroids)
        else:
            labels[start : start + len(block)] = _nearest_centroid_torch(block, centroids, torch_device(device))
    return labels


def _nearest_centroid_faiss(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    import faiss

    # Two neighbours, not one: faiss does not guarantee which of two equally near centroids comes first.
    count = min(2, len(centroids))
    distances, index = faiss.knn(points, centroids, count)
    labels = index[:, 0].copy()
    for row in np.flatnonzero(distances[:, 0] == distances[:, -1]) if count == 2 else ():
        labels[row] = int(np.argmin(((centroids - points[row]) ** 2).sum(axis=1)))
    return labels


def _nearest_centroid_torch(points: np.ndarray, centroids: np.ndarray, device: torch.device) -> np.ndarray:
    import torch

    x, c = torch.from_numpy(points).to(device), torch.from_numpy(centroids).to(device)
    # |x|^2 is the same for all centroids; the rest is exact in float32. argmin returns the first of equal values.
    distances = (c * c).sum(dim=1)[None, :] - 2.0 * (x @ c.T)
    return torch.argmin(distances, dim=1).cpu().numpy()


def _update_centroids(points: np.ndarray, labels: np.ndarray, centroids: np.ndarray) -> np.ndarray:
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


# ----------------------------------------------------------------------------------------------------------------------
# Integer vectors, short enough for exact float32 matrix products.
#
# float32 represents every integer up to 2^24. If two integer vectors have norms of at most 2^12, each partial sum of
# their dot product is at most 2^24 by Cauchy-Schwarz, so the product is the same for every order of summation and does
# not depend on the block size, the number of threads, the library (faiss or torch) or the device. This makes retrieval
# independent of the memory budget, and ties exact.


DOT_NORM = 4096.0  # bound on a norm for exact dot products: DOT_NORM^2 = 2^24
DISTANCE_NORM = 2048.0  # bound on a norm for exact |x|^2 + |c|^2 - 2 x.c: at most 4 x 2^22 = 2^24


def to_fixed_point(vectors: Float[np.ndarray, "n d"], norm: float) -> Int16[np.ndarray, "n d"]:
    """Vectors of length at most 1 as integers; length 1 becomes just under `norm` (DOT_NORM or DISTANCE_NORM).

    Rounding changes an entry by at most 0.5 and the vector by at most sqrt(d) / 2, for which the scale leaves a margin.
    At norm 4096 the error of a cosine is about 1e-4.
    """
    margin = 0.5 * np.sqrt(vectors.shape[1]) + 1.0  # + 1: a unit vector is unit up to float32 rounding only
    return np.rint(vectors * (norm - margin)).astype(np.int16)
