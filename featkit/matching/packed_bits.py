"""Binary descriptors: bits packed 8 to a byte, the first one highest (np.packbits), compared by Hamming distance.

The product of rows of -1 and +1 counts equal minus unequal bits: distance = (bits - product) / 2, exact in float32.
Matrix products are what a CPU and a GPU do fastest, so this beats counting bits wherever there is no own code for it.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8

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
