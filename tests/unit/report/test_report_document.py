"""The page as a whole: escaping, size, sameness, no address in the net, no plotly until it is needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from featkit.core.content import (
    Camera3D,
    Configuration,
    Headline,
    Histogram,
    MatchPicture,
    Report,
    Scene3D,
    Section,
    Table,
)
from featkit.core.errors import NotWritableError
from featkit.report.page import LIMIT_BYTES, render, write_report
from featkit.report.tables import LEVELS

NASTY = "</script><script>alert(1)</script> & \"q\" '$title' ü 東京 \u2028 \udce9.jpg"


def camera(name: str, group: str = "map") -> Camera3D:
    return Camera3D(name, np.eye(3), np.array([0.0, 0.0, 4.0]), 640, 480, 500.0, group)


def scene(count: int, cameras: list[Camera3D] | None = None) -> Scene3D:
    rng = np.random.default_rng(0)
    return Scene3D(rng.normal(size=(count, 3)), rng.integers(0, 256, (count, 3), dtype=np.uint8), cameras or [])


def picture(count: int, seed: int = 0, size: int = 64) -> MatchPicture:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    points = rng.uniform(0, size, (count, 2))
    return MatchPicture("pair", image, image, points, points, np.ones(count, dtype=bool))


class Elements(HTMLParser):
    """Collects element names and the text outside of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.words: list[str] = []
        self.json: list[str] = []
        self.kind = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.kind = tag if tag in ("script", "style") else ""
        if tag == "script" and ("type", "application/json") in attrs:
            self.kind = "json"

    def handle_endtag(self, tag: str) -> None:
        self.kind = ""

    def handle_data(self, data: str) -> None:
        if self.kind == "json":
            self.json.append(data)
        elif not self.kind:
            self.words.append(data)


def parse(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    return elements


def nasty_report(text: str) -> Report:
    items = [
        Scene3D(np.zeros((2, 3)), np.zeros((2, 3), np.uint8), [camera(text, text)], text),
        Histogram(text, text, np.array([1.0, 2.0])),
        Table(text, [text], [[text]], text, {0}),
        Configuration(text, text),
    ]
    return Report(text, text, [Headline(text, text, text, text)], [Section(text, text, items)])


def test_user_text_never_becomes_markup(tmp_path: Path) -> None:
    path = write_report(nasty_report(NASTY), tmp_path / "report.html")
    nasty, plain = parse(path.read_text(encoding="utf-8")), parse(render(nasty_report("plain"), LEVELS[0]))
    assert nasty.names == plain.names
    shown = NASTY.replace("\udce9", "?")
    assert "".join(nasty.words).count(shown) >= 12
    hover = next(t for t in json.loads(nasty.json[0])["data"] if "hovertext" in t)["hovertext"][0]
    # plotly reads a few tags and entities in labels, so there the text is escaped once more
    assert hover.startswith("<b>&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt; &amp; ")


def test_json_in_scripts_is_plain_ascii() -> None:
    page = render(nasty_report(NASTY), LEVELS[0])
    for block in re.findall(r'<script type="application/json">(.*?)</script>', page, flags=re.S):
        assert block.isascii()
        assert not set("<>&") & set(block)
        json.loads(block)


def test_two_million_points_stay_under_the_limit(tmp_path: Path) -> None:
    big = scene(2_000_000, [camera(f"{i:05d}.jpg") for i in range(3000)])
    one = write_report(Report("big", sections=[Section("s", "", [big])]), tmp_path / "one.html")
    assert one.stat().st_size <= LIMIT_BYTES
    assert "120,000 of 2,000,000 points shown" in one.read_text(encoding="utf-8")


@pytest.mark.slow
def test_many_scenes_share_the_limit(tmp_path: Path) -> None:
    big = scene(200_000, [camera(f"{i:05d}.jpg") for i in range(3000)])
    many = write_report(Report("big", sections=[Section("s", "", [big] * 4)]), tmp_path / "four.html")
    assert many.stat().st_size <= LIMIT_BYTES
    shown = re.findall(r"([\d,]+) of 200,000 points", many.read_text(encoding="utf-8"))
    assert len(shown) == 4
    assert 15_000 <= int(shown[0].replace(",", "")) < 120_000


@pytest.mark.slow
def test_many_pictures_stay_under_the_limit(tmp_path: Path) -> None:
    noise = picture(50, size=900)  # noise compresses worst
    path = write_report(Report("pictures", sections=[Section("s", "", [noise] * 40)]), tmp_path / "r.html")
    page = path.read_text(encoding="utf-8")
    assert path.stat().st_size <= LIMIT_BYTES
    assert page.count("<img") + page.count("left out to keep the page small") == 40
    assert page.count("<img") >= 2


def test_a_report_that_cannot_be_made_small_is_refused(tmp_path: Path) -> None:
    sections = [Section("s" * 2000)] * 100
    with pytest.raises(NotWritableError, match="leave out sections"):
        write_report(Report("r", sections=sections), tmp_path / "r.html", limit_bytes=100_000)
    assert list(tmp_path.iterdir()) == []


def test_empty_things_render(tmp_path: Path) -> None:
    items = [scene(0), picture(0), Histogram("h", "x", np.zeros(0)), Table("t", [], []), Configuration("c", "")]
    page = write_report(Report("r", sections=[Section("", "", items)]), tmp_path / "r.html").read_text()
    for words in ("No points; No cameras", "No matches.", "No values.", "nothing to list"):
        assert words in page


def test_a_page_without_figures_carries_no_plotly(tmp_path: Path) -> None:
    path = write_report(Report("r", sections=[Section("s", "text", [Table("t", ["a"], [[1]])])]), tmp_path / "r")
    assert path.stat().st_size < 50_000


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    report = Report("r", sections=[Section("s", "", [scene(500, [camera("a")]), picture(9)])])
    first = write_report(report, tmp_path / "a.html").read_bytes()
    assert write_report(report, tmp_path / "b.html").read_bytes() == first


def test_nothing_is_referenced_outside_the_page() -> None:
    page = render(Report("r", sections=[Section("s", "", [scene(5), picture(2)])]), LEVELS[0])
    start = page.index("<script>/**\n* plotly.js")
    without_plotly = page[:start] + page[page.index("</script>", start) :]
    assert not re.search(r"https?://|//cdn|@import|url\(", without_plotly)
    assert "default-src 'none'" in page
    assert "MathJax.js" not in page


def test_importing_the_package_does_not_import_plotly() -> None:
    code = "import sys, featkit.report; sys.exit('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_write_failure_names_the_path(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(NotWritableError, match=r"report\.html"):
        write_report(Report("r"), blocker / "report.html")
