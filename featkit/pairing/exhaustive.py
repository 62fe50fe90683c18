"""Every image with every other: n (n - 1) / 2 pairs."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np

from featkit.config import Config
from featkit.store.features import FeatureStore
from featkit.types import Pair


class ExhaustiveConfig(Config):
    """Nothing to choose."""


class Exhaustive:
    """All pairs, in the order of the names."""

    Config = ExhaustiveConfig
    needs_features = False
    scratch_folder: Path | None = None

    def __init__(self, config: ExhaustiveConfig, device: str = "auto"):
        self.config = config

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """See `Pairing.pairs`. A name given twice counts once."""
        return [Pair(a, b) for a, b in combinations(dict.fromkeys(names), 2)]
