"""`featkit eval localization` on a rendered scene with exact poses: accuracy, reuse, and usage errors."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import in_process
import pytest
from in_process import refused

from featkit.demo.scene import RenderedConfig, render_scene
from featkit.io.lists import read_poses, write_poses

FAST = ("--workers", 1, "--max-keypoints", 600, "--device", "cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene in the benchmark's layout: images/, poses.txt, camera.txt. Never written to: see `scene`."""
    folder = tmp_path_factory.mktemp("held_out") / "wall"
    config = RenderedConfig(num_map=8, num_queries=0, width=320, height=240, texel_m=0.02, supersampling=1)
    rendered = render_scene(config, folder)
    shutil.copyfile(rendered.poses_file, folder / "poses.txt")
    shutil.copyfile(rendered.camera, folder / "camera.txt")
    return folder


@pytest.fixture
def scene(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "wall"))


def results(*arguments: object) -> dict[str, Any]:
    return in_process.results("eval", "localization", *arguments)


def test_held_out_photographs_are_localized(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--root", scene, "--out", out, "--features", "rootsift,sift", *FAST)
    found = results(*arguments)
    assert [row["name"] for row in found["rows"]] == ["rootsift", "sift"]
    names = sorted(read_poses(scene / "poses.txt"))
    for row in found["rows"]:
        assert sorted(row["errors"]) == [names[3], names[7]]
        assert row["map"]["registered"] == 6
        assert row["median_m"] < 0.02
        assert row["median_deg"] < 0.2
        assert list(row["recall"].values()) == [1, 1, 1]
    assert json.loads((out / "localization" / "results.json").read_text()) == found
    page = (out / "localization" / "report.html").read_text()
    assert names[3] in page
    again = in_process.run("eval", "localization", *arguments)
    assert again.stderr.count("6 of 6 images are done already") == 2
    assert again.stderr.count("2 of 2 images are done already") == 2
    # Another rule of matching has a place of its own.
    stricter = results(*arguments, "--ratio", 0.6)
    assert stricter["rows"][0]["map"]["points"] < found["rows"][0]["map"]["points"]
    assert len(list((out / "localization" / "wall").glob("rootsift-*"))) == 2


def test_the_map_uses_true_poses_and_ignores_queries(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong true pose of a query changes only its error. Run from another folder, with default paths."""
    monkeypatch.chdir(tmp_path)
    poses = read_poses(scene / "poses.txt")
    names = sorted(poses)
    poses[names[3]] = poses[names[0]]
    (scene / "poses.txt").unlink()
    write_poses(scene / "poses.txt", poses)
    (row,) = results("--root", scene.relative_to(tmp_path), *FAST)["rows"]
    page = Path("featkit-eval/localization/report.html").read_text()
    links = [link for link in re.findall(r'href="([^"#]+report.html)"', page) if "://" not in link]
    assert links
    assert all(Path("featkit-eval/localization", link).is_file() for link in links)
    assert row["errors"][names[3]]["m"] > 0.3
    assert row["errors"][names[7]]["m"] < 0.02


def test_usage_errors(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    poses = read_poses(scene / "poses.txt")
    few = {name: poses[name] for name in sorted(poses)[:3]}
    (scene / "poses.txt").unlink()
    write_poses(scene / "poses.txt", few)
    refused(
        in_process.run("eval", "localization", "--root", scene, "--out", out, *FAST),
        3,
        "poses.txt: has 3 images; too few",
    )
    (scene / "camera.txt").unlink()
    refused(in_process.run("eval", "localization", "--root", scene, "--out", out, *FAST), 3, "camera.txt: missing")
    refused(in_process.run("eval", "localization", "--root", scene / "no", "--out", out, *FAST), 3, "no such folder")
    refused(
        in_process.run("eval", "localization", "--root", scene, "--features", ",", "--out", out),
        2,
        "comma-separated names",
    )
    assert not out.exists()
