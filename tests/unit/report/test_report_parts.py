"""Tables, numbers, histograms and match pictures."""

from __future__ import annotations

import base64
from dataclasses import replace

import cv2
import numpy as np
import pytest

from featkit.core.content import (
    Curve,
    Curves,
    Gallery,
    Histogram,
    Link,
    MatchPicture,
    Report,
    Section,
    Table,
    Thumbnail,
)
from featkit.report.charts import curves_figure, histogram_figure
from featkit.report.page import INLIER_RGB, OUTLIER_RGB, match_caption, match_jpeg, render, thumbnail_jpeg
from featkit.report.tables import LEVELS, Detail, cell_number, decimals_for, format_cell, format_headline


def table_html(table: Table, detail: Detail = LEVELS[0]) -> str:
    """A page with nothing but the table."""
    return render(Report("r", sections=[Section("s", "", [table])]), detail)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (1234, "1234"),
        (12345, "12,345"),
        (-3, "-3"),
        (np.int64(7), "7"),
        (0.33689, "0.3369"),
        (np.float32(0.5), "0.5000"),
        (84.2, "84.20"),
        (3.0, "3"),
        (-1.5, "−1.500"),
        (1.5e-6, "1.50e-06"),
        (12345.678, "12,345.7"),
        (3.2e9, "3.20e+09"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
        (float("-inf"), "−∞"),
        (None, "–"),
        (True, "True"),
        ("a.jpg", "a.jpg"),
    ],
)
def test_cells_as_text(cell: object, text: str) -> None:
    assert format_cell(cell) == text  # type: ignore[arg-type]


def test_decimals_are_one_number_per_column() -> None:
    assert decimals_for([0.5, 120.0, None, "x", float("inf")]) == 1
    assert decimals_for([3, 4]) == 2
    assert format_cell(0.0012, decimals=1) == "0.0012"  # rather more digits than a false zero
    assert format_cell(0.0, decimals=1) == "0.0"


def test_headline_numbers_are_short() -> None:
    assert [format_headline(v) for v in (84.23, 0.33689, 3.8993, 8262, "19 / 19", 5.0)] == [
        "84.2",
        "0.337",
        "3.90",
        "8262",
        "19 / 19",
        "5",
    ]


def test_table_html() -> None:
    table = Table("T", ["name", "error"], [["a", 0.5], ["b", None], ["c", 12.25]], "note", highlight={1})
    page = table_html(table)
    assert '<th aria-sort="none"><button type="button">name</button></th>' in page
    assert '<th class="number" aria-sort="none">' in page
    assert '<td class="number" data-sort="0.5">0.50</td>' in page
    assert '<td class="number" data-sort="12.25">12.25</td>' in page
    assert '<tr class="highlight"><td>b</td><td class="number" data-sort="">–</td></tr>' in page
    assert page.count('class="highlight"') == 1
    assert "note" in page


def test_percentages_stand_and_sort_as_numbers() -> None:
    page = table_html(Table("", ["name", "recall"], [["a", "93.3 %"], ["b", "100.0 %"], ["c", None]]))
    assert '<th class="number" aria-sort="none"><button type="button">recall' in page
    assert '<td class="number" data-sort="93.3">93.3 %</td>' in page
    assert '<td class="number" data-sort="100">100.0 %</td>' in page
    mixed = table_html(Table("", ["x"], [["93.3 %"], ["none"]]))
    assert "<td>93.3 %</td>" in mixed, "a column with text is text, and sorts as it reads"


@pytest.mark.parametrize(
    ("cell", "number"),
    [("93.3 %", 93.3), ("5%", 5), ("−1.5 %", -1.5), ("1,200 %", 1200), (3, 3), (0.5, 0.5), (None, None), (True, None)]
    + [(text, None) for text in ("%", "a %", "5 px", "5", "1 % of 3", "٣ %", "")],
)
def test_what_number_a_cell_stands_for(cell: object, number: float | None) -> None:
    assert cell_number(cell) == number  # type: ignore[arg-type]


def test_table_edges() -> None:
    assert "nothing to list" in table_html(Table("T", ["a", "b"], []))
    assert "nothing to list" in table_html(Table("", [], []))
    infinite = table_html(Table("", ["x"], [[float("inf")], [-float("inf")], [float("nan")]]))
    assert 'data-sort="Infinity"' in infinite
    assert 'data-sort="-Infinity"' in infinite
    with pytest.raises(ValueError, match="a row of 1 cells under 2 columns"):
        table_html(Table("T", ["a", "b"], [["only"]]))
    long = table_html(Table("", ["n"], [[i] for i in range(100)]), replace(LEVELS[0], rows=10))
    assert long.count("<tr>") == 11
    assert "The first 10 of 100 rows are shown." in long


