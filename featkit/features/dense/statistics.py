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


@dataclass(frozen=True)
class Moments:
    """Of every channel over `count` pixels, float64. squares: sum of squared deviations from the mean."""

    count: int
    mean: Float[Tensor, " c"]
    squares: Float[Tensor, " c"]

    @staticmethod
    def of(maps: Float[Tensor, "1 c h w"]) -> Moments:
        """In float32 around a first guess of the mean, so that nothing cancels; the parts in float64."""
        rows = maps.permute(0, 2, 3, 1).flatten(0, 2)
        step = max(1, CHUNK_VALUES // rows.shape[1])
        guess = rows[:: max(1, len(rows) // 256)].mean(0)
        sums = torch.zeros((2, rows.shape[1]), dtype=torch.float64, device=rows.device)
        ones = rows.new_ones((1, min(step, len(rows))))
        for part in rows.split(step):
            deviation = part - guess
            weights = ones[:, : len(part)]
            sums[0] += (weights @ deviation)[0]
            sums[1] += (weights @ deviation.square_())[0]
        shift = sums[0] / len(rows)
        return Moments(len(rows), guess + shift, (sums[1] - len(rows) * shift.square()).clamp_min(0))

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
