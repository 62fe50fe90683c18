"""What every extractor promises. tests/contract/ runs each registered one against it."""

from __future__ import annotations

from typing import ClassVar, Protocol

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

        `image_size` is the size of `pixels`. An image without texture gives n = 0 with the right d.
        """
        ...
