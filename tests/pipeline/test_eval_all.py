"""`featkit eval all`: finds the data, runs the benchmarks they allow, and reports them on one page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import in_process
import pytest
from in_process import refused
from synthetic_patches import write_hpatches
from warped_sequences import write_sequence

from featkit.demo.scene import RenderedConfig, render_scene

FAST = ("--workers", 1, "--max-keypoints", 400, "--device", "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sequences, a scene with true poses, and a set of patches in one folder. Never written to."""
    folder = tmp_path_factory.mktemp("data")
    write_sequence(folder / "warped", "stone", seed=1)
    config = RenderedConfig(num_map=8, num_queries=0, width=320, height=240, texel_m=0.02, supersampling=1)
    rendered = render_scene(config, folder / "posed" / "wall")
    shutil.copyfile(rendered.poses_file, folder / "posed" / "wall" / "poses.txt")
    shutil.copyfile(rendered.camera, folder / "posed" / "wall" / "camera.txt")
    write_hpatches(folder)
    return folder


def results(*arguments: object) -> dict[str, Any]:
    return in_process.results("eval", "all", *arguments)


def test_all_available_benchmarks_on_one_page(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--data", data, "--features", "rootsift,sift", "--out", out, *FAST)
    found = results(*arguments)
    expected = ["hpatches: warped", "oxford: warped", "localization", "pose", "patches: hpatches-release"]
    assert list(found["benchmarks"]) == expected
    assert found["failed"] == {}
    assert json.loads((out / "results.json").read_text()) == found
    for folder in ("hpatches", "oxford", "localization", "pose"):
        of_it = json.loads((out / folder / "results.json").read_text())
        assert of_it in found["benchmarks"].values()
        assert (out / folder / "report.html").is_file()
    standing = {(one["method"], one["measure"]): one["value"] for one in found["standings"]}
    score = found["benchmarks"]["hpatches: warped"]["methods"][1]["groups"]["overall"]["mma_score"]
    assert standing["sift", "MMAScore warped, %"] == pytest.approx(100 * score)
    assert {method for method, _ in standing} == {"rootsift", "sift"}
    assert len({measure for _, measure in standing}) >= 8
    page = (out / "report.html").read_text()
    for words in ("All benchmarks", "rootsift, worst: ", "hpatches/report.html", "localization/report.html", "Methods"):
        assert words in page
    again = in_process.run("eval", "all", *arguments, "--only", "hpatches,oxford")
    assert again.exit_code == 0, again.output
    assert again.stderr.count("6 of 6 images are done already") == 4
    assert "MMAScore warped" in again.stdout
    assert "localization" not in json.loads((out / "results.json").read_text())["benchmarks"]


def test_a_failed_benchmark_is_listed_and_the_others_continue(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another folder, with relative paths."""
    monkeypatch.chdir(tmp_path)
    broken = Path(shutil.copytree(data, tmp_path / "broken"))
    (broken / "warped" / "stone" / "H1to3p").unlink()
    found = results("--data", "broken", "--out", "out", "--only", "hpatches,localization", *FAST)
    assert list(found["benchmarks"]) == ["localization"]
    assert "H1to3p" in found["failed"]["hpatches: warped"]
    assert "H1to3p" in (tmp_path / "out" / "report.html").read_text()
    ran = in_process.run("eval", "all", "--data", broken, "--out", tmp_path / "x", "--only", "hpatches", *FAST)
    assert ran.exit_code == 3
    assert "H1to3p" in ran.stderr


def test_usage_errors(data: Path, tmp_path: Path) -> None:
    arguments = ("eval", "all", "--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    refused(in_process.run(*arguments, "--data", tmp_path / "empty"), 3, "nothing in it that a benchmark runs on")
    refused(in_process.run(*arguments, "--data", tmp_path / "no"), 3, "no such folder")
    refused(in_process.run(*arguments, "--data", data, "--only", "hpatch"), 2, "no benchmark 'hpatch'; one of hpatches")
    refused(in_process.run(*arguments, "--data", data / "warped", "--only", "rome"), 2, "allow none of these")
    refused(in_process.run(*arguments, "--data", data, "--features", "rootsfit"), 2, "rootsift")
    assert not (tmp_path / "out").exists()
