"""The page of `featkit view` in a real browser: clicks on a camera, a pair and a point, 100,000 points, a folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pycolmap
import pytest
from chromium import coloured_pixels, console_errors, open_page, requested_addresses
from synthetic_view import SIZE, TURNED, MadeView, localize_view, make_view

from featkit.core.listening import address_of, listening
from featkit.viewer.scene import ViewedScene
from featkit.viewer.server import ViewServer, write_folder

STATES = ["localized", "not localized", "uncertain"]


@contextmanager
def served(model: Path) -> Iterator[str]:
    """The address of a map's page."""
    with listening("127.0.0.1", 0) as bound:
        server = ViewServer(bound, ViewedScene(model))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield address_of(bound)
        server.shutdown()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeView:
    """Never written to."""
    return make_view(tmp_path_factory.mktemp("view") / "<b>scene & co")


@pytest.fixture(scope="module")
def page(made: MadeView) -> Iterator[str]:
    with served(made.model) as address:
        yield address


def visit(browser: Any, address: str) -> None:
    """Open the page and wait for the map."""
    until(browser, lambda: open_address(browser, address))
    until(browser, lambda: browser.execute_script("return document.documentElement.dataset.ready") == "true")


def open_address(browser: Any, address: str) -> bool:
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get("about:blank")
    browser.get(address)
    return True


def until(browser: Any, condition: Any) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20).until(lambda _: condition())


def click_on(browser: Any, kind: str, index: int) -> None:
    """A click of the mouse where a camera's centre or a point is drawn."""
    from selenium.webdriver import ActionChains

    place = browser.execute_script("return featkitView.screenOf(arguments[0], arguments[1])", kind, index)
    canvas = browser.find_element("id", "canvas")
    x, y = place["x"] - canvas.size["width"] / 2, place["y"] - canvas.size["height"] / 2
    ActionChains(browser).move_to_element_with_offset(canvas, round(x), round(y)).click().perform()


def shows(browser: Any, kind: str, which: str) -> bool:
    panel = browser.find_element("id", "panel")
    return (panel.get_attribute("data-kind"), panel.get_attribute("data-which")) == (kind, which)


def hit_at(browser: Any, kind: str, index: int) -> Any:
    """What a click there would choose; None where something else lies over the map."""
    script = (
        "const at = featkitView.screenOf(arguments[0], arguments[1]);"
        "return document.elementFromPoint(at.x, at.y)?.id === 'canvas' ? featkitView.pick(at.x, at.y) : null"
    )
    return browser.execute_script(script, kind, index)


def is_loaded(browser: Any, selector: str) -> bool:
    script = (
        "const all = [...document.querySelectorAll(arguments[0])];"
        "return all.length > 0 && all.every(i => i.complete && i.naturalWidth)"
    )
    return bool(browser.execute_script(script, selector))


def quiet(browser: Any, address: str) -> None:
    """No error, and nothing asked of anybody else."""
    assert console_errors(browser) == []
    own = (address, "blob:", "data:", "about:", "chrome:")
    assert [url for url in requested_addresses(browser) if not url.startswith(own)] == []


def test_the_map_and_its_photographs(browser: Any, page: str, made: MadeView) -> None:
    visit(browser, page)
    assert coloured_pixels(browser, browser.find_element("id", "canvas")) > 500
    panel = browser.find_element("id", "panel")
    assert panel.find_element("css selector", "h1").text == "<b>scene & co"
    until(browser, lambda: is_loaded(browser, "#panel .thumb img"))
    assert [one.text for one in panel.find_elements("css selector", ".thumb .name")] == made.names()
    quiet(browser, page)


def test_a_click_on_a_camera_and_on_a_pair(browser: Any, page: str, made: MadeView) -> None:
    model = pycolmap.Reconstruction(str(made.model))
    names = made.names()
    visit(browser, page)
    browser.find_element("id", "show-photos").click()  # centres would be hidden behind other photographs
    index = next(i for i in range(len(names)) if (hit_at(browser, "image", i) or {}).get("index") == i)
    click_on(browser, "image", index)
    until(browser, lambda: shows(browser, "image", str(index)))
    panel = browser.find_element("id", "panel")
    assert panel.find_element("css selector", "h1").text == names[index]
    until(browser, lambda: is_loaded(browser, "#panel .photo img"))
    (seen,) = [image.num_points3D for image in model.images.values() if image.name == names[index]]
    assert panel.get_attribute("data-keypoints") == str(seen)
    pairs = panel.find_elements("css selector", ".pair")
    assert len(pairs) == len(names) - 1
    other, inliers, matches = (int(pairs[0].get_attribute(f"data-{what}")) for what in ("image", "inliers", "matches"))
    assert f"{inliers} inliers of {matches} matches" in pairs[0].text
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", pairs[0])
    pairs[0].click()
    until(browser, lambda: shows(browser, "pair", f"{index},{other}"))
    stage = browser.find_element("id", "stage")
    until(browser, lambda: stage.get_attribute("data-lines") == str(inliers))
    assert coloured_pixels(browser, stage.find_element("css selector", "canvas")) > 5000
    stage.find_elements("css selector", "input")[1].click()  # the others too
    until(browser, lambda: stage.get_attribute("data-lines") == str(matches))
    browser.back()
    until(browser, lambda: shows(browser, "image", str(index)) and not stage.is_displayed())
    quiet(browser, page)