def test_a_cell_may_lead_to_another_page() -> None:
    table = Table("", ["page"], [[Link("a <b>", 'x/a b"c.html')], [None]])
    page = table_html(table)
    assert '<a href="x/a%20b%22c.html">a &lt;b&gt;</a>' in page
    assert format_cell(table.rows[0][0]) == "a <b>"


def counts_and_centres(values: np.ndarray, bins: int = 40) -> tuple[np.ndarray, np.ndarray]:
    (bar,) = histogram_figure(Histogram("h", "x", values, bins)).data
    return tuple(np.frombuffer(base64.b64decode(bar[a]["bdata"]), "<f4") for a in "yx")  # type: ignore[return-value]


def test_histogram_counts_everything_once() -> None:
    values = np.random.default_rng(1).exponential(size=1000)
    counts, centres = counts_and_centres(values, 20)
    np.testing.assert_array_equal(counts, np.histogram(values, 20)[0])
    assert len(centres) == 20


def test_histogram_of_whole_numbers_has_whole_bins() -> None:
    counts, centres = counts_and_centres(np.array([2, 2, 3, 5]))
    assert centres.tolist() == [2, 3, 4, 5]
    assert counts.tolist() == [2, 1, 0, 1]
    for top in (39, 40, 41, 1000):
        counts, _ = counts_and_centres(np.arange(top))
        assert len(counts) <= 40
        assert counts.sum() == top


@pytest.mark.parametrize("values", [[1.5], [0.3, np.nextafter(0.3, 1)], [2.0, 2.0], [1e30, 2e30]])
def test_histogram_of_hardly_any_spread(values: list[float]) -> None:
    counts, _ = counts_and_centres(np.array(values))
    assert counts.sum() == len(values)


def test_histogram_leaves_out_what_is_not_finite() -> None:
    figure = histogram_figure(Histogram("h", "x", np.array([1.5, np.nan, np.inf])))
    assert figure.caption == "1 values, median 1.500, mean 1.500, largest 1.500; 2 not finite and left out."
    assert histogram_figure(Histogram("h", "x", np.zeros(0))).data == []


def test_a_single_bar_has_room_and_its_value_below_it() -> None:
    for values, shown in ((np.full(9, 0.25), "0.2500"), (np.full(9, 7.0), "7"), (np.zeros(3), "0")):
        figure = histogram_figure(Histogram("h", "x", values))
        axis, (bar,) = figure.layout["xaxis"], figure.data
        middle = np.frombuffer(base64.b64decode(bar["x"]["bdata"]), "<f4")[0]
        assert axis["ticktext"] == [shown]
        assert axis["tickvals"] == pytest.approx([middle])
        low, high = axis["range"]
        assert high - low >= 8 * bar["width"][0]
        assert (low + high) / 2 == pytest.approx(middle)
    assert "range" not in histogram_figure(Histogram("h", "x", np.array([1.0, 2.0]))).layout["xaxis"]


def curve(name: str, y: list[float], faint: bool = False) -> Curve:
    return Curve(name, np.arange(len(y), dtype=float), np.array(y), faint)


def test_a_constant_curve_is_in_the_middle_of_its_axis() -> None:
    for level, log in ((0.001, False), (-40.0, False), (0.0, False), (1e-5, True)):
        axis = curves_figure(Curves("c", "x", "y", [curve("a", [level] * 5)], log)).layout["yaxis"]
        low, high = axis["range"]
        drawn = np.log10(level) if log else level
        assert (low + high) / 2 == pytest.approx(drawn)
        assert 0 < high - low <= max(2.0, abs(level))
        assert (axis["tickvals"], axis["ticktext"]) == ([level], [format_cell(level)])
    for curves in ([curve("a", [1, 2])], [curve("a", [1, 1]), curve("b", [2, 2])], [curve("a", [])]):
        assert "range" not in curves_figure(Curves("c", "x", "y", curves)).layout["yaxis"]


def test_every_line_is_named() -> None:
    from plotly.graph_objects import Figure

    curves = [curve("ours", [1, 2]), curve("<b>", [2, 3], True), curve("other", [3, 4], True)]
    figure = curves_figure(Curves("c", "x", "y", curves))
    Figure(data=figure.data, layout=figure.layout)  # raises on a property that plotly does not know
    assert not figure.layout["showlegend"], "plotly's own would cover curves"
    assert [line["name"] for line in figure.data] == ["&lt;b&gt;", "other", "ours"]
    assert [(key.colour, key.text) for key in figure.key] == [
        (figure.data[2]["line"]["color"], "ours: last 2"),
        (figure.data[0]["line"]["color"], "<b>, other"),
    ]
    assert ["<extra>&lt;b&gt;</extra>" in line["hovertemplate"] for line in figure.data] == [True, False, False]
    single = curves_figure(Curves("c", "x", "y", [curve("ours", [1, 2]), curve("theirs", [2, 3], True)]))
    assert [line["name"] for line in single.data] == ["theirs", "ours"]
    alone = curves_figure(Curves("c", "x", "y", [curve("ours", [1, 2])]))
    assert (alone.key, alone.caption) == ((), "ours: last 2.")


