"""Numbers that papers print, to stand beside ours: `published/*.yaml`, each table with where it is in its paper."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from featkit.config import Config, make, read_yaml

FOLDER = Path(__file__).with_name("published")


class PublishedRow(Config):
    """One method's row."""

    name: str
    """As the paper writes it."""
    values: list[float]
    """In the unit and the order of the columns of the file."""
    mean: float | None = None
    """The mean that the paper prints, by its own rounding."""
    scene: str = ""
    """What it is measured on, where a table has several."""


class PublishedTable(Config):
    """Rows of one table of a paper."""

    paper: str
    """Short name and title."""
    where: str
    """The table's number, and how it was measured if that matters."""
    rows: list[PublishedRow]
    """Those that are of use here."""
    columns: list[str] = Field(default_factory=list)
    """Its own, where tables differ in them."""


class Published(Config):
    """All tables on one benchmark."""

    columns: list[str | tuple[str, str]]
    """Test set, or (training set, test set), or what is measured."""
    tables: list[PublishedTable]
    """One per paper's table."""


def published(benchmark: str) -> Published:
    """What is printed on a benchmark: "ubc", "rome", "hpatches_patches", "hpatches_mma" or "eth"."""
    path = FOLDER / f"{benchmark}.yaml"
    return make(Published, read_yaml(path), where=str(path))
