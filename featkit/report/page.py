"""The whole report as one html file that needs nothing else, not even a network."""

from __future__ import annotations

import base64
from pathlib import Path
from string import Template

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from featkit.core.errors import NotWritableError
from featkit.geometry.pixels import apply_affine, resize_affine
from featkit.io.artifact import write_text
from featkit.report.charts import bars_figure, curves_figure, histogram_figure
from featkit.report.content import (
    Bars,
    Configuration,
    Curves,
    Headline,
    Histogram,
    Item,
    MatchPicture,
    Picture,
    Report,
    Scene3D,
    Section,
)
from featkit.report.scene3d import Figure, scene_figure
from featkit.report.tables import (
    LEVELS,
    Detail,
    for_html,
    for_script,
    format_headline,
    format_integer,
    spread,
    table_html,
)

HERE = Path(__file__).resolve().parent
LIMIT_BYTES = 10_000_000  # what mail and chat still pass on; nearly half of it is plotly's own script


def write_report(report: Report, path: Path, limit_bytes: int = LIMIT_BYTES) -> Path:
    """Write the page, with less detail when it would otherwise be larger than `limit_bytes`.

    Raises NotWritableError when even the least detail is too large or the file cannot be written, ValueError when
    an item's arrays do not belong together. The same report gives the same bytes.
    """
    for detail in LEVELS:
        page = render(report, detail)
        size = len(page.encode("utf-8"))
        if size <= limit_bytes:
            return write_text(path, page)
    raise NotWritableError(
        f"{path}: the report takes {size / 1e6:.1f} MB at the least detail, more than {limit_bytes / 1e6:.1f} MB; "
        "leave out sections"
    )


def render(report: Report, detail: Detail) -> str:
    """The page as text, at one level of detail whatever its size."""
    writer = _ItemWriter(detail)
    sections = "".join(_section(section, i, writer) for i, section in enumerate(report.sections))
    links = "".join(
        f'<a href="#section-{i}">{for_html(section.title)}</a>' for i, section in enumerate(report.sections)
    )
    return Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
        title=for_html(report.title),
        subtitle=f'<p class="subtitle">{for_html(report.subtitle)}</p>' if report.subtitle else "",
        headlines=_headlines(report),
        links=links,
        sections=sections,
        style=(HERE / "style.css").read_text(encoding="utf-8"),
        plotly=f"<script>{_plotly_script()}</script>" if writer.figures else "",
        script=(HERE / "script.js").read_text(encoding="utf-8"),
    )


def _plotly_script() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _headlines(report: Report) -> str:
    if not report.headlines:
        return ""
    return f'<dl class="cards">{"".join(_card(headline) for headline in report.headlines)}</dl>'


def _card(headline: Headline) -> str:
    unit = f' <span class="unit">{for_html(headline.unit)}</span>' if headline.unit else ""
    hint = f'<dd class="hint">{for_html(headline.hint)}</dd>' if headline.hint else ""
    value = for_html(format_headline(headline.value))
    return f'<div class="card"><dt>{for_html(headline.label)}</dt><dd class="value">{value}{unit}</dd>{hint}</div>'


def _section(section: Section, number: int, writer: _ItemWriter) -> str:
    paragraphs = "".join(f"<p>{for_html(part)}</p>" for part in section.text.split("\n\n") if part.strip())
    items = "".join(writer.write(item) for item in section.items)
    head = f"<h2>{for_html(section.title)}</h2>{paragraphs}"
    return f'<section id="section-{number}">{head}<div class="items">{items}</div></section>'


