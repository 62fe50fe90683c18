"""Convolutions for inference: BatchNorm folded in, computed by the fastest algorithm for their size."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from featkit.features.fast.tiles import Span, Window


class Convolution(Protocol):
    """Convolution of the channels-last maps of one image."""

    def __call__(self, *maps: Float[Tensor, "1 i h w"], margin: bool = False) -> Float[Tensor, "1 o h2 w2"]:
        """maps: concatenated along channels as input. Zero-padded: the result has the same size, or 1 / stride of it.

        margin: the first and last row are only context, and the result has two rows less.
        """
        ...


def convolution(weight: Float[Tensor, "o i k k"], bias: Float[Tensor, " o"], stride: int = 1) -> Convolution:
    """The convolution of these weights."""
    if weight.device.type == "cpu" and winograd_is_faster(weight, stride):
        return WinogradConv(weight, bias)
    if weight.shape[2:] == (1, 1) and stride == 1:
        return PointwiseConv(weight, bias)
    return PlainConv(weight, bias, stride)


class PlainConv:
    """torch's convolution."""

    def __init__(self, weight: Float[Tensor, "o i k k"], bias: Float[Tensor, " o"], stride: int):
        self._weight = weight.contiguous(memory_format=torch.channels_last)
        self._bias, self._stride, self._padding = bias, stride, weight.shape[2] // 2

    def __call__(self, *maps: Float[Tensor, "1 i h w"], margin: bool = False) -> Float[Tensor, "1 o h2 w2"]:
        given = maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
        padding = (self._padding - int(margin), self._padding)
        return F.conv2d(given, self._weight, self._bias, self._stride, padding)


class PointwiseConv:
    """1x1: a matrix product, since a pixel's channels are contiguous."""

    def __init__(self, weight: Float[Tensor, "o i 1 1"], bias: Float[Tensor, " o"]):
        self._weight, self._bias = weight.flatten(1).t().contiguous(), bias

    def __call__(self, *maps: Float[Tensor, "1 i h w"], margin: bool = False) -> Float[Tensor, "1 o h w"]:
        if margin:
            maps = tuple(values[:, :, 1:-1] for values in maps)
        parts = self._weight.split([values.shape[1] for values in maps])
        found: Tensor | None = None
        for values, weight in zip(maps, parts, strict=True):
            rows = values.permute(0, 2, 3, 1).flatten(0, 2)
            found = torch.addmm(self._bias, rows, weight) if found is None else found.addmm_(rows, weight)
        assert found is not None
        return found.view(1, *maps[0].shape[2:], -1).permute(0, 3, 1, 2)


def folded_convolution(conv: nn.Conv2d, norm: nn.Module) -> Convolution:
    """A bias-free convolution and the BatchNorm after it, in eval mode, as one convolution."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.detach().double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    weight = conv.weight.detach().double() * factor[:, None, None, None]
    bias = norm.bias.detach().double() - norm.running_mean.double() * factor
    return convolution(weight.float(), bias.float(), conv.stride[0])


def copy_convolution(conv: nn.Conv2d) -> Convolution:
    """A convolution with a bias."""
    assert conv.bias is not None
    return convolution(conv.weight.detach().clone(), conv.bias.detach().clone(), conv.stride[0])


# ----------------------------------------------------------------------------------------------------------------------
# 3x3 convolutions with 4 of 9 multiplications per value (Winograd's F(4x4, 3x3); Lavin and Gray 2016).
#
# A tile of 6x6 values gives 4x4 values of the result. Both are transformed by small matrices; in between, each of the
# 36 transformed values is multiplied like in a 1x1 convolution. Rounding errors are about twice those of a plain
# convolution with few channels (1e-6 of the result's deviation), and equal with many. With few channels the transforms
# cost more than they save.


OUT, TILE = 4, 6
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
"""Evaluation points of the polynomials, besides infinity. The usual 0, 1, -1, 2, -2 have twice the rounding error."""
LEAST_CHANNELS = (64, 128)
"""Minimum of the smaller and of the larger of the input and output channel counts."""
TILES_AT_ONCE = 320  # so that the transformed values fit into the cache


def winograd_is_faster(weight: Float[Tensor, "o i k k"], stride: int) -> bool:
    """Whether Winograd's algorithm is faster for a convolution on a CPU."""
    channels = sorted(weight.shape[:2])
    enough = channels[0] >= LEAST_CHANNELS[0] and channels[1] >= LEAST_CHANNELS[1]
    return enough and tuple(weight.shape[2:]) == (3, 3) and stride == 1


