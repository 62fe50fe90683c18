"""A synthetic report in a real browser: drawn, quiet, cut off from the net, dark on demand, sortable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import check_page, coloured_pixels, console_errors, open_page

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
from featkit.geometry.poses import look_at, rotation_matrix
from featkit.report.page import write_report

NASTY = "</script><img src=x onerror=alert(1)> & ü.jpg"


def ring_of_cameras(count: int) -> list[Camera3D]:
    cameras = []
    for i, angle in enumerate(np.linspace(0, np.pi, count)):
        centre = np.array([5 * np.cos(angle), -5 * np.sin(angle), 1.0])
        pose = look_at(centre, np.zeros(3), up=np.array([0.0, 0.0, 1.0]))
        group = ("map", "query", "truth")[i % 3]
        cameras.append(Camera3D(f"{NASTY} {i}", rotation_matrix(pose.qvec), pose.tvec, 640, 480, 600.0, group))
    return cameras


@pytest.fixture(scope="module")
def report_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    points = rng.uniform(-2, 2, (3000, 3))
    points[:10] *= 1e5
    scene = Scene3D(points, rng.integers(0, 256, (3000, 3), dtype=np.uint8), ring_of_cameras(9))
    image = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    ends = rng.uniform(0, 90, (20, 2))
    rows = [["img10", 3, 0.5], ["img9", 20, None], ["img2", 100, 12.25]]
    sections = [
        Section("Reconstruction", "Points and cameras.", [scene]),
        Section("Images", "", [Table("Images", ["name", "count", "error"], rows, "", {1})]),
        Section("Errors", "", [Histogram("Error", "px", rng.exponential(size=500))]),
        Section("Matches", "", [MatchPicture(NASTY, image, image, ends, ends, np.arange(20) < 15)]),
        Section("Configuration", "", [Configuration("all", "a: 1\n" + NASTY)]),
    ]
    report = Report("Synthetic", NASTY, [Headline("Registered", "9/9"), Headline("Points", 3000)], sections)
    return write_report(report, tmp_path_factory.mktemp("report") / "report.html")


def column(browser: Any, number: int) -> list[str]:
    cells = browser.find_elements("css selector", f"tbody tr td:nth-child({number + 1})")
    return [cell.text for cell in cells]


def click_header(browser: Any, number: int) -> str:
    header = browser.find_elements("css selector", "th")[number]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", header)
    header.find_element("css selector", "button").click()
    return str(header.get_attribute("aria-sort"))


def theme_colours(browser: Any) -> tuple[str, str, str]:
    script = (
        "const gd = document.querySelector('.plot.scene');"
        "return [getComputedStyle(document.body).backgroundColor, gd.layout.scene.bgcolor, gd.layout.font.color]"
    )
    return tuple(browser.execute_script(script))


def test_the_scene_is_drawn_and_nothing_leaves_the_file(browser: Any, report_path: Path) -> None:
    check_page(browser, report_path, scenes=1)
    assert browser.execute_script("return document.querySelectorAll('.plot.chart .bars .point').length") == 40
    assert browser.find_element("css selector", ".subtitle").text == NASTY


def test_the_page_asks_for_nothing_even_when_told_to(browser: Any, report_path: Path) -> None:
    open_page(browser, report_path)
    script = "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('sent'), () => done('refused'))"
    assert browser.execute_async_script(script) == "refused"
    assert any("Content Security Policy" in message for message in console_errors(browser))


def test_dark_and_back(browser: Any, report_path: Path) -> None:
    open_page(browser, report_path)
    browser.execute_script("localStorage.clear()")
    open_page(browser, report_path)
    eye = {"x": 0.4, "y": -0.9, "z": 0.3}
    browser.execute_async_script(
        "Plotly.relayout(document.querySelector('.plot.scene'), 'scene.camera.eye', arguments[0]).then(arguments[1])",
        eye,
    )
    light = theme_colours(browser)
    button = browser.find_element("id", "theme")
    button.click()
    dark = theme_colours(browser)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    scene = browser.find_element("css selector", ".plot.scene")
    assert coloured_pixels(browser, scene.find_element("css selector", "canvas")) > 500
    kept = browser.execute_script("return document.querySelector('.plot.scene').layout.scene.camera.eye")
    assert kept == eye  # the reader's view survives the change of colours
    button.click()
    assert theme_colours(browser) == light
    assert console_errors(browser) == []


def test_dark_follows_the_system(browser: Any, report_path: Path) -> None:
    open_page(browser, report_path)
    browser.execute_script("localStorage.clear()")
    for scheme in ("dark", "light"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        open_page(browser, report_path)
        assert browser.execute_script("return document.documentElement.dataset.theme") == scheme
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_tables_sort_by_number_name_and_gap(browser: Any, report_path: Path) -> None:
    open_page(browser, report_path)
    assert click_header(browser, 0) == "ascending"
    assert column(browser, 0) == ["img2", "img9", "img10"]
    assert click_header(browser, 1) == "ascending"
    assert column(browser, 1) == ["3", "20", "100"]
    assert click_header(browser, 1) == "descending"
    assert column(browser, 1) == ["100", "20", "3"]
    assert click_header(browser, 2) == "ascending"
    assert column(browser, 2) == ["0.50", "12.25", "–"]
    assert click_header(browser, 2) == "descending"
    assert column(browser, 2) == ["12.25", "0.50", "–"]


def test_pointing_at_a_camera_shows_its_name(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    forward = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # z up, looks along y; alone it stands in the middle
    cameras = [Camera3D(NASTY, forward, np.zeros(3), 640, 480, 500.0)]
    scene = Scene3D(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), cameras)
    path = write_report(Report("r", sections=[Section("s", "", [scene])]), tmp_path / "r.html")
    open_page(browser, path)
    plot = browser.find_element("css selector", ".plot.scene")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", plot)
    for down in range(-60, 61, 6):
        ActionChains(browser, duration=60).move_to_element_with_offset(plot, 0, down).perform()
        labels = browser.find_elements("css selector", ".hovertext")
        if labels:
            assert labels[0].get_attribute("textContent").startswith(NASTY)
            return
    pytest.fail("no label appeared")


def test_a_phone_needs_no_sideways_scrolling(browser: Any, report_path: Path) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        open_page(browser, report_path)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_empty_things_are_quiet(browser: Any, tmp_path: Path) -> None:
    image, none = np.zeros((40, 60, 3), np.uint8), np.zeros((0, 2))
    items = [
        Scene3D(np.zeros((0, 3)), np.zeros((0, 3), np.uint8)),
        Histogram("h", "x", np.zeros(0)),
        Table("t", ["a"], []),
        MatchPicture("p", image, image, none, none, np.zeros(0, dtype=bool)),
    ]
    open_page(browser, write_report(Report("r", sections=[Section("s", "", items)]), tmp_path / "r.html"))
    assert console_errors(browser) == []
    assert click_header(browser, 0) == "ascending"
    assert browser.find_element("css selector", "td.empty").text == "nothing to list"
