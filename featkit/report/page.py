"""The report as one self-contained html file that needs no network."""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from jaxtyping import Float, UInt8
from markupsafe import Markup

from featkit.core.content import (
    Bars,
    Configuration,
    Curves,
    Gallery,
    Histogram,
    Item,
    MatchPicture,
    Picture,
    Report,
    Scene3D,
    Thumbnail,
)
from featkit.core.errors import NotWritableError
from featkit.geometry.pixels import apply_affine, resize_affine
from featkit.images.thumbnails import jpeg
from featkit.io.artifact import write_text
from featkit.report.charts import bars_figure, curves_figure, histogram_figure
from featkit.report.scene3d import Figure, Key, scene_figure
from featkit.report.tables import (
    LEVELS,
    Detail,
    ShownTable,
    encodable,
    format_headline,
    format_integer,
    shown_table,
    spread,
)

LIMIT_BYTES = 10_000_000  # accepted by most mail and chat programs; nearly half of it is plotly's script


def write_report(report: Report, path: Path, limit_bytes: int = LIMIT_BYTES) -> Path:
    """Write the page, with less detail if it would otherwise exceed `limit_bytes`.

    Raises NotWritableError if the page is too large even with the least detail or the file cannot be written,
    ValueError if an item's arrays are inconsistent. The same report gives the same bytes.
    """
    for detail in LEVELS:
        page = render(report, detail)
        size = len(page.encode("utf-8"))
        if size <= limit_bytes:
            return write_text(path, page)
    raise NotWritableError(
        f"{path}: the report takes {size / 1e6:.1f} MB with the least detail, more than {limit_bytes / 1e6:.1f} MB; "
        "leave out sections"
    )


def render(report: Report, detail: Detail) -> str:
    """The page as text, at one level of detail, regardless of its size."""
    views = Views(detail)
    shown = [[views.of(item) for item in section.items] for section in report.sections]
    page = _templates().get_template("page.html")
    return encodable(page.render(report=report, shown=shown, plotly=_plotly_script() if views.figures else ""))


@functools.cache
def _templates() -> jinja2.Environment:
    """The templates next to this file, with autoescape."""
    loader = jinja2.PackageLoader("featkit.report", ".")
    made = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    made.filters["headline"] = format_headline
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return made


def _plotly_script() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())


@dataclass(frozen=True)
class ShownFigure:
    """A plotly figure. shape: "scene" or "chart"."""

    title: str
    spec: dict[str, Any]
    caption: str
    shape: str
    key: tuple[Key, ...] = ()
    kind = "figure"


@dataclass(frozen=True)
class ShownPicture:
    """A picture. source: address of the image, "" if omitted. key: whether to show a legend of inliers and outliers."""

    title: str
    source: str
    alt: str
    caption: str
    key: bool = False
    kind = "picture"


@dataclass(frozen=True)
class ShownText:
    """A collapsed text."""

    title: str
    text: str
    kind = "text"


@dataclass(frozen=True)
class ShownThumbnail:
    """A small picture with its caption."""

    source: str
    caption: str
    highlight: bool


@dataclass(frozen=True)
class ShownGallery:
    """A grid of small pictures. key: whether to show a legend of inliers and outliers."""

    title: str
    thumbnails: Sequence[ShownThumbnail]
    note: str
    key: bool
    kind = "gallery"


Shown = ShownTable | ShownFigure | ShownPicture | ShownText | ShownGallery


