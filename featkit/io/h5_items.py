"""Safe reading of untrusted HDF5 files: only items in the file itself, and arrays that are as large as they claim.

HDF5 follows links to other files, reads a dataset's content from any path that the file names (a system file, an
endless pipe), and allocates the size a shape announces before it checks how much data there is. Therefore names are
resolved here link by link, and a dataset is inspected before it is read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featkit.core.config import MAX_KEYPOINTS
from featkit.core.errors import BadInputError

LINKED = "shards"  # root attribute of an index (io/shards.py): the number of its shards
ESCAPED = "surrogateescape"  # as in h5py: file names need not be UTF-8
MAX_RATIO = 200
"""Largest ratio of array size to compressed size; features and matches are below 10, constant scores at 150."""
FLOOR_BYTES = 64 << 20
"""Array size, bytes, up to which the ratio is not checked: small arrays may compress well, or have missing chunks."""
MAX_ROWS = MAX_KEYPOINTS
"""Longest axis of an item's array."""
MAX_ARRAY_BYTES = 1 << 30
"""Largest array of an item: a million keypoints with 256 numbers of 32 bits each."""
KINDS = {"b": "truth values", "i": "whole numbers", "u": "whole numbers", "f": "numbers"}


def find_item(file: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """The group or dataset of that (nested) name; None if there is none.

    Only hard links are followed, and the links of an index to its shards. Raises BadInputError for any other link, and
    h5py's errors on damage.
    """
    node: Any = file.id
    for part in name.split("/"):
        if part in ("", "."):
            continue
        key = part.encode("utf-8", ESCAPED)
        if not isinstance(node, h5py.h5g.GroupID) or not node.links.exists(key):
            return None
        node = _open_link(file, node, key, name)
    if isinstance(node, h5py.h5d.DatasetID):
        return h5py.Dataset(node)
    return h5py.Group(node) if isinstance(node, h5py.h5g.GroupID) else None


def _open_link(file: h5py.Group, group: h5py.h5g.GroupID, key: bytes, name: str) -> Any:
    kind = group.links.get_info(key).type
    if kind == h5py.h5l.TYPE_HARD:
        return h5py.h5o.open(group, key)
    if kind == h5py.h5l.TYPE_EXTERNAL and LINKED in file.attrs:
        shard = Path(file.filename).parent / group.links.get_val(key)[0].decode("utf-8", ESCAPED)
        if not shard.is_file():  # HDF5 would wait for a pipe
            raise BadInputError(f"{shard}: this shard of {file.filename} is missing; bring it back")
        return h5py.h5o.open(group, key, lapl=_single_link_access())
    raise BadInputError(_link_refusal(file, name))


def _link_refusal(file: h5py.Group, name: str) -> str:
    return (
        f"{file.file.filename}: {name!r} is a link to another place or file, which is not followed;"
        " copy the items themselves into one file"
    )


@functools.cache
def _single_link_access() -> Any:
    """HDF5 link access that follows the index's link and no further one."""
    access = h5py.h5p.create(h5py.h5p.LINK_ACCESS)
    access.set_nlinks(1)
    return access


def walk(file: h5py.File, dataset: str) -> Iterator[tuple[str, h5py.Group]]:
    """All groups of this file that contain `dataset`, with their nested names; their content is not searched.

    Does not include groups in an index's shards. Raises BadInputError for links to other places and for a group that is
    reached twice (such a file may have exponentially many paths), and h5py's errors on damage.
    """
    linked, dataset_key, seen = LINKED in file.attrs, dataset.encode(), set()

    def walk_group(group: h5py.h5g.GroupID, prefix: bytes) -> Iterator[tuple[str, h5py.Group]]:
        for key in group:
            kind = group.links.get_info(key).type
            name = (prefix + key).decode("utf-8", ESCAPED)
            if linked and kind == h5py.h5l.TYPE_EXTERNAL:
                continue
            if kind != h5py.h5l.TYPE_HARD:
                raise BadInputError(_link_refusal(file, name))
            item = h5py.h5o.open(group, key)
            if not isinstance(item, h5py.h5g.GroupID):
                continue
            if item.links.exists(dataset_key):
                yield name, h5py.Group(item)
                continue
            if (address := h5py.h5o.get_info(item).addr) in seen:
                raise BadInputError(
                    f"{file.filename}: the group {name!r} has two names; copy each item once into a new file"
                )
            seen.add(address)
            yield from walk_group(item, prefix + key + b"/")

    yield from walk_group(file["/"].id, b"")


def has(group: h5py.Group, name: str) -> bool:
    """Whether a group has a link of that name, wherever it leads."""
    return bool(group.id.links.exists(name.encode("utf-8", ESCAPED)))


def array_of(group: h5py.Group, name: str, kinds: str = "iuf", ndim: int | None = None) -> np.ndarray:
    """The content of a dataset. kinds: accepted numpy dtype kinds. ndim: required number of axes.

    Raises BadInputError if it is missing, not numeric, too large, stored in other files, or not as large as it claims.
    """
    return np.asarray(dataset_of(group, name, kinds, ndim)[()])


def dataset_of(group: h5py.Group, name: str, kinds: str = "iuf", ndim: int | None = None) -> h5py.Dataset:
    """A dataset that is safe to read; arguments and errors as for `array_of`."""
    dataset = find_item(group, name)
    where = _describe_place(group, name)
    if not isinstance(dataset, h5py.Dataset):
        raise BadInputError(f"{where} is missing, or not an array; make the file again")
    if dataset.dtype.kind not in kinds:
        wanted = " or ".join(dict.fromkeys(KINDS[kind] for kind in kinds))
        raise BadInputError(f"{where} holds {dataset.dtype}, not {wanted}; make the file again")
    if ndim is not None and len(dataset.shape or ()) != ndim:
        raise BadInputError(f"{where} has the shape {dataset.shape}, but needs {ndim} axes; make the file again")
    refuse_unreal(dataset, where)
    refuse_too_large(dataset.shape or (), dataset.dtype.itemsize, where)
    return dataset


def refuse_too_large(shape: tuple[int, ...], item_bytes: int, where: str) -> None:
    """Raise BadInputError for an array with more rows or bytes than fit into memory, naming the number that fits."""
    longest = max(shape, default=0)
    row_bytes = math.prod(shape) // longest * item_bytes if longest else 0
    fitting = min(MAX_ROWS, MAX_ARRAY_BYTES // max(1, row_bytes))
    if longest > fitting:
        raise BadInputError(f"{where} has {longest:,} rows; {fitting:,} an image fit into memory: keep only the best")


def refuse_unreal(dataset: h5py.Dataset, where: str) -> None:
    """Raise BadInputError for a dataset whose content is in other files, or missing."""
    creation = dataset.id.get_create_plist()
    if creation.get_layout() == h5py.h5d.VIRTUAL or creation.get_external_count():
        raise BadInputError(f"{where} has its content in other files, which are not read; copy it into this file")
    announced = dataset.size * dataset.dtype.itemsize if dataset.shape is not None else 0
    block = int(np.prod(dataset.chunks, dtype=np.float64)) * dataset.dtype.itemsize if dataset.chunks else 0
    stored = min(dataset.id.get_storage_size(), dataset.file.id.get_filesize())
    if max(announced, block) > max(FLOOR_BYTES, stored * (MAX_RATIO if creation.get_nfilters() else 1)):
        raise BadInputError(
            f"{where} announces {max(announced, block):,} bytes, of which {stored:,} are in the file; make it again"
        )


def item_of(file: h5py.Group, name: str) -> h5py.Group:
    """An item that is safe to copy. Raises BadInputError if there is none, and as `check_item` does."""
    if not isinstance(item := find_item(file, name), h5py.Group):
        raise BadInputError(f"{file.file.filename}: no item named {name!r}")
    check_item(item)
    return item


def check_item(item: h5py.Group) -> None:
    """Check that an item is safe to copy, with all of its content in the file. Raises BadInputError."""
    for key in item.id:
        name = key.decode("utf-8", ESCAPED)
        if isinstance(found := find_item(item, name), h5py.Dataset):
            refuse_unreal(found, _describe_place(item, name))


def _describe_place(group: h5py.Group, name: str) -> str:
    above = (group.name or "").strip("/")
    return f"{group.file.filename}: {name!r}" + (f" of {above!r}" if above else "")


# ----------------------------------------------------------------------------------------------------------------------
# Items of an index (io/shards.py), which are in other files.


def is_index(file: h5py.File) -> bool:
    """Whether a store has items in other files."""
    return LINKED in file.attrs


def linked_items(file: h5py.File) -> list[str]:
    """Names of all items that are in other files, sorted."""
    names: list[str] = []
    if is_index(file):

        def collect_external(name: bytes, info: h5py.h5l.LinkInfo) -> None:
            if info.type == h5py.h5l.TYPE_EXTERNAL:
                names.append(name.decode())

        file.id.links.visit(collect_external, info=True)
    return sorted(names)


def shard_of(file: h5py.File, name: str) -> Path | None:
    """The shard that contains an item of an index; None for an item in the index itself."""
    if not is_index(file):
        return None
    above, _, last = name.rpartition("/")
    group = find_item(file, above)
    if not isinstance(group, h5py.Group) or not has(group, last):
        return None
    link = group.get(last, getlink=True)
    return Path(file.filename).parent / link.filename if isinstance(link, h5py.ExternalLink) else None


def refuse_missing(file: h5py.File, name: str) -> None:
    """Raise BadInputError if the shard with an item is missing."""
    shard = shard_of(file, name)
    if shard is not None and not shard.is_file():
        raise BadInputError(
            f"{shard}: this shard of {file.filename} is missing; restore it, or `featkit store repair` the index"
            " and run the command that made it again"
        )
