"""The reports that the pipelines write, opened in a real browser: drawn, quiet, and asking for nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pycolmap
import pytest
from chromium import check_page

Command = Callable[..., Any]


def texts(browser: Any, selector: str) -> list[str]:
    return [element.text for element in browser.find_elements("css selector", selector)]


def test_report_of_a_map(browser: Any, mapped_scene: Any) -> None:
    check_page(browser, mapped_scene.output / "report.html", scenes=1)
    body = browser.find_element("css selector", "body").text
    assert "6 / 6" in body
    assert all(name in body for name in mapped_scene.rendered.poses)
    assert browser.find_elements("css selector", "figure > img"), "no picture of matches"
    model = pycolmap.Reconstruction(str(mapped_scene.output / "sparse" / "0"))
    seen = {image.name: image.num_points3D for image in model.images.values()}
    assert texts(browser, ".shot") == [f"{name}: {count:,} points" for name, count in sorted(seen.items())]
    for grid in browser.find_elements("css selector", ".grid"):
        width = "return [arguments[0].scrollWidth, arguments[0].clientWidth]"
        assert len({*browser.execute_script(width, grid)}) == 1, "a column is cut"
    for scheme in ("light", "dark"):
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), scheme
        browser.find_element("id", "theme").click()


def test_report_of_a_localization(browser: Any, mapped_scene: Any, featkit_command: Command, tmp_path: Path) -> None:
    queries = tmp_path / "queries"
    shutil.copytree(mapped_scene.folder / "queries", queries)
    import cv2
    import numpy as np

    grey = np.full((300, 400), 128, np.uint8)
    cv2.imwrite(str(queries / "<b>&nothing.png"), grey)
    ran = featkit_command("localize", mapped_scene.folder, "--queries", queries, "--out", tmp_path / "out", "-q")
    assert ran.code == 0, ran.err
    check_page(browser, tmp_path / "out" / "report.html", scenes=1)
    body = browser.find_element("css selector", "body").text
    assert "2 / 3" in body
    assert "<b>&nothing.png" in body
    described = json.loads((tmp_path / "out" / "poses.json").read_text())["results"]
    rows = browser.find_elements("css selector", "figure:has(.gallery)")
    found = {one["name"]: one for one in described if one["localized"]}
    shown = [row.find_element("css selector", "h3").text for row in rows]
    assert shown == sorted(found, key=lambda name: (not found[name]["uncertain"], name)), "uncertain ones first"
    for row, name in zip(rows, shown, strict=True):
        one = found[name]
        own, *others = [shot.text for shot in row.find_elements("css selector", ".shot")]
        assert own == f"{one['inliers']} inliers of {one['matches_3d']} matches"
        counts = [tuple(map(int, re.fullmatch(r"\S+: (\d+) inliers of (\d+)", text).groups())) for text in others]
        assert len(counts) == min(5, one["retrieved"])
        assert counts == sorted(counts, key=lambda count: -count[0])
        assert all(0 <= inliers <= matches for inliers, matches in counts)
        assert counts[0][0] <= one["inliers"] <= 1.2 * sum(inliers for inliers, _ in counts)


@pytest.mark.slow
def test_report_of_a_small_demo(browser: Any, tmp_path: Path) -> None:
    from featkit.core.config import load_pipeline
    from featkit.demo.scene import RenderedConfig

    demo = load_pipeline("demo")
    scene = RenderedConfig(width=320, height=240, num_map=4, num_queries=1, texel_m=0.02)
    result = demo.run(demo.DemoConfig(scene=scene, max_keypoints=1000), tmp_path / "demo")
    assert result.metrics["map"]["registered"] == 4
    check_page(browser, result.report, scenes=1)
    assert "4 / 4" in browser.find_element("css selector", "body").text
