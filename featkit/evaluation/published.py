"""Results published in papers, for comparison with measured ones."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from featkit.core.config import Config, Number, Pixels, make, read_yaml
from featkit.core.content import Table

# ----------------------------------------------------------------------------------------------------------------------
# Published tables: `published/*.yaml`, each with its place in its paper.


FOLDER = Path(__file__).with_name("published")


class PublishedRow(Config):
    """One method's row."""

    name: str
    """Name used in the paper."""
    values: list[Number]
    """Values in the units and order of the file's columns."""
    mean: Number | None = None
    """Mean as printed in the paper, with its rounding."""
    scene: str = ""
    """Scene or data set of this row, if the table has several."""


class PublishedTable(Config):
    """Rows of one table of a paper."""

    paper: str
    """Short name and title."""
    where: str
    """Number of the table, and how its values were measured if that matters."""
    rows: list[PublishedRow]
    """The rows that are used here."""
    columns: list[str] = Field(default_factory=list)
    """Columns of this table, if they differ from the benchmark's."""


class Published(Config):
    """All published tables of one benchmark."""

    columns: list[str | tuple[str, str]]
    """Test set, or (training set, test set), or measure."""
    tables: list[PublishedTable]
    """One entry per table of a paper."""


def published(benchmark: str) -> Published:
    """Published results of a benchmark: "ubc", "rome", "hpatches_patches", "hpatches_mma" or "eth"."""
    path = FOLDER / f"{benchmark}.yaml"
    return make(Published, read_yaml(path), where=str(path))


def published_tables(benchmark: str, title: str = "{}", note: str = "") -> list[Table]:
    """One table per published table. title: {} is replaced by the paper and table number."""
    results = published(benchmark)
    heads = [column if isinstance(column, str) else " -> ".join(column) for column in results.columns]
    return [
        Table(
            title.format(f"{table.paper}: {table.where}"),
            ["as published", *heads],
            [[row.name, *row.values] for row in table.rows],
            note,
        )
        for table in results.tables
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Published MMA curves: `published/hpatches_curves.yaml`.


class PublishedCurve(Config):
    """MMA of one method at each threshold, %."""

    name: str
    """Name used in the tables of `hpatches_mma.yaml`."""
    illumination: list[Number]
    """Mean over the pairs of the 52 illumination sequences."""
    viewpoint: list[Number]
    """Mean over the pairs of the 56 viewpoint sequences."""
    overall: list[Number]
    """Mean over all 540 pairs."""

    def of(self, group: str) -> list[float]:
        """The curve of a group: "illumination", "viewpoint" or "overall"."""
        return {"illumination": self.illumination, "viewpoint": self.viewpoint, "overall": self.overall}[group]


class PublishedCurves(Config):
    """All curves on HPatches."""

    source: str
    """Where the curves were published."""
    thresholds_px: list[Pixels]
    """Thresholds, in pixels of image N."""
    curves: list[PublishedCurve]
    """One curve per method, in the order of the table."""


def published_curves() -> PublishedCurves:
    """The curves of SCFeat's Fig. 8 that were published as numbers."""
    path = FOLDER / "hpatches_curves.yaml"
    return make(PublishedCurves, read_yaml(path), where=str(path))
