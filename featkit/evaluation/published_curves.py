"""MMA curves that papers draw, to stand beside ours: `published/hpatches_curves.yaml`."""

from __future__ import annotations

from featkit.config import Config, make, read_yaml
from featkit.evaluation.published_tables import FOLDER


class PublishedCurve(Config):
    """One method; MMA in % at each threshold."""

    name: str
    """As in the tables of `hpatches_mma.yaml`."""
    illumination: list[float]
    """Mean over the pairs of the 52 sequences of changing light."""
    viewpoint: list[float]
    """Mean over the pairs of the 56 sequences of changing viewpoint."""
    overall: list[float]
    """Mean over all 540 pairs."""

    def of(self, group: str) -> list[float]:
        """The curve of a group: "illumination", "viewpoint" or "overall"."""
        return {"illumination": self.illumination, "viewpoint": self.viewpoint, "overall": self.overall}[group]


class PublishedCurves(Config):
    """All curves on HPatches."""

    source: str
    """Where they are from."""
    thresholds_px: list[float]
    """In pixels of image N."""
    curves: list[PublishedCurve]
    """In the order of the table."""


def published_curves() -> PublishedCurves:
    """The curves of SCFeat's Fig. 8 that were published as numbers."""
    path = FOLDER / "hpatches_curves.yaml"
    return make(PublishedCurves, read_yaml(path), where=str(path))
