"""Points with colours as a .ply file, which every viewer of point clouds opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from featkit import __version__
from featkit.store.artifact import write_bytes

VERTEX = np.dtype([*((axis, "<f8") for axis in "xyz"), *((colour, "u1") for colour in ("red", "green", "blue"))])


def write_ply(path: Path, points: Float[np.ndarray, "n 3"], colours: UInt8[np.ndarray, "n 3"]) -> Path:
    """Binary, coordinates in float64 (of a map in metres on the globe float32 would lose half a metre).

    Written whole or not at all. Raises BadInputError for a file that featkit did not make, NotWritableError.
    """
    rows = np.empty(len(points), VERTEX)
    for index, (axis, colour) in enumerate(zip("xyz", ("red", "green", "blue"), strict=True)):
        rows[axis], rows[colour] = points[:, index], colours[:, index]
    properties = [f"property double {axis}" for axis in "xyz"]
    properties += [f"property uchar {colour}" for colour in ("red", "green", "blue")]
    head = ["ply", "format binary_little_endian 1.0", f"comment featkit {__version__}", f"element vertex {len(points)}"]
    return write_bytes(path, "\n".join([*head, *properties, "end_header", ""]).encode() + rows.tobytes())
