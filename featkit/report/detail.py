"""How much of a report's content goes on the page: full detail first, then less until the page is small enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class Detail:
    """Upper bounds. Points, cameras: per scene; lines: per picture; pictures: on the whole page."""

    points: int
    cameras: int
    pictures: int
    picture_width_px: int
    jpeg_quality: int
    lines: int
    rows: int
    text_characters: int


# Every level takes roughly half the bytes of the one before it.
LEVELS = (
    Detail(120_000, 4000, 60, 1200, 84, 180, 5000, 200_000),
    Detail(80_000, 3000, 40, 1100, 76, 180, 3000, 100_000),
    Detail(50_000, 2000, 30, 1000, 66, 150, 2000, 60_000),
    Detail(30_000, 1000, 20, 800, 58, 120, 1000, 30_000),
    Detail(15_000, 600, 12, 700, 50, 100, 500, 15_000),
    Detail(6_000, 300, 6, 560, 42, 80, 200, 8_000),
    Detail(2_000, 150, 2, 400, 34, 60, 60, 4_000),
)


def spread(count: int, limit: int) -> Int[np.ndarray, " k"]:
    """At most `limit` indices out of `count`, evenly spread and always the same."""
    if count <= limit:
        return np.arange(count)
    return np.arange(limit, dtype=np.int64) * count // max(limit, 1)
