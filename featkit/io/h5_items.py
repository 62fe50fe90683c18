"""What lies in an HDF5 file that anybody may have written: items found in the file itself, arrays as large as they say.

HDF5 follows links to other files, reads a dataset's numbers from any path that the file names (a system file, a pipe
that never ends), and allocates what a shape announces before it looks how much is there. So names are walked here
link by link, and a dataset is looked at before it is read.
"""

from __future__ import annotations

import functools
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featkit.core.errors import BadInputError

LINKED = "shards"  # root attribute of an index (io/shards.py): how many files its items lie in
ESCAPED = "surrogateescape"  # as h5py does: names of files need not be UTF-8
MAX_RATIO = 200
"""Bytes of a compressed array over its bytes in the file; features and matches are below 10, equal scores 150."""
FLOOR_BYTES = 64 << 20
"""Up to this size nobody asks: a small array may be compressed as well as it can, or have its parts missing."""
KINDS = {"b": "truth values", "i": "whole numbers", "u": "whole numbers", "f": "numbers"}


def refuse_pipe(path: Path) -> None:
    """Raise BadInputError for a pipe or a device, which HDF5 would wait for; OSError where there is nothing."""
    if not (path.is_dir() or stat.S_ISREG(path.stat().st_mode)):
        raise BadInputError(f"{path}: not a file but a pipe or a device; give the file itself")


