"""The command `featkit eval pose`: tables, reports, reuse, and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import in_process
import numpy as np
import pytest
from in_process import refused
from typer.testing import Result

from featkit.evaluation.metrics import error_auc
from featkit.geometry.poses import rotation_matrix
from featkit.io.features import open_features
from featkit.io.lists import read_pairs

FEW_DRAWS = ("--set", "estimators.poselib.max_iterations=5000")
FAST = ("--workers", 1, "--max-keypoints", 300, "--device", "cpu", *FEW_DRAWS)


def run(*arguments: object) -> Result:
    return in_process.run("eval", "pose", *arguments)


def results(*arguments: object) -> dict[str, Any]:
    return in_process.results("eval", "pose", *arguments)


def as_megadepth(rendered: Any, root: Path) -> Path:
    """Three pairs of the rendered scene in glue-factory's layout of MegaDepth-1500."""
    shutil.copytree(rendered.images, root / "images")
    focal, _, cx, cy = rendered.intrinsics.params
    k = f"{focal} 0 {cx} 0 {focal} {cy} 0 0 1"
    lines = []
    names = sorted(rendered.poses)
    for first, second in ((0, 1), (2, 3), (5, 4)):
        pose0, pose1 = rendered.poses[names[first]], rendered.poses[names[second]]
        rotation = rotation_matrix(pose1.qvec) @ rotation_matrix(pose0.qvec).T
        numbers = (*rotation.ravel(), *(pose1.tvec - rotation @ pose0.tvec))
        lines.append(f"{names[first]} {names[second]} {k} {k} {' '.join(map(repr, map(float, numbers)))}\n")
    (root / "pairs_calibrated.txt").write_text("".join(lines))
    return root


