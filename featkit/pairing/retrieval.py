"""Each image with the ones whose VLAD vectors are most similar: pairs grow with n, not with n^2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from featkit.config import Config
from featkit.errors import UsageError
from featkit.retrieval.retrieve import retrieve
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

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """See `Pairing.pairs`; ordered by the image asked for, its most similar one first.

        An image without keypoints is in no pair. Raises UsageError without features, BadInputError for features that
        are missing or damaged, or when no image has a keypoint.
        """
        if features is None:
            raise UsageError("pairing by retrieval compares features: extract first, then pair features.h5")
        listed = list(dict.fromkeys(names))
        found = retrieve(
            features,
            listed,
            features,
            listed,
            self.config.vlad,
            self.config.num_matched,
            generator,
            device=self.device,
            spill_folder=self.scratch_folder,
        )
        unique: dict[tuple[str, str], Pair] = {}
        for pair in found:
            unique.setdefault(pair.key(), pair)
        return list(unique.values())
