"""Contents of a report, as frozen dataclasses that only carry data; rendering is done elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import final

import numpy as np
from jaxtyping import Bool, Float, UInt8


@final
@dataclass(frozen=True)
class Link:
    """A table cell that links to another file. address: relative to the page's folder, with forward slashes."""

    text: str
    address: str

    def __str__(self) -> str:
        return self.text


Cell = str | int | float | Link | None


@dataclass(frozen=True)
class Camera3D:
    """A pinhole camera with its principal point in the middle of the image.

    rotation, translation: world to camera, x_camera = rotation @ x_world + translation.
    width, height, focal_px: pixels. group: cameras of one group share a colour and a legend entry;
    "map", "query" and "truth" have colours of their own.
    """

    name: str
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]
    width: int
    height: int
    focal_px: float
    group: str = "map"

    @property
    def centre(self) -> Float[np.ndarray, "3"]:
        """In world units: -R^T t."""
        return -np.asarray(self.rotation, dtype=np.float64).T @ np.asarray(self.translation, dtype=np.float64)


@dataclass(frozen=True)
class Scene3D:
    """Points (world units) with their RGB colours, and cameras."""

    points: Float[np.ndarray, "n 3"]
    colours: UInt8[np.ndarray, "n 3"]
    cameras: Sequence[Camera3D] = ()
    title: str = ""


@dataclass(frozen=True)
class MatchPicture:
    """Two RGB images with their matches; points in pixels, the top-left pixel's centre is (0, 0)."""

    title: str
    image0: UInt8[np.ndarray, "h0 w0 3"]
    image1: UInt8[np.ndarray, "h1 w1 3"]
    points0: Float[np.ndarray, "m 2"]
    points1: Float[np.ndarray, "m 2"]
    inlier: Bool[np.ndarray, " m"]


@dataclass(frozen=True)
class Picture:
    """An image, as JPEG, with a caption."""

    title: str
    jpeg: bytes
    caption: str = ""


@dataclass(frozen=True)
class Thumbnail:
    """A small RGB image with a caption, and points marked on it, px of the image.

    inlier: colours of the points. highlight: emphasises it, as a photograph that failed.
    """

    image: UInt8[np.ndarray, "h w 3"]
    caption: str
    points: Float[np.ndarray, "m 2"] = field(default_factory=lambda: np.zeros((0, 2)))
    inlier: Bool[np.ndarray, " m"] = field(default_factory=lambda: np.zeros(0, bool))
    highlight: bool = False


@dataclass(frozen=True)
class Gallery:
    """Small images in a grid; key: whether points are marked on them, as inliers and outliers."""

    title: str
    thumbnails: Sequence[Thumbnail]
    note: str = ""
    key: bool = False


@dataclass(frozen=True)
class Histogram:
    """Histogram of values; NaN and infinite values are left out and counted in the caption."""

    title: str
    x_label: str
    values: Float[np.ndarray, " n"]
    bins: int = 40


@dataclass(frozen=True)
class Curve:
    """One line of a chart, y over x; NaN and infinite values are left out. faint: thin and grey, behind the others."""

    name: str
    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    faint: bool = False


@dataclass(frozen=True)
class Curves:
    """Several curves in one chart. log_y: logarithmic vertical axis; values of 0 or less are left out."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log_y: bool = False


@dataclass(frozen=True)
class Bars:
    """Grouped bar chart with one bar per series in each group. series: one value per group, by name; NaN for no bar."""

    title: str
    y_label: str
    groups: Sequence[str]
    series: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns. highlight: indices of rows to emphasise, such as failed items."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    highlight: AbstractSet[int] = frozenset()


@dataclass(frozen=True)
class Configuration:
    """Preformatted text, collapsed by default."""

    title: str
    text: str


@dataclass(frozen=True)
class Headline:
    """One key figure at the top of the page, with its unit and a hint below it."""

    label: str
    value: str | int | float
    unit: str = ""
    hint: str = ""


Item = Scene3D | MatchPicture | Picture | Gallery | Histogram | Curves | Bars | Table | Configuration


@dataclass(frozen=True)
class Section:
    """A heading, text (paragraphs separated by blank lines) and items."""

    title: str
    text: str = ""
    items: Sequence[Item] = field(default_factory=tuple)


@dataclass(frozen=True)
class Report:
    """The complete page. warnings: sentences shown at the top, before any figures."""

    title: str
    subtitle: str = ""
    headlines: Sequence[Headline] = ()
    sections: Sequence[Section] = ()
    warnings: Sequence[str] = ()
