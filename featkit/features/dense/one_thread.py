"""Images of many threads given to one network by one thread, in the order they came, together where that can be.

A network on the CPU takes all cores by itself: two threads at once would only be in each other's way (and OpenMP keeps
a team of threads for each of them). A GPU does several images in little more time than one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import UInt8

from featkit.types import Features

Image = UInt8[np.ndarray, "h w c"]


class OneThread:
    """Calls `work` with images of one size: at most `at_once`, and no more than one beyond `most_pixels` in all."""

    def __init__(self, work: Callable[[list[Image]], list[Features]], at_once: int, most_pixels: int):
        self._work, self._at_once, self._most_pixels = work, at_once, most_pixels
        self._waiting: deque[tuple[Image, Future[Features]]] = deque()
        self._lock = threading.Lock()
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(1, "network", initializer=torch.set_num_threads, initargs=(threads,))

    def submit(self, image: Image) -> Future[Features]:
        """Its features, some time. What `work` raises is raised by the result of every image it was called with."""
        done: Future[Features] = Future()
        with self._lock:
            self._waiting.append((image, done))
        self._pool.submit(self._serve)
        return done

    def _serve(self) -> None:
        batch = self._next_batch()
        if not batch:
            return  # an earlier call has taken them along
        try:
            found = self._work([image for image, _ in batch])
        except BaseException as error:
            for _, done in batch:
                done.set_exception(error)
            return
        for (_, done), features in zip(batch, found, strict=True):
            done.set_result(features)

    def _next_batch(self) -> list[tuple[Image, Future[Features]]]:
        with self._lock:
            if not self._waiting:
                return []
            batch = [self._waiting.popleft()]
            shape = batch[0][0].shape
            count = min(self._at_once, self._most_pixels // (shape[0] * shape[1]))
            while len(batch) < count and self._waiting and self._waiting[0][0].shape == shape:
                batch.append(self._waiting.popleft())
            return batch
