"""Nearest neighbours of descriptors in both directions and the ratio test, on CPU or GPU, for `MutualMatcher`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, Int8, Shaped
from torch import Tensor
from torch.nn.functional import pad

from featkit.core.errors import BadInputError
from featkit.core.runtime import threads_on_cores
from featkit.core.types import Features, Matches
from featkit.features.base import BYTE, is_packed, unpack_signs
from featkit.matching.config import MutualConfig

ROUNDING = 0.01  # of the length of a unit row, in half precision or 8 bits
MAX_THREADS = 8  # pairs at a time on the CPU: each needs a tile of 1 MB per 1,000 keypoints


Prepared = dict[int, tuple[Features, "Rows"]]
"""Features by their `id`, with their descriptors on the device."""


def match_pairs(
    batch: list[tuple[Features, Features]], config: MutualConfig, device: torch.device, before: Prepared | None = None
) -> tuple[list[Matches], Prepared]:
    """Matches of each pair, and the descriptors that were prepared for it.

    before: those of an earlier batch, which are not prepared again. Raises BadInputError for descriptors that cannot be
    compared.
    """
    before = before or {}
    images = list({id(features): features for pair in batch for features in pair}.values())

    def prepare(features: Features) -> tuple[Features, Rows]:
        return before.get(id(features)) or (features, _load_descriptors(features, device))

    def match(pair: tuple[Features, Features]) -> Matches:
        a, b = pair
        return _match_pair(*_aligned(a, b, prepared[id(a)][1], prepared[id(b)][1]), _num_bits(a, b), config)

    # One pair's product, which is compute-bound, overlaps with another's maxima, which are memory-bound. The share of
    # the cores is the same for every batch, and so are the results.
    with threads_on_cores("match", MAX_THREADS) if device.type == "cpu" else nullcontext() as pool:
        run = map if pool is None else pool.map
        prepared = {id(loaded[0]): loaded for loaded in run(prepare, images)}
        return list(run(match, batch)), prepared


def _load_descriptors(features: Features, device: torch.device) -> Rows:
    rows = features.descriptors
    if is_packed(rows):
        return rows_of(torch.as_tensor(unpack_signs(rows)).to(device, torch.float32))
    return rows_of(_unit_rows(torch.as_tensor(np.require(rows, requirements=["C", "W"])).to(device, torch.float32)))


def _unit_rows(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows of length 1: those of other programs may be of any length, as OpenCV's SIFT, and the ratio test needs 1.

    Rows that are of length 1 but for rounding stay as they are; rows of zeros stay zero.
    """
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if bool(((lengths - 1).abs() <= ROUNDING).all()):
        return rows
    return rows / lengths.where(lengths > 0, 1)


def _aligned(a: Features, b: Features, rows0: Rows, rows1: Rows) -> tuple[Rows, Rows]:
    """Descriptors of a pair; those of rotated images are aligned."""
    places = rotation_of_pair(a, b, rows0.values, rows1.values)
    return rows0, rows1 if places == 0 else rows_of(rolled(rows1.values, a.turns, places))


def _match_pair(a: Rows, b: Rows, bits: int, config: MutualConfig) -> Matches:
    """bits: length of binary descriptors, whose rows contain -1 and +1; 0 for unit rows.

    The second direction is searched for those rows of `b` alone that a row of `a` chose and that passed its tests.
    """
    n, (width0, width1) = len(a), (a.values.shape[1], b.values.shape[1])
    if width0 != width1:
        raise BadInputError(f"descriptors of {width0} and {width1} numbers cannot be matched")
    if n == 0 or len(b) == 0:
        return Matches(np.full(n, -1, np.int32), np.zeros(n, np.float32))
    usable0, usable1 = _finite_rows(a.values), _finite_rows(b.values)
    if len(usable0) < n or len(usable1) < len(b):
        return _match_finite_rows(a, b, usable0, usable1, bits, config)
    forward = nearest_two(a, b)
    passing = torch.nonzero(_passes_thresholds(forward, bits, config))[:, 0]
    chosen, place = forward.index[passing].unique(return_inverse=True)
    is_match = torch.zeros_like(passing, dtype=torch.bool)
    if len(chosen):
        backward = nearest_two(b.take(chosen), a)
        is_match = (backward.index[place] == passing) & _passes_thresholds(backward, bits, config)[place]
    matched = passing[is_match]
    matches0 = torch.full_like(forward.index, -1, dtype=torch.int32)
    matches0[matched] = forward.index[matched].to(torch.int32)
    scores0 = torch.where(matches0 >= 0, forward.best / (bits or 1), 0.0)
    return Matches(matches0.cpu().numpy(), scores0.cpu().numpy())


