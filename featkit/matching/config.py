"""What decides matches: which matcher, and its configuration. Nothing here loads what runs them."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from featkit.core.config import Config, PositiveShare, Runtime


class MatchWith(Config):
    """Which matcher a stage uses."""

    matcher: str = "mutual"
    """Matcher by name, or a yaml file."""
    matching: dict[str, Any] = Field(default_factory=dict)
    """What differs from the matcher's configuration."""


class MutualConfig(Config):
    """Which nearest neighbours count as matches."""

    ratio: PositiveShare | None = 0.8
    """Ratio test on both sides: largest distance to the nearest over distance to the second nearest. None: no test.

    Hamming distances go with the square of Euclidean ones: 0.8 is stricter for bits than for real numbers.
    """
    min_score: float | None = Field(None, ge=-1, le=1)
    """Smallest similarity of a match: cosine, or share of equal minus share of unequal bits. None: no threshold."""
    batch_size: Runtime[int] = Field(32, ge=1, le=10**6)
    """Pairs that are read ahead and handed over together; changes no result."""