class Views:
    """Items for the templates, and properties of the complete page. `kind` names an item's macro."""

    def __init__(self, detail: Detail) -> None:
        self.detail = detail
        self.figures = 0
        self.pictures = 0
        self.thumbnails = 0

    def of(self, item: Item) -> Shown:
        """The template's values for one item. Raises ValueError from the item's own module."""
        if isinstance(item, Scene3D):
            return self._figure(item.title, scene_figure(item, self.detail), "scene")
        if isinstance(item, Histogram):
            return self._figure(item.title, histogram_figure(item), "chart")
        if isinstance(item, Curves):
            return self._figure(item.title, curves_figure(item), "chart")
        if isinstance(item, Bars):
            return self._figure(item.title, bars_figure(item), "chart")
        if isinstance(item, MatchPicture):
            return self._matches(item)
        if isinstance(item, Picture):
            return ShownPicture(item.title, data_uri(item.jpeg), item.title, item.caption)
        if isinstance(item, Configuration):
            return self._configuration(item)
        if isinstance(item, Gallery):
            return self._gallery(item)
        return shown_table(item, self.detail)

    def _figure(self, title: str, figure: Figure, shape: str) -> ShownFigure:
        self.figures += 1
        return ShownFigure(title, {"data": figure.data, "layout": figure.layout}, figure.caption, shape, figure.key)

    def _matches(self, picture: MatchPicture) -> ShownPicture:
        self.pictures += 1
        title, caption = picture.title, match_caption(picture, self.detail)
        if self.pictures > self.detail.pictures:
            return ShownPicture(title, "", "", f"{caption} The picture is left out to keep the page small.")
        source = data_uri(match_jpeg(picture, self.detail))
        return ShownPicture(title, source, f"Matches: {title}", caption, key=len(picture.inlier) > 0)

    def _gallery(self, item: Gallery) -> ShownGallery:
        left = max(0, self.detail.thumbnails - self.thumbnails)
        shown = [item.thumbnails[i] for i in spread(len(item.thumbnails), left)]
        self.thumbnails += len(shown)
        notes = [item.note] if item.note else []
        if len(shown) < len(item.thumbnails):
            notes.append(f"{len(shown)} of {len(item.thumbnails)} are shown, to keep the page small.")
        small = [
            ShownThumbnail(data_uri(thumbnail_jpeg(one, self.detail)), one.caption, one.highlight) for one in shown
        ]
        return ShownGallery(item.title, small, " ".join(notes), item.key and bool(shown))

    def _configuration(self, item: Configuration) -> ShownText:
        text, limit = item.text, self.detail.text_characters
        if len(text) > limit:
            text = f"{text[:limit]}\n… {format_integer(len(text) - limit)} more characters"
        return ShownText(item.title, text)


# ----------------------------------------------------------------------------------------------------------------------
# Two images next to each other with lines between matching points, as one JPEG.


INLIER_RGB = (36, 214, 160)
OUTLIER_RGB = (255, 96, 60)
LINE_OPACITY = 0.55
GAP_PX = 6
GAP_RGB = (128, 128, 128)
SUBPIXEL_BITS = 4  # cv2 draws with coordinates in units of 1/16 px
DOT_PX = 1  # radius of a point on a thumbnail
FARTHEST_PX = 20_000.0  # points beyond this would overflow cv2's fixed-point numbers


def match_jpeg(picture: MatchPicture, detail: Detail) -> bytes:
    """The picture as JPEG, at most `detail.picture_width_px` wide. Raises ValueError for images that are not RGB."""
    canvas, ends0, ends1 = _side_by_side(picture, detail.picture_width_px)
    finite = np.isfinite(ends0).all(axis=1) & np.isfinite(ends1).all(axis=1)
    inlier = np.asarray(picture.inlier, dtype=bool)
    # Outliers are drawn first, so that they do not hide inliers; both keep their share of the lines.
    share = round(min(detail.lines, len(inlier)) * float(inlier.mean())) if len(inlier) else 0
    for wanted, colour in ((False, OUTLIER_RGB), (True, INLIER_RGB)):
        chosen = np.flatnonzero(finite & (inlier == wanted))
        chosen = chosen[spread(len(chosen), share if wanted else detail.lines - share)]
        canvas = _with_lines(canvas, ends0[chosen], ends1[chosen], colour)
    return jpeg(canvas, detail.jpeg_quality)


