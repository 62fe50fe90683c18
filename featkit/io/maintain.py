"""Maintenance of stores: check all items, repair by dropping damaged ones, and merge several stores."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import h5py

from featkit.core.errors import BadInputError
from featkit.core.log import progress
from featkit.io import h5, journal
from featkit.io import shards as links
from featkit.io.artifact import explained, writing
from featkit.io.atomic import explained_by_disk, refuse_foreign, require_space
from featkit.io.features import FeatureStore, features_digest
from featkit.io.h5 import copy_attributes
from featkit.io.h5_items import item_of
from featkit.io.journal import DAMAGE
from featkit.io.matches import MatchStore


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
        linked = links.linked_items(file)
        in_this_file = h5.groups_with(file, links.ITEM_OF[kind])
        shards = {links.shard_of(file, name) for name in linked}
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
    if kind not in links.ITEM_OF:
        raise BadInputError(f"{path}: holds {kind}; expected features or matches")
    return kind


def _find_fault(file: h5py.File, path: Path, kind: str, name: str) -> str | None:
    try:
        links.refuse_missing(file, name)
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
            shard = links.shard_of(old, name)
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
        return links.write_index(output, stores, replace=True)
    with ExitStack() as stack:
        opened = {path: stack.enter_context(h5.reading(path)) for path in stores}
        first = opened[stores[0]]
        for path, file in opened.items():
            links.check_alike(first, file, path)
        owners = links.store_of_each_item(opened, same)
        stack.enter_context(explained_by_disk(output))
        part = stack.enter_context(writing(output))
        require_space(output, sum(path.stat().st_size for path in stores))
        advance = stack.enter_context(progress("merge", len(owners), "items"))
        with h5py.File(part.name, "w") as new:
            copy_attributes(first, new, without=(h5.LINKED,))
            for name, path in sorted(owners.items()):
                links.refuse_missing(opened[path], name)
                item = item_of(opened[path], name)
                item.file.copy(item, new, name)
                advance(1)
        with explained(output):
            journal.forget(output)  # of the file that is replaced next
    return len(owners)
