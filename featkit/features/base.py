"""What every extractor promises. tests/contract/ runs each registered one against it."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import UInt8

from featkit.config import Config
from featkit.types import Features


class Extractor(Protocol):
    """Image -> Features.

    A subclass declares `Config` (its configuration type) and is built as `cls(config, device)`. Several threads may
    call `extract` at once. The same pixels give the same features, whatever was extracted before.
    """

    Config: ClassVar[type[Config]]
    colour: ClassVar[bool]
    """Whether it takes RGB (h, w, 3) instead of grey (h, w) pixels."""
    holds_gil: bool
    """Whether it keeps Python's lock while it computes, so that several at once need several processes."""
    weights_sha256: str
    """Hash of the weights file, "" when there is none."""

    def extract(self, pixels: UInt8[np.ndarray, "h w *c"]) -> Features:
        """Features in the frame of `pixels`: keypoints float32 (n, 2), descriptors (n, d) with unit rows.

        Binary descriptors are packed bits, uint8 (n, bits / 8). `image_size` is the size of `pixels`. An image without
        texture gives n = 0 with the right d.
        """
        ...


class TwoSteps(Extractor, Protocol):
    """An extractor whose first step wants many processes and whose second wants one device.

    extract(pixels) is finish(begin(pixels)). What `begin` gives can be sent from one process to another.
    """

    two_steps: bool
    """Whether to run it so, on the device it was built for."""

    def begin(self, pixels: UInt8[np.ndarray, "h w *c"]) -> Any: ...

    def finish(self, begun: Any) -> Features: ...


def in_two_steps(extractor: Extractor) -> bool:
    """Whether one process should finish what others begin."""
    return bool(getattr(extractor, "two_steps", False))
