"""Nearest neighbours of descriptors on both sides and the ratio test, on CPU or GPU: the work of `MutualMatcher`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, Int8, Shaped
from torch import Tensor
from torch.nn.functional import pad

from featkit.core.errors import BadInputError
from featkit.core.types import Features, Matches
from featkit.features.base import BYTE, is_packed, unpack_signs
from featkit.matching.config import MutualConfig

MAX_THREADS = 8  # pairs at a time on the CPU: each has a tile of 4 MB per 1,000 keypoints


def match_pairs(batch: list[tuple[Features, Features]], config: MutualConfig, device: torch.device) -> list[Matches]:
    """Matches of each pair. Raises BadInputError for descriptors that cannot be compared."""
    moved: dict[int, Tensor] = {}
    loaded = [(*_aligned(a, b, moved, device), _bits(a, b), config) for a, b in batch]
    if device.type != "cpu":
        return [_match_pair(*pair) for pair in loaded]
    with _one_pair_per_core() as pool:
        return list(pool.map(lambda pair: _match_pair(*pair), loaded))


def _on_device(features: Features, moved: dict[int, Tensor], device: torch.device) -> Tensor:
    """Descriptors as float32 on the device; an image that stands in several pairs of a batch moves once."""
    if id(features) not in moved:
        rows = features.descriptors
        rows = unpack_signs(rows) if is_packed(rows) else np.require(rows, requirements=["C", "W"])
        moved[id(features)] = torch.as_tensor(rows).to(device, torch.float32)
    return moved[id(features)]


def _aligned(a: Features, b: Features, moved: dict[int, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Descriptors of a pair on the device; those of turned images as they fit together."""
    rows0, rows1 = _on_device(a, moved, device), _on_device(b, moved, device)
    return rows0, rolled(rows1, a.turns, rotation_of_pair(a, b, rows0, rows1))


def _match_pair(a: Tensor, b: Tensor, bits: int, config: MutualConfig) -> Matches:
    """bits: length of binary descriptors, whose rows hold -1 and +1; 0 for rows of length 1."""
    if a.shape[1] != b.shape[1]:
        raise BadInputError(f"descriptors of {a.shape[1]} and {b.shape[1]} numbers cannot be matched")
    if len(a) == 0 or len(b) == 0:
        return Matches(np.full(len(a), -1, np.int32), np.zeros(len(a), np.float32))
    usable0, usable1 = _finite_rows(a), _finite_rows(b)
    if len(usable0) < len(a) or len(usable1) < len(b):
        return _match_usable(a, b, usable0, usable1, bits, config)
    across, down = top_two(a, b)
    good = down.index[across.index] == torch.arange(len(a), device=a.device)
    good &= _passes(across, bits, config)
    good &= _passes(down, bits, config)[across.index]
    matches0 = torch.where(good, across.index, -1).to(torch.int32)
    scores0 = torch.where(good, across.best / (bits or 1), 0.0)
    return Matches(matches0.cpu().numpy(), scores0.cpu().numpy())


def _match_usable(a: Tensor, b: Tensor, usable0: Tensor, usable1: Tensor, bits: int, config: MutualConfig) -> Matches:
    """Matches of the rows without NaN or infinity; the others match nothing, and no row's neighbour."""
    inner = _match_pair(a[usable0], b[usable1], bits, config)
    found = inner.matches0 >= 0
    matches0, scores0 = np.full(len(a), -1, np.int32), np.zeros(len(a), np.float32)
    index0 = usable0.cpu().numpy()[found]
    matches0[index0] = usable1.cpu().numpy()[inner.matches0[found]]
    scores0[index0] = inner.scores0[found]
    return Matches(matches0, scores0)


def _passes(top: TopTwo, bits: int, config: MutualConfig) -> Tensor:
    """Ratio test and score threshold."""
    good = torch.ones_like(top.best, dtype=torch.bool)
    if config.min_score is not None:
        good &= top.best / (bits or 1) >= config.min_score
    if config.ratio is not None:
        first, second, limit = _ratio_test(top, bits, config.ratio)
        # Two neighbours at distance 0 are as ambiguous as can be: kornia's 0 / 0 does not pass either.
        good &= (first <= limit * second) & (second > 0)
    return good


def _ratio_test(top: TopTwo, bits: int, ratio: float) -> tuple[Tensor, Tensor, float]:
    """What is compared: first <= limit * second. No second neighbour (-inf) is infinitely far away."""
    if bits:  # twice the Hamming distances, whole numbers; in float64 the limit is the one that was asked for
        return bits - top.best.double(), bits - top.second.double(), ratio
    # |a - b|^2 = 2 - 2 ab for unit vectors
    return (1.0 - top.best).clamp_min(0), (1.0 - top.second).clamp_min(0), ratio**2