class WinogradConv:
    """A 3x3 convolution, stride 1; see `Convolution`."""

    def __init__(self, weight: Float[Tensor, "o i 3 3"], bias: Float[Tensor, " o"]):
        into, kernel, back = winograd_matrices()
        pairs = torch.einsum("ap,oipq,bq->abio", kernel, weight.double().cpu(), kernel)
        self._weight = pairs.reshape(TILE * TILE, weight.shape[1], weight.shape[0]).float().contiguous()
        self._into, self._back = torch.kron(into, into).float(), torch.kron(back, back).float()
        self._bias = bias

    def __call__(self, *maps: Float[Tensor, "1 i h w"], margin: bool = False) -> Float[Tensor, "1 o h2 w"]:
        height, width = maps[0].shape[2:]
        height -= 2 * int(margin)
        down, across = -(-height // OUT), -(-width // OUT)
        padded = _padded(maps, OUT * down + 2, OUT * across + 2, above=int(not margin))
        result = padded.new_empty((OUT * down, OUT * across, self._weight.shape[2]))
        at_once = max(1, TILES_AT_ONCE // across)
        for first in range(0, down, at_once):
            last = min(first + at_once, down)
            self._convolve_tile_rows(padded[OUT * first : OUT * last + 2], result[OUT * first : OUT * last])
        return result[:height, :width].permute(2, 0, 1)[None]

    def _convolve_tile_rows(self, padded: Float[Tensor, "h+2 w+2 i"], result: Float[Tensor, "h w o"]) -> None:
        """Write the result of complete rows of tiles."""
        down, across = result.shape[0] // OUT, result.shape[1] // OUT
        inputs, outputs = self._weight.shape[1:]
        given = _tiles(padded, down, across).reshape(TILE * TILE, -1)
        transformed = (self._into @ given).view(TILE * TILE, down * across, inputs)
        products = torch.bmm(transformed, self._weight).view(TILE * TILE, -1)
        values = (self._back @ products).view(OUT, OUT, down, across, outputs).permute(2, 0, 3, 1, 4)
        torch.add(values, self._bias, out=result.view(down, OUT, across, OUT, outputs))


def _padded(maps: tuple[Tensor, ...], height: int, width: int, above: int) -> Float[Tensor, "height width i"]:
    """All channels with zero padding: one column on the left, `above` rows above, and the rest right and below."""
    rows, columns = maps[0].shape[2:]
    padded = maps[0].new_empty((height, width, sum(values.shape[1] for values in maps)))
    for edge in (padded[:above], padded[above + rows :], padded[:, :1], padded[:, columns + 1 :]):
        edge.zero_()
    first = 0
    for values in maps:
        last = first + values.shape[1]
        padded[above : above + rows, 1 : columns + 1, first:last] = values[0].permute(1, 2, 0)
        first = last
    return padded


def _tiles(rows: Float[Tensor, "h w c"], down: int, across: int) -> Float[Tensor, "6 6 down across c"]:
    """Overlapping tiles as a view: value (i, j) of tile (y, x) is at row 4 y + i and column 4 x + j."""
    to_row, to_column, to_channel = rows.stride()
    strides = (to_row, to_column, OUT * to_row, OUT * to_column, to_channel)
    return rows.as_strided((TILE, TILE, down, across, rows.shape[2]), strides, rows.storage_offset())


def winograd_matrices() -> tuple[Float[Tensor, "6 6"], Float[Tensor, "6 3"], Float[Tensor, "4 6"]]:
    """Matrices for the tile, the kernel and the result (float64): correlation = back @ ((kernel @ g) * (into @ d)).

    The result's matrix evaluates a polynomial with 4 coefficients at the points; the kernel's one with 3, divided by
    the product of each point's distances to the others (Lagrange). These determine the tile's matrix.
    """
    points = np.array(POINTS)
    distances = np.array([np.prod([p - q for q in points if q != p]) for p in points])
    back = np.vander(points, OUT, increasing=True).T
    back = np.hstack([back, np.eye(OUT)[:, -1:]])
    kernel = np.vstack([np.vander(points, 3, increasing=True) / distances[:, None], np.eye(3)[-1:]])
    rows = [np.poly(np.delete(points, i))[::-1] for i in range(len(points))]  # product over the other points
    into = np.vstack([np.append(row, 0) for row in rows] + [np.poly(points)[::-1]])
    return tuple(torch.from_numpy(np.ascontiguousarray(m)) for m in (into, kernel, back))


# ----------------------------------------------------------------------------------------------------------------------
# A 3x3 convolution of bilinearly upsampled maps, computed before upsampling: exact, with 4 to 16 times less arithmetic.
#
# Upsampling mixes pixels and a tap of the convolution mixes channels, so the two commute:
#
#     conv3x3(up(x)) = sum over the 9 taps of shift(up(tap * x))
#
# So each tap is a 1x1 convolution at low resolution, and shifting and upsampling are one linear map of the columns and
# one of the rows. Both are banded: a block of the result needs only a few columns (rows) of x. The border is that of
# the convolution: zeros around the upsampled maps.


BLOCK = 32
"""Columns or rows of the result per block."""
TAPS = 3


class Resampling(NamedTuple):
    """A block of the result: out[first:last] = weights @ (3 taps of x[low:high])."""

    first: int
    last: int
    low: int
    high: int
    weights: Float[Tensor, "last-first high-low 3"]


class UpsampledConv:
    """A 3x3 convolution of maps upsampled by `factor`. aligned: align corners."""

    def __init__(
        self, weight: Float[Tensor, "o i 3 3"], bias: Float[Tensor, " o"] | None, factor: int, aligned: bool = False
    ):
        self._factor, self._aligned = factor, aligned
        self._channels = weight.shape[0]
        by_row = weight.permute(2, 1, 3, 0).reshape(TAPS, weight.shape[1], TAPS * self._channels)
        self._weight, self._bias = by_row.contiguous(), bias

    def __call__(
        self, maps: Float[Tensor, "1 i h w"], window: Window | None = None
    ) -> Float[Tensor, "1 o factor*h factor*w"]:
        """window: position of `maps` in the full maps, in their pixels; None: they are the full maps."""
        height, width = maps.shape[2:]
        rows, columns = window or Window.whole(height, width)
        wide = self.upsample_columns(maps, columns)
        result = maps.new_empty((self._factor * height, wide.shape[2], self._channels))
        result.copy_(torch.zeros_like(result[0, 0]) if self._bias is None else self._bias)
        for block in resampling(rows, self._factor, self._aligned):
            self.add_upsampled_rows(wide, block, result[block.first : block.last])
        return result.permute(2, 0, 1)[None]

    def upsample_columns(self, maps: Float[Tensor, "1 i h w"], columns: Span) -> Float[Tensor, "3 h factor*w o"]:
        """Upsample columns and sum their taps, for each tap of the rows."""
        _, channels, height, width = maps.shape
        flat = maps.permute(0, 2, 3, 1).reshape(height * width, channels)
        mixed = maps.new_empty((TAPS, height * width, TAPS * self._channels))
        for tap in range(TAPS):
            torch.mm(flat, self._weight[tap], out=mixed[tap])
        mixed = mixed.view(TAPS * height, width * TAPS, self._channels)
        wide = maps.new_empty((TAPS * height, self._factor * width, self._channels))
        for block in resampling(columns, self._factor, self._aligned):
            weights = block.weights.to(maps.device).flatten(1).expand(TAPS * height, -1, -1)
            part = mixed[:, TAPS * block.low : TAPS * block.high]
            wide[:, block.first : block.last] = torch.bmm(weights, part)
        return wide.view(TAPS, height, -1, self._channels)

    def add_upsampled_rows(
        self, wide: Float[Tensor, "3 h w o"], block: Resampling, result: Float[Tensor, "rows w o"]
    ) -> None:
        """Upsample the rows of a block, sum their taps and add them to `result`, which is contiguous."""
        weights = block.weights.to(wide.device).transpose(1, 2).flatten(1)
        taps = wide[:, block.low : block.high].reshape(weights.shape[1], -1)
        result.view(len(result), -1).addmm_(weights, taps)


@lru_cache(maxsize=256)
def resampling(span: Span, factor: int, aligned: bool, block: int = BLOCK) -> tuple[Resampling, ...]:
    """Blocks of an axis upsampled by `factor`, with the input that each needs."""
    count, offset = factor * span.length, factor * span.start
    firsts = range(0, count, block)
    return tuple(_block(span, factor, aligned, offset, first, min(first + block, count)) for first in firsts)


def _block(span: Span, factor: int, aligned: bool, offset: int, first: int, last: int) -> Resampling:
    total = factor * span.total
    place = offset + np.arange(first, last)[:, None] + np.arange(TAPS) - TAPS // 2  # in the upsampled axis, per tap
    if aligned:
        source = place * ((span.total - 1) / max(total - 1, 1))
    else:
        source = (place + 0.5) / factor - 0.5
    source = np.clip(source, 0, span.total - 1)
    lower = np.floor(source).astype(int)
    share = source - lower
    upper = np.minimum(lower + 1, span.total - 1)
    inside = (place >= 0) & (place < total)  # the convolution's border is zero
    lower, upper = (np.clip(index - span.start, 0, span.length - 1) for index in (lower, upper))
    low, high = int(lower.min()), int(upper.max()) + 1
    weights = np.zeros((last - first, high - low, TAPS))
    out, tap = np.indices(place.shape)
    np.add.at(weights, (out, lower - low, tap), (1 - share) * inside)
    np.add.at(weights, (out, upper - low, tap), share * inside)
    return Resampling(first, last, low, high, torch.from_numpy(weights).float())
