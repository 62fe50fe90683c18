"""What every pairing method offers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from featkit.core.config import Config
from featkit.core.types import Pair
from featkit.io.features import FeatureStore
from featkit.retrieval.retrieve import Describe


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


@dataclass(frozen=True)
class Sources:
    """What a pairing may use beside the features, where its configuration says nothing of it.

    images: the folder that names are relative to. model: a COLMAP model's folder. describe: what makes the vectors that
    images are retrieved by; None: this process.
    """

    images: Path | None = None
    model: Path | None = None
    describe: Describe | None = None


@runtime_checkable
class Describes(Protocol):
    """A pairing that compares vectors of images."""

    describe: Describe


@runtime_checkable
class ReadsSources(Protocol):
    """A pairing that reads more than names and features: photographs, a list of positions, or a model."""

    sources: Sources

    def digest(self, names: list[str]) -> str:
        """16 hex digits of all it reads for these names: other ones may mean other pairs. Raises BadInputError."""
        ...
