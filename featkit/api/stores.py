"""Features and matches files: checked, repaired and merged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from featkit.api.options import Out, Overwrite, Shown, takes
from featkit.io import maintain
from featkit.io.maintain import Checked

StoreFile = Annotated[Path, Shown(help="A features or matches file.")]


@takes(None)
def check_store(store: StoreFile) -> Checked:
    """Read every item of a features or matches file. Raises BadInputError when it is neither."""
    return maintain.check(store)


@takes(None)
def repair_store(store: StoreFile) -> Checked:
    """Leave out what is damaged or missing. Returns what was found before; raises BadInputError, NotWritableError."""
    found = maintain.check(store)
    if found.broken:
        maintain.repair(store, found)
    return found


@dataclass(frozen=True)
class MergedStores:
    """One file of several. items: images or pairs in it. stores: how many files were given."""

    out: Path
    items: int
    stores: int


@takes(None)
def merge_stores(
    stores: Annotated[list[Path], Shown(help="Files of one configuration, or an index.")],
    *,
    out: Out,
    link: Annotated[bool, Shown("--link", help="An index that leads to them, which then must stay.")] = False,
    overwrite: Overwrite = False,
) -> MergedStores:
    """Make one file of several of the same configuration. Raises featkit's errors."""
    return MergedStores(out, maintain.merge(stores, out, link=link, overwrite=overwrite), len(stores))
