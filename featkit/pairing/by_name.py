"""Pairs by names: every image with every other, or with the next ones."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np

from featkit.core.config import Config, Count
from featkit.core.types import Pair
from featkit.io.features import FeatureStore

# ----------------------------------------------------------------------------------------------------------------------
# Every image with every other: n (n - 1) / 2 pairs.


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


# ----------------------------------------------------------------------------------------------------------------------
# Each image with the next ones in name order, for video and for photographs taken along a path.
#
# Source of the quadratic overlap: COLMAP, `SequentialPairingOptions` (images 1, 2, 4, 8, ... ahead).


DIGITS = re.compile(r"([0-9]+)")  # not \d: int() of some other digits would order them with these


class SequentialConfig(Config):
    """How far ahead an image is matched."""

    overlap: Count = 10
    """Following images that each one is paired with."""
    # Off: `overlap` then means just what it says. On reaches further for few pairs when a path returns slowly.
    quadratic: bool = False
    """Pair also with the images 2^k ahead, for all k below overlap."""


class Sequential:
    """Neighbours in natural name order: img2 comes before img10."""

    Config = SequentialConfig
    needs_features = False
    scratch_folder: Path | None = None

    def __init__(self, config: SequentialConfig, device: str = "auto"):
        self.config = config

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """See `Pairing.pairs`; ordered by the first image, then by distance. A name given twice counts once."""
        ordered = sorted(set(names), key=natural_key)
        steps = set(range(1, self.config.overlap + 1))
        if self.config.quadratic:
            steps |= {1 << k for k in range(min(self.config.overlap, len(ordered).bit_length()))}
        return [
            Pair(name, ordered[index + step])
            for index, name in enumerate(ordered)
            for step in sorted(steps)
            if index + step < len(ordered)
        ]


def natural_key(name: str) -> tuple[list[tuple[str, int]], str]:
    """Sorts numbers in a name by value; equal ones (img02, img2) by the name itself."""
    parts = DIGITS.split(name)  # text and digits in turn, text first
    numbers = [int(digits) for digits in parts[1::2]] + [-1]
    return list(zip(parts[0::2], numbers, strict=True)), name