def test_more_curves_than_colours() -> None:
    """A colour that comes again is dashed, in the chart and in the key, which the page shows as text."""
    curves = Curves("c", "x", "y", [curve(f"<{number}>", [number, number + 1]) for number in range(9)])
    figure = curves_figure(curves)
    looks = [(line["line"]["color"], line["line"]["dash"]) for line in figure.data]
    assert len({*looks}) == 9
    assert looks[0][0] == looks[7][0]
    assert [(key.colour, "dash" if key.repeated else "solid") for key in figure.key] == looks
    page = render(Report("r", sections=[Section("s", "", [curves])]), LEVELS[0])
    for number, (colour, dash) in enumerate(looks):
        repeated = ' class="repeated"' if dash == "dash" else ""
        assert f'<li{repeated} style="--colour: {colour}">&lt;{number}&gt;: last {number + 1}</li>' in page


def test_small_pictures_with_points() -> None:
    image = np.full((300, 400, 3), 40, np.uint8)
    marked = Thumbnail(image, "a <b>", np.array([[100.0, 100], [300, 200], [np.nan, 1]]), np.array([True, False, True]))
    jpeg = thumbnail_jpeg(marked, replace(LEVELS[0], thumbnail_px=200))
    shown = cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).astype(int)
    assert shown.shape == (150, 200, 3)
    for (x, y), colour in (((49.75, 49.75), INLIER_RGB), ((149.75, 99.75), OUTLIER_RGB)):
        assert np.abs(shown[round(y), round(x)] - colour).max() < 90
    assert np.abs(shown[5:40, 5:190] - 40).max() < 12
    gallery = Gallery("g", [marked, Thumbnail(image, "failed", highlight=True)], "note", key=True)
    page = render(Report("r", sections=[Section("s", "", [gallery])]), LEVELS[0])
    assert page.count('<div class="shot') == 2
    assert page.count('class="shot highlight"') == 1
    assert "a &lt;b&gt;" in page
    assert 'class="key inlier"' in page
    less = render(Report("r", sections=[Section("s", "", [gallery])]), replace(LEVELS[0], thumbnails=1))
    assert "1 of 2 are shown" in less
    assert "nothing to show" in render(Report("r", sections=[Section("s", "", [Gallery("g", [])])]), LEVELS[0])


def picture(count: int = 0, inliers: int = 0, size1: tuple[int, int] = (300, 200)) -> MatchPicture:
    points = np.tile([[100.0, 100.0]], (count, 1))
    image1 = np.zeros((size1[1], size1[0], 3), np.uint8)
    return MatchPicture("p", np.zeros((200, 300, 3), np.uint8), image1, points, points, np.arange(count) < inliers)


def decode(item: MatchPicture) -> np.ndarray:
    jpeg = match_jpeg(item, LEVELS[0])
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@pytest.mark.parametrize(("inliers", "colour"), [(1, INLIER_RGB), (0, OUTLIER_RGB)])
def test_a_match_is_drawn_at_its_two_points(inliers: int, colour: tuple[int, int, int]) -> None:
    drawn = decode(picture(1, inliers)).astype(int)
    assert drawn.shape == (200, 606, 3)
    for x in (100, 300 + 6 + 100):
        assert np.abs(drawn[99:102, x - 1 : x + 2].mean(axis=(0, 1)) - colour).max() < 60
    assert drawn[150:].sum(axis=2)[:, :300].max() < 60  # nothing is drawn elsewhere


def test_pictures_of_any_shape_fit_the_width() -> None:
    for size in ((4000, 3000), (50, 3000), (3000, 20), (1, 1)):
        drawn = decode(picture(3, 2, size1=size))
        assert drawn.shape[1] <= LEVELS[0].picture_width_px + 1


def test_captions_and_empty_matches() -> None:
    assert match_caption(picture(), LEVELS[0]) == "No matches."
    assert decode(picture()).shape == (200, 606, 3)
    assert match_caption(picture(8, 6), LEVELS[0]) == "8 matches, 6 inliers (75 %)."
    assert match_caption(picture(1000, 500), LEVELS[0]) == "1000 matches, 500 inliers (50 %); 180 drawn."


def test_points_outside_the_image_or_not_finite_do_no_harm() -> None:
    item = picture(3, 3)
    item.points1[:] = [[np.nan, 0.0], [1e12, -1e12], [5.0, 5.0]]
    assert decode(item).shape == (200, 606, 3)


def test_a_grey_image_is_refused_with_the_title() -> None:
    with pytest.raises(ValueError, match=r"p: an image is uint8 \(200, 300\)"):
        match_jpeg(replace(picture(), image0=np.zeros((200, 300), np.uint8)), LEVELS[0])
