"""VLAD: one vector per image from its local descriptors, with a codebook trained on the images themselves.

Sources: Jégou, Douze, Schmid, Pérez, Aggregating local descriptors into a compact image representation, CVPR 2010
(residuals to the nearest centroid); Jégou et al., Aggregating local image descriptors into compact codes, PAMI 2012
(PCA of the descriptors before, signed power after); Arandjelović, Zisserman, All about VLAD, CVPR 2013
(intra-normalisation: each cluster's sum of residuals to length 1, against bursts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32
from pydantic import Field

from featkit.config import Config, Runtime
from featkit.errors import BadInputError
from featkit.matching.packed_bits import is_packed, unpack_signs
from featkit.retrieval.backend import Backend
from featkit.retrieval.fixed_point import DISTANCE_NORM, to_fixed_point
from featkit.retrieval.kmeans import kmeans, nearest_centroid
from featkit.store.features import FeatureStore
from featkit.types import Features


class VladConfig(Config):
    """How images are described and compared. The budget and the backend cannot change a result, only its cost."""

    num_clusters: int = Field(default=64, ge=1, description="centroids; fewer when the images have few descriptors")
    descriptor_dims: int = Field(default=64, ge=0, description="dimensions kept by a PCA of the descriptors; 0: all")
    descriptors_per_image: int = Field(default=4096, ge=1, description="the best-scored ones describe an image")
    train_descriptors: int = Field(default=100_000, ge=1, description="descriptors the codebook is trained on, at most")
    train_images: int = Field(default=1000, ge=1, description="images those are drawn from, at most")
    min_per_cluster: int = Field(default=8, ge=1, description="training descriptors per centroid, at least")
    kmeans_iterations: int = Field(default=20, ge=1, description="Lloyd steps, at most")
    intra_normalize: bool = Field(default=True, description="each cluster's residual to length 1 (Arandjelović 2013)")
    power: float = Field(default=0.5, gt=0, le=1, description="signed power of every entry (Jégou 2012); 1: none")
    backend: Runtime[Backend] = "auto"
    # MiB for the image vectors and the search together; 100,000 images of 64 x 64 take 781 of them.
    memory_budget_mb: Runtime[int] = Field(default=1024, ge=1)


@dataclass(frozen=True)
class Codebook:
    """basis: orthonormal columns descriptors are projected on. centroids: integer-valued, see `fixed_point`."""

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

    Needs about 3 x train_descriptors x d x 4 bytes (147 MiB at 100,000 x 128), given back before vectors are made.
    Raises BadInputError when no image has a descriptor, or when their lengths differ.
    """
    sample = _sample(store, names, config, generator)
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

    descriptors: unit rows, as `unit_descriptors` gives them.
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
        residuals = _unit(residuals)
    powered = np.sign(residuals) * np.abs(residuals) ** config.power
    return _unit(powered.reshape(1, -1))[0].astype(np.float32)


def unit_descriptors(store: FeatureStore, name: str, limit: int) -> Float32[np.ndarray, "n d"]:
    """Descriptors of one image, packed bits too, as unit rows: the `limit` best-scored ones, zero rows left out.

    Of equal scores the earlier keypoint counts as better. Raises BadInputError for NaN or infinite descriptors.
    """
    return unit_rows(store.read(name), limit, f"{store.path}: descriptors of {name!r}")


def unit_rows(features: Features, limit: int, what: str = "descriptors") -> Float32[np.ndarray, "n d"]:
    """`unit_descriptors` of features in memory. what: how an error begins."""
    packed = is_packed(features.descriptors)
    rows = unpack_signs(features.descriptors) if packed else np.asarray(features.descriptors, dtype=np.float32)
    if rows.ndim != 2 or not np.all(np.isfinite(rows)):
        raise BadInputError(f"{what} are not rows of finite numbers; extract again")
    if len(rows) > limit:
        rows = rows[np.sort(np.argsort(-features.scores, kind="stable")[:limit])]
    rows = rows[np.any(rows != 0, axis=1)]
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    return _unit(rows / largest)  # first by the largest entry: the square of a tiny one would vanish


def _sample(
    store: FeatureStore, names: Sequence[str], config: VladConfig, generator: np.random.Generator
) -> Float32[np.ndarray, "n d"]:
    """Unit descriptors of a random set of images, the same number of each as far as they have them."""
    order = generator.permutation(len(names))
    quota = -(-config.train_descriptors // max(1, min(len(names), config.train_images)))
    parts: list[np.ndarray] = []
    total = used = 0
    for index in order:
        if used == config.train_images or total >= config.train_descriptors:
            break
        rows = unit_descriptors(store, names[index], config.descriptors_per_image)
        if len(rows) == 0:  # an empty image costs nothing and does not count
            continue
        if parts and rows.shape[1] != parts[0].shape[1]:
            raise BadInputError(
                f"{store.path}: {names[index]!r} has descriptors of length {rows.shape[1]},"
                f" other images {parts[0].shape[1]}; extract all images with one method"
            )
        take = min(quota, len(rows), config.train_descriptors - total)
        parts.append(rows[np.sort(generator.choice(len(rows), size=take, replace=False))])
        total, used = total + take, used + 1
    if not parts:
        raise BadInputError(f"{store.path}: none of {len(names)} images has a keypoint; nothing to compare")
    return np.concatenate(parts)


def _principal_axes(sample: np.ndarray, dims: int) -> Float32[np.ndarray, "d p"]:
    """The directions of largest variance, as columns. The mean is left in: residuals do not see it."""
    d = sample.shape[1]
    if dims == 0 or dims >= d:
        return np.eye(d, dtype=np.float32)
    mean = sample.mean(axis=0, dtype=np.float64)
    second = (sample.T @ sample).astype(np.float64) / len(sample)
    _, axes = np.linalg.eigh(second - np.outer(mean, mean))
    axes = axes[:, ::-1][:, :dims]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(dims)])  # an axis has no sign of its own
    return np.ascontiguousarray(axes * signs, dtype=np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows to length 1; a zero row stays zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)
