"""Tiled computation of an image in bounded memory, with the result of the full image up to rounding.

A tile's map differs from the full image's in two ways. Convolutions see its edge, so it gets a margin as wide as the
receptive field, and only its core is kept. Norms need statistics of all pixels, so all tiles are processed once per
level of norms (below), each time starting from the image, since keeping maps would take the memory that tiles save.
Statistics are exact, not those of a smaller image: descriptors and scores must not depend on the available memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

# ----------------------------------------------------------------------------------------------------------------------
# Means, variances and maxima over a full image: computed from its maps directly, or accumulated over tiles.
#
# A normalisation requests them by its name. For an undivided image they are those of the given map. For a tiled
# image a map is only a part: its core (without the tile's margin) is accumulated, and the tile is abandoned with
# `StatisticsPending`. After a pass over all tiles the statistics are those of the full image, and the next pass can
# continue past this normalisation.


CHUNK_VALUES = 1 << 18  # 1 MB, which fits into the cache
WIDE = 12
"""Number of channels from which PyTorch's own kernel is faster."""


@dataclass(frozen=True)
class Moments:
    """Statistics of every channel over `count` pixels, float64. squares: sum of squared deviations from the mean."""

    count: int
    mean: Float[Tensor, " c"]
    squares: Float[Tensor, " c"]

    @staticmethod
    def of(maps: Float[Tensor, "1 c h w"]) -> Moments:
        """Compute moments in float32, in chunks that fit into the cache, and combine them in float64."""
        channels = maps.shape[1]
        rows = maps.permute(0, 2, 3, 1).reshape(-1, channels)
        parts = rows.split(max(1, CHUNK_VALUES // channels))
        of_part = _moments_of_narrow_rows if channels < WIDE else _moments_of_wide_rows
        means, squares = (torch.stack(values) for values in zip(*map(of_part, parts), strict=True))
        counts = torch.tensor([[len(part)] for part in parts], dtype=torch.float64, device=maps.device)
        mean = (counts * means).sum(0) / len(rows)
        return Moments(len(rows), mean, (squares + counts * (means - mean).square()).sum(0))

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.count / count)
        squares = self.squares + other.squares + difference.square() * (self.count * other.count / count)
        return Moments(count, mean, squares)

    @property
    def variance(self) -> Float[Tensor, " c"]:
        """Biased variance."""
        return self.squares / self.count

    def affine(
        self,
        eps: float,
        groups: int | None = None,
        weight: Float[Tensor, " c"] | None = None,
        bias: Float[Tensor, " c"] | None = None,
    ) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Scale and shift, float32, of a norm with these statistics.

        groups: of a GroupNorm; None for an instance norm. weight, bias: the norm's own.
        """
        mean, variance = self.mean, self.variance
        if groups is not None:
            mean_square = (variance + mean.square()).view(groups, -1).mean(1)
            group_mean = mean.view(groups, -1).mean(1)
            size = len(mean) // groups
            mean = group_mean.repeat_interleave(size)
            variance = (mean_square - group_mean.square()).clamp_min(0).repeat_interleave(size)
        scale = torch.rsqrt(variance + eps) * (1 if weight is None else weight.double())
        shift = -mean * scale + (0 if bias is None else bias.double())
        return scale.float(), shift.float()


def _moments_of_wide_rows(rows: Float[Tensor, "n c"]) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Means and sums of squared deviations, float64."""
    mean, variance = torch.batch_norm_update_stats(rows, None, None, 0.0)  # the biased variance
    return mean.double(), variance.double() * len(rows)


def _moments_of_narrow_rows(rows: Float[Tensor, "n c"]) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Means and sums of squared deviations, computed around a first estimate of the mean to avoid cancellation."""
    guess = rows[:: max(1, len(rows) // 256)].mean(0)
    deviation = rows - guess
    ones = rows.new_ones((1, len(rows)))
    shift = (ones @ deviation)[0].double() / len(rows)
    squares = (ones @ deviation.square_())[0].double()
    return guess + shift, (squares - len(rows) * shift.square()).clamp_min(0)


Bands: TypeAlias = Iterable[tuple[int, Tensor]]
"""Maps at full image resolution, a few rows (1 c rows w) at a time, each with the index of its first row."""


class StatisticsPending(Exception):
    """Not an error: the statistics that a tile needs next are being accumulated, and its pass ends here."""


class Statistics(Protocol):
    """Source of the full-image statistics that a normalisation needs."""

    def moments(self, **maps: Tensor | Bands) -> dict[str, Moments]:
        """By the name of the normalisation. maps: (1 c h w). Raises StatisticsPending."""
        ...

    def maxima(self, **maps: Float[Tensor, "1 c h w"]) -> dict[str, float]:
        """Largest value over channels and pixels. Raises StatisticsPending."""
        ...


class WholeImage:
    """Statistics of maps that cover the image."""

    def moments(self, **maps: Tensor | Bands) -> dict[str, Moments]:
        return {name: _moments(values) for name, values in maps.items()}

    def maxima(self, **maps: Float[Tensor, "1 c h w"]) -> dict[str, float]:
        return {name: float(values.permute(0, 2, 3, 1).amax()) for name, values in maps.items()}


def _moments(maps: Tensor | Bands) -> Moments:
    if isinstance(maps, Tensor):
        return Moments.of(maps)
    return reduce(operator.add, (Moments.of(band) for _, band in maps))


# ----------------------------------------------------------------------------------------------------------------------
# Location of maps within an image.


class Span(NamedTuple):
    """A range of one axis: `length` pixels from `start`, out of `total`."""

    total: int
    start: int
    length: int

    def at(self, scale: int) -> Span:
        """In pixels of maps at 1 / scale of the resolution; all three are multiples of it."""
        return Span(self.total // scale, self.start // scale, self.length // scale)


class Window(NamedTuple):
    """A part of an image, in pixels."""

    rows: Span
    columns: Span

    @staticmethod
    def whole(height: int, width: int) -> Window:
        return Window(Span(height, 0, height), Span(width, 0, width))

    def at(self, scale: int) -> Window:
        return Window(self.rows.at(scale), self.columns.at(scale))


# ----------------------------------------------------------------------------------------------------------------------
# The tiles.


T = TypeVar("T")
MULTIPLE_PX = 16
MOST_ROWS_OF_TILES = 1024


class Tile(NamedTuple):
    """window: the computed region. core: the part of it that is kept."""

    window: Window
    core: Window

    def cropped(self, maps: Float[Tensor, "1 c h w"], first_row: int = 0) -> Float[Tensor, "1 c h2 w2"]:
        """The core of the window's maps, whatever their resolution.

        first_row: of a full-resolution band, which has fewer rows than the window.
        """
        scale = self.window.columns.length // maps.shape[3]
        (low, high), (left, right) = (_core_range(*axes, scale) for axes in zip(self.window, self.core, strict=True))
        low, high = max(low - first_row, 0), max(min(high - first_row, maps.shape[2]), 0)
        return maps[:, :, low:high, left:right]


def _core_range(window: Span, core: Span, scale: int) -> tuple[int, int]:
    first = (core.start - window.start) // scale
    return first, first + core.length // scale


def tiles(height: int, width: int, margin: int, max_pixels: int) -> list[Tile]:
    """Tiles of an image whose sides are multiples of 16, with the fewest pixels in total.

    max_pixels: of a tile, including its margin; raised to that of a core of 16 px if smaller.
    """
    grids = []
    for count in range(1, min(height // MULTIPLE_PX, MOST_ROWS_OF_TILES) + 1):
        rows = _split_axis(height, margin, _rounded_up(-(-height // count)))
        most = max_pixels // max(window.length for window, _ in rows)
        core = width if width <= most else max(MULTIPLE_PX, (most - 2 * margin) // MULTIPLE_PX * MULTIPLE_PX)
        columns = _split_axis(width, margin, core)
        grid = [Tile(Window(r[0], c[0]), Window(r[1], c[1])) for r in rows for c in columns]
        largest = max(tile.window.rows.length * tile.window.columns.length for tile in grid)
        total = sum(tile.window.rows.length * tile.window.columns.length for tile in grid)
        grids.append((max(largest, max_pixels), total, grid))
        if len(columns) == 1 and largest <= max_pixels:
            break  # more rows of tiles only add margins
    return min(grids, key=lambda entry: entry[:2])[2]


def _split_axis(size: int, margin: int, core: int) -> list[tuple[Span, Span]]:
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
    """Statistics (see `Statistics`) accumulated over the cores of tiles."""

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
            raise StatisticsPending
        return {name: self._known[name] for name in maps}  # type: ignore[misc]

    def maxima(self, **maps: Float[Tensor, "1 c h w"]) -> dict[str, float]:
        if not maps.keys() <= self._known.keys():
            for name, values in maps.items():
                found = float(self.tile.cropped(values).amax())
                self._gathered[name] = max(found, self._gathered.get(name, found))  # type: ignore[type-var]
            raise StatisticsPending
        return {name: self._known[name] for name in maps}  # type: ignore[misc]

    def end_pass(self) -> bool:
        """Publish the accumulated statistics. Returns whether there were any; if not, everything is done."""
        self._known |= self._gathered
        gathered, self._gathered = bool(self._gathered), {}
        return gathered

    def _cropped_bands(self, bands: Bands) -> Iterable[Tensor]:
        parts = (self.tile.cropped(band, first) for first, band in bands)
        return (part for part in parts if part.shape[2])

    def _add(self, name: str, moments: Moments) -> None:
        before = self._gathered.get(name)
        self._gathered[name] = before + moments if isinstance(before, Moments) else moments


def process_tiles(
    parts: list[Tile], compute: Callable[[Tile, TiledImage], T], deliver: Callable[[Tile, T], None]
) -> None:
    """Process the tiles until `compute` completes on each; `deliver` receives its results."""
    statistics = TiledImage(parts[0])
    unfinished = True
    while unfinished:
        for tile in parts:
            statistics.tile = tile
            try:
                found = compute(tile, statistics)
            except StatisticsPending:
                continue
            deliver(tile, found)
        unfinished = statistics.end_pass()
