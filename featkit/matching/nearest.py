"""Nearest neighbours of descriptors in both directions and the ratio test, on CPU or GPU, for `MutualMatcher`."""

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

MAX_THREADS = 8  # pairs at a time on the CPU: each needs a tile of 4 MB per 1,000 keypoints


def match_pairs(batch: list[tuple[Features, Features]], config: MutualConfig, device: torch.device) -> list[Matches]:
    """Matches of each pair. Raises BadInputError for descriptors that cannot be compared."""
    on_device: dict[int, Tensor] = {}
    loaded = [(*_load_aligned(a, b, on_device, device), _num_bits(a, b), config) for a, b in batch]
    if device.type != "cpu":
        return [_match_pair(*pair) for pair in loaded]
    with _one_pair_per_core() as pool:
        return list(pool.map(lambda pair: _match_pair(*pair), loaded))


def _load_descriptors(features: Features, on_device: dict[int, Tensor], device: torch.device) -> Tensor:
    """Descriptors as float32 on the device; an image in several pairs of a batch is transferred once."""
    if id(features) not in on_device:
        rows = features.descriptors
        rows = unpack_signs(rows) if is_packed(rows) else np.require(rows, requirements=["C", "W"])
        on_device[id(features)] = torch.as_tensor(rows).to(device, torch.float32)
    return on_device[id(features)]


