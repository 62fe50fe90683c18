"""What papers print, to stand next to what is measured here."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from featkit.core.config import Config, Number, Pixels, make, read_yaml
from featkit.core.content import Table

# ----------------------------------------------------------------------------------------------------------------------
# Numbers that papers print, to stand beside ours: `published/*.yaml`, each table with where it is in its paper.


FOLDER = Path(__file__).with_name("published")


class PublishedRow(Config):
    """One method's row."""

    name: str
    """As the paper writes it."""
    values: list[Number]
    """In the unit and the order of the columns of the file."""
    mean: Number | None = None
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


def published_tables(benchmark: str, title: str = "{}", note: str = "") -> list[Table]:
    """A table per table of a paper. title: with {} where the paper's own goes."""
    known = published(benchmark)
    heads = [column if isinstance(column, str) else " -> ".join(column) for column in known.columns]
    return [
        Table(
            title.format(f"{table.paper}: {table.where}"),
            ["as published", *heads],
            [[row.name, *row.values] for row in table.rows],
            note,
        )
        for table in known.tables
    ]


# ----------------------------------------------------------------------------------------------------------------------
# MMA curves that papers draw, to stand beside ours: `published/hpatches_curves.yaml`.


class PublishedCurve(Config):
    """One method; MMA in % at each threshold."""

    name: str
    """As in the tables of `hpatches_mma.yaml`."""
    illumination: list[Number]
    """Mean over the pairs of the 52 sequences of changing light."""
    viewpoint: list[Number]
    """Mean over the pairs of the 56 sequences of changing viewpoint."""
    overall: list[Number]
    """Mean over all 540 pairs."""

    def of(self, group: str) -> list[float]:
        """The curve of a group: "illumination", "viewpoint" or "overall"."""
        return {"illumination": self.illumination, "viewpoint": self.viewpoint, "overall": self.overall}[group]


class PublishedCurves(Config):
    """All curves on HPatches."""

    source: str
    """Where they are from."""
    thresholds_px: list[Pixels]
    """In pixels of image N."""
    curves: list[PublishedCurve]
    """In the order of the table."""


def published_curves() -> PublishedCurves:
    """The curves of SCFeat's Fig. 8 that were published as numbers."""
    path = FOLDER / "hpatches_curves.yaml"
    return make(PublishedCurves, read_yaml(path), where=str(path))
