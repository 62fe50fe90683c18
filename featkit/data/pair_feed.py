"""Endless batches of samples, made ahead by threads; where it stands is one number.

Sample number i is of the pair that the order of its epoch names, and its generator is seeded by [seed, 2, i]: nothing
depends on threads, on reading ahead or on how often a training was stopped. Decoding and warping run in OpenCV, which
lets Python's other threads run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

SampleT = TypeVar("SampleT")
BatchT = TypeVar("BatchT")
BatchT_co = TypeVar("BatchT_co", covariant=True)
AHEAD = 3  # batches made ahead


class SampleSource(Protocol[SampleT, BatchT_co]):
    """What PosedSamples and HomographyPairs are."""

    def __len__(self) -> int: ...

    def sample(self, index: int, generator: np.random.Generator) -> SampleT: ...

    def collate(self, samples: Sequence[SampleT]) -> BatchT_co: ...


class PairOrder:
    """Every pair once per epoch, in an order drawn from (seed, epoch)."""

    def __init__(self, count: int, seed: int):
        self._count, self._seed = count, seed
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __getitem__(self, number: int) -> int:
        """Which pair sample `number` (from 0, without end) is of."""
        epoch, place = divmod(number, self._count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self._seed, 1, epoch]).permutation(self._count)
        return int(self._order[place])


class PairFeed(Generic[SampleT, BatchT]):
    """Batches of `batch_size` samples.

    workers: threads; 0 makes every batch when it is asked for. part: which rows of a batch belong to this process.
    """

    def __init__(
        self,
        source: SampleSource[SampleT, BatchT],
        batch_size: int,
        seed: int = 0,
        workers: int = 2,
        part: Callable[[int], slice] = slice,
    ):
        self._source, self._batch_size, self._seed = source, batch_size, seed
        self._rows = range(batch_size)[part(batch_size)]
        self._order = PairOrder(len(source), seed)
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._waiting: deque[list[Future[SampleT]]] = deque()
        self._next = 0  # batch to be handed out
        self.waited_s = 0.0

    def next(self) -> BatchT:
        """The next batch; the time until it is there is added to `waited_s`. Raises what a sample raised."""
        started = time.perf_counter()
        if self._pool is None:
            samples = [self._make(*task) for task in self._tasks(self._next)]
        else:
            while len(self._waiting) < AHEAD:
                ahead = self._tasks(self._next + len(self._waiting))
                self._waiting.append([self._pool.submit(self._make, *task) for task in ahead])
            samples = [future.result() for future in self._waiting[0]]
            self._waiting.popleft()
        self._next += 1
        batch = self._source.collate(samples)
        self.waited_s += time.perf_counter() - started
        return batch

    def state(self) -> dict[str, Any]:
        """As it is after the batch that was handed out last."""
        return {"batches": self._next}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after the batch that `state` was taken after."""
        self._drop_waiting()
        self._next = int(state["batches"])

    def close(self) -> None:
        """Stop reading ahead."""
        self._drop_waiting()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _tasks(self, batch: int) -> list[tuple[int, int]]:
        numbers = [batch * self._batch_size + row for row in self._rows]
        return [(number, self._order[number]) for number in numbers]

    def _make(self, number: int, index: int) -> SampleT:
        return self._source.sample(index, np.random.default_rng([self._seed, 2, number]))

    def _drop_waiting(self) -> None:
        for batch in self._waiting:
            for future in batch:
                future.cancel()
        self._waiting.clear()