def _load_aligned(
    a: Features, b: Features, on_device: dict[int, Tensor], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Descriptors of a pair on the device; those of rotated images are aligned."""
    rows0, rows1 = _load_descriptors(a, on_device, device), _load_descriptors(b, on_device, device)
    return rows0, rolled(rows1, a.turns, rotation_of_pair(a, b, rows0, rows1))


def _match_pair(a: Tensor, b: Tensor, bits: int, config: MutualConfig) -> Matches:
    """bits: length of binary descriptors, whose rows contain -1 and +1; 0 for unit rows."""
    if a.shape[1] != b.shape[1]:
        raise BadInputError(f"descriptors of {a.shape[1]} and {b.shape[1]} numbers cannot be matched")
    if len(a) == 0 or len(b) == 0:
        return Matches(np.full(len(a), -1, np.int32), np.zeros(len(a), np.float32))
    usable0, usable1 = _finite_rows(a), _finite_rows(b)
    if len(usable0) < len(a) or len(usable1) < len(b):
        return _match_finite_rows(a, b, usable0, usable1, bits, config)
    forward, backward = top_two(a, b)
    is_match = backward.index[forward.index] == torch.arange(len(a), device=a.device)
    is_match &= _passes_thresholds(forward, bits, config)
    is_match &= _passes_thresholds(backward, bits, config)[forward.index]
    matches0 = torch.where(is_match, forward.index, -1).to(torch.int32)
    scores0 = torch.where(is_match, forward.best / (bits or 1), 0.0)
    return Matches(matches0.cpu().numpy(), scores0.cpu().numpy())


def _match_finite_rows(
    a: Tensor, b: Tensor, usable0: Tensor, usable1: Tensor, bits: int, config: MutualConfig
) -> Matches:
    """Matches of the finite rows; the others match nothing and are no row's neighbour."""
    finite_matches = _match_pair(a[usable0], b[usable1], bits, config)
    is_match = finite_matches.matches0 >= 0
    matches0, scores0 = np.full(len(a), -1, np.int32), np.zeros(len(a), np.float32)
    index0 = usable0.cpu().numpy()[is_match]
    matches0[index0] = usable1.cpu().numpy()[finite_matches.matches0[is_match]]
    scores0[index0] = finite_matches.scores0[is_match]
    return Matches(matches0, scores0)


def _passes_thresholds(top: TopTwo, bits: int, config: MutualConfig) -> Tensor:
    """Ratio test and score threshold."""
    good = torch.ones_like(top.best, dtype=torch.bool)
    if config.min_score is not None:
        good &= top.best / (bits or 1) >= config.min_score
    if config.ratio is not None:
        first, second, limit = _ratio_test(top, bits, config.ratio)
        # Two neighbours at distance 0 are completely ambiguous: kornia's 0 / 0 does not pass either.
        good &= (first <= limit * second) & (second > 0)
    return good


def _ratio_test(top: TopTwo, bits: int, ratio: float) -> tuple[Tensor, Tensor, float]:
    """The terms of first <= limit * second. A missing second neighbour (-inf) is infinitely far away."""
    if bits:  # twice the Hamming distances, integers; float64, so that the limit is not rounded
        return bits - top.best.double(), bits - top.second.double(), ratio
    # |a - b|^2 = 2 - 2 ab for unit vectors
    return (1.0 - top.best).clamp_min(0), (1.0 - top.second).clamp_min(0), ratio**2


@contextmanager
def _one_pair_per_core() -> Iterator[ThreadPoolExecutor]:
    """Threads that each match a pair on their share of torch's cores.

    One pair's product, which is compute-bound, then overlaps with another's maxima, which are memory-bound; several
    cores on one pair would wait for each other. The share is the same for every batch, and so are the results.
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


def _num_bits(a: Features, b: Features) -> int:
    """Length of the packed descriptors of a pair, 0 for real-valued ones. Raises BadInputError if the kinds differ."""
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
# entries finds the group of the best entry; only that group is searched for its position and for the second best. The
# entries of a column are far apart in memory, so columns have small groups inside large ones, and in later tiles only
# the columns whose best two change are searched. The result equals `topk(2)` on the full product; ties, which are
# common between binary descriptors, go to the lowest index.


MEMBERS = 32  # entries per group of a row; tiles have a multiple of this many columns
LARGEST_TILE = 1 << 26  # entries, 256 MB: the rows of a tile are fewer for more than 65,536 columns
FEW, GROUPS = 8, 4  # in a column: entries per small group, small groups per large one; tiles are multiples of both


@dataclass(frozen=True)
class TopTwo:
    """Per row: index and similarity of the most similar row, similarity of the second (-inf if there is none)."""

    index: Int[Tensor, " n"]
    best: Shaped[Tensor, " n"]
    second: Shaped[Tensor, " n"]


def top_two(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> tuple[TopTwo, TopTwo]:
    """The best two rows of `b` for every row of `a`, and vice versa, by dot product. n, m > 0."""
    n, m = len(a), len(b)
    columns = -(-m // MEMBERS) * MEMBERS
    product = product_of(a, b, columns)
    tile_rows = max(FEW * GROUPS, min(product.tile_rows, LARGEST_TILE // columns // (FEW * GROUPS) * FEW * GROUPS))
    tile = torch.empty(tile_rows, columns, dtype=product.dtype, device=a.device)
    rows: list[TopTwo] = []
    none = tile.new_full((m,), product.nothing)
    backward = TopTwo(torch.zeros(m, dtype=torch.long, device=a.device), none, none.clone())
    for start in range(0, n, tile_rows):
        part = tile[: min(tile_rows, n - start)]
        tile[len(part) :] = product.nothing
        product.compute(start, part)
        rows.append(_best_in_rows(part, product.nothing))
        _update_columns(backward, tile, m, start, product.nothing)
    index, best, second = (torch.cat([getattr(row, name) for row in rows]) for name in ("index", "best", "second"))
    forward = TopTwo(index, product.similarities(best), product.similarities(second))
    return forward, TopTwo(backward.index, product.similarities(backward.best), product.similarities(backward.second))


def _best_in_rows(tile: Shaped[Tensor, "r c"], nothing: float) -> TopTwo:
    """Best two of every row. A group is every (c / MEMBERS)-th entry, so that the maxima run along memory."""
    groups = tile.view(len(tile), MEMBERS, -1)
    stride = groups.shape[2]
    peaks = groups.amax(1)
    best, group = peaks.max(1)
    members = groups.gather(2, group[:, None, None].expand(-1, MEMBERS, 1))[:, :, 0]
    place = members.max(1).indices
    second = torch.maximum(_largest_except(peaks, group, 1, nothing), _largest_except(members, place, 1, nothing))
    index = place * stride + group
    tied = torch.nonzero(second == best)[:, 0]
    if len(tied):  # the lowest group need not contain the lowest index; argmax returns the first of equals
        index[tied] = (tile[tied] == best[tied, None]).to(torch.uint8).argmax(1)
    return TopTwo(index, best, second)


def _update_columns(old: TopTwo, tile: Shaped[Tensor, "r c"], m: int, start: int, nothing: float) -> None:
    """Update the best two of the first m columns, in place, with a tile whose first row is `start`."""
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
    second_in_group = torch.maximum(
        _largest_except(inside, part, 1, nothing), _largest_except(members, place, 1, nothing)
    )
    second = torch.maximum(_largest_except(large, group, 0, nothing), second_in_group)
    index = (group * GROUPS + part) * FEW + place + start
    best_before, second_before = old.best[columns], old.second[columns]
    better = best > best_before  # ties keep the earlier one
    old.index[columns] = torch.where(better, index, old.index[columns])
    old.best[columns] = torch.where(better, best, best_before)
    old.second[columns] = torch.where(better, torch.maximum(second, best_before), torch.maximum(best, second_before))


def _largest_except(
    values: Shaped[Tensor, "*s"], index: Int[Tensor, " n"], dim: int, nothing: float
) -> Shaped[Tensor, " n"]:
    """The largest along a dimension except the entry at `index`, which is overwritten; `nothing` if there is none."""
    return values.scatter_(dim, index.unsqueeze(dim), nothing).amax(dim)


# ----------------------------------------------------------------------------------------------------------------------
# Products of two sets of descriptors, tile by tile: of real numbers, and of 8-bit integers.
#
# SIFT descriptors are integers up to 255 (divided by 512), bits are -1 and +1. Processors with 8-bit dot products
# (VNNI) multiply these several times as fast as real numbers, with identical sums, because float32 is exact here too.


SCALES = (1.0, 512.0)  # factors that make descriptors integers: bits and bytes; COLMAP's SIFT
SHIFT, LARGEST = 128, 127  # int8 is -128 to 127: values up to 255 fit after subtracting 128
GROUP = 4  # descriptor lengths are padded to a multiple of this; with length 1 torch 2.13 writes no result
NOTHING = -(1 << 30)  # below any sum


class Product(Protocol):
    """The product of a (n, d) and b (m, d), of which one tile is in memory at a time."""

    tile_rows: int
    dtype: torch.dtype
    nothing: float
    """Filler for missing entries: smaller than any entry."""

    def compute(self, start: int, tile: Tensor) -> None:
        """Write rows start, start + 1, ... of the product into a tile; columns beyond m are filled with `nothing`."""

    def similarities(self, found: Tensor) -> Float[Tensor, " k"]:
        """Convert entries of the product to similarities; -inf for `nothing`."""


def product_of(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], columns: int) -> Product:
    """The fastest product of two sets of descriptors on their device, with tiles of `columns` >= m columns."""
    if a.device.type == "cpu" and _has_fast_bytes():
        codes0, codes1 = codes_of(a), codes_of(b)
        if codes0 is not None and codes1 is not None:
            return CodeProduct(codes0, codes1, columns)
    return RealProduct(a, b)


class RealProduct:
    """The product in the descriptors' own precision."""

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
    """Descriptors as integers: the values are (rows + shift) / scale."""

    rows: Int8[Tensor, "n d"]
    shift: int
    scale: float

    def sums(self) -> Int[Tensor, " n"]:
        """Sum of each row."""
        return self.rows.sum(1, dtype=torch.int32)


def codes_of(rows: Float[Tensor, "n d"]) -> Codes | None:
    """Descriptors as 8-bit integers; None if they cannot be represented exactly."""
    for scale in SCALES if rows.numel() else ():
        scaled = rows * scale
        smallest, largest = (float(value) for value in scaled.aminmax())
        shift = SHIFT if largest > LARGEST else 0
        if smallest < shift - SHIFT or largest - shift > LARGEST:
            continue
        codes = (scaled - shift).to(torch.int8)
        if torch.equal(codes + scaled.new_tensor(shift), scaled):
            return Codes(codes, shift, scale)
    return None


class CodeProduct:
    """The exact product of integers. With a = a' + s and b = b' + t: ab = a'b' + s sum(b') + d s t + t sum(a')."""

    tile_rows = 128  # 4 MB at 8k columns: the tile is still in the cache when it is read
    dtype = torch.int32
    nothing: float = NOTHING

    def __init__(self, a: Codes, b: Codes, columns: int):
        fill, beyond = -a.rows.shape[1] % GROUP, columns - len(b.rows)
        self._a = pad(a.rows, (0, fill))
        self._b = pad(b.rows, (0, fill, 0, beyond)).T  # with zero columns, so that the product fills a tile
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
    """Whether the processor has 8-bit dot products; without them integers are slower than real numbers."""
    try:
        return bool(torch.cpu._is_vnni_supported()) and torch.backends.mkldnn.is_available()
    except AttributeError:  # an older torch
        return False


# ----------------------------------------------------------------------------------------------------------------------
# The relative rotation of two images, from descriptors of rotated images (`Features.turns`).
#
# A row is the concatenation of k descriptors of one keypoint, in the image rotated by 0, 1, ... k - 1 steps. Rotating
# the image rolls them by as many places, so rows are compared at each of the k shifts, and the shift at which most
# keypoints agree is used for the pair.


TRIED = 1000
"""Number of best keypoints of an image from which the rotation is found."""
RATIO = 0.9
"""Largest ratio of the distances to the nearest and second nearest neighbour, for a match that counts."""


def rotation_of_pair(a: Features, b: Features, rows0: Float[Tensor, "n c"], rows1: Float[Tensor, "m c"]) -> int:
    """Places by which to roll the descriptors of `b` so that they fit those of `a`; 0 without rotated descriptors.

    rows0, rows1: their descriptors as real numbers. Raises BadInputError for different numbers of rotations.
    """
    if a.turns != b.turns:
        raise BadInputError(f"features with {a.turns} and {b.turns} turns cannot be matched; extract both the same way")
    if a.turns == 1 or rows0.shape[1] != rows1.shape[1]:
        return 0
    return relative_rotation(rows0[_best_keypoints(a, TRIED)], rows1[_best_keypoints(b, TRIED)], a.turns)


def rolled(rows: Float[Tensor, "n k*d"], turns: int, places: int) -> Float[Tensor, "n k*d"]:
    """The descriptors of each row rolled by `places`."""
    if places == 0:
        return rows
    return rows.unflatten(1, (turns, -1)).roll(places, dims=1).flatten(1)


def relative_rotation(a: Float[Tensor, "n k*d"], b: Float[Tensor, "m k*d"], turns: int) -> int:
    """Places by which to roll the rows of `b` so that most agree with those of `a`; ties go to the smallest.

    NaN and infinity count as 0.
    """
    a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
    if len(a) < 2 or len(b) < 2:
        return 0
    agreeing = [_count_agreeing(a @ rolled(b, turns, places).T) for places in range(turns)]
    return max(range(turns), key=lambda places: (agreeing[places], -places))


def _best_keypoints(features: Features, count: int) -> np.ndarray:
    """Indices of the best keypoints, at most `count`."""
    return np.argsort(-features.scores, kind="stable")[:count].copy()


def _count_agreeing(similarity: Float[Tensor, "n m"]) -> int:
    """Number of mutual nearest neighbours that pass the ratio test in both directions."""
    forward, backward = similarity.topk(2, dim=1), similarity.topk(2, dim=0)
    is_match = backward.indices[0][forward.indices[:, 0]] == torch.arange(len(similarity), device=similarity.device)
    is_match &= _passes_ratio(forward.values[:, 0], forward.values[:, 1])
    is_match &= _passes_ratio(backward.values[0], backward.values[1])[forward.indices[:, 0]]
    return int(is_match.sum())


def _passes_ratio(best: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> Tensor:
    """The ratio test for similarities: |a - b|^2 = 2 - 2 ab for unit vectors."""
    return (1 - best) < RATIO**2 * (1 - second)
