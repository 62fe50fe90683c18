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
    nothing: float
    """What stands where there is no entry: less than any."""

    def empty_tile(self, rows: int, columns: int) -> Tensor:
        """A tile of at least m columns, without entries."""

    def compute(self, start: int, tile: Tensor) -> None:
        """Rows start, start + 1, ... of the product, comparable within a row; columns beyond m hold nothing."""

    def compare_columns(self, start: int, tile: Tensor) -> None:
        """Make what `compute` left comparable within a column too."""

    def of_rows(self, found: Tensor) -> Float[Tensor, " n"]:
        """Similarities, from entries found by `compute` in each of the n rows."""

    def of_columns(self, found: Tensor) -> Float[Tensor, " m"]:
        """Similarities, from entries found after `compare_columns`."""


def product_of(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Product:
    """The fastest way to the product of two sets of descriptors on their device."""
    if a.device.type == "cpu" and _has_fast_bytes():
        codes0, codes1 = codes_of(a), codes_of(b)
        if codes0 is not None and codes1 is not None:
            return CodeProduct(codes0, codes1)
    return RealProduct(a, b)


class RealProduct:
    """In the descriptors' own precision."""

    tile_rows = 1024  # 1024 x 12k floats are 50 MB
    nothing: float = -torch.inf

    def __init__(self, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]):
        self._a, self._b = a, b.T.contiguous()

    def empty_tile(self, rows: int, columns: int) -> Tensor:
        """See `Product`."""
        return self._a.new_full((rows, columns), self.nothing)

    def compute(self, start: int, tile: Tensor) -> None:
        """See `Product`."""
        torch.mm(self._a[start : start + len(tile)], self._b, out=tile[:, : self._b.shape[1]])

    def compare_columns(self, start: int, tile: Tensor) -> None:
        """They are already."""

    def of_rows(self, found: Tensor) -> Float[Tensor, " n"]:
        """The entries are the similarities."""
        return found

    def of_columns(self, found: Tensor) -> Float[Tensor, " m"]:
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
    """Of whole numbers, exact. With a = a' + s and b = b' + t: ab = a'b' + s sum(b') + d s t + t sum(a').

    The last term is one for all of a row, so that it is added for the columns alone.
    """

    tile_rows = 128  # 4 MB at 8k columns: what is read next is still in the cache
    nothing: float = NOTHING

    def __init__(self, a: Codes, b: Codes):
        self._rows0, self._rows1 = (pad(codes.rows, (0, -codes.rows.shape[1] % GROUP)) for codes in (a, b))
        self._shifts = a.shift, b.shift
        self._scale = a.scale * b.scale
        self._of_row = b.shift * a.sums()
        self._of_column = a.shift * b.sums() + a.rows.shape[1] * a.shift * b.shift

    def empty_tile(self, rows: int, columns: int) -> Tensor:
        """See `Product`. The other side gets rows of zeros, so that the product is written where it stays."""
        beyond = columns - len(self._rows1)
        self._transposed = pad(self._rows1, (0, 0, 0, beyond)).T
        self._of_column = pad(self._of_column, (0, beyond), value=self.nothing)
        return torch.full((rows, columns), self.nothing, dtype=torch.int32)

    def compute(self, start: int, tile: Tensor) -> None:
        """See `Product`."""
        torch._int_mm(self._rows0[start : start + len(tile)], self._transposed, out=tile)
        if self._shifts[0]:
            tile += self._of_column
        else:
            tile[:, len(self._rows1) :] = self.nothing

    def compare_columns(self, start: int, tile: Tensor) -> None:
        """See `Product`."""
        if self._shifts[1]:
            tile += self._of_row[start : start + len(tile), None]

    def of_rows(self, found: Tensor) -> Float[Tensor, " n"]:
        """See `Product`."""
        return self._similarities(found, found + self._of_row)

    def of_columns(self, found: Tensor) -> Float[Tensor, " m"]:
        """See `Product`."""
        return self._similarities(found, found)

    def _similarities(self, found: Tensor, sums: Tensor) -> Tensor:
        return torch.where(found > self.nothing // 2, sums.float() / self._scale, -torch.inf)


def _has_fast_bytes() -> bool:
    """Whether the processor has 8-bit dot products; without them they are slower than real numbers."""
    try:
        return bool(torch.cpu._is_vnni_supported()) and torch.backends.mkldnn.is_available()
    except AttributeError:  # an older torch does not say
        return False
