"""The command `featkit eval eth` on a rendered scene with exact cameras: results, reuse, and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import in_process
import numpy as np
import pytest
from in_process import refused
from typer.testing import Result

FAST = ("--workers", 1, "--max-keypoints", 800, "--device", "cpu")
SCENE = "fountain-P11"


def run(*arguments: object) -> Result:
    return in_process.run("eval", "eth", *arguments)


def results(*arguments: object) -> dict[str, Any]:
    return in_process.results("eval", "eth", *arguments)


@pytest.fixture(scope="module")
def made(small_rendered: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rendered photographs under the name of a scene of the benchmark. Never written to: see `root`."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(small_rendered.images, folder / SCENE / "images")
    for path in (small_rendered.camera, small_rendered.poses_file):
        shutil.copy(path, folder / SCENE)
    return folder


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "root"))


@pytest.fixture(scope="module")
def measured(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Two methods in one folder of results. Never written to."""
    out = tmp_path_factory.mktemp("out")
    return out, run("--root", made, "--features", "rootsift,sift", "--out", out, *FAST)


def test_maps_of_two_methods_are_exact(measured: tuple[Path, Result]) -> None:
    out, ran = measured
    assert ran.exit_code == 0, ran.output
    assert "6 images, the benchmark has 11" in ran.stderr
    for words in ("inlier matches", "AUC 5 deg", "rootsift", "camera.txt", "no CUDA", "they do not compare", "SDGMNet"):
        assert words in ran.stdout
    found = json.loads((out / "eth" / "results.json").read_text())
    assert found["setting"] == "eth"
    assert found["matcher"]["ratio"] == 0.8
    assert len(found["missing"]) == 8
    assert [(row["scene"], row["name"]) for row in found["rows"]] == [(SCENE, "rootsift"), (SCENE, "sift")]
    for row in found["rows"]:
        assert row["images"] == row["registered"] == 6
        assert (row["pairs"], row["pairs_by"], row["camera"]) == (15, "exhaustive", "camera.txt, fixed")
        assert row["points"] > 150
        assert row["observations"] == pytest.approx(row["points"] * row["track_length"])
        assert row["observations_per_image"] == pytest.approx(row["observations"] / 6)
        assert row["reprojection_px"] < 0.6
        assert 5 <= row["inlier_pairs"] <= 15
        assert row["inlier_matches"] > row["points"]
        assert row["dense_points"] is None
        assert row["centre_error_mm_mean"] < row["centre_error_mm_max"] < 15
        assert row["rotation_error_deg_max"] < 0.3
        assert (row["pose_pairs"], row["pose_pairs_failed"], len(row["per_image"])) == (15, 0, 6)
        assert row["pose_auc"][0] > 0.7
        assert row["pose_auc"] == sorted(row["pose_auc"])
        assert row["reason"] is None
    assert {row["on_these_images"] for row in found["published"]} == {False}
    assert {row["scene"] for row in found["published"]} == {SCENE}
    page = (out / "eth" / "report.html").read_text()
    for words in (f"{SCENE}, rootsift", f"{SCENE}, sift", "relative poses", "single", "inlier pairs", "Roman_Forum"):
        assert words in page
    assert page.count("data:image/jpeg") == 4


def test_results_are_reused_and_methods_kept_separate(
    root: Path, measured: tuple[Path, Result], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(measured[0], tmp_path / "out"))
    before = json.loads((out / "eth" / "results.json").read_text())["rows"][0]
    arguments = ("--root", root, "--out", out, *FAST)
    again = run(*arguments)
    assert again.exit_code == 0, again.output
    for words in ("6 of 6 images are done already", "15 of 15 pairs are done", "database: done", "map: done already"):
        assert words in again.stderr
    (row,) = json.loads((out / "eth" / "results.json").read_text())["rows"]
    timeless = {key: value for key, value in row.items() if key not in ("seconds", "map")}
    assert timeless == {key: before[key] for key in timeless}
    # Another ratio: the same features, another map.
    stricter = run(*arguments, "--ratio", 0.6)
    assert "6 of 6 images are done already" in stricter.stderr
    assert "pairs are done" not in stricter.stderr
    assert "map: done already" not in stricter.stderr
    (strict,) = json.loads((out / "eth" / "results.json").read_text())["rows"]
    assert strict["inlier_matches"] < row["inlier_matches"]
    features = out / "predictions" / SCENE
    assert len(list(features.glob("rootsift-*"))) == 1
    assert len(list(features.glob("rootsift-*/matches-*/map-*/sparse/0"))) == 2
    # What is only measured differently maps nothing; other cameras map the same matches.
    assert "map: done already" in run(*arguments, "--set", "pose_thresholds_deg=[2]").stderr
    assert len(results(*arguments, "--set", "pose_thresholds_deg=[2]")["rows"][0]["pose_auc"]) == 1
    free = results(*arguments, "--set", "known_cameras=false", "--set", "map.camera.mode=single")["rows"][0]
    assert free["camera"] == "SIMPLE_RADIAL, EXIF or guessed, refined"
    assert len(list(features.glob("rootsift-*/matches-*"))) == 2
    assert len(list(features.glob("rootsift-*/matches-*/map-*"))) == 3
    # A changed configuration of features has a place of its own.
    fewer = results(*arguments[:-4], "--max-keypoints", 300, "--device", "cpu")["rows"][0]
    assert fewer["keypoints_per_image"] <= 300
    assert fewer["fingerprint"] != row["fingerprint"]
    assert len(list(features.glob("rootsift-*"))) == 2


