"""Each image with the ones whose VLAD vectors are most similar: pairs grow with n, not with n^2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int64
from pydantic import Field

from featkit.config import Config
from featkit.errors import UsageError
from featkit.retrieval.retrieve import Describe, most_similar
from featkit.retrieval.vlad import VladConfig
from featkit.store.features import FeatureStore
from featkit.types import Pair


class RetrievalConfig(Config):
    """How many images each one is matched with, and how they are described."""

    num_matched: int = Field(default=20, ge=1, description="most similar images each image is paired with")
    vlad: VladConfig = VladConfig()


class Retrieval:
    """The most similar images, from descriptors extracted before."""

    Config = RetrievalConfig
    needs_features = True

    def __init__(self, config: RetrievalConfig, device: str = "auto"):
        self.config = config
        self.device = device
        # Where vectors beyond the memory budget are kept meanwhile; the stage sets it to the output's folder.
        self.scratch_folder: Path | None = None
        self.describe: Describe | None = None  # what makes the images' vectors; None: this process

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """See `Pairing.pairs`; ordered by the image asked for, its most similar one first.

        An image without keypoints is in no pair. Raises UsageError without features, BadInputError for features that
        are missing or damaged, or when no image has a keypoint.
        """
        if features is None:
            raise UsageError("pairing by retrieval compares features: extract first, then pair features.h5")
        listed = list(dict.fromkeys(names))
        found = most_similar(
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
        named = found.database_names  # the same as query_names: one store, one list
        return [Pair(named[a], named[b]) for a, b in each_once(found.best).tolist()]


def each_once(best: Int64[np.ndarray, "n num"]) -> Int64[np.ndarray, "m 2"]:
    """Index pairs (row, entry) in reading order without entries of -1; of (a, b) and (b, a) the first one."""
    rows = np.repeat(np.arange(len(best)), best.shape[1])
    pairs = np.stack([rows, best.reshape(-1)], axis=1)
    pairs = pairs[pairs[:, 1] >= 0]
    keys = pairs.min(axis=1) * len(best) + pairs.max(axis=1)
    _, first = np.unique(keys, return_index=True)
    return pairs[np.sort(first)]
