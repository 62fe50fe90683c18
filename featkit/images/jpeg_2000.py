"""JPEG 2000 with colours of more than 8 bits, of which Pillow keeps the upper 8."""

from __future__ import annotations

import struct

import cv2
import numpy as np
from jaxtyping import Shaped

CODESTREAM = b"\xff\x4f\xff\x51"  # beginning of JPEG 2000's image data: the markers SOC and SIZ
COMPONENTS_AT, DEPTHS_AT = 40, 42  # from there: number of components, then three bytes each, depth - 1 first
DEEPEST = 16  # bits of the deepest integers that are read


def depths(data: bytes) -> tuple[int, ...]:
    """Bits of each component of a JPEG 2000 file; above 128 for signed numbers. Empty if the file has no such header.

    Source: ITU-T T.800, annex A.5.1 (image and tile size).
    """
    start = data.find(CODESTREAM)
    if start < 0 or len(data) < start + DEPTHS_AT:
        return ()
    (components,) = struct.unpack_from(">H", data, start + COMPONENTS_AT)
    first = start + DEPTHS_AT
    return tuple(depth + 1 for depth in data[first : first + 3 * components : 3])


def decode_deep(
    data: bytes, bits: tuple[int, ...], colour: bool, any_depth: bool
) -> Shaped[np.ndarray, "h w *c"] | None:
    """Colours (BGR or grey) of more than 8 bits; None if OpenCV does not read them.

    bits: from `depths`. any_depth: scaled to 16 bits, as Pillow scales grey; otherwise the upper 8 bits.
    """
    if len(set(bits[:3])) > 1 or bits[0] > DEEPEST:
        return None
    flags = (cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE) | cv2.IMREAD_ANYDEPTH
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    if pixels is None or pixels.dtype != np.uint16:
        return None
    pixels = pixels << (DEEPEST - bits[0])
    return pixels if any_depth else (pixels >> 8).astype(np.uint8)
