"""Means, variances and maxima over a whole image: taken from its maps at once, or gathered from tiles.

A normalisation asks for them by its name. When the image is one piece they are those of the map at hand. When it is cut
into tiles, a map is only a part: its core (without the tile's margin) is added up, and the tile is given up with
`NotYetKnown`. After all tiles of a pass the statistics are those of the whole image, and the next pass comes further.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK_VALUES = 1 << 18  # 1 MB: what is added up at once stays in the cache
WIDE = 12
"""From so many channels on PyTorch's own kernel is the faster one."""


@dataclass(frozen=True)
class Moments:
    """Of every channel over `count` pixels, float64. squares: sum of squared deviations from the mean."""

    count: int
    mean: Float[Tensor, " c"]
    squares: Float[Tensor, " c"]

    @staticmethod
    def of(maps: Float[Tensor, "1 c h w"]) -> Moments:
        """In float32 by parts that stay in the cache, which are put together in float64."""
        channels = maps.shape[1]
        rows = maps.permute(0, 2, 3, 1).reshape(-1, channels)
        parts = rows.split(max(1, CHUNK_VALUES // channels))
        of_part = _of_narrow_rows if channels < WIDE else _of_wide_rows
        means, squares = (torch.stack(values) for values in zip(*map(of_part, parts), strict=True))
        counts = torch.tensor([[len(part)] for part in parts], dtype=torch.float64, device=maps.device)
        mean = (counts * means).sum(0) / len(rows)
        return Moments(len(rows), mean, (squares + counts * (means - mean).square()).sum(0))

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        squares = self.squares + other.squares + apart.square() * (self.count * other.count / count)
        return Moments(count, mean, squares)

    @property
    def variance(self) -> Float[Tensor, " c"]:
        """Biased."""
        return self.squares / self.count

    def affine(
        self,
        eps: float,
        groups: int | None = None,
        weight: Float[Tensor, " c"] | None = None,
        bias: Float[Tensor, " c"] | None = None,
    ) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Scale and shift, float32, that a norm of these statistics multiplies by and adds.

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


def _of_wide_rows(rows: Float[Tensor, "n c"]) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Means and sums of squared deviations, float64."""
    mean, variance = torch.batch_norm_update_stats(rows, None, None, 0.0)  # the biased variance
    return mean.double(), variance.double() * len(rows)


def _of_narrow_rows(rows: Float[Tensor, "n c"]) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """The same around a first guess of the mean, so that nothing cancels."""
    guess = rows[:: max(1, len(rows) // 256)].mean(0)
    deviation = rows - guess
    ones = rows.new_ones((1, len(rows)))
    shift = (ones @ deviation)[0].double() / len(rows)
    squares = (ones @ deviation.square_())[0].double()
    return guess + shift, (squares - len(rows) * shift.square()).clamp_min(0)


Bands: TypeAlias = Iterable[tuple[int, Tensor]]
"""Maps at the image's own resolution, some rows (1 c rows w) at a time, each with the number of its first row."""


class NotYetKnown(Exception):
    """No error: the statistics that a tile needs next are being gathered, and its pass ends here."""


class Statistics(Protocol):
    """Where a normalisation gets what it has to know about the whole image."""

    def moments(self, **maps: Tensor | Bands) -> dict[str, Moments]:
        """By the name of the normalisation. maps: (1 c h w). Raises NotYetKnown."""
        ...

    def maxima(self, **maps: Float[Tensor, "1 c h w"]) -> dict[str, float]:
        """Largest value over channels and pixels. Raises NotYetKnown."""
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
