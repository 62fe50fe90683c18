"""The eight EXIF orientations: turn a photograph upright, and say where an upright pixel was stored.

Source: EXIF 2.32, tag 0x0112. 0 and unknown values count as 1 (stored upright).
"""

from __future__ import annotations

import struct

import numpy as np
from jaxtyping import Float

TAG = 0x0112

# tag -> (swap x and y first, then flip x, then flip y), stored -> upright
_STEPS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


def upright(pixels: np.ndarray, tag: int) -> np.ndarray:
    """An image (h, w) or (h, w, 3) as it is meant to be seen; contiguous."""
    swap, flip_x, flip_y = _STEPS.get(tag, _STEPS[1])
    if swap:
        pixels = pixels.swapaxes(0, 1)
    if flip_x:
        pixels = pixels[:, ::-1]
    if flip_y:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def as_stored(pixels: np.ndarray, tag: int) -> np.ndarray:
    """The way back from `upright`: an upright image as a file with this tag stores it; contiguous."""
    swap, flip_x, flip_y = _STEPS.get(tag, _STEPS[1])
    if flip_y:
        pixels = pixels[::-1]
    if flip_x:
        pixels = pixels[:, ::-1]
    if swap:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels)


def stored_from_upright(stored_size: tuple[int, int], tag: int) -> Float[np.ndarray, "2 3"]:
    """Affine map of upright pixels onto stored pixels. stored_size: width, height before turning."""
    swap, flip_x, flip_y = _STEPS.get(tag, _STEPS[1])
    width, height = stored_size
    upright_size = (height, width) if swap else (width, height)
    linear, offset = np.eye(2), np.zeros(2)
    for axis, flip in enumerate((flip_x, flip_y)):
        if flip:
            linear[axis, axis] = -1.0
            offset[axis] = upright_size[axis] - 1.0
    if swap:
        linear, offset = linear[::-1].copy(), offset[::-1].copy()
    return np.concatenate([linear, offset[:, None]], axis=1)


def with_tiff_tag_1(data: bytes) -> bytes:
    """The bytes of a TIFF whose first directory says "stored upright"; unchanged when it has no orientation tag.

    Source: TIFF 6.0, section 2 (directories of 12-byte entries) and BigTIFF (magic 43, entries of 20 bytes).
    """
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    start_at, offset, count, entry = (8, "Q", "Q", 20) if big else (4, "I", "H", 12)
    try:
        (start,) = struct.unpack_from(order + offset, data, start_at)
        (entries,) = struct.unpack_from(order + count, data, start)
        first = start + struct.calcsize(order + count)
        for at in range(first, first + entry * min(entries, len(data) // entry), entry):
            tag, kind = struct.unpack_from(order + "HH", data, at)
            if tag == TAG:
                value = at + entry - (8 if big else 4)
                patched = bytearray(data)
                struct.pack_into(order + ("I" if kind == 4 else "H"), patched, value, 1)  # LONG or SHORT
                return bytes(patched)
    except struct.error:  # cut off: the decoder will say so
        pass
    return data
