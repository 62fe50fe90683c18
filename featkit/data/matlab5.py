"""Arrays of numbers from MATLAB 5 files (.mat, the format before 7.3): what RomePatches is stored in.

After a header of 128 bytes come elements of a type, a length and data; a matrix is an element of elements: flags,
dimensions, name, values. Elements may be compressed with zlib. Numbers are stored column by column.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from featkit.errors import BadInputError

HEADER, MATRIX, COMPRESSED = 128, 14, 15
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
NUMERIC = range(6, 16)  # array classes: double, single, and the integers
HDF5 = b"\x89HDF"
MAX_BYTES = 4 << 30  # of one compressed element


def read_matlab(path: Path) -> dict[str, np.ndarray]:
    """The numeric arrays of a file by name. Raises BadInputError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    if content[:4] == HDF5 or HDF5 in content[512:516]:
        raise BadInputError(f"{path}: of MATLAB 7.3 (HDF5); save it with -v7")
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise BadInputError(f"{path}: not a MATLAB file; fetch it again")
    try:
        found = [
            _matrix(data, order) for kind, data in _elements(memoryview(content)[HEADER:], order) if kind == MATRIX
        ]
    except (zlib.error, ValueError, IndexError, KeyError) as error:
        raise BadInputError(f"{path}: broken ({error}); fetch it again") from None
    return dict(item for item in found if item is not None)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """(type, bytes) of the elements one after the other, unpacked."""
    place = 0
    while place + 8 <= len(data):
        word = int(np.frombuffer(data[place : place + 4], f"{order}u4")[0])
        if word >> 16:  # small: length and type in one word, then up to 4 bytes
            kind, size, start, step = word & 0xFFFF, word >> 16, place + 4, 8
        else:
            kind, size = word, int(np.frombuffer(data[place + 4 : place + 8], f"{order}u4")[0])
            start, step = place + 8, 8 + size + (-size % 8 if kind != COMPRESSED else 0)
        if start + size > len(data):
            raise ValueError("cut off")
        inner = data[start : start + size]
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            plain = unpacker.decompress(inner, MAX_BYTES)
            if not unpacker.eof:
                raise ValueError("a compressed element is cut off, or too large")
            yield from _elements(memoryview(plain), order)
        else:
            yield kind, inner
        place += step


def _matrix(data: memoryview, order: str) -> tuple[str, np.ndarray] | None:
    """Name and values; None for what is not an array of real numbers."""
    parts = list(_elements(data, order))
    flags = int(np.frombuffer(parts[0][1][:4], f"{order}u4")[0])
    if flags & 0xFF not in NUMERIC or flags & 0x0800:  # a struct, a text; complex
        return None
    shape = np.frombuffer(parts[1][1], f"{order}i4").tolist()
    name = bytes(parts[2][1]).decode("ascii", "replace")
    kind, values = parts[3]
    return name, np.frombuffer(values, order + TYPES[kind]).reshape(shape, order="F")