class _ItemWriter:
    """Turns items into html and counts what the page as a whole must know."""

    def __init__(self, detail: Detail) -> None:
        self.detail = detail
        self.figures = 0
        self.pictures = 0

    def write(self, item: Item) -> str:
        """One item as html. Raises ValueError from the item's own module."""
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
            return self._picture(item)
        if isinstance(item, Configuration):
            return self._configuration(item)
        return table_html(item, self.detail)

    def _figure(self, title: str, figure: Figure, kind: str) -> str:
        self.figures += 1
        spec = for_script({"data": figure.data, "layout": figure.layout})
        return (
            f'<figure class="item {kind}-item">{_heading(title)}'
            f'<div class="plot {kind}"></div><script type="application/json">{spec}</script>'
            f"<figcaption>{for_html(figure.caption)}</figcaption></figure>"
        )

    def _picture(self, picture: Picture) -> str:
        return (
            f'<figure class="item">{_heading(picture.title)}'
            f'<img src="{data_uri(picture.jpeg)}" alt="{for_html(picture.title)}">'
            f"<figcaption>{for_html(picture.caption)}</figcaption></figure>"
        )

    def _matches(self, picture: MatchPicture) -> str:
        self.pictures += 1
        caption = for_html(match_caption(picture, self.detail))
        if self.pictures > self.detail.pictures:
            left_out = "The picture is left out to keep the page small."
            return (
                f'<figure class="item">{_heading(picture.title)}<figcaption>{caption} {left_out}</figcaption></figure>'
            )
        source = data_uri(match_jpeg(picture, self.detail))
        key = '<span class="key inlier">inlier</span><span class="key outlier">outlier</span>'
        return (
            f'<figure class="item">{_heading(picture.title)}'
            f'<img src="{source}" alt="Matches: {for_html(picture.title)}">'
            f"<figcaption>{caption} {key if len(picture.inlier) else ''}</figcaption></figure>"
        )

    def _configuration(self, item: Configuration) -> str:
        text, limit = item.text, self.detail.text_characters
        if len(text) > limit:
            text = f"{text[:limit]}\n… {format_integer(len(text) - limit)} more characters"
        return f"<details><summary>{for_html(item.title)}</summary><pre>{for_html(text)}</pre></details>"


def _heading(title: str) -> str:
    return f"<h3>{for_html(title)}</h3>" if title else ""


# ----------------------------------------------------------------------------------------------------------------------
# Two images side by side with lines between matching points, as one JPEG.


INLIER_RGB = (36, 214, 160)
OUTLIER_RGB = (255, 96, 60)
LINE_OPACITY = 0.55
GAP_PX = 6
GAP_RGB = (128, 128, 128)
SUBPIXEL_BITS = 4  # cv2 draws at coordinates of 1/16 px
FARTHEST_PX = 20_000.0  # a point farther off than this would overflow cv2's fixed-point numbers


def match_jpeg(picture: MatchPicture, detail: Detail) -> bytes:
    """The picture as JPEG, at most `detail.picture_width_px` wide. Raises ValueError on images that are not RGB."""
    canvas, ends0, ends1 = _side_by_side(picture, detail.picture_width_px)
    finite = np.isfinite(ends0).all(axis=1) & np.isfinite(ends1).all(axis=1)
    inlier = np.asarray(picture.inlier, dtype=bool)
    # The wrong ones first, so that they do not hide the right ones; both keep their share of the lines.
    share = round(min(detail.lines, len(inlier)) * float(inlier.mean())) if len(inlier) else 0
    for wanted, colour in ((False, OUTLIER_RGB), (True, INLIER_RGB)):
        chosen = np.flatnonzero(finite & (inlier == wanted))
        chosen = chosen[spread(len(chosen), share if wanted else detail.lines - share)]
        canvas = _with_lines(canvas, ends0[chosen], ends1[chosen], colour)
    quality = [cv2.IMWRITE_JPEG_QUALITY, detail.jpeg_quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR), quality)
    if not done:
        raise ValueError(f"{picture.title}: the picture cannot be encoded")
    return encoded.tobytes()


def data_uri(jpeg: bytes) -> str:
    """A JPEG as the address of an image element."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def match_caption(picture: MatchPicture, detail: Detail) -> str:
    """How many matches there are, how many are inliers, and how many are drawn."""
    count, inliers = len(picture.inlier), int(np.sum(picture.inlier))
    if count == 0:
        return "No matches."
    text = f"{format_integer(count)} matches, {format_integer(inliers)} inliers ({100 * inliers / count:.0f} %)"
    return text + (f"; {format_integer(detail.lines)} drawn." if count > detail.lines else ".")


def _side_by_side(
    picture: MatchPicture, max_width: int
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2"]]:
    """Both images at one height with a gap between them, and the points on that canvas."""
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