def test_unrelated_images_are_not_registered(root: Path, tmp_path: Path) -> None:
    """Two unrelated photographs are not in the map, and their pairs fail."""
    noise = np.random.default_rng(0)
    for name in ("0001.jpg", "0004.jpg"):
        cv2.imwrite(str(root / SCENE / "images" / name), noise.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    (row,) = results("--root", root, "--out", tmp_path / "out", *FAST)["rows"]
    assert row["registered"] == 4
    assert (row["pose_pairs"], row["pose_pairs_failed"]) == (15, 9)
    assert row["pose_auc"][3] < 6 / 15 + 1e-9
    assert sum(error is None for _, _, error in row["pair_errors_deg"]) == 9


def test_a_scene_that_cannot_be_mapped(root: Path, tmp_path: Path) -> None:
    """Alone it gives exit code 4; together with a scene that can be mapped, a row of zeros."""
    blank = root / "blank" / "images"
    blank.mkdir(parents=True)
    for number in range(3):
        cv2.imwrite(str(blank / f"{number}.png"), np.full((300, 400), 80 + number, np.uint8))
    arguments = ("--root", root, "--out", tmp_path / "out", *FAST)
    refusal = run(*arguments, "--scenes", "blank", "--quiet")
    assert refusal.exit_code == 4
    assert "no two of 3 images match" in refusal.stderr
    ran = run(*arguments, "--scenes", f"blank,{SCENE}")
    assert ran.exit_code == 0, ran.output
    assert "nothing came out" in ran.stdout
    empty, whole = json.loads((tmp_path / "out" / "eth" / "results.json").read_text())["rows"]
    assert whole["registered"] == 6
    for column in ("registered", "points", "observations", "inlier_pairs", "inlier_matches", "models"):
        assert empty[column] == 0
    for column in ("track_length", "reprojection_px", "pose_auc", "centre_error_mm_mean"):
        assert empty[column] is None
    assert empty["reason"]
    assert "Nothing came out" in (tmp_path / "out" / "eth" / "report.html").read_text()


def test_errors_are_one_line(root: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out", "--quiet")
    refused(run("--root", tmp_path / "none", *out), 3, "no such folder", "Strecha-Fountain.zip")
    refused(run("--root", root, "--scenes", "Alamo,x", *out), 3, "'Alamo', 'x'", "images.Alamo.tar", f"are: {SCENE}")
    refused(run("--root", root, "--features", "rootsfit", *out), 2, "did you mean 'rootsift'")
    refused(run("--root", root, "--setting", "eth-scfeat-80", *out), 2, "did you mean 'eth-scfeat-080'")
    refused(run("--root", root, "--setting", "rootsift", *out), 2, "is no setting of a benchmark", "'eth'")
    refused(run("--root", root, "--setting", "aachen", *out), 2, "is of the benchmark 'aachen'", "begin with 'eth'")
    refused(run("--root", root, "--set", "max_eror=3", *out), 2, "unknown key")
    refused(run("--root", root, "--features", "sift,rootsift", "--weights", "hynet", *out), 2, "--weights")
    shutil.rmtree(root / SCENE / "images")
    (root / SCENE / "images").mkdir()
    refused(run("--root", root, *out), 3, "no images in it", "has 11", "Strecha-Fountain.zip")
    cv2.imwrite(str(root / SCENE / "images" / "0000.jpg"), np.zeros((30, 40), np.uint8))
    refused(run("--root", root, *out), 3, "only one image")
    (root / SCENE / "images" / "0001.jpg").write_bytes(b"\xff\xd8\xff broken")
    broken = run("--root", root, *out)
    assert broken.exit_code == 3
    assert "0001.jpg: not an image" in broken.stderr
    assert not (tmp_path / "out" / "eth").exists()