def _match_finite_rows(a: Rows, b: Rows, usable0: Tensor, usable1: Tensor, bits: int, config: MutualConfig) -> Matches:
    """Matches of the finite rows; the others match nothing and are no row's neighbour."""
    finite_matches = _match_pair(a.take(usable0), b.take(usable1), bits, config)
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


def _num_bits(a: Features, b: Features) -> int:
    """Length of the packed descriptors of a pair, 0 for real-valued ones. Raises BadInputError if the kinds differ."""
    if is_packed(a.descriptors) != is_packed(b.descriptors):
        raise BadInputError("binary descriptors (packed bits) and real-valued ones cannot be matched")
    return BYTE * a.descriptors.shape[1] if is_packed(a.descriptors) else 0


def _finite_rows(rows: Tensor) -> Tensor:
    """Indices of the rows without NaN or infinity."""
    return torch.nonzero(rows.sum(1).isfinite())[:, 0]


# ----------------------------------------------------------------------------------------------------------------------
# The two most similar rows of the other side, exactly.
#
# The product of the descriptors is computed in tiles of fixed height. In each row a fast maximum over groups of entries
# finds the group of the best entry; only that group is searched for its position and for the second best. The result
# equals `topk(2)` on the full product; ties, which are common between binary descriptors, go to the lowest index.


MEMBERS = 32  # entries per group of a row; tiles have a multiple of this many columns
LARGEST_TILE = 1 << 26  # entries, 256 MB: the rows of a tile are fewer for more than 65,536 columns


@dataclass(frozen=True)
class TopTwo:
    """Per row: index and similarity of the most similar row, similarity of the second (-inf if there is none)."""

    index: Int[Tensor, " n"]
    best: Shaped[Tensor, " n"]
    second: Shaped[Tensor, " n"]


