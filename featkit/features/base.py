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
    """Whether it needs RGB pixels (h, w, 3) instead of grey ones (h, w)."""
    holds_gil: bool
    """Whether it holds the GIL while it computes, so that parallel extraction needs several processes."""
    weights_sha256: str
    """SHA-256 of the weights file; "" if there is none."""

    def extract(self, pixels: UInt8[np.ndarray, "h w *c"]) -> Features:
        """Features in the pixels of `pixels`: keypoints float32 (n, 2), descriptors (n, d) with unit rows.

        Binary descriptors are packed bits, uint8 (n, bits / 8). `image_size` is the size of `pixels`. An image without
        texture gives n = 0, with the same d.
        """
        ...


class TwoSteps(Extractor, Protocol):
    """An extractor in two steps: detection, which may run in many processes, and description, on one device.

    extract(pixels) equals describe(detect(pixels)). The result of `detect` can be pickled.
    """

    two_steps: bool
    """Whether to run the steps separately, given the device it was built for."""

    def detect(self, pixels: UInt8[np.ndarray, "h w *c"]) -> Any: ...

    def describe(self, detected: Any) -> Features: ...


class DescribesPoints(Extractor, Protocol):
    """An extractor that can describe any detector's keypoints."""

    def describe_points(self, pixels: UInt8[np.ndarray, "h w *c"], points: Features) -> Features:
        """Describe given keypoints, in their order. Returns no features for an image that cannot be described.

        points: in the pixels of `pixels`; scales and orientations may be None, descriptors are ignored. With the
        extractor's own keypoints the result equals that of `extract`.
        """
        ...


def describes_points(extractor: type[Extractor]) -> bool:
    """Whether an extractor class implements `DescribesPoints`."""
    return hasattr(extractor, "describe_points")


def takes_two_steps(extractor: Extractor) -> bool:
    """Whether detection and description should run separately; see `TwoSteps`."""
    return bool(getattr(extractor, "two_steps", False))


# ----------------------------------------------------------------------------------------------------------------------
# Binary descriptors: bits packed 8 to a byte, the first one highest (np.packbits), compared by Hamming distance.
#
# The product of rows of -1 and +1 counts equal minus unequal bits: distance = (bits - product) / 2, exact in float32.
# Matrix products are fast on CPUs and GPUs: without a dedicated kernel, counting bits would be slower.


BYTE = 8


def is_packed(descriptors: Shaped[np.ndarray, "n d"]) -> bool:
    """Whether descriptors are packed bits: rows of uint8. Real-valued ones are float16 or float32."""
    return descriptors.dtype == np.uint8


def pack_bits(bits: Bool[np.ndarray, "n b"]) -> UInt8[np.ndarray, "n b/8"]:
    """Rows of bits, 8 to a byte; b must be a multiple of 8."""
    return np.packbits(bits, axis=1)


def unpack_signs(packed: UInt8[np.ndarray, "n k"]) -> Float32[np.ndarray, "n 8*k"]:
    """+1 for bits that are set, -1 for the others."""
    signs = np.unpackbits(packed, axis=1).astype(np.float32)
    signs *= 2.0
    signs -= 1.0
    return signs