def test_a_click_on_a_point_shows_its_track(browser: Any, page: str, made: MadeView) -> None:
    model = pycolmap.Reconstruction(str(made.model))
    visit(browser, page)
    for layer in ("show-photos", "show-cameras"):
        browser.find_element("id", layer).click()
    ids = sorted(model.points3D)
    index = next(i for i in range(len(ids)) if (hit_at(browser, "point", i) or {}).get("index") == i)
    click_on(browser, "point", index)
    until(browser, lambda: shows(browser, "point", str(index)))
    point, names = model.points3D[ids[index]], made.names()
    assert browser.find_element("css selector", "#panel h1").text == f"Point {ids[index]}"
    facts = [one.text for one in browser.find_elements("css selector", "#panel dd")]
    seen_in = {element.image_id for element in point.track.elements}
    assert facts[:2] == [f"{len(seen_in)} photographs", str(point.track.length())]
    sights = browser.find_elements("css selector", "#panel .sight")
    assert len(sights) == point.track.length()
    expected = {
        model.images[e.image_id].name: model.images[e.image_id].points2D[e.point2D_idx].xy for e in point.track.elements
    }
    for sight in sights:
        image = int(sight.get_attribute("data-image"))
        x, y = expected[names[image]]
        across = [(SIZE[1] - y) / SIZE[1], x / SIZE[0]] if image == TURNED else [x / SIZE[0], y / SIZE[1]]
        ring = sight.find_element("css selector", ".frame .ring")
        found = [float(ring.value_of_css_property(side)[:-2]) for side in ("left", "top")]
        frame = sight.find_element("css selector", ".frame").size
        assert found == pytest.approx([across[0] * frame["width"], across[1] * frame["height"]], abs=1.5)
    until(browser, lambda: is_loaded(browser, "#panel .sight:first-child img"))
    quiet(browser, page)


def test_queries(browser: Any, tmp_path: Path) -> None:
    """In the list with their state, in the map until they are hidden; a click shows inliers and retrieved images."""
    made = make_view(tmp_path / "scene")
    results = localize_view(made)
    described = json.loads((results / "poses.json").read_text())["results"]
    with served(made.model) as address:
        visit(browser, address)
        rows = browser.find_elements("css selector", "#panel .pair[data-query]")
        assert [row.get_attribute("data-state") for row in rows] == ["localized", "not localized", "uncertain"]
        assert [row.find_element("css selector", ".state").text for row in rows] == STATES
        for row, one in zip(rows, described, strict=True):
            why = one["reason"] or one["uncertain"] or f"{one['inliers']} inliers of {one['matches_3d']} matches"
            assert row.find_element("css selector", ".name").text == one["name"]
            assert row.find_element("css selector", ".count").text == why
        assert "2 of 3 localized, 1 uncertain" in browser.find_element("id", "panel").text
        until(browser, lambda: is_loaded(browser, "#panel .pair img"))
        browser.find_element("id", "show-photos").click()
        browser.find_element("id", "show-cameras").click()  # the first query is where the first photograph is
        assert query_pixels(browser) > 30
        assert hit_at(browser, "query", 0)["kind"] == "query"
        browser.find_element("id", "show-queries").click()
        assert query_pixels(browser) == 0
        browser.find_element("id", "show-queries").click()
        index = hit_at(browser, "query", 0)["index"]
        click_on(browser, "query", 0)
        until(browser, lambda: shows(browser, "query", str(index)))
        browser.execute_script("location.hash = 'query=0'")
        until(browser, lambda: shows(browser, "query", "0"))
        panel = browser.find_element("id", "panel")
        assert panel.get_attribute("data-keypoints") == str(described[0]["inliers"])
        until(browser, lambda: is_loaded(browser, "#panel .photo img"))
        pairs = panel.find_elements("css selector", ".pair")
        other, inliers, matches = (
            int(pairs[0].get_attribute(f"data-{what}")) for what in ("image", "inliers", "matches")
        )
        assert len(pairs) == 4
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", pairs[0])
        pairs[0].click()
        until(browser, lambda: shows(browser, "query-pair", f"0,{other}"))
        stage = browser.find_element("id", "stage")
        until(browser, lambda: stage.get_attribute("data-lines") == str(inliers))
        stage.find_elements("css selector", "input")[1].click()
        until(browser, lambda: stage.get_attribute("data-lines") == str(matches))
        browser.execute_script("location.hash = 'query=1'")
        until(browser, lambda: shows(browser, "query", "1"))
        assert described[1]["reason"] in panel.text
        assert panel.get_attribute("data-keypoints") == str(described[1]["matches_3d"])
        quiet(browser, address)


