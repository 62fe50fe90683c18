"""Sharded stores: a small index whose items are HDF5 external links to write-once shard files next to it.

Programs that open items by name, such as hloc, can use it like a single file. h5py's `visititems` does not follow such
links, so listing reads the links themselves: 300,000 of them take less than a second. Only complete items are linked.
Links are relative to the index; both may be moved together.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

import h5py

from featkit.core.errors import BadInputError
from featkit.io import h5, journal
from featkit.io.artifact import explained, writing
from featkit.io.atomic import refuse_foreign
from featkit.io.h5 import attribute, copy_attributes
from featkit.io.h5_items import check_item, find_item, has

ORIGIN = ("kind", "format", "fingerprint", "weights_sha256", "features_fingerprint")
ITEM_OF = {"features": "keypoints", "matches": "matches0"}  # kind of a store -> a dataset that each of its items has


def is_index(file: h5py.File) -> bool:
    """Whether a store has items in other files."""
    return h5.LINKED in file.attrs


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


def whole_items(file: h5py.File, kind: str) -> list[str]:
    """Names of all complete items, here or in shards, sorted."""
    in_this_file = [name for name, _ in h5.groups(file, ITEM_OF[kind], whole=True)]
    return sorted(in_this_file + linked_items(file))


def write_index(
    output: Path, shards: Sequence[Path], only: Collection[str] | None = None, replace: bool = False
) -> int:
    """Write an index of the complete items in shards, or add them to an existing store; returns their number.

    only: add only these names. replace: replace an existing store; what it holds is not kept.

    Root attributes are those of the store, or of the first shard; the others must agree. Items that the store already
    has are replaced. Raises BadInputError for a shard that is missing, damaged or of another configuration, or for an
    item that is in two shards.
    """
    refuse_foreign(output)
    with ExitStack() as stack:
        opened = {path: stack.enter_context(h5.reading(path)) for path in shards}
        existing = stack.enter_context(h5.reading(output)) if output.exists() and not replace else None
        origin = opened[shards[0]] if existing is None else existing
        for path, file in opened.items():
            check_alike(origin, file, path)
        owners = {name: path for name, path in store_of_each_item(opened).items() if only is None or name in only}
        part = Path(stack.enter_context(writing(output)).name)
        with h5py.File(part, "w") as index:
            copy_attributes(origin, index)
            if existing is not None:
                _copy_items(existing, index)
            for name, path in owners.items():
                if name in index:
                    del index[name]
                index[name] = h5py.ExternalLink(os.path.relpath(path, output.parent), name)
            index.attrs[h5.LINKED] = int(origin.attrs.get(h5.LINKED, 0)) + len(opened)
        if replace:
            with explained(output):
                journal.forget(output)
    return len(owners)


def store_of_each_item(opened: dict[Path, h5py.File], same: Collection[str] = ()) -> dict[str, Path]:
    """The store that contains each complete item; for names in `same` the first of several.

    Raises BadInputError for any other item that is in two stores.
    """
    owners: dict[str, Path] = {}
    for path, file in opened.items():
        for name in whole_items(file, h5.store_kind(file, "features")):
            if name in owners and name in same:
                continue
            if name in owners:
                raise BadInputError(f"{path}: has {name!r}, like {owners[name]}; merge stores with different items")
            owners[name] = path
    return owners


def check_alike(first: h5py.File, other: h5py.File, path: Path) -> None:
    """Raise BadInputError unless two stores were made with the same configuration."""
    if "format" not in other.attrs:
        raise BadInputError(f"{path}: written by another program; featkit merges its own stores")
    differ = [name.replace("_", " ") for name in ORIGIN if attribute(first, name) != attribute(other, name)]
    if differ:
        raise BadInputError(
            f"{path}: has another {', '.join(differ)} than {first.filename}; only stores made alike can be merged"
        )


def _copy_items(old: h5py.Group, new: h5py.Group) -> None:
    """Copy links as links, complete items unchanged, and nothing else."""
    for name in old:
        link = old.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            new[name] = link
        elif not isinstance(item := find_item(old, name), h5py.Group):
            continue
        elif h5.COMPLETE in item.attrs:
            check_item(item)
            old.file.copy(item, new, name)
        else:
            _copy_items(item, new.require_group(name))
