"""An image in overlapping tiles, with the result of the whole image: in bounded memory, to rounding.

Two things tell a tile's map from the whole image's. Convolutions see its edge: it gets a margin as wide as a pixel of
the result can see, and only its core counts. Norms need statistics of all pixels: the tiles are gone through once for
every level of norms (`statistics.py`), each time from the image on, since keeping maps would take the memory that tiles
are to save. Exact statistics instead of those of a smaller image: descriptors and scores must not depend on the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from jaxtyping import Float
from torch import Tensor

from featkit.features.dense.statistics import Bands, Moments, NotYetKnown
from featkit.features.dense.window import Span, Window

T = TypeVar("T")
MULTIPLE_PX = 16
MOST_ROWS_OF_TILES = 1024


class Tile(NamedTuple):
    """window: what is computed. core: what of it counts."""

    window: Window
    core: Window

    def cropped(self, maps: Float[Tensor, "1 c h w"], first_row: int = 0) -> Float[Tensor, "1 c h2 w2"]:
        """The core of the window's maps, whatever their resolution.

        first_row: of a band of full resolution, which has fewer rows than the window.
        """
        scale = self.window.columns.length // maps.shape[3]
        (low, high), (left, right) = (_inside(*axes, scale) for axes in zip(self.window, self.core, strict=True))
        low, high = max(low - first_row, 0), max(min(high - first_row, maps.shape[2]), 0)
        return maps[:, :, low:high, left:right]


def _inside(window: Span, core: Span, scale: int) -> tuple[int, int]:
    first = (core.start - window.start) // scale
    return first, first + core.length // scale


def tiles(height: int, width: int, margin: int, max_pixels: int) -> list[Tile]:
    """Tiles of an image whose sides are multiples of 16, as few pixels in all as can be.

    max_pixels: of a tile, its margin included; less than that of a core of 16 px counts as that.
    """
    grids = []
    for count in range(1, min(height // MULTIPLE_PX, MOST_ROWS_OF_TILES) + 1):
        rows = _cut(height, margin, _rounded_up(-(-height // count)))
        most = max_pixels // max(window.length for window, _ in rows)
        core = width if width <= most else max(MULTIPLE_PX, (most - 2 * margin) // MULTIPLE_PX * MULTIPLE_PX)
        columns = _cut(width, margin, core)
        grid = [Tile(Window(r[0], c[0]), Window(r[1], c[1])) for r in rows for c in columns]
        largest = max(tile.window.rows.length * tile.window.columns.length for tile in grid)
        total = sum(tile.window.rows.length * tile.window.columns.length for tile in grid)
        grids.append((max(largest, max_pixels), total, grid))
        if len(columns) == 1 and largest <= max_pixels:
            break  # more rows of tiles only add margins
    return min(grids, key=lambda entry: entry[:2])[2]


def _cut(size: int, margin: int, core: int) -> list[tuple[Span, Span]]:
    """An axis as (window, core) pairs."""
    parts = []
    for start in range(0, size, core):
        end = min(start + core, size)
        low, high = max(start - margin, 0), min(end + margin, size)
        parts.append((Span(size, low, high - low), Span(size, start, end - start)))
    return parts


def _rounded_up(size: int) -> int:
    return -(-size // MULTIPLE_PX) * MULTIPLE_PX


@dataclass
class TiledImage:
    """Statistics (see `Statistics`) that are gathered from the cores of tiles."""

    tile: Tile

    def __post_init__(self) -> None:
        self._known: dict[str, Moments | float] = {}
        self._gathered: dict[str, Moments | float] = {}

    def moments(self, **maps: Tensor | Bands) -> dict[str, Moments]:
        if not maps.keys() <= self._known.keys():
            for name, values in maps.items():
                parts = [self.tile.cropped(values)] if isinstance(values, Tensor) else self._cropped_bands(values)
                for part in parts:
                    self._add(name, Moments.of(part))
            raise NotYetKnown
        return {name: self._known[name] for name in maps}  # type: ignore[misc]

    def maxima(self, **maps: Float[Tensor, "1 c h w"]) -> dict[str, float]:
        if not maps.keys() <= self._known.keys():
            for name, values in maps.items():
                found = float(self.tile.cropped(values).amax())
                self._gathered[name] = max(found, self._gathered.get(name, found))  # type: ignore[type-var]
            raise NotYetKnown
        return {name: self._known[name] for name in maps}  # type: ignore[misc]

    def end_pass(self) -> bool:
        """What was gathered is known from now on. Returns whether anything was: otherwise all is done."""
        self._known |= self._gathered
        gathered, self._gathered = bool(self._gathered), {}
        return gathered

    def _cropped_bands(self, bands: Bands) -> Iterable[Tensor]:
        parts = (self.tile.cropped(band, first) for first, band in bands)
        return (part for part in parts if part.shape[2])

    def _add(self, name: str, moments: Moments) -> None:
        before = self._gathered.get(name)
        self._gathered[name] = before + moments if isinstance(before, Moments) else moments


def over_tiles(parts: list[Tile], compute: Callable[[Tile, TiledImage], T], deliver: Callable[[Tile, T], None]) -> None:
    """Go through the tiles until `compute` gets to its end on each; `deliver` what it returns."""
    statistics = TiledImage(parts[0])
    unfinished = True
    while unfinished:
        for tile in parts:
            statistics.tile = tile
            try:
                found = compute(tile, statistics)
            except NotYetKnown:
                continue
            deliver(tile, found)
        unfinished = statistics.end_pass()
