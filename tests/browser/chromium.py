"""What a report must stand in a real browser. Tests use it as `from chromium import check_page`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

INSIDE = ("file:", "data:", "blob:", "about:", "chrome:")


def open_page(browser: Any, path: Path, timeout_s: float = 90.0) -> None:
    """Open a report from its file and wait until all its figures are drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    for kind in ("browser", "performance"):
        browser.get_log(kind)  # forget what other pages did
    browser.get(path.resolve().as_uri())
    WebDriverWait(browser, timeout_s).until(
        lambda b: b.execute_script("return document.documentElement.dataset.ready") == "true"
    )


def console_errors(browser: Any) -> list[str]:
    """Messages of the worst kind on the console since the page was opened."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def requested_addresses(browser: Any) -> list[str]:
    """Every address the page asked for since it was opened."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event for event in events if event["method"] == "Network.requestWillBeSent"]
    return [event["params"]["request"]["url"] for event in sent]


def coloured_pixels(browser: Any, element: Any) -> int:
    """How many pixels of an element's screenshot differ clearly from its most frequent colour."""
    from PIL import Image

    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    shot = np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB"))
    pixels = shot.reshape(-1, 3).astype(int)
    values, counts = np.unique(pixels, axis=0, return_counts=True)
    return int((np.abs(pixels - values[counts.argmax()]).max(axis=1) > 24).sum())


def check_page(browser: Any, path: Path, scenes: int | None = None) -> None:
    """Assert that a report draws all its 3D scenes, reports no error and asks for nothing outside its file."""
    open_page(browser, path)
    found = browser.find_elements("css selector", ".plot.scene")
    assert scenes is None or len(found) == scenes
    for scene in found:
        canvas = scene.find_elements("css selector", ".gl-container canvas, #scene canvas")
        assert canvas, "the 3D scene has no WebGL canvas"
        assert coloured_pixels(browser, canvas[0]) > 500, "the 3D scene is empty"
    broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert browser.execute_script(broken) == 0, "a picture is broken"
    assert console_errors(browser) == []
    outside = [url[:200] for url in requested_addresses(browser) if not url.startswith(INSIDE)]
    assert outside == []
