"""Each image with the ones that see the most points in common with it, in a model that exists already.

Peer: hloc's pairs_from_covisibility.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featkit.config import Runtime
from featkit.mapping.covisibility import CovisibleConfig, Tracks, covisible_pairs, tracks_of_images
from featkit.mapping.model_parts import tracks_of_model
from featkit.pairing.base import Sources
from featkit.pairing.sources import known_names, model_folder, warn_of_missing
from featkit.store.features import FeatureStore
from featkit.store.stamp import digest
from featkit.types import Pair


class CovisiblePairingConfig(CovisibleConfig):
    """How many images each one is matched with, and in which model."""

    model: Runtime[Path | None] = None
    """Folder of a COLMAP model, or of a mapped scene; None: the one that the command was given."""


class Covisible:
    """The images of a model that share the most points."""

    Config = CovisiblePairingConfig
    needs_features = False
    scratch_folder: Path | None = None

    def __init__(self, config: CovisiblePairingConfig, device: str = "auto"):
        self.config = config
        self.sources = Sources()
        self._read: tuple[list[str], Tracks] | None = None

    def digest(self, names: list[str]) -> str:
        """See `ReadsSources.digest`: of the tracks of these images."""
        tracks = self._tracks(names)
        return digest(*tracks.names, str(tracks.starts.tolist()), str(tracks.images.tolist()))

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """See `Pairing.pairs`; ordered by the image asked for, the one that shares most first.

        An image that is not in the model, or shares no point, is in no pair. Raises UsageError without a model,
        BadInputError when the model has none of the images.
        """
        tracks = self._tracks(names)
        warn_of_missing(names, set(tracks.names))
        return covisible_pairs(tracks, self.config.num_matched)

    def _tracks(self, names: list[str]) -> Tracks:
        """Tracks of the names that the model has, in their order; read once."""
        if self._read is None or self._read[0] != names:
            model = model_folder(self.config.model, self.sources, "covisibility")
            tracks = tracks_of_model(model)
            self._read = list(names), tracks_of_images(tracks, known_names(names, tracks.names, model))
        return self._read[1]
