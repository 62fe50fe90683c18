"""The eight EXIF orientations: turn a photograph upright, and say where an upright pixel was stored.

Source: EXIF 2.32, tag 0x0112. 0 and unknown values count as 1 (stored upright).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

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
