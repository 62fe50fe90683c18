"""Mutual nearest neighbours with Lowe's ratio test on both sides.

Semantics of kornia's `match_smnn`: i and j match when each is the other's nearest neighbour and, on both sides,
d(first) <= ratio * d(second), d the Euclidean distance of unit descriptors, or the Hamming distance of packed bits
(rows of uint8). Of equally near neighbours the first one counts. Descriptors of turned images (`Features.turns`) are
compared at the turn at which two images agree best. Sources: Lowe 2004, section 7.1;
kornia.feature.match_smnn.
"""

from __future__ import annotations

from typing import ClassVar

from featkit.core.config import Config
from featkit.core.runtime import torch_device
from featkit.core.types import Features, Matches
from featkit.matching.config import MutualConfig


class MutualMatcher:
    """Mutual nearest neighbours on unit descriptors or packed bits, exact, on CPU or GPU.

    Every pair is multiplied on its own in tiles of one fixed height, so its matches cannot depend on the batch.
    """

    Config: ClassVar[type[Config]] = MutualConfig

    def __init__(self, config: MutualConfig, device: str = "auto"):
        """Raises UsageError for a device that is not here."""
        self.config, self.device = config, device
        if device not in {"auto", "cpu"}:
            torch_device(device)

    def match(self, batch: list[tuple[Features, Features]]) -> list[Matches]:
        """Matches of each pair; see `Matcher.match`."""
        from featkit.matching import nearest  # torch, which takes a second: not where nothing is left to match

        return nearest.match_pairs(batch, self.config, torch_device(self.device))
