"""Transactions of HDF5 stores: an item is valid only if it has the attribute `complete`.

The default libver is used; an item's data and `complete = 1` are written, followed by one flush, which is atomic (see
`journal`). A process killed at any moment leaves a file with all flushed items; the current one is written again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featkit import __version__
from featkit.core.config import Config, differences
from featkit.core.errors import BadInputError, NotWritableError, message_of, refuse_pipe
from featkit.core.runtime import finish_first
from featkit.io import journal
from featkit.io.artifact import discard, explained, locked, new_part, part_of, remove
from featkit.io.atomic import is_foreign, refuse_folder, refuse_foreign, refused_by_disk, require_space
from featkit.io.h5_items import ESCAPED, LINKED, check_item, find_item, walk
from featkit.io.journal import (
    DAMAGE,
    JournalledStore,
    explained_by_hdf5,
    in_place,
    is_in_use,
    journalled,
    raising_refusal,
)

LOGGER = logging.getLogger(__name__)
FORMAT_VERSION = 1
COMPLETE = "complete"
SLACK_BYTES = 1 << 16  # headers, names and group tree of an item or a new store, in addition to its data
TRIES, WAIT_S = 20, 0.05  # attempts to open a store that another process is recovering


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Open a store for reading; the unfinished write of a killed process is rolled back first.

    Raises BadInputError if it is missing, truncated or not HDF5, NotWritableError if it is in use or cannot be
    recovered.
    """
    with explained_by_hdf5(path):
        refuse_pipe(path)
        file = _open_recovered(path)
    with file:
        yield file


def _open_recovered(path: Path) -> h5py.File:
    """Recover and open a store for reading; retries, because another process may be recovering it."""
    for tries_left in reversed(range(TRIES)):
        try:
            _recover(path)
            return h5py.File(path, "r")
        except OSError as error:
            if not tries_left or not is_in_use(error):
                raise
            time.sleep(WAIT_S)
    raise AssertionError


def _recover(path: Path) -> None:
    try:
        journal.roll_back(path)
    except BlockingIOError:
        raise
    except OSError as error:
        raise NotWritableError(
            f"{path}: partially written, by a run that was killed or is still writing, and cannot be recovered here"
            f" ({error.strerror}); make it writable, or copy it together with {journal.journal_of(path).name}"
        ) from None


def store_kind(file: h5py.File, default: str) -> str:
    """The kind of a store by its attribute; `default` if it has none. Raises BadInputError."""
    with explained_by_hdf5(Path(file.filename)):
        return str(attribute(file, "kind", default))


@contextmanager
def appending(path: Path, kind: str, config: Config, extra: dict[str, str], overwrite: bool) -> Iterator[h5py.File]:
    """Open a store for adding items made with `config`; it is created if it does not exist.

    kind: "features" or "matches". extra: further root attributes that must agree with those in the file.
    Raises BadInputError if the file was made with another configuration or by another program, NotWritableError if it
    cannot be written.
    """
    _refuse_foreign(path)
    refuse_folder(path)
    with locked(path, lock=path.with_name(f".{path.name}.writer")):
        if overwrite and path.exists():
            check_replaceable(path, kind)
            with explained(path):
                journal.forget(path)
            remove(path)
        with explained_by_hdf5(path):
            if not path.exists():
                _create(path, kind, config, extra)
            with _open_recovered(path) as file:
                _check_same_origin(path, file, kind, config, extra)
                is_index = LINKED in file.attrs
            if _is_tree_broken(path):
                _keep_complete_items(path)
            discard(part_of(path), path)  # left by a run that was killed after linking the store
        with in_place(path) if is_index else journalled(path) as file:
            yield file


def _refuse_foreign(path: Path) -> None:
    if is_foreign(path) and path.is_file() and h5py.is_hdf5(path):
        raise BadInputError(f"{path}: written by another program, so nothing is added to it; choose another --out")
    refuse_foreign(path)


def check_replaceable(path: Path, kind: str) -> None:
    """Raise BadInputError unless a file is a store of that kind, complete or broken, which may be replaced by one."""
    if not h5py.is_hdf5(path):
        raise BadInputError(f"{path}: not an HDF5 file, so it is not replaced; choose another --out")
    with contextlib.suppress(*DAMAGE), h5py.File(path, "r") as file:
        stored_kind = attribute(file, "kind", kind)
        if stored_kind != kind:
            raise BadInputError(f"{path}: holds {stored_kind}, not {kind}, so it is not replaced; choose another --out")