def find(file: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """The group or dataset of that name (slashes nest); None when there is none.

    Only hard links are followed, and the links of an index to its shards. Raises BadInputError for any other link, and
    what h5py raises on damage.
    """
    at: Any = file.id
    for part in name.split("/"):
        if part in ("", "."):
            continue
        key = part.encode("utf-8", ESCAPED)
        if not isinstance(at, h5py.h5g.GroupID) or not at.links.exists(key):
            return None
        at = _followed(file, at, key, name)
    if isinstance(at, h5py.h5d.DatasetID):
        return h5py.Dataset(at)
    return h5py.Group(at) if isinstance(at, h5py.h5g.GroupID) else None


def _followed(file: h5py.Group, group: h5py.h5g.GroupID, key: bytes, name: str) -> Any:
    kind = group.links.get_info(key).type
    if kind == h5py.h5l.TYPE_HARD:
        return h5py.h5o.open(group, key)
    if kind == h5py.h5l.TYPE_EXTERNAL and LINKED in file.attrs:
        shard = Path(file.filename).parent / group.links.get_val(key)[0].decode("utf-8", ESCAPED)
        if not shard.is_file():  # a pipe would be waited for
            raise BadInputError(f"{shard}: this shard of {file.filename} is missing; bring it back")
        return h5py.h5o.open(group, key, lapl=_one_step())
    raise BadInputError(_links_elsewhere(file, name))


def _links_elsewhere(file: h5py.Group, name: str) -> str:
    return (
        f"{file.file.filename}: {name!r} is a link to another place or file, which is not followed;"
        " copy the items themselves into one file"
    )


@functools.cache
def _one_step() -> Any:
    """Link access of HDF5 that goes through the index's link and no other."""
    access = h5py.h5p.create(h5py.h5p.LINK_ACCESS)
    access.set_nlinks(1)
    return access


def walk(file: h5py.File, dataset: str) -> Iterator[tuple[str, h5py.Group]]:
    """All groups of this file that hold `dataset`, by name, slashes nest; what lies in one is not opened.

    Not those of an index's shards. Raises BadInputError for links elsewhere and for a group that is reached twice (the
    paths of such a file may be more than anybody can count), and what h5py raises on damage.
    """
    linked, wanted, seen = LINKED in file.attrs, dataset.encode(), set()

    def look_into(group: h5py.h5g.GroupID, above: bytes) -> Iterator[tuple[str, h5py.Group]]:
        for key in group:
            kind = group.links.get_info(key).type
            name = (above + key).decode("utf-8", ESCAPED)
            if linked and kind == h5py.h5l.TYPE_EXTERNAL:
                continue
            if kind != h5py.h5l.TYPE_HARD:
                raise BadInputError(_links_elsewhere(file, name))
            item = h5py.h5o.open(group, key)
            if not isinstance(item, h5py.h5g.GroupID):
                continue
            if item.links.exists(wanted):
                yield name, h5py.Group(item)
                continue
            if (address := h5py.h5o.get_info(item).addr) in seen:
                raise BadInputError(
                    f"{file.filename}: the group {name!r} has two names; copy each item once into a new file"
                )
            seen.add(address)
            yield from look_into(item, above + key + b"/")

    yield from look_into(file["/"].id, b"")


def has(group: h5py.Group, name: str) -> bool:
    """Whether a group has something of that name, wherever it leads."""
    return bool(group.id.links.exists(name.encode("utf-8", ESCAPED)))


def array_of(group: h5py.Group, name: str, kinds: str = "iuf", ndim: int | None = None) -> np.ndarray:
    """A dataset's numbers. kinds: numpy's letters of those that will do. ndim: how many axes it must have.

    Raises BadInputError for one that is missing, of texts or structures, in other files, or not as large as it says.
    """
    return np.asarray(dataset_of(group, name, kinds, ndim)[()])


def dataset_of(group: h5py.Group, name: str, kinds: str = "iuf", ndim: int | None = None) -> h5py.Dataset:
    """A dataset whose numbers may be read; arguments and errors as those of `array_of`."""
    found = find(group, name)
    where = _place(group, name)
    if not isinstance(found, h5py.Dataset):
        raise BadInputError(f"{where} is missing, or no array; make the file again")
    if found.dtype.kind not in kinds:
        wanted = " or ".join(dict.fromkeys(KINDS[kind] for kind in kinds))
        raise BadInputError(f"{where} holds {found.dtype}, not {wanted}; make the file again")
    if ndim is not None and len(found.shape or ()) != ndim:
        raise BadInputError(f"{where} has the shape {found.shape}, {ndim} axes are needed; make the file again")
    refuse_unreal(found, where)
    return found


def refuse_unreal(dataset: h5py.Dataset, where: str) -> None:
    """Raise BadInputError for a dataset whose bytes are in other files, or are not there."""
    made = dataset.id.get_create_plist()
    if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
        raise BadInputError(f"{where} has its numbers in other files, which are not read; copy them into this one")
    announced = dataset.size * dataset.dtype.itemsize if dataset.shape is not None else 0
    block = int(np.prod(dataset.chunks, dtype=np.float64)) * dataset.dtype.itemsize if dataset.chunks else 0
    stored = min(dataset.id.get_storage_size(), dataset.file.id.get_filesize())
    if max(announced, block) > max(FLOOR_BYTES, stored * (MAX_RATIO if made.get_nfilters() else 1)):
        raise BadInputError(
            f"{where} announces {max(announced, block):,} bytes, of which {stored:,} are in the file; make it again"
        )


def item_of(file: h5py.Group, name: str) -> h5py.Group:
    """An item that may be copied. Raises BadInputError where there is none, and as `check_item`."""
    if not isinstance(item := find(file, name), h5py.Group):
        raise BadInputError(f"{file.file.filename}: nothing of the name {name!r}")
    check_item(item)
    return item


def check_item(item: h5py.Group) -> None:
    """See that an item may be copied: all that it holds is in it. Raises BadInputError."""
    for key in item.id:
        name = key.decode("utf-8", ESCAPED)
        if isinstance(found := find(item, name), h5py.Dataset):
            refuse_unreal(found, _place(item, name))


def _place(group: h5py.Group, name: str) -> str:
    above = (group.name or "").strip("/")
    return f"{group.file.filename}: {name!r}" + (f" of {above!r}" if above else "")