def thumbnail_jpeg(thumbnail: Thumbnail, detail: Detail) -> bytes:
    """The picture with its points as JPEG, at most `detail.thumbnail_px` on its longer side."""
    image, points = np.asarray(thumbnail.image), np.asarray(thumbnail.points, dtype=np.float64).reshape(-1, 2)
    height, width = image.shape[:2]
    scale = detail.thumbnail_px / max(width, height)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        points = apply_affine(resize_affine((width, height), size), points)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    drawn, inlier = image.copy(), np.asarray(thumbnail.inlier, dtype=bool)
    order = np.argsort(inlier, kind="stable")  # inliers last, so that they are on top
    for x, y, good in zip(*points[order].T.tolist(), inlier[order].tolist(), strict=True):
        if -FARTHEST_PX < x < FARTHEST_PX and -FARTHEST_PX < y < FARTHEST_PX:
            at = (round(x * 2**SUBPIXEL_BITS), round(y * 2**SUBPIXEL_BITS))
            colour = INLIER_RGB if good else OUTLIER_RGB
            cv2.circle(drawn, at, DOT_PX << SUBPIXEL_BITS, colour, -1, cv2.LINE_AA, SUBPIXEL_BITS)
    return jpeg(drawn, detail.jpeg_quality)


def data_uri(jpeg: bytes) -> str:
    """A JPEG as a data URL."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def match_caption(picture: MatchPicture, detail: Detail) -> str:
    """Text with the numbers of matches, inliers and drawn lines."""
    count, inliers = len(picture.inlier), int(np.sum(picture.inlier))
    if count == 0:
        return "No matches."
    text = f"{format_integer(count)} matches, {format_integer(inliers)} inliers ({100 * inliers / count:.0f} %)"
    return text + (f"; {format_integer(detail.lines)} drawn." if count > detail.lines else ".")


def _side_by_side(
    picture: MatchPicture, max_width: int
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2"]]:
    """Both images at the same height with a gap between them, and the points on that canvas."""
    images = [np.asarray(picture.image0), np.asarray(picture.image1)]
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ValueError(f"{picture.title}: an image is {image.dtype} {image.shape}, not uint8 (h, w, 3)")
    aspects = [image.shape[1] / image.shape[0] for image in images]
    height = min(max(image.shape[0] for image in images), (max_width - GAP_PX) / sum(aspects))
    small, ends = [], []
    for image, points, aspect in zip(images, (picture.points0, picture.points1), aspects, strict=True):
        size = (max(round(height * aspect), 1), max(round(height), 1))
        shrinks = size[0] < image.shape[1]
        small.append(cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))
        affine = resize_affine((image.shape[1], image.shape[0]), size)
        ends.append(apply_affine(affine, np.asarray(points, dtype=np.float64).reshape(-1, 2)))
    gap = np.full((small[0].shape[0], GAP_PX, 3), GAP_RGB, dtype=np.uint8)
    ends[1] = ends[1] + [small[0].shape[1] + GAP_PX, 0.0]
    return np.concatenate([small[0], gap, small[1]], axis=1), ends[0], ends[1]


def _with_lines(
    canvas: UInt8[np.ndarray, "h w 3"],
    ends0: Float[np.ndarray, "k 2"],
    ends1: Float[np.ndarray, "k 2"],
    colour: tuple[int, int, int],
) -> UInt8[np.ndarray, "h w 3"]:
    """The canvas with thin, slightly transparent lines and a dot at either end."""
    if not len(ends0):
        return canvas
    fixed = [
        np.round(np.clip(ends, -FARTHEST_PX, FARTHEST_PX) * 2**SUBPIXEL_BITS).astype(int) for ends in (ends0, ends1)
    ]
    drawn = canvas.copy()
    for a, b in zip(*(f.tolist() for f in fixed), strict=True):
        cv2.line(drawn, a, b, colour, 1, cv2.LINE_AA, SUBPIXEL_BITS)
    drawn = cv2.addWeighted(drawn, LINE_OPACITY, canvas, 1.0 - LINE_OPACITY, 0.0)
    for end in (*fixed[0].tolist(), *fixed[1].tolist()):
        cv2.circle(drawn, end, 2 * 2**SUBPIXEL_BITS, colour, -1, cv2.LINE_AA, SUBPIXEL_BITS)
    return drawn
