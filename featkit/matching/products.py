"""Products of two sets of descriptors, tile by tile: of real numbers, and of small whole numbers.

SIFT's descriptors are whole numbers up to 255 (divided by 512), bits are -1 and +1. Processors with 8-bit dot products
(VNNI) multiply such several times as fast as real numbers, and the sums are the same to the last bit: in float32 they
are exact too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor
from torch.nn.functional import pad

SCALES = (1.0, 512.0)  # by which descriptors are whole numbers: bits and bytes; COLMAP's SIFT
SHIFT, LARGEST = 128, 127  # a number of 8 bits goes from -128 to 127: up to 255 once 128 is taken off
GROUP = 4  # numbers that are multiplied at once; of a single one torch 2.13 leaves the result unwritten
NOTHING = -(1 << 30)  # below any sum


class Product(Protocol):
    """The product of a (n, d) and b (m, d), of which one tile is there at a time."""

    tile_rows: int
    dtype: torch.dtype
    nothing: float
    """What stands where there is no entry: less than any."""

    def compute(self, start: int, tile: Tensor) -> None:
        """Write rows start, start + 1, ... of the product into a tile; columns beyond m hold nothing."""

    def similarities(self, found: Tensor) -> Float[Tensor, " k"]:
        """What entries of the product mean; -inf for nothing."""


def product_of(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], columns: int) -> Product:
    """The fastest way to the product of two sets of descriptors on their device, in tiles of so many columns, >= m."""
    if a.device.type == "cpu" and _has_fast_bytes():
        codes0, codes1 = codes_of(a), codes_of(b)
        if codes0 is not None and codes1 is not None:
            return CodeProduct(codes0, codes1, columns)
    return RealProduct(a, b)


class RealProduct:
    """In the descriptors' own precision."""

    tile_rows = 1024  # 1024 x 12k floats are 50 MB
    nothing: float = -torch.inf

    def __init__(self, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]):
        self.dtype = a.dtype
        self._a, self._b = a, b.T.contiguous()

    def compute(self, start: int, tile: Tensor) -> None:
        """See `Product`."""
        m = self._b.shape[1]
        torch.mm(self._a[start : start + len(tile)], self._b, out=tile[:, :m])
        tile[:, m:] = self.nothing

    def similarities(self, found: Tensor) -> Float[Tensor, " k"]:
        """The entries are the similarities."""
        return found


@dataclass(frozen=True)
class Codes:
    """Descriptors as whole numbers: they are (rows + shift) / scale."""

    rows: Int8[Tensor, "n d"]
    shift: int
    scale: float

    def sums(self) -> Int[Tensor, " n"]:
        """Of each row."""
        return self.rows.sum(1, dtype=torch.int32)


def codes_of(rows: Float[Tensor, "n d"]) -> Codes | None:
    """Descriptors as whole numbers of 8 bits; None when they are none."""
    for scale in SCALES if rows.numel() else ():
        scaled = rows * scale
        least, most = (float(value) for value in scaled.aminmax())
        shift = SHIFT if most > LARGEST else 0
        if least < shift - SHIFT or most - shift > LARGEST:
            continue
        codes = (scaled - shift).to(torch.int8)
        if torch.equal(codes + scaled.new_tensor(shift), scaled):
            return Codes(codes, shift, scale)
    return None


class CodeProduct:
    """Of whole numbers, exact. With a = a' + s and b = b' + t: ab = a'b' + s sum(b') + d s t + t sum(a')."""

    tile_rows = 128  # 4 MB at 8k columns: what is read next is still in the cache
    dtype = torch.int32
    nothing: float = NOTHING

    def __init__(self, a: Codes, b: Codes, columns: int):
        fill, beyond = -a.rows.shape[1] % GROUP, columns - len(b.rows)
        self._a = pad(a.rows, (0, fill))
        self._b = pad(b.rows, (0, fill, 0, beyond)).T  # with columns of zeros, so that the product fills a tile
        self._m, self._scale = len(b.rows), a.scale * b.scale
        self._of_row = b.shift * a.sums()[:, None] if b.shift else None
        of_column = a.shift * b.sums() + a.rows.shape[1] * a.shift * b.shift
        self._of_column = pad(of_column, (0, beyond), value=self.nothing) if a.shift else None

    def compute(self, start: int, tile: Tensor) -> None:
        """See `Product`."""
        stop = start + len(tile)
        torch._int_mm(self._a[start:stop], self._b, out=tile)
        if self._of_row is not None:
            tile += self._of_row[start:stop]
        if self._of_column is not None:
            tile += self._of_column
        else:
            tile[:, self._m :] = self.nothing

    def similarities(self, found: Tensor) -> Float[Tensor, " k"]:
        """See `Product`."""
        return torch.where(found > self.nothing // 2, found.float() / self._scale, -torch.inf)


def _has_fast_bytes() -> bool:
    """Whether the processor has 8-bit dot products; without them they are slower than real numbers."""
    try:
        return bool(torch.cpu._is_vnni_supported()) and torch.backends.mkldnn.is_available()
    except AttributeError:  # an older torch does not say
        return False
