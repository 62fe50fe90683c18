"""Mutual nearest neighbours with Lowe's ratio test in both directions.

Semantics of kornia's `match_smnn`: i and j match if each is the other's nearest neighbour and, in both directions,
d(first) <= ratio * d(second), where d is the Euclidean distance of unit descriptors or the Hamming distance of packed
bits (rows of uint8). Ties go to the first neighbour. Descriptors of rotated images (`Features.turns`) are compared at
the rotation at which the two images agree best. Sources: Lowe 2004, section 7.1; kornia.feature.match_smnn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from featkit.core.config import Config
from featkit.core.runtime import torch_device
from featkit.core.types import Features, Matches
from featkit.matching.config import MutualConfig

if TYPE_CHECKING:
    from featkit.matching.nearest import Prepared


class MutualMatcher:
    """Exact mutual nearest neighbours of unit descriptors or packed bits, on CPU or GPU.

    The product of every pair is computed separately in tiles of fixed height, so matches do not depend on the batch.
    """

    Config: ClassVar[type[Config]] = MutualConfig

    def __init__(self, config: MutualConfig, device: str = "auto"):
        """Raises UsageError for a device that is not available."""
        self.config, self.device = config, device
        self._prepared: Prepared = {}  # descriptors of the last batch: the next one often has the same images
        if device not in {"auto", "cpu"}:
            torch_device(device)

    def match(self, batch: list[tuple[Features, Features]]) -> list[Matches]:
        """Matches of each pair; see `Matcher.match`."""
        from featkit.matching import nearest  # imports torch, which takes a second: only if there is work

        device = torch_device(self.device)
        matches, self._prepared = nearest.match_pairs(batch, self.config, device, self._prepared)
        return matches