def _create(path: Path, kind: str, config: Config, extra: dict[str, str]) -> None:
    """Create a store without items, atomically: a partially created store could not be opened."""
    require_space(path, SLACK_BYTES)
    journal.forget(path)  # that of a removed file
    part = new_part(path)
    with h5py.File(part, "w") as file:
        _write_root(file, kind, config, extra)
    try:
        os.link(part, path)  # never replaces a store that another process has just created
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(part, path)
    part.unlink(missing_ok=True)


def _is_tree_broken(path: Path) -> bool:
    """Whether the group tree is broken, by a power failure, or because it was copied without its journal."""
    with h5py.File(path, "r") as file:
        try:
            file.visit(lambda name: None)
        except DAMAGE:
            return True
    return False


def _keep_complete_items(path: Path) -> None:
    """Keep the complete items of a broken store that can still be reached; the others are made again."""
    part = new_part(path)
    with h5py.File(path, "r") as old, h5py.File(part, "w") as new:
        copy_attributes(old, new)
        count = _copy_complete_items(old, new, set())
    os.replace(part, path)
    LOGGER.warning("%s: damaged while it was written; kept %d complete items, the others are made again", path, count)


def _copy_complete_items(old: h5py.Group, new: h5py.File, seen: set[int]) -> int:
    count = 0
    with contextlib.suppress(*DAMAGE):
        for key in old:
            with contextlib.suppress(*DAMAGE, BadInputError):
                if not isinstance(item := find_item(old, key), h5py.Group):
                    continue
                if is_whole(item):
                    check_item(item)
                    old.file.copy(item, new, item.name)
                    count += 1
                elif (address := h5py.h5o.get_info(item.id).addr) not in seen:
                    seen.add(address)
                    count += _copy_complete_items(item, new, seen)
    return count


def _write_root(file: h5py.File, kind: str, config: Config, extra: dict[str, str]) -> None:
    root = {
        "kind": kind,
        "featkit_version": __version__,
        "fingerprint": config.fingerprint(),
        "config": config.canonical_json(),
        **extra,
        "format": FORMAT_VERSION,
    }
    for name, value in root.items():
        set_attribute(file, name, value)
    file.flush()


def _check_same_origin(path: Path, file: h5py.File, kind: str, config: Config, extra: dict[str, str]) -> None:
    if "format" not in file.attrs:
        raise BadInputError(f"{path}: written by another program, so nothing is added to it; choose another --out")
    number, stored_kind = file.attrs["format"], attribute(file, "kind")
    if number != FORMAT_VERSION or stored_kind != kind:
        raise BadInputError(f"{path}: holds {stored_kind} of format {number}, not {kind}; use --overwrite")
    if attribute(file, "fingerprint") != config.fingerprint():
        changed = differences(str(attribute(file, "config", "{}")), config)
        raise BadInputError(f"{path}: made with another configuration ({changed}); --overwrite, or another --out")
    for name, value in extra.items():
        if (other := attribute(file, name)) != value:
            raise BadInputError(
                f"{path}: made with another {name.replace('_', ' ')} ({other} -> {value});"
                " --overwrite, or another --out"
            )


def write_item(
    file: h5py.File,
    key: str,
    datasets: dict[str, Any],
    attributes: dict[str, Any],
    dataset_attributes: dict[tuple[str, str], Any] | None = None,
) -> None:
    """Write one group as a transaction; an incomplete group of the same name is replaced.

    dataset_attributes: (dataset, attribute) -> value, for example `("keypoints", "uncertainty")`.
    """
    path = Path(file.filename)
    require_space(path, sum(np.asarray(array).nbytes for array in datasets.values()) + SLACK_BYTES)
    try:
        with finish_first(), raising_refusal(file):
            _write_group(file, key, datasets, attributes, dataset_attributes or {})
    except DAMAGE as error:
        if refused_by_disk(error) is not None:  # `appending` explains it
            raise
        raise BadInputError(
            f"{path}: {key!r} cannot be written ({message_of(error)}); use --overwrite to discard it"
        ) from error


