"""What a process of the server is given to do by the tests: to stand still, to crash, to fail. It imports little."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
from PIL import Image

from featkit.core.errors import BadInputError
from featkit.core.types import Features

HOLD_S = 120.0


def by_width(path: Path) -> Features:
    """41 px: native code that keeps Python's lock, as SIFT does on a large photograph of noise. Others: see below."""
    with Image.open(path) as image:
        width = image.width
    if width == 41:
        ctypes.PyDLL(None).usleep(int(HOLD_S * 1e6))
    if width == 42:
        ctypes.string_at(0)  # a crash of native code
    if width == 43:
        raise BadInputError(f"{path}: features that are not finite")
    if width == 44:
        raise KeyError("a secret of the machine")
    return Features(np.full((width, 2), 1.0), np.ones((width, 8)), np.ones(width), (width, 30))
