"""Each image with the ones whose global descriptors, read from a file in hloc's layout, are most similar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from featkit.config import Config, Runtime, make
from featkit.pairing.retrieval import each_once
from featkit.retrieval.given import check_files, most_similar_rows
from featkit.store.features import FeatureStore
from featkit.store.global_descriptors import files_digest, read_global_descriptors
from featkit.types import Pair


class GivenRetrievalConfig(Config):
    """Which descriptors, and how many images each one is matched with."""

    files: Runtime[tuple[Path, ...]]
    """In hloc's layout; an image's descriptor is in one of them."""
    content: str
    """16 hex digits of what they hold."""
    num_matched: int = Field(default=20, ge=1)
    """Most similar images that each image is paired with."""


class GivenRetrieval:
    """The most similar images by descriptors that another program made. Not in the registry: it takes a file."""

    Config = GivenRetrievalConfig
    needs_features = False

    def __init__(self, config: GivenRetrievalConfig, device: str = "auto"):
        self.config = config
        self.scratch_folder: Path | None = None

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """See `Pairing.pairs`; ordered by the image asked for, its most similar one first. Raises BadInputError."""
        listed = list(dict.fromkeys(names))
        rows = read_global_descriptors(self.config.files, listed)
        best = most_similar_rows(rows, rows, self.config.num_matched, not_itself=True)
        return [Pair(listed[a], listed[b]) for a, b in each_once(best).tolist()]


def given_retrieval(
    files: Sequence[Path], changes: dict[str, Any] | None = None
) -> tuple[type[GivenRetrieval], Config]:
    """The pairing and its configuration, as `stage.run` takes them. Raises BadInputError and UsageError."""
    check_files(files)
    values = {**(changes or {}), "files": tuple(files), "content": files_digest(files)}
    return GivenRetrieval, make(GivenRetrievalConfig, values, where="--retrieval")
