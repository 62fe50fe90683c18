"""Check, repair and merge features and matches files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from featkit.api.options import Out, Overwrite, Param, with_options
from featkit.io import shards
from featkit.io.shards import Checked

StoreFile = Annotated[Path, Param(help="A features or matches file.")]


@with_options(None)
def check_store(store: StoreFile) -> Checked:
    """Read every item of a features or matches file. Raises BadInputError if it is neither."""
    return shards.check_store(store)


@with_options(None)
def repair_store(store: StoreFile) -> Checked:
    """Drop damaged and missing items. Returns the check before the repair; raises BadInputError, NotWritableError."""
    found = shards.check_store(store)
    if found.broken:
        shards.repair(store, found)
    return found


@dataclass(frozen=True)
class MergedStores:
    """A merged file. items: number of images or pairs in it. stores: number of merged files."""

    out: Path
    items: int
    stores: int


@with_options(None)
def merge_stores(
    stores: Annotated[list[Path], Param(help="Files made with one configuration, or an index.")],
    *,
    out: Out,
    link: Annotated[bool, Param("--link", help="Write an index that links to the files, which must be kept.")] = False,
    overwrite: Overwrite = False,
) -> MergedStores:
    """Merge files made with the same configuration into one. Raises featkit's errors."""
    return MergedStores(out, shards.merge_stores(stores, out, link=link, overwrite=overwrite), len(stores))
