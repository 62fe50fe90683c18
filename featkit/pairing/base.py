"""The interface of pairing methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from featkit.core.config import Config
from featkit.core.types import Pair
from featkit.io.features import FeatureStore
from featkit.retrieval.retrieve import Describe

RigFrames = Sequence[Sequence[Mapping[int, str]]]
"""Of every rig its frames, in the order of time; of a frame the images, by the camera's place on the rig."""


class Pairing(Protocol):
    """A method that chooses which images to match; built as `cls(config, device="auto")`.

    Config: the type of its configuration. needs_features: whether `pairs` reads descriptors, so that a folder of images
    is not enough. scratch_folder: folder for large temporary files (None: the system's default).
    """

    Config: type[Config]
    needs_features: bool
    scratch_folder: Path | None

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """Pairs of `names`: each pair once, in either order, and no image with itself.

        features: store with the descriptors of `names`; may be None unless `needs_features`.
        """
        ...


@dataclass(frozen=True)
class Sources:
    """What a pairing may use in addition to the features, unless its configuration names it.

    images: the folder to which names are relative. model: folder of a COLMAP model. describe: function that computes
    image vectors for retrieval; None: this process. rigs: cameras that took images at one time.
    """

    images: Path | None = None
    model: Path | None = None
    describe: Describe | None = None
    rigs: RigFrames = ()


@runtime_checkable
class Describes(Protocol):
    """A pairing that compares image vectors."""

    describe: Describe


@runtime_checkable
class ReadsSources(Protocol):
    """A pairing that reads more than names and features: photographs, a position list, or a model."""

    sources: Sources

    def digest(self, names: list[str]) -> str:
        """Digest (16 hex digits) of everything that it reads for these names. Raises BadInputError."""
        ...


@runtime_checkable
class FollowsRigs(Protocol):
    """A pairing for which it matters what cameras of a rig took at one time."""

    rigs: RigFrames

    def uses_rigs(self) -> bool:
        """Whether it does, by its configuration."""
        ...
