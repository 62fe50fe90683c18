"""Sharded stores, and maintenance of all stores: index, merge, check and repair.

A sharded store is a small index whose items are HDF5 external links to write-once shard files next to it. Programs that
open items by name, such as hloc, can use it like a single file. h5py's `visititems` does not follow such links, so
listing reads the links themselves (h5_items.py): 300,000 of them take less than a second. Only complete items are
linked. Links are relative to the index; both may be moved together.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import h5py

from featkit.core.errors import BadInputError
from featkit.core.log import progress
from featkit.io import h5, journal
from featkit.io.artifact import explained, writing
from featkit.io.atomic import explained_by_disk, refuse_foreign, require_space
from featkit.io.features import FeatureStore, features_digest
from featkit.io.h5 import attribute, copy_attributes
from featkit.io.h5_items import check_item, find_item, item_of, linked_items, refuse_missing, shard_of
from featkit.io.journal import DAMAGE
from featkit.io.matches import MatchStore

ORIGIN = ("kind", "format", "fingerprint", "weights_sha256", "features_fingerprint")
ITEM_OF = {"features": "keypoints", "matches": "matches0"}  # kind of a store -> a dataset that each of its items has


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


# ----------------------------------------------------------------------------------------------------------------------
# Check, repair and merge.


@dataclass(frozen=True)
class Checked:
    """A store's items: `whole` ones are intact, `broken` ones are listed with the reason.

    kind: features or matches. shards: number of files with items, in addition to the store itself.
    """

    path: Path
    kind: str
    whole: tuple[str, ...]
    broken: tuple[tuple[str, str], ...]
    shards: int


def check_store(path: Path) -> Checked:
    """Read every item of a store, also in its shards; features are compared with their digests.

    Raises BadInputError if the file cannot be opened at all or holds neither features nor matches.
    """
    with h5.reading(path) as file:
        kind = _store_kind(file, path)
        linked = linked_items(file)
        in_this_file = h5.groups_with(file, ITEM_OF[kind])
        shards = {shard_of(file, name) for name in linked}
        whole, broken = [], []
        with progress("check", len(in_this_file) + len(linked), "items") as advance:
            for name in sorted(in_this_file + linked):
                reason = _find_fault(file, path, kind, name)
                if reason is None:
                    whole.append(name)
                else:
                    broken.append((name, reason))
                advance(1)
    return Checked(path, kind, tuple(whole), tuple(broken), len(shards))


def _store_kind(file: h5py.File, path: Path) -> str:
    kind = h5.store_kind(file, "features")
    if kind not in ITEM_OF:
        raise BadInputError(f"{path}: holds {kind}; expected features or matches")
    return kind


def _find_fault(file: h5py.File, path: Path, kind: str, name: str) -> str | None:
    try:
        refuse_missing(file, name)
        if "format" in file.attrs and not h5.is_complete(file, name):
            return "incomplete"
        if kind == "matches":
            MatchStore(path, file).read_key(name)
            return None
        store = FeatureStore(path, file)
        if store.digest(name) != features_digest(store.read(name)):
            return "not what was written (its digest differs)"
    except BadInputError as error:
        return str(error).removeprefix(f"{path}: ")
    except DAMAGE as error:
        return f"damaged ({error})"
    return None


def repair(path: Path, checked: Checked) -> None:
    """Rewrite a store with only its intact items; those in shards stay links. Raises NotWritableError."""
    with (
        explained_by_disk(path),
        writing(path) as part,
        h5.reading(path) as old,
        h5py.File(part.name, "w") as new,
    ):
        require_space(path, path.stat().st_size)
        copy_attributes(old, new)
        for name in checked.whole:
            shard = shard_of(old, name)
            if shard is None:
                old.copy(item_of(old, name), new, name)
            else:
                new[name] = old.get(name, getlink=True)


def merge_stores(
    stores: Sequence[Path],
    output: Path,
    *,
    link: bool = False,
    overwrite: bool = False,
    same: Collection[str] = (),
) -> int:
    """Merge several stores of the same configuration into one, and return its number of items.

    link: make an index that links to the stores instead of a copy; they must then be kept. same: items that are equal
    in several stores, and taken from the first that has them. Raises BadInputError for stores that are damaged, have
    different configurations or contain the same item, or if `output` exists or is not featkit's; NotWritableError.
    """
    if output.exists() and not overwrite:
        raise BadInputError(f"{output}: exists already; --overwrite replaces it, or choose another --out")
    if any(path.resolve() == output.resolve() for path in stores):
        raise BadInputError(f"{output}: is one of the stores to merge; choose another --out")
    refuse_foreign(output)
    if output.exists():
        with h5.reading(stores[0]) as file:
            h5.check_replaceable(output, h5.store_kind(file, "features"))
    if link:
        return write_index(output, stores, replace=True)
    with ExitStack() as stack:
        opened = {path: stack.enter_context(h5.reading(path)) for path in stores}
        first = opened[stores[0]]
        for path, file in opened.items():
            check_alike(first, file, path)
        owners = store_of_each_item(opened, same)
        stack.enter_context(explained_by_disk(output))
        part = stack.enter_context(writing(output))
        require_space(output, sum(path.stat().st_size for path in stores))
        advance = stack.enter_context(progress("merge", len(owners), "items"))
        with h5py.File(part.name, "w") as new:
            copy_attributes(first, new, without=(h5.LINKED,))
            for name, path in sorted(owners.items()):
                refuse_missing(opened[path], name)
                item = item_of(opened[path], name)
                item.file.copy(item, new, name)
                advance(1)
        with explained(output):
            journal.forget(output)  # of the file that is replaced next
    return len(owners)
