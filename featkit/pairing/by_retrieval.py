"""Pairs by image similarity: featkit's VLAD vectors, or other programs' global descriptors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from featkit.core.config import Config, Count, Runtime, make
from featkit.core.errors import UsageError
from featkit.core.registry import Method
from featkit.core.types import Pair
from featkit.io.features import FeatureStore, files_digest, read_global_descriptors
from featkit.retrieval.retrieve import Describe, check_files, most_similar, most_similar_rows, retrieve
from featkit.retrieval.vlad import VladConfig

# ----------------------------------------------------------------------------------------------------------------------
# Each image with the images whose VLAD vectors are most similar: the number of pairs grows with n, not with n^2.


class RetrievalConfig(Config):
    """Pairing by retrieval: number of partners, and how images are described."""

    num_matched: Count = 20
    """Number of most similar images with which each image is paired."""
    vlad: VladConfig = VladConfig()
    """How images are described and compared."""


class Retrieval:
    """The most similar images, from previously extracted descriptors."""

    Config = RetrievalConfig
    needs_features = True

    def __init__(self, config: RetrievalConfig, device: str = "auto"):
        self.config = config
        self.device = device
        # Folder for vectors beyond the memory budget; the stage sets it to the output's folder.
        self.scratch_folder: Path | None = None
        self.describe: Describe | None = None  # computes the image vectors; None: this process

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """See `Pairing.pairs`; sorted by first image, then by similarity.

        An image without keypoints is in no pair. Raises UsageError without features, BadInputError for features that
        are missing or damaged, or if no image has a keypoint.
        """
        if features is None:
            raise UsageError("pairing by retrieval compares features: extract first, then pair features.h5")
        listed = list(dict.fromkeys(names))
        similar = most_similar(
            features,
            listed,
            features,
            listed,
            self.config.vlad,
            self.config.num_matched,
            generator,
            device=self.device,
            spill_folder=self.scratch_folder,
            describe=self.describe,
        )
        names_with_vector = similar.database_names  # the same as query_names: one store, one list
        return [Pair(names_with_vector[a], names_with_vector[b]) for a, b in each_once(similar.best).tolist()]


def pairs_with(
    store: FeatureStore,
    asked: Sequence[str],
    others: Sequence[str],
    config: RetrievalConfig,
    generator: np.random.Generator,
    *,
    device: str = "auto",
    spill_folder: Path | None = None,
) -> list[Pair]:
    """Pairs (image in `asked`, image in `others`): each with its most similar ones, or with all if there are few.

    Raises as `retrieve` does.
    """
    if len(others) <= config.num_matched:
        return [Pair(name, other) for name in asked for other in others]
    return retrieve(
        store, asked, store, others, config.vlad, config.num_matched, generator,
        device=device, spill_folder=spill_folder,
    )  # fmt: skip


def each_once(best: Int64[np.ndarray, "n num"]) -> Int64[np.ndarray, "m 2"]:
    """Index pairs (row, entry) in row-major order, without entries of -1; only the first of (a, b) and (b, a)."""
    rows = np.repeat(np.arange(len(best)), best.shape[1])
    pairs = np.stack([rows, best.reshape(-1)], axis=1)
    pairs = pairs[pairs[:, 1] >= 0]
    keys = pairs.min(axis=1) * len(best) + pairs.max(axis=1)
    _, first = np.unique(keys, return_index=True)
    return pairs[np.sort(first)]


# ----------------------------------------------------------------------------------------------------------------------
# Each image with the images whose global descriptors, read from a file in hloc's layout, are most similar.


class GivenRetrievalConfig(Config):
    """Pairing by given global descriptors."""

    files: Runtime[tuple[Path, ...]]
    """Descriptor files in hloc's layout; each image must be in one of them."""
    content: str
    """Digest (16 hex digits) of the files' contents."""
    num_matched: Count = 20
    """Number of most similar images with which each image is paired."""


class GivenRetrieval:
    """The most similar images by another program's descriptors. Not in the registry, because it needs a file."""

    Config = GivenRetrievalConfig
    needs_features = False

    def __init__(self, config: GivenRetrievalConfig, device: str = "auto"):
        self.config = config
        self.scratch_folder: Path | None = None

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """See `Pairing.pairs`; sorted by first image, then by similarity. Raises BadInputError."""
        listed = list(dict.fromkeys(names))
        rows = read_global_descriptors(self.config.files, listed)
        best = most_similar_rows(rows, rows, self.config.num_matched, not_itself=True)
        return [Pair(listed[a], listed[b]) for a, b in each_once(best).tolist()]


def retrieval_by_global_descriptors(files: Sequence[Path], changes: dict[str, Any] | None = None) -> Method[Any]:
    """The pairing with the descriptors in `files`. Raises BadInputError and UsageError."""
    check_files(files)
    values = {**(changes or {}), "files": tuple(files), "content": files_digest(files)}
    return Method("retrieval", GivenRetrieval, make(GivenRetrievalConfig, values, where="--retrieval"))
