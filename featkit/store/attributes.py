"""Attributes of a store's groups and datasets, their texts of a fixed length each.

HDF5 keeps texts of any length in a heap of the file's own, and does not look where it steps when that is damaged: it
stays there for ever, or dies. A text of a fixed length lies in the attribute itself. Both kinds are read.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import h5py
import numpy as np

LONGEST = 60_000  # bytes: HDF5 gives an attribute 64 KiB, its name and type included
ESCAPED = "surrogateescape"  # as h5py does: names of files need not be UTF-8


def set_attribute(item: h5py.HLObject, name: str, value: Any) -> None:
    """Give a group, a dataset or a file an attribute; a text becomes one of fixed length.

    Raises ValueError for a text with a zero byte in it, as h5py does.
    """
    data = value.encode("utf-8", ESCAPED) if isinstance(value, str) else b""
    if not isinstance(value, str) or len(data) > LONGEST or b"\0" in data:
        item.attrs[name] = value
    else:
        item.attrs.create(name, data, dtype=h5py.string_dtype("utf-8", max(1, len(data))))


def attribute(item: h5py.HLObject, name: str, default: Any = None) -> Any:
    """An attribute, texts as `str`, whole numbers as `int`; `default` where there is none.

    Raises what h5py does on damage. Texts of fixed length and whole numbers, which every item has, are read by h5py's
    own lower layer, in a third of the time.
    """
    key = name.encode("utf-8", ESCAPED)
    if not h5py.h5a.exists(item.id, key):
        return default
    found = h5py.h5a.open(item.id, key)
    kind = found.get_type()
    is_one = found.get_space().get_simple_extent_type() == h5py.h5s.SCALAR
    if is_one and isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str():
        text = np.zeros((), f"S{kind.get_size()}")
        found.read(text, mtype=kind)
        return bytes(text[()]).decode("utf-8", ESCAPED)
    if is_one and isinstance(kind, h5py.h5t.TypeIntegerID):
        number = np.zeros((), np.int64)
        found.read(number)
        return int(number)
    value = item.attrs[name]
    return value.decode("utf-8", ESCAPED) if isinstance(value, bytes) else value


def copy_attributes(old: h5py.HLObject, new: h5py.HLObject, without: Container[str] = ()) -> None:
    """Give one item the attributes of another."""
    for name in old.attrs:
        if name not in without:
            set_attribute(new, name, attribute(old, name))