def test_from_images_to_a_page(rendered_copy: Path, small_rendered: Any, tmp_path: Path) -> None:
    out, listed = tmp_path / "out", as_megadepth(small_rendered, tmp_path / "megadepth1500")
    ran = run(
        "--root", rendered_copy, "--root", listed, "--features", "rootsift, sift", "--out", out, "--max-pairs", 4, *FAST
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    for words in ("PoseLib 5°", "OpenCV 20°", "AUC", "precision", "megadepth1500", "viewing directions", "rootsift"):
        assert words in ran.stdout
    found = json.loads((out / "pose" / "results.json").read_text())
    assert [scene["name"] for scene in found["scenes"]] == ["scene", "megadepth1500"]
    assert sum(found["scenes"][0]["drawn"].values()) == found["scenes"][0]["pairs"] == 4
    for method in found["methods"]:
        assert method["scenes"]["megadepth1500"]["pairs"] == 3
        assert method["overall"]["pairs"] == len(method["pairs"]) == 7
        assert method["overall"]["precision"] > 0.4
        for name, floor in (("poselib", 0.7), ("opencv", 0.3)):
            score = method["overall"]["estimators"][name]
            assert score["auc"][2] > floor, name
            assert score["median_deg"] < 5
            errors = []
            for pair in method["pairs"]:
                one = pair["estimators"][name]
                values = (one["rotation_deg"], one["translation_deg"])
                errors.append(np.inf if None in values else max(values))
            assert score["auc"] == pytest.approx(error_auc(errors, (5, 10, 20)), abs=1e-5)
    assert [pair["images"] for pair in found["methods"][0]["pairs"]] == [
        pair["images"] for pair in found["methods"][1]["pairs"]
    ]
    page = (out / "pose" / "report.html").read_text()
    for words in ("rootsift, worst: ", "sift, best: ", "All pairs", "max_error_px", "pairs_calibrated.txt"):
        assert words in page
    assert page.count("data:image/jpeg") == 4
    kept = read_pairs(out / "predictions" / "scene" / "pose-pairs.txt")
    assert [[pair.name0, pair.name1] for pair in kept] == [p["images"] for p in found["methods"][0]["pairs"][:4]]
    assert not any(path.suffix == ".jpg" for path in out.rglob("*"))  # images are read where they lie


def test_predictions_are_reused_unless_outdated(rendered_copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--root", rendered_copy, "--out", out, "--max-pairs", 3, *FAST)
    first = results(*arguments)
    features = next((out / "predictions" / "scene").glob("rootsift-*/features.h5"))
    again = run(*arguments, "--set", "estimators.poselib.max_error_px=4", "--set", "estimators.opencv.method=magsac")
    assert again.exit_code == 0, again.output
    images = {name for pair in first["methods"][0]["pairs"] for name in pair["images"]}
    assert f"extract: {len(images)} of {len(images)} images are done already" in again.stderr
    assert "match: 3 of 3 pairs are done already" in again.stderr
    second = json.loads((out / "pose" / "results.json").read_text())
    for old, new in zip(first["methods"][0]["pairs"], second["methods"][0]["pairs"], strict=True):
        assert (old["images"], old["matches"], old["precision"]) == (new["images"], new["matches"], new["precision"])
        assert old["estimators"]["poselib"]["inliers"] < new["estimators"]["poselib"]["inliers"]
    # Another rule has matches of its own, another size of images features of its own; a seed draws other pairs.
    stricter = results(*arguments, "--ratio", 0.7)
    assert stricter["methods"][0]["overall"]["matches"] < first["methods"][0]["overall"]["matches"]
    assert len(list(features.parent.glob("mutual-nn-*"))) == 2
    other = results(*arguments, "--seed", 3, "--resize-max", 200)
    assert [p["images"] for p in other["methods"][0]["pairs"]] != [p["images"] for p in first["methods"][0]["pairs"]]
    assert other["methods"][0]["fingerprint"] != first["methods"][0]["fingerprint"]
    assert len(list((out / "predictions" / "scene").glob("rootsift-*"))) == 2
    with open_features(features) as store:
        assert set(store.names()) == images


def test_given_pairs_and_blank_images(rendered_copy: Path, tmp_path: Path) -> None:
    import cv2

    names = sorted(path.name for path in (rendered_copy / "images").iterdir())
    cv2.imwrite(str(rendered_copy / "images" / names[2]), np.full((300, 400, 3), 128, np.uint8))
    listed = tmp_path / "mine.txt"
    listed.write_text(f"{names[0]} {names[1]}\n{names[1]} {names[2]}\n")
    arguments = ("--root", rendered_copy, "--pairs", listed, "--out", tmp_path / "out", *FAST)
    found = results(*arguments)
    (method,) = found["methods"]
    assert [pair["images"] for pair in method["pairs"]] == [[names[0], names[1]], [names[1], names[2]]]
    blank = method["pairs"][1]
    assert (blank["keypoints"][1], blank["matches"], blank["precision"]) == (0, 0, 0)
    for one in blank["estimators"].values():
        assert one == {"rotation_deg": None, "translation_deg": None, "inliers": 0}
    for score in method["overall"]["estimators"].values():
        assert score["failed"] == 1
        assert max(score["auc"]) <= 0.5


def test_errors_are_one_line(rendered_copy: Path, tmp_path: Path) -> None:
    root, out = ("--root", rendered_copy), ("--out", tmp_path / "out")
    refused(run("--root", tmp_path / "none", *out), 3, "no such folder")
    refused(run(*root, "--features", "rootsfit", *out), 2, "did you mean 'rootsift'")
    refused(run(*root, "--set", "estimators.poselib.max_eror_px=1", *out), 2, "did you mean 'max_error_px'")
    refused(run(*root, *root, *out), 2, "two scenes are named 'scene'")
    refused(run(*root, "--set", "pairs.view_edges_deg=[100, 120]", *out), 4, "no pair", "--pairs")
    listed = tmp_path / "mine.txt"
    listed.write_text("0000.jpg 0099.jpg\n")
    refused(run(*root, "--pairs", listed, *out), 3, "mine.txt", "0099.jpg", "no such image")
    refused(run(*root, "--root", tmp_path, "--pairs", listed, *out), 2, "--pairs goes with one --root")
    refused(run(*root, "--pairs", tmp_path / "nowhere.txt", *out), 3, "no such file")
    for number in (1, 4):
        (rendered_copy / "images" / f"000{number}.jpg").unlink()
    refused(run(*root, *out), 3, "2 of 6 images", "0001.jpg, 0004.jpg")
    shutil.rmtree(rendered_copy / "truth")
    refused(run(*root, *out), 3, "no true cameras", "sparse/", "poses.txt", "pairs_calibrated.txt")
    assert not (tmp_path / "out").exists()
