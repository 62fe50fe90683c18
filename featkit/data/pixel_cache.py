"""Decoded photographs kept in memory, so that an epoch decodes each of them once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

import numpy as np


class PixelCache:
    """What came first stays, up to a limit: in an order drawn anew every epoch no other rule keeps more hits."""

    def __init__(self, limit_mb: float):
        self.limit_mb = limit_mb
        self._kept: dict[Hashable, np.ndarray] = {}
        self._lock = threading.Lock()
        self.held_bytes = 0

    def get(self, key: Hashable, load: Callable[[], np.ndarray]) -> np.ndarray:
        """The pixels of `key`; nobody may write into them."""
        found = self._kept.get(key)
        if found is not None:
            return found
        pixels = load()
        with self._lock:
            if key not in self._kept and self.held_bytes + pixels.nbytes <= 1e6 * self.limit_mb:
                pixels.flags.writeable = False
                self._kept[key] = pixels
                self.held_bytes += pixels.nbytes
        return pixels