@contextmanager
def _one_pair_per_core() -> Iterator[ThreadPoolExecutor]:
    """Threads that each match a pair on their own share of torch's cores.

    One pair's product, bound by arithmetic, then runs beside another's maxima, bound by memory; several cores on one
    pair would wait for each other between the two. The share is the same for every batch, and so are the results.
    """
    cores = torch.get_num_threads()
    threads = min(cores, MAX_THREADS)
    share = max(1, cores // threads)
    torch.set_num_threads(share)
    try:
        with ThreadPoolExecutor(threads, "match", initializer=torch.set_num_threads, initargs=(share,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)


def _bits(a: Features, b: Features) -> int:
    """Length of the packed descriptors of a pair, 0 for real-valued ones. Raises BadInputError for one of each."""
    if is_packed(a.descriptors) != is_packed(b.descriptors):
        raise BadInputError("binary descriptors (packed bits) and real-valued ones cannot be matched")
    return BYTE * a.descriptors.shape[1] if is_packed(a.descriptors) else 0


def _finite_rows(rows: Tensor) -> Tensor:
    """Indices of the rows without NaN or infinity."""
    return torch.nonzero(rows.sum(1).isfinite())[:, 0]


# ----------------------------------------------------------------------------------------------------------------------
# The two most similar rows of the other side, for every row of both sides, exactly and in one pass.
#
# The product of the descriptors is computed in tiles of fixed height. In each tile a fast maximum over groups of
# entries finds the group of the best one; only that group is searched for its position and for the runner-up. Entries
# of a column lie far apart in memory, so columns have small groups in large ones, and of later tiles only those columns
# are searched whose best two change. Equal to `topk(2)` on the whole product; of equal bests, usual between binary
# descriptors, the one with the lowest index.


MEMBERS = 32  # entries per group of a row: the position is searched among 1/32 of it
FEW, GROUPS = 8, 4  # of a column: entries per small group, small groups per large one; tiles have a multiple of both


@dataclass(frozen=True)
class TopTwo:
    """Per row: position and similarity of the most similar one, similarity of the second (-inf if there is none)."""

    index: Int[Tensor, " n"]
    best: Shaped[Tensor, " n"]
    second: Shaped[Tensor, " n"]


def top_two(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> tuple[TopTwo, TopTwo]:
    """Best two of `b` for every row of `a`, and of `a` for every row of `b`, by dot product. n, m > 0."""
    n, m = len(a), len(b)
    columns = -(-m // MEMBERS) * MEMBERS
    product = product_of(a, b, columns)
    tile = torch.empty(product.tile_rows, columns, dtype=product.dtype, device=a.device)
    rows: list[TopTwo] = []
    none = tile.new_full((m,), product.nothing)
    down = TopTwo(torch.zeros(m, dtype=torch.long, device=a.device), none, none.clone())
    for start in range(0, n, product.tile_rows):
        part = tile[: min(product.tile_rows, n - start)]
        tile[len(part) :] = product.nothing
        product.compute(start, part)
        rows.append(_best_in_rows(part, product.nothing))
        _update_columns(down, tile, m, start, product.nothing)
    index, best, second = (torch.cat([getattr(row, name) for row in rows]) for name in ("index", "best", "second"))
    across = TopTwo(index, product.similarities(best), product.similarities(second))
    return across, TopTwo(down.index, product.similarities(down.best), product.similarities(down.second))


def _best_in_rows(tile: Shaped[Tensor, "r c"], nothing: float) -> TopTwo:
    """Best two of every row. A group is every (c / MEMBERS)-th entry, so that its maximum runs along memory."""
    groups = tile.view(len(tile), MEMBERS, -1)
    stride = groups.shape[2]
    peaks = groups.amax(1)
    best, group = peaks.max(1)
    members = groups.gather(2, group[:, None, None].expand(-1, MEMBERS, 1))[:, :, 0]
    place = members.max(1).indices
    second = torch.maximum(_without(peaks, group, 1, nothing), _without(members, place, 1, nothing))
    index = place * stride + group
    tied = torch.nonzero(second == best)[:, 0]
    if len(tied):  # the lowest group need not hold the lowest index; argmax gives the first of equals
        index[tied] = (tile[tied] == best[tied, None]).to(torch.uint8).argmax(1)
    return TopTwo(index, best, second)


def _update_columns(old: TopTwo, tile: Shaped[Tensor, "r c"], m: int, start: int, nothing: float) -> None:
    """Take a tile, whose rows count from `start`, into the best two of each of the first m columns, in place."""
    entries = tile.view(-1, FEW, tile.shape[1])
    small = entries.amax(1).view(-1, GROUPS, tile.shape[1])
    large = small[:, :, :m].amax(1)
    best, group = large.max(0)
    columns = torch.nonzero(best > old.second)[:, 0]
    best, group, large = best[columns], group[columns], large[:, columns]
    inside = small[group, :, columns]
    part = inside.max(1).indices
    members = entries[group * GROUPS + part, :, columns]
    place = members.max(1).indices
    beside = torch.maximum(_without(inside, part, 1, nothing), _without(members, place, 1, nothing))
    second = torch.maximum(_without(large, group, 0, nothing), beside)
    index = (group * GROUPS + part) * FEW + place + start
    best_before, second_before = old.best[columns], old.second[columns]
    better = best > best_before  # the older one stays among equals
    old.index[columns] = torch.where(better, index, old.index[columns])
    old.best[columns] = torch.where(better, best, best_before)
    old.second[columns] = torch.where(better, torch.maximum(second, best_before), torch.maximum(best, second_before))


def _without(values: Shaped[Tensor, "*s"], index: Int[Tensor, " n"], dim: int, nothing: float) -> Shaped[Tensor, " n"]:
    """The largest along a dimension but for the entry at `index`, which is lost; `nothing` if there is no other."""
    return values.scatter_(dim, index.unsqueeze(dim), nothing).amax(dim)


# ----------------------------------------------------------------------------------------------------------------------
# Products of two sets of descriptors, tile by tile: of real numbers, and of small whole numbers.
#
# SIFT's descriptors are whole numbers up to 255 (divided by 512), bits are -1 and +1. Processors with 8-bit dot
# products (VNNI) multiply such several times as fast as real numbers, and the sums are the same to the last bit: in
# float32 they are exact too.


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


# ----------------------------------------------------------------------------------------------------------------------
# By how much one image is turned against another, from descriptors of turned images (`Features.turns`).
#
# A row holds k descriptors of one keypoint, in the image turned by 0, 1, ... k - 1 steps. Turning the image moves them
# round by as many places, so two rows are compared at each of the k places, and the one at which most keypoints agree
# counts for the pair.


TRIED = 1000
"""Keypoints of an image, the best ones, by which the turn is found."""
RATIO = 0.9
"""Largest distance to the nearest neighbour over that to the second, for a match that counts."""


def rotation_of_pair(a: Features, b: Features, rows0: Float[Tensor, "n c"], rows1: Float[Tensor, "m c"]) -> int:
    """Places to move the descriptors of `b` round so that they fit those of `a`; 0 for images that were not turned.

    rows0, rows1: their descriptors as real numbers. Raises BadInputError for different numbers of turns.
    """
    if a.turns != b.turns:
        raise BadInputError(f"features of {a.turns} and {b.turns} turns cannot be matched; extract both alike")
    if a.turns == 1 or rows0.shape[1] != rows1.shape[1]:
        return 0
    return relative_rotation(rows0[_best_of(a, TRIED)], rows1[_best_of(b, TRIED)], a.turns)


def rolled(rows: Float[Tensor, "n k*d"], turns: int, places: int) -> Float[Tensor, "n k*d"]:
    """The descriptors of each row moved round by so many places."""
    if places == 0:
        return rows
    return rows.unflatten(1, (turns, -1)).roll(places, dims=1).flatten(1)


def relative_rotation(a: Float[Tensor, "n k*d"], b: Float[Tensor, "m k*d"], turns: int) -> int:
    """Places to move the rows of `b` round so that they agree with those of `a`; of equal ones the least.

    Rows without a usable number agree with nothing.
    """
    a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
    if len(a) < 2 or len(b) < 2:
        return 0
    agreeing = [_agreeing(a @ rolled(b, turns, places).T) for places in range(turns)]
    return max(range(turns), key=lambda places: (agreeing[places], -places))


def _best_of(features: Features, count: int) -> np.ndarray:
    """Indices of the best keypoints, at most `count`."""
    return np.argsort(-features.scores, kind="stable")[:count].copy()


def _agreeing(similarity: Float[Tensor, "n m"]) -> int:
    """Mutual nearest neighbours that pass the ratio test on both sides."""
    across, down = similarity.topk(2, dim=1), similarity.topk(2, dim=0)
    good = down.indices[0][across.indices[:, 0]] == torch.arange(len(similarity), device=similarity.device)
    good &= _clear(across.values[:, 0], across.values[:, 1])
    good &= _clear(down.values[0], down.values[1])[across.indices[:, 0]]
    return int(good.sum())


def _clear(best: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> Tensor:
    """|a - b|^2 = 2 - 2 ab for unit vectors."""
    return (1 - best) < RATIO**2 * (1 - second)
