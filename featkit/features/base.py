"""The extractor interface, and the packing of binary descriptors."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8

from featkit.core.config import Config
from featkit.core.types import Features

# ----------------------------------------------------------------------------------------------------------------------
# The extractor interface. tests/contract/ checks it for each registered extractor.


class Extractor(Protocol):
    """Image -> Features.

    A subclass declares `Config` (its configuration type) and is built as `cls(config, device)`. `extract` is
    thread-safe. The same pixels give the same features, whatever was extracted before.
    """

    Config: ClassVar[type[Config]]
    colour: ClassVar[bool]
    """Whether it takes RGB (h, w, 3) instead of grey (h, w) pixels."""
    holds_gil: bool
    """Whether it holds the GIL while it computes, so that running in parallel needs several processes."""
    weights_sha256: str
    """SHA-256 of the weights file; "" if there is none."""

    def extract(self, pixels: UInt8[np.ndarray, "h w *c"]) -> Features:
        """Features in the frame of `pixels`: keypoints float32 (n, 2), descriptors (n, d) with unit rows.

        Binary descriptors are packed bits, uint8 (n, bits / 8). `image_size` is the size of `pixels`. An image without
        texture gives n = 0 with the right d.
        """
        ...


class TwoSteps(Extractor, Protocol):
    """An extractor whose first step runs best in many processes and whose second step runs on one device.

    extract(pixels) equals describe(detect(pixels)). The result of `detect` can be pickled.
    """

    two_steps: bool
    """Whether to run the steps separately on the device it was built for."""

    def detect(self, pixels: UInt8[np.ndarray, "h w *c"]) -> Any: ...

    def describe(self, detected: Any) -> Features: ...


class DescribesPoints(Extractor, Protocol):
    """An extractor that can describe any detector's keypoints."""

    def describe_points(self, pixels: UInt8[np.ndarray, "h w *c"], points: Features) -> Features:
        """`points` with descriptors, all of them in their order; none for an image that it cannot describe.

        points: in the frame of `pixels`, scales and orientations possibly None, descriptors ignored. With its own
        keypoints it equals `extract`.
        """
        ...


def describes_points(extractor: type[Extractor]) -> bool:
    """Whether a class of extractors is a `DescribesPoints`."""
    return hasattr(extractor, "describe_points")


def takes_two_steps(extractor: Extractor) -> bool:
    """Whether one process should describe what others detect."""
    return bool(getattr(extractor, "two_steps", False))


# ----------------------------------------------------------------------------------------------------------------------
# Binary descriptors: bits packed 8 to a byte, the first one highest (np.packbits), compared by Hamming distance.
#
# The product of rows of -1 and +1 counts equal minus unequal bits: distance = (bits - product) / 2, exact in float32.
# Matrix products are what a CPU and a GPU do fastest, so this beats counting bits without a dedicated kernel.


BYTE = 8


def is_packed(descriptors: Shaped[np.ndarray, "n d"]) -> bool:
    """Whether descriptors are packed bits: rows of uint8. Real-valued ones are float16 or float32."""
    return descriptors.dtype == np.uint8


def pack_bits(bits: Bool[np.ndarray, "n b"]) -> UInt8[np.ndarray, "n b/8"]:
    """Rows of bits, 8 to a byte; b must be a multiple of 8."""
    return np.packbits(bits, axis=1)


def unpack_signs(packed: UInt8[np.ndarray, "n k"]) -> Float32[np.ndarray, "n 8*k"]:
    """+1 where a bit is set, -1 where not."""
    signs = np.unpackbits(packed, axis=1).astype(np.float32)
    signs *= 2.0
    signs -= 1.0
    return signs
