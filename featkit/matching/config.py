"""Configuration of matching: which matcher, and its settings. Importing this loads no matcher."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from featkit.core.config import Config, PositiveShare, Runtime


class MatchWith(Config):
    """Which matcher a stage uses."""

    matcher: str = "mutual"
    """Name of a matcher, or a yaml file."""
    matching: dict[str, Any] = Field(default_factory=dict)
    """Changes to the matcher's configuration."""


class MutualConfig(Config):
    """Which nearest neighbours count as matches."""

    ratio: PositiveShare | None = 0.8
    """Ratio test in both directions: largest ratio of the distances to the nearest and second nearest neighbour.
    None: no test.

    Hamming distances correspond to squared Euclidean ones: 0.8 is stricter for bits than for real numbers.
    """
    min_score: float | None = Field(None, ge=-1, le=1)
    """Smallest similarity of a match: cosine, or the fraction of equal minus unequal bits. None: no threshold."""
    batch_size: Runtime[int] = Field(32, ge=1, le=10**6)
    """Pairs per batch, which is prefetched; does not affect the result."""
