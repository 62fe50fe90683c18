"""3x3 convolutions with 4 of 9 multiplications per value (Winograd's F(4x4, 3x3); Lavin and Gray 2016).

A tile of 6x6 values gives 4x4 of the result: both are transformed by small matrices, and between them every channel of
the 36 transformed values is multiplied as by a 1x1 convolution. It rounds about twice as much as a plain convolution
of few channels (1e-6 of the result's deviation), and no more with many. With few channels the transforms cost more than
they save.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

OUT, TILE = 4, 6
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
"""Where the polynomials are evaluated, beside infinity. The usual 0, 1, -1, 2, -2 round twice as much."""
LEAST_CHANNELS = (64, 128)
"""Of input and output, the fewer and the more ones."""
TILES_AT_ONCE = 320  # the transformed values of a batch stay in the cache


def is_faster(weight: Float[Tensor, "o i k k"], stride: int) -> bool:
    """Whether a convolution should be computed so, on a CPU."""
    channels = sorted(weight.shape[:2])
    enough = channels[0] >= LEAST_CHANNELS[0] and channels[1] >= LEAST_CHANNELS[1]
    return enough and tuple(weight.shape[2:]) == (3, 3) and stride == 1


class WinogradConv:
    """A 3x3 convolution, stride 1; see `Convolution`."""

    def __init__(self, weight: Float[Tensor, "o i 3 3"], bias: Float[Tensor, " o"]):
        into, kernel, back = transforms()
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
            self._some(padded[OUT * first : OUT * last + 2], result[OUT * first : OUT * last])
        return result[:height, :width].permute(2, 0, 1)[None]

    def _some(self, padded: Float[Tensor, "h+2 w+2 i"], result: Float[Tensor, "h w o"]) -> None:
        """Write the result of whole rows of tiles."""
        down, across = result.shape[0] // OUT, result.shape[1] // OUT
        inputs, outputs = self._weight.shape[1:]
        given = _tiles(padded, down, across).reshape(TILE * TILE, -1)
        transformed = (self._into @ given).view(TILE * TILE, down * across, inputs)
        products = torch.bmm(transformed, self._weight).view(TILE * TILE, -1)
        values = (self._back @ products).view(OUT, OUT, down, across, outputs).permute(2, 0, 3, 1, 4)
        torch.add(values, self._bias, out=result.view(down, OUT, across, OUT, outputs))


def _padded(maps: tuple[Tensor, ...], height: int, width: int, above: int) -> Float[Tensor, "height width i"]:
    """All channels, one column of zeros to the left, `above` rows above, and zeros beyond up to the size asked for."""
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
    """Overlapping tiles as a view: value (i, j) of tile (y, x) lies at row 4 y + i and column 4 x + j."""
    to_row, to_column, to_channel = rows.stride()
    strides = (to_row, to_column, OUT * to_row, OUT * to_column, to_channel)
    return rows.as_strided((TILE, TILE, down, across, rows.shape[2]), strides, rows.storage_offset())


def transforms() -> tuple[Float[Tensor, "6 6"], Float[Tensor, "6 3"], Float[Tensor, "4 6"]]:
    """Matrices for the tile, the kernel and the result (float64): correlation = back @ ((kernel @ g) * (into @ d)).

    The result's matrix evaluates a polynomial of 4 coefficients at the points, the kernel's one of 3, divided by the
    product of each point's distances to the others (Lagrange); the tile's is then given by what both must yield.
    """
    points = np.array(POINTS)
    distances = np.array([np.prod([p - q for q in points if q != p]) for p in points])
    back = np.vander(points, OUT, increasing=True).T
    back = np.hstack([back, np.eye(OUT)[:, -1:]])
    kernel = np.vstack([np.vander(points, 3, increasing=True) / distances[:, None], np.eye(3)[-1:]])
    rows = [np.poly(np.delete(points, i))[::-1] for i in range(len(points))]  # product over the other points
    into = np.vstack([np.append(row, 0) for row in rows] + [np.poly(points)[::-1]])
    return tuple(torch.from_numpy(np.ascontiguousarray(m)) for m in (into, kernel, back))