def _write_group(
    file: h5py.File,
    key: str,
    datasets: dict[str, Any],
    attributes: dict[str, Any],
    dataset_attributes: dict[tuple[str, str], Any],
) -> None:
    if key in file:
        del file[key]
    group = file.create_group(key)
    for name, array in datasets.items():
        group.create_dataset(name, data=array)
    for (dataset, name), value in dataset_attributes.items():
        set_attribute(group[dataset], name, value)
    for name, value in attributes.items():
        set_attribute(group, name, value)
    if not isinstance(file, JournalledStore):
        file.flush()  # a flush is not atomic here, so the mark is written after it
    group.attrs[COMPLETE] = 1
    file.flush()


def is_complete(file: h5py.File, key: str) -> bool:
    """Whether an item was written completely."""
    try:
        return is_whole(find_item(file, key))
    except DAMAGE:
        return False


def _is_undamaged_and_whole(item: h5py.Group) -> bool:
    try:
        return is_whole(item)
    except DAMAGE:
        return False


def is_whole(item: Any) -> bool:
    """Whether an object of a file is a complete item; raises h5py's errors on damage."""
    whole = isinstance(item, h5py.Group) and attribute(item, COMPLETE)
    return np.ndim(whole) == 0 and bool(whole == 1)


def groups(file: h5py.File, dataset: str, whole: bool = False) -> Iterator[tuple[str, h5py.Group]]:
    """All groups of this file that contain `dataset`, with their nested names; their content is not searched.

    whole: only complete ones. Does not include groups in an index's shards. Raises BadInputError.
    """
    try:
        for name, group in walk(file, dataset):
            if not whole or _is_undamaged_and_whole(group):
                yield name, group
    except DAMAGE:
        raise BadInputError(f"{file.filename}: damaged by a killed run; run the command that makes it again") from None


def groups_with(file: h5py.File, dataset: str) -> list[str]:
    """Names of all groups of this file that contain `dataset`, sorted."""
    return sorted(name for name, _ in groups(file, dataset))


def root_attributes(file: h5py.File) -> dict[str, Any]:
    """The root attributes of a store, as plain values."""
    values = {name: attribute(file, name) for name in file.attrs}
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
    if isinstance(plain.get("config"), str):
        with contextlib.suppress(ValueError, RecursionError):
            return {**plain, "config": json.loads(plain["config"])}
        return {**plain, "config": None}
    return plain


# ----------------------------------------------------------------------------------------------------------------------
# Attributes of a store's groups and datasets, with fixed-length strings.
#
# HDF5 keeps variable-length strings in a global heap, and hangs or crashes if that is damaged. A fixed-length string is
# stored in the attribute itself. Both kinds are read.


LONGEST = 60_000  # bytes: HDF5 limits an attribute to 64 KiB, including its name and type


def set_attribute(item: h5py.HLObject, name: str, value: Any) -> None:
    """Set an attribute of a group, a dataset or a file; strings are stored with fixed length.

    Raises ValueError for a string that contains a zero byte, as h5py does.
    """
    data = value.encode("utf-8", ESCAPED) if isinstance(value, str) else b""
    if not isinstance(value, str) or len(data) > LONGEST or b"\0" in data:
        item.attrs[name] = value
    else:
        item.attrs.create(name, data, dtype=h5py.string_dtype("utf-8", max(1, len(data))))


def attribute(item: h5py.HLObject, name: str, default: Any = None) -> Any:
    """An attribute, strings as `str`, integers as `int`; `default` if it does not exist.

    Raises h5py's errors on damage. Fixed-length strings and integers, which every item has, are read with h5py's
    low-level API, in a third of the time.
    """
    key = name.encode("utf-8", ESCAPED)
    if not h5py.h5a.exists(item.id, key):
        return default
    stored = h5py.h5a.open(item.id, key)
    kind = stored.get_type()
    is_scalar = stored.get_space().get_simple_extent_type() == h5py.h5s.SCALAR
    if is_scalar and isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str():
        text = np.zeros((), f"S{kind.get_size()}")
        stored.read(text, mtype=kind)
        return bytes(text[()]).decode("utf-8", ESCAPED)
    if is_scalar and isinstance(kind, h5py.h5t.TypeIntegerID):
        number = np.zeros((), np.int64)
        stored.read(number)
        return int(number)
    value = item.attrs[name]
    return value.decode("utf-8", ESCAPED) if isinstance(value, bytes) else value


def copy_attributes(old: h5py.HLObject, new: h5py.HLObject, without: Container[str] = ()) -> None:
    """Copy the attributes of one item to another."""
    for name in old.attrs:
        if name not in without:
            set_attribute(new, name, attribute(old, name))
