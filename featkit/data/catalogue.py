"""The benchmark data that can be fetched: addresses, checksums, and where each file goes (catalogue.yaml)."""

from __future__ import annotations

import difflib
from pathlib import Path

from pydantic import Field

from featkit.config import Config, make, read_yaml
from featkit.errors import UsageError

CATALOGUE = Path(__file__).with_name("catalogue.yaml")


class Source(Config):
    """One address of a file, and what is known of the bytes there."""

    url: str
    """http or https."""
    md5: str | None = Field(None, pattern="^[0-9a-f]{32}$")
    """Hex digits; null: nobody publishes one."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Hex digits; null: nobody publishes one."""
    size: int | None = None
    """Bytes; null: not stated."""


class CatalogueFile(Config):
    """One file of a data set."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Its name on disk."""
    folder: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The folder an archive is unpacked into; null: the file is kept as it is."""
    sources: list[Source] = Field(min_length=1)
    """Tried in turn."""


class DataSet(Config):
    """A data set: files that belong together."""

    summary: str
    """One line."""
    page: str
    """The authors' page."""
    terms: str
    """What the authors allow."""
    files: list[CatalogueFile]
    """Each is fetched by itself: one that fails does not stop the others."""


def data_set(name: str, path: Path = CATALOGUE) -> DataSet:
    """The data set of that name. Raises UsageError, with the nearest right name."""
    known = read_yaml(path)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        raise UsageError(f"no data set named {name!r}; {hint}")
    return make(DataSet, known[name], where=f"{path.name}: {name}")


def data_sets(path: Path = CATALOGUE) -> dict[str, DataSet]:
    """All data sets by name."""
    return {name: data_set(name, path) for name in read_yaml(path)}
