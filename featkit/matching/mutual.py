"""Mutual nearest neighbours with Lowe's ratio test on both sides.

Semantics of kornia's `match_smnn`: i and j match when each is the other's nearest neighbour and, on both sides,
d(first) <= ratio * d(second), d the Euclidean distance of unit descriptors, or the Hamming distance of packed bits
(rows of uint8). Of equally near neighbours the first one counts. Descriptors of turned images (`Features.turns`) are
compared at the turn at which two images agree best. Sources: Lowe 2004, section 7.1;
kornia.feature.match_smnn.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from featkit.config import Config, Runtime
from featkit.device import torch_device
from featkit.errors import BadInputError
from featkit.matching.packed_bits import BYTE, is_packed, unpack_signs
from featkit.matching.top_two import TopTwo, top_two
from featkit.matching.turns import moved_round, turn_of_pair
from featkit.types import Features, Matches

MAX_THREADS = 8  # pairs at a time on the CPU: each has a tile of 4 MB per 1,000 keypoints


class MutualConfig(Config):
    """Which nearest neighbours count as matches."""

    ratio: float | None = 0.8
    """Largest distance to the nearest over distance to the second nearest, on both sides. None: no test.

    Hamming distances go with the square of Euclidean ones: 0.8 is stricter for bits than for real numbers.
    """
    min_score: float | None = None
    """Smallest similarity of a match: cosine, or share of equal minus share of unequal bits. None: no threshold."""
    batch_size: Runtime[int] = 32
    """Pairs that are read ahead and handed over together."""


class MutualMatcher:
    """Mutual nearest neighbours on unit descriptors or packed bits, exact, on CPU or GPU.

    Every pair is multiplied on its own in tiles of one fixed height, so its matches cannot depend on the batch.
    """

    Config: ClassVar[type[Config]] = MutualConfig

    def __init__(self, config: MutualConfig, device: str = "auto"):
        self.config = config
        self.device = torch_device(device)

    def match(self, batch: list[tuple[Features, Features]]) -> list[Matches]:
        """Matches of each pair; see `Matcher.match`."""
        moved: dict[int, Tensor] = {}
        loaded = [(*self._aligned(a, b, moved), _bits(a, b)) for a, b in batch]
        if self.device.type != "cpu":
            return [self._match_pair(*pair) for pair in loaded]
        with _one_pair_per_core() as pool:
            return list(pool.map(lambda pair: self._match_pair(*pair), loaded))

    def _on_device(self, features: Features, moved: dict[int, Tensor]) -> Tensor:
        """Descriptors as float32 on the device; an image that stands in several pairs of a batch moves once."""
        if id(features) not in moved:
            rows = features.descriptors
            rows = unpack_signs(rows) if is_packed(rows) else np.require(rows, requirements=["C", "W"])
            moved[id(features)] = torch.as_tensor(rows).to(self.device, torch.float32)
        return moved[id(features)]

    def _aligned(self, a: Features, b: Features, moved: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Descriptors of a pair on the device; those of turned images as they fit together."""
        rows0, rows1 = self._on_device(a, moved), self._on_device(b, moved)
        return rows0, moved_round(rows1, a.turns, turn_of_pair(a, b, rows0, rows1))

    def _match_pair(self, a: Tensor, b: Tensor, bits: int) -> Matches:
        """bits: length of binary descriptors, whose rows hold -1 and +1; 0 for rows of length 1."""
        if a.shape[1] != b.shape[1]:
            raise BadInputError(f"descriptors of {a.shape[1]} and {b.shape[1]} numbers cannot be matched")
        if len(a) == 0 or len(b) == 0:
            return Matches(np.full(len(a), -1, np.int32), np.zeros(len(a), np.float32))
        usable0, usable1 = _finite_rows(a), _finite_rows(b)
        if len(usable0) < len(a) or len(usable1) < len(b):
            return self._match_usable(a, b, usable0, usable1, bits)
        across, down = top_two(a, b)
        good = down.index[across.index] == torch.arange(len(a), device=a.device)
        good &= self._passes(across, bits)
        good &= self._passes(down, bits)[across.index]
        matches0 = torch.where(good, across.index, -1).to(torch.int32)
        scores0 = torch.where(good, across.best / (bits or 1), 0.0)
        return Matches(matches0.cpu().numpy(), scores0.cpu().numpy())

    def _match_usable(self, a: Tensor, b: Tensor, usable0: Tensor, usable1: Tensor, bits: int) -> Matches:
        """Matches of the rows without NaN or infinity; the others match nothing, and no row's neighbour."""
        inner = self._match_pair(a[usable0], b[usable1], bits)
        found = inner.matches0 >= 0
        matches0, scores0 = np.full(len(a), -1, np.int32), np.zeros(len(a), np.float32)
        index0 = usable0.cpu().numpy()[found]
        matches0[index0] = usable1.cpu().numpy()[inner.matches0[found]]
        scores0[index0] = inner.scores0[found]
        return Matches(matches0, scores0)

    def _passes(self, top: TopTwo, bits: int) -> Tensor:
        """Ratio test and score threshold."""
        good = torch.ones_like(top.best, dtype=torch.bool)
        if self.config.min_score is not None:
            good &= top.best / (bits or 1) >= self.config.min_score
        if self.config.ratio is not None:
            first, second, limit = self._ratio_test(top, bits, self.config.ratio)
            # Two neighbours at distance 0 are as ambiguous as can be: kornia's 0 / 0 does not pass either.
            good &= (first <= limit * second) & (second > 0)
        return good

    @staticmethod
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
