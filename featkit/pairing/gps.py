"""Each image with the ones taken nearest to it, by GPS: pairs grow with n, not with n^2.

Peers: COLMAP's spatial matching (`SpatialPairingOptions`), which passes over images without a position.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from featkit.config import Config, Runtime
from featkit.geometry.wgs84 import ecef, middle
from featkit.images.located import Located, locate, some_names
from featkit.pairing.base import Sources
from featkit.pairing.nearest import nearest
from featkit.pairing.retrieval import each_once
from featkit.store.features import FeatureStore
from featkit.store.stamp import digest
from featkit.types import Pair

LOGGER = logging.getLogger(__name__)


class GpsConfig(Config):
    """How many neighbours each image is matched with, and where the positions come from."""

    num_matched: int = Field(default=16, ge=1)
    """Nearest images that each one is paired with. In a survey along strips, two before and two after on its own strip
    and five on each strip beside it are 14; two more for what GPS errs."""
    max_distance_m: float | None = Field(default=None, gt=0)
    """Images further apart are not paired, m; None: any distance (COLMAP: 100)."""
    use_altitude: bool = False
    """Count altitudes in distances; an unknown one is the median of the others. Off, as in COLMAP (`ignore_z`): GPS
    errs most in height."""
    without_position: Literal["all", "none"] = "all"
    """What an image without a position is paired with: "all" other images, so that it is not lost, or "none"."""
    file: Runtime[Path | None] = None
    """A csv, `name,lat,lon[,alt]` a line; None: the photographs' EXIF."""


class Gps:
    """The nearest images, by distances between places on the earth (chords, so that 180 degrees is no border)."""

    Config = GpsConfig
    needs_features = False
    scratch_folder: Path | None = None

    def __init__(self, config: GpsConfig, device: str = "auto"):
        self.config = config
        self.sources = Sources()
        self._located: tuple[tuple[str, ...], Located] | None = None

    def digest(self, names: list[str]) -> str:
        """See `ReadsSources.digest`: of the positions, wherever they come from."""
        return digest(*(f"{name} {position}" for name, position in self._locate(names).positions.items()))

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """See `Pairing.pairs`; ordered by the image asked for, its nearest first; images without a position last.

        Raises UsageError when neither a csv nor the photographs are known, BadInputError when no image has a position.
        """
        located = self._locate(names)
        listed = list(located.positions)
        best = nearest(self._points(located), self.config.num_matched, self.config.max_distance_m)
        found = [Pair(listed[a], listed[b]) for a, b in each_once(best).tolist()]
        return found + self._of_the_others(located)

    def _locate(self, names: list[str]) -> Located:
        """Positions of the names, each once; read once."""
        listed = tuple(dict.fromkeys(names))
        if self._located is None or self._located[0] != listed:
            self._located = listed, locate(listed, self.sources.images, self.config.file)
        return self._located[1]

    def _points(self, located: Located) -> np.ndarray:
        positions = list(located.positions.values())
        usual = middle(positions).altitude_m if self.config.use_altitude else None
        if usual is None:
            return ecef([replace(position, altitude_m=None) for position in positions])
        return ecef([p if p.altitude_m is not None else replace(p, altitude_m=usual) for p in positions])

    def _of_the_others(self, located: Located) -> list[Pair]:
        """Pairs of the images that have no position; one warning names them."""
        if not located.without:
            return []
        to_all = self.config.without_position == "all"
        every = [*located.positions, *located.without]
        first = len(located.positions)
        found = [Pair(name, other) for i, name in enumerate(located.without) for other in every[: first + i]]
        LOGGER.warning(
            "pair: %d of %d images have no GPS position and are paired with %s: %s",
            len(located.without),
            len(every),
            f"every other image, {len(found)} pairs" if to_all else "none",
            some_names(located.without),
        )
        return found if to_all else []