def query_pixels(browser: Any) -> int:
    """How many pixels of the map have the colour of a query's camera or of an uncertain one."""
    import io

    import numpy as np
    from PIL import Image

    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    shot = browser.find_element("id", "canvas").screenshot_as_png
    pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)[80:]  # not of the tools
    near = [np.abs(pixels - colour).max(axis=2) < 12 for colour in ((0xE8, 0x70, 0x1A), (0xD9, 0xA5, 0x14))]
    return int(np.logical_or(*near).sum())


@pytest.mark.parametrize("width", [390, 850, 1280])
def test_nothing_is_cut(browser: Any, page: str, width: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        visit(browser, page)
        script = (
            "const box = document.querySelector(arguments[0]).getBoundingClientRect(); return [box.left, box.right]"
        )
        left, right = browser.execute_script(script, "#tools")
        edge = browser.execute_script(script, "#map")[1]
        assert 0 < left < right < edge
        for hash_ in ("", "image=0", "pair=0,1", "point=3"):
            browser.execute_script("location.hash = arguments[0]", hash_)
            until(
                browser,
                lambda kind=hash_.partition("=")[0] or "all": (
                    browser.find_element("id", "panel").get_attribute("data-kind") == kind
                ),
            )
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
            wide = "const p = document.getElementById('panel'); return p.scrollWidth <= p.clientWidth"
            assert browser.execute_script(wide), hash_
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_names_and_addresses_that_are_none(browser: Any, page: str) -> None:
    for wrong in (
        "image=99",
        "image=x",
        "pair=1",
        "point=-1",
        "query=0",
        "query-pair=0,0",
        "<img src=x onerror=alert(1)>",
    ):
        visit(browser, f"{page}/#{wrong}")
        assert shows(browser, "all", ""), wrong


def test_a_hundred_thousand_points_turn(browser: Any, tmp_path: Path) -> None:
    made = make_view(tmp_path / "large", points=100_000, frames=2, with_database=False)
    with served(made.model) as address:
        visit(browser, address)
        assert browser.execute_script("return featkitView.frames.points") == 100_000
        before = browser.execute_script("return [featkitView.frames.total, featkitView.screenOf('point', 5)]")
        browser.execute_async_script(
            "const done = arguments[0]; let left = 10;"
            "const step = () => { featkitView.turnBy(0.1); left-- ? requestAnimationFrame(step) : done(); }; step()"
        )
        after = browser.execute_script("return [featkitView.frames.total, featkitView.screenOf('point', 5)]")
        assert after[0] >= before[0] + 5
        assert abs(after[1]["x"] - before[1]["x"]) + abs(after[1]["y"] - before[1]["y"]) > 5
        until(browser, lambda: browser.execute_script("return featkitView.frames.points") == 100_000)  # at rest again
        assert coloured_pixels(browser, browser.find_element("id", "canvas")) > 5000
        quiet(browser, address)


def test_the_page_from_a_disk(browser: Any, made: MadeView, tmp_path: Path) -> None:
    page = write_folder(ViewedScene(made.model), tmp_path / "a page")
    open_page(browser, page)
    until(browser, lambda: is_loaded(browser, "#panel .thumb img"))
    browser.execute_script("location.hash = 'pair=0,1'")
    stage = browser.find_element("id", "stage")
    until(browser, lambda: int(stage.get_attribute("data-lines") or 0) > 0)
    assert coloured_pixels(browser, stage.find_element("css selector", "canvas")) > 5000
    browser.execute_script("location.hash = 'point=3'")
    until(browser, lambda: shows(browser, "point", "3"))
    assert console_errors(browser) == []
    assert all(url.startswith(("file:", "blob:", "data:", "about:")) for url in requested_addresses(browser))
