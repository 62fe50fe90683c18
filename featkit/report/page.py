"""The whole report as one html file that needs nothing else, not even a network."""

from __future__ import annotations

from pathlib import Path
from string import Template

from featkit.errors import NotWritableError
from featkit.report.bars import bars_figure
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
from featkit.report.curves import curves_figure
from featkit.report.detail import LEVELS, Detail
from featkit.report.escaping import for_html, for_script
from featkit.report.formatting import format_headline, format_integer
from featkit.report.histograms import histogram_figure
from featkit.report.pictures import data_uri, match_caption, match_jpeg
from featkit.report.scene3d import Figure, scene_figure
from featkit.report.tables import table_html
from featkit.store.artifact import write_text

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
