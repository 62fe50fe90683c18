"""Arrays in files of other programs: `.npz` with pickled objects, and HDF5. No code in them is executed.

numpy writes an array of objects (paths mixed with None, tuples, matrices of only some images) as a pickle, and a pickle
may call any function that Python can import. Here a pickle may only refer to what numpy needs to rebuild arrays,
scalars and dtypes, and to how old pickles write bytes; each is replaced by a stand-in that does only this. A pickle
that refers to anything else is refused before anything is called. Arrays contain plain numbers, strings, bytes or
objects, but never structures, whose description could misplace pointers.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from featkit.core.errors import BadInputError, blaming, refuse_pipe
from featkit.io.h5_items import array_of, dataset_of

MAX_BYTES = 1 << 31  # limit of one array, so that a crafted file cannot exhaust the memory
PLAIN_TYPE = re.compile(r"[?]|b1|[iu][1248]|f[248]|[US]\d{1,5}")
REBUILT = {f"numpy.{core}.multiarray" for core in ("core", "_core")}  # numpy 1 and 2
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, KeyError),
    *(IndexError, AttributeError, OverflowError, NotImplementedError, MemoryError, RecursionError, RuntimeError),
)


class Refused(Exception):
    """A pickle that refers to anything but arrays."""


def read_npz(file: BinaryIO | Path, where: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz that are in `names`; others are not read. where: its name, for messages.

    An array of objects contains numbers, strings, bytes, None, lists, tuples, dicts and arrays. Raises BadInputError
    for a file that is damaged, not an .npz, or has a pickle that refers to anything else.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = set(archive.namelist())
            return {name: _read_member(archive, f"{name}.npy") for name in names if f"{name}.npy" in members}
    except Refused as error:
        raise BadInputError(
            f"{where}: refused without running anything: its pickle {error}, which no array needs; get the file from"
            " its source again"
        ) from None
    except DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise BadInputError(f"{where}: not an .npz that can be read ({reason}); copy it again") from None


def _read_member(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    if archive.getinfo(member).file_size > MAX_BYTES:
        raise ValueError(f"{member} is larger than {MAX_BYTES >> 20} MiB")
    return npy(archive.read(member), member, objects=True)


def npy(content: bytes, member: str, objects: bool = False) -> np.ndarray:
    """The array of an .npy file, whose size is checked first: numpy itself allocates what the header announces.

    member: its name, for messages. objects: whether arrays of objects are accepted (`read_npz`). Raises numpy's errors
    for a damaged file, and Refused.
    """
    file = BytesIO(content)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = readers[version](file)
    data = file.read()
    if dtype.hasobject and not objects:
        raise ValueError(f"{member} is an array of objects")
    if dtype.hasobject:
        if dtype != np.dtype(object):
            raise ValueError(f"{member} is an array of structures")
        objects_array = unpickled(data)
        if not isinstance(objects_array, np.ndarray) or objects_array.dtype != np.dtype(object):
            raise ValueError(f"{member} is not an array of objects")
        return np.asarray(objects_array).reshape(shape)
    count = math.prod(shape)
    if min(shape, default=0) < 0 or len(data) != count * dtype.itemsize:
        raise ValueError(f"{member} does not have the size that its header states")
    values = np.frombuffer(data, dtype, count) if count else np.zeros(0, dtype)
    return values.reshape(shape, order="F" if fortran else "C")


def unpickled(data: bytes) -> Any:
    """The content of a pickle of numpy arrays. Raises Refused if it refers to anything else."""
    return _ArrayUnpickler(BytesIO(data)).load()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _StandIn:
        make = _ALLOWED_CALLS.get(("numpy.core.multiarray" if module in REBUILT else module, name))
        if make is None:
            raise Refused(f"asks for {module}.{name}"[:120])
        return _StandIn(name, make)

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("asks for objects outside of the file")


class _StandIn:
    """What a pickle gets for a name: it can be called, but not modified."""

    __slots__ = ("_make", "_name")

    def __init__(self, name: str, make: Callable[..., Any]):
        self._name, self._make = name, make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise Refused(f"changes {self._name}")


class _Type:
    """A dtype: `dtype(code, align, copy)`, then its state with the byte order."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: Any, align: Any = False, copy: Any = True):
        self._code, self._order = str(code), "|"

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None)):
            raise Refused("describes a structure")
        if state[1] not in ("<", ">", "|", "="):
            raise Refused("has an unknown byte order")
        self._order = state[1]

    @property
    def dtype(self) -> np.dtype:
        if self._code in ("O", "O8"):
            return np.dtype(object)
        if not PLAIN_TYPE.fullmatch(self._code):
            raise Refused(f"has the type {self._code[:40]!r}")
        return np.dtype(self._order + self._code)


class _Array(np.ndarray):
    """An array whose state is checked before it is passed to numpy."""

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not (isinstance(kind, _Type) and all(isinstance(side, int) and side >= 0 for side in shape)):
            raise Refused("has a malformed array")
        dtype, count = kind.dtype, math.prod(shape)
        size = len(content) if isinstance(content, list if dtype.hasobject else bytes) else -1
        if size != count * (1 if dtype.hasobject else dtype.itemsize):
            raise Refused("has an array whose content does not have its size")
        super().__setstate__((1, tuple(shape), dtype, bool(fortran), content))  # type: ignore[arg-type]


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    return _Array((0,), np.int8)


def _read_scalar(kind: Any, content: Any) -> Any:
    if not (isinstance(kind, _Type) and isinstance(content, bytes)) or kind.dtype.hasobject:
        raise Refused("has a malformed scalar")
    return np.frombuffer(content, kind.dtype, 1)[0]


def _encode_latin1(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused(f"encodes as {encoding!r}"[:120])
    return text.encode("latin1")


def _refuse_call(*arguments: Any) -> Any:
    raise Refused("calls numpy.ndarray itself")


_ALLOWED_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.multiarray", "scalar"): _read_scalar,
    ("numpy", "ndarray"): _refuse_call,  # only passed to _reconstruct
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode_latin1,
}


def read_h5(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The datasets `names` of an HDF5 file, float64. Raises BadInputError if one is missing or not numeric."""
    with blaming(path, f"an HDF5 file with the datasets {', '.join(names)}", "copy it again"):
        refuse_pipe(path)
        with h5py.File(path, "r") as file:
            return {name: array_of(file, name).astype(np.float64) for name in names}


def h5_shape(path: Path, name: str) -> tuple[int, ...] | None:
    """The shape of a dataset of an HDF5 file; None if the file or the dataset is missing or damaged."""
    try:
        refuse_pipe(path)
        with h5py.File(path, "r") as file:
            return tuple(dataset_of(file, name).shape)
    except (OSError, BadInputError, KeyError, AttributeError, RuntimeError, ValueError):
        return None