def nearest_two(a: Rows, b: Rows) -> TopTwo:
    """The best two rows of `b` for every row of `a`, by dot product. Neither is empty."""
    product = product_of(a, b)
    columns = -(-len(b) // MEMBERS) * MEMBERS
    tile_rows = max(1, min(product.tile_rows, len(a), LARGEST_TILE // columns))
    tile = torch.empty(tile_rows, columns, dtype=product.dtype, device=a.values.device)
    found: list[TopTwo] = []
    for start in range(0, len(a), tile_rows):
        part = tile[: len(a) - start]
        product.compute(start, part)
        part[:, len(b) :] = product.nothing
        found.append(_best_in_rows(part, product.nothing))
    index, best, second = (torch.cat([getattr(rows, name) for rows in found]) for name in ("index", "best", "second"))
    return TopTwo(index, product.similarities(best), product.similarities(second))


def _best_in_rows(tile: Shaped[Tensor, "r c"], nothing: float) -> TopTwo:
    """Best two of every row. A group is every (c / MEMBERS)-th entry, so that the maxima run along memory."""
    groups = tile.view(len(tile), MEMBERS, -1)
    stride = groups.shape[2]
    peaks = groups.amax(1)
    best, group = peaks.max(1)
    members = groups.gather(2, group[:, None, None].expand(-1, MEMBERS, 1))[:, :, 0]
    place = members.max(1).indices
    second = torch.maximum(_largest_except(peaks, group, nothing), _largest_except(members, place, nothing))
    index = place * stride + group
    tied = torch.nonzero(second == best)[:, 0]
    if len(tied):  # the lowest group need not contain the lowest index; argmax returns the first of equals
        index[tied] = (tile[tied] == best[tied, None]).to(torch.uint8).argmax(1)
    return TopTwo(index, best, second)


def _largest_except(values: Shaped[Tensor, "n s"], index: Int[Tensor, " n"], nothing: float) -> Shaped[Tensor, " n"]:
    """The largest of each row except the entry at `index`, which is overwritten; `nothing` if there is none."""
    return values.scatter_(1, index[:, None], nothing).amax(1)


# ----------------------------------------------------------------------------------------------------------------------
# Products of two sets of descriptors, tile by tile: of real numbers, and of 8-bit integers.
#
# SIFT descriptors are integers up to 255 (divided by 512), bits are -1 and +1. Processors with 8-bit dot products
# (VNNI) multiply these several times as fast as real numbers, with identical sums, because float32 is exact here too.


SCALES = (1.0, 512.0)  # factors that make descriptors integers: bits and bytes; COLMAP's SIFT
SHIFT, LARGEST = 128, 127  # int8 is -128 to 127: values up to 255 fit after subtracting 128
GROUP = 4  # descriptor lengths are padded to a multiple of this; with length 1 torch 2.13 writes no result
NOTHING = -(1 << 30)  # below any sum
FEW = 16  # rows that are looked at before all of them are


@dataclass(frozen=True)
class Codes:
    """Descriptors as integers: the values are (rows + shift) / scale."""

    rows: Int8[Tensor, "n d"]
    shift: int
    scale: float

    def unshifted(self) -> Shaped[Tensor, "n d"]:
        """rows + shift, which need the unsigned type if they were shifted."""
        return self.rows.view(torch.uint8) ^ SHIFT if self.shift else self.rows


@dataclass(frozen=True)
class Rows:
    """Descriptors on their device, and as 8-bit integers where these are exact and faster. Made by `rows_of`."""

    values: Float[Tensor, "n d"]
    codes: Codes | None

    def __len__(self) -> int:
        return len(self.values)

    def take(self, index: Int[Tensor, " k"]) -> Rows:
        """Some of the rows."""
        codes = self.codes and replace(self.codes, rows=self.codes.rows[index])
        return Rows(self.values[index], codes)


def rows_of(values: Float[Tensor, "n d"]) -> Rows:
    """Descriptors prepared for `nearest_two`."""
    return Rows(values, codes_of(values) if values.device.type == "cpu" and _has_fast_bytes() else None)


class Product(Protocol):
    """The product of a (n, d) and b (m, d), of which one tile is in memory at a time."""

    tile_rows: int
    dtype: torch.dtype
    nothing: float
    """Filler for missing entries: smaller than any entry."""

    def compute(self, start: int, tile: Tensor) -> None:
        """Write rows start, start + 1, ... of the product into the first m columns of a tile.

        The entries of a row may lack a constant of that row.
        """

    def similarities(self, found: Shaped[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Convert an entry of each row to a similarity; -inf for `nothing`."""


def product_of(a: Rows, b: Rows) -> Product:
    """The fastest product of two sets of descriptors on their device."""
    if a.codes is not None and b.codes is not None:
        return CodeProduct(a.codes, b.codes)
    return RealProduct(a.values, b.values)


class RealProduct:
    """The product in the descriptors' own precision."""

    nothing: float = -torch.inf

    def __init__(self, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]):
        self.dtype = a.dtype
        self.tile_rows = 256 if a.device.type == "cpu" else 4096  # 12 MB and 200 MB at 12k columns
        self._a, self._b = a, b.T.contiguous()

    def compute(self, start: int, tile: Tensor) -> None:
        """See `Product`."""
        torch.mm(self._a[start : start + len(tile)], self._b, out=tile[:, : self._b.shape[1]])

    def similarities(self, found: Shaped[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The entries are the similarities."""
        return found


def codes_of(rows: Float[Tensor, "n d"]) -> Codes | None:
    """Descriptors as 8-bit integers; None if they cannot be represented exactly."""
    for scale in SCALES if rows.numel() else ():
        if _codes_at(rows[:FEW], scale) is not None and (codes := _codes_at(rows, scale)) is not None:
            return codes
    return None


def _codes_at(rows: Float[Tensor, "n d"], scale: float) -> Codes | None:
    scaled = rows * scale
    smallest, largest = (float(value) for value in scaled.aminmax())
    shift = SHIFT if largest > LARGEST else 0
    if smallest < shift - SHIFT or largest - shift > LARGEST:
        return None
    codes = (scaled - shift).to(torch.int8)
    return Codes(codes, shift, scale) if torch.equal(codes + scaled.new_tensor(shift), scaled) else None


class CodeProduct:
    """The exact product of integers. With b = b' + t: ab = ab' + t sum(a), whose last term is constant in a row."""

    tile_rows = 256  # 8 MB at 8k columns
    dtype = torch.int32
    nothing: float = NOTHING

    def __init__(self, a: Codes, b: Codes):
        fill, beyond = -a.rows.shape[1] % GROUP, -len(b.rows) % MEMBERS
        unshifted = a.unshifted()
        self._a = pad(unshifted, (0, fill))
        self._b = pad(b.rows, (0, fill, 0, beyond)).T  # with zero columns, so that the product fills a tile
        self._scale = a.scale * b.scale
        self._of_row = b.shift * unshifted.sum(1, dtype=torch.int32)

    def compute(self, start: int, tile: Tensor) -> None:
        """See `Product`."""
        torch._int_mm(self._a[start : start + len(tile)], self._b, out=tile)

    def similarities(self, found: Shaped[Tensor, " n"]) -> Float[Tensor, " n"]:
        """See `Product`."""
        return torch.where(found > self.nothing, (found + self._of_row).float() / self._scale, -torch.inf)


@cache
def _has_fast_bytes() -> bool:
    """Whether the processor has 8-bit dot products; without them integers are slower than real numbers."""
    try:
        if not torch.cpu._is_vnni_supported() or not torch.backends.mkldnn.is_available():
            return False
        torch._int_mm(torch.ones(1, GROUP, dtype=torch.uint8), torch.ones(GROUP, 1, dtype=torch.int8))
    except (AttributeError, RuntimeError):  # an older torch
        return False
    return True


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
