"""What every pairing method offers."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from featkit.config import Config
from featkit.store.features import FeatureStore
from featkit.types import Pair


class Pairing(Protocol):
    """A way to choose which images to match; built as `cls(config, device="auto")`.

    Config: the type of its configuration. needs_features: whether `pairs` reads descriptors, so that a folder of images
    is not enough. scratch_folder: where large temporary files may lie (None: the system's place).
    """

    Config: type[Config]
    needs_features: bool
    scratch_folder: Path | None

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """Pairs of `names`, each pair once whatever its order, no image with itself.

        features: where the descriptors of `names` are; may be None unless `needs_features`.
        """
        ...
