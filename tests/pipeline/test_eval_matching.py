"""The commands `featkit eval hpatches` and `oxford`: tables, reports, reuse, and errors."""

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
from warped_sequences import SIZE, warped, write_sequence

from featkit.evaluation.published import published_curves
from featkit.io.features import open_features

FAST = ("--workers", 1, "--max-keypoints", 150, "--device", "cpu")


def run(*arguments: object) -> Result:
    return in_process.run("eval", *arguments)


def results(*arguments: object) -> dict[str, Any]:
    return in_process.results("eval", *arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sequences in the Oxford layout. Never written to: see `root`."""
    folder = tmp_path_factory.mktemp("made")
    write_sequence(folder, "stone", seed=1)
    write_sequence(folder, "wood", seed=2, strength=0.3)
    return folder


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "root"))


def test_hpatches_from_images_to_a_page(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = run("hpatches", "--root", root, "--features", "rootsift, sift,rootsift", "--out", out, *FAST)
    assert ran.exit_code == 0, ran.output
    for words in ("MMAScore", "AUC 5 px", "rootsift", "stone", "PoSFeat", "not on these sequences", "2 sequences"):
        assert words in ran.stdout
    found = json.loads((out / "hpatches" / "results.json").read_text())
    assert [method["name"] for method in found["methods"]] == ["rootsift", "sift"]
    assert found["matcher"]["ratio"] is None
    assert found["published"]["on_these_pairs"] is False
    for method in found["methods"]:
        assert list(method["groups"]) == ["overall"]
        assert method["groups"]["overall"]["pairs"] == len(method["pairs"]) == 10
        assert method["groups"]["overall"]["mma_score"] > 0.6
        scores = [method["sequences"][name]["mma_score"] for name in ("stone", "wood")]
        assert method["groups"]["overall"]["mma_score"] == pytest.approx(np.mean(scores), abs=1e-5)
        assert method["weights_sha256"] == ""
    page = (out / "hpatches" / "report.html").read_text()
    for words in (
        "rootsift, worst: ",
        "sift, best: ",
        "Hes. Aff. + Root-SIFT, ",
        "Table II",
        "max_num_features",
    ):
        assert words in page
    assert page.count("data:image/jpeg") == 8
    assert not any(path.suffix in {".png", ".ppm"} for path in out.rglob("*"))  # images are read where they lie


def test_predictions_are_reused_unless_outdated(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("hpatches", "--root", root, "--out", out, *FAST)
    first = results(*arguments)
    features = next((out / "predictions").glob("rootsift-*/features.h5"))
    assert len(list(features.parent.glob("mutual-nn-*/matches.h5"))) == 1
    again = run(*arguments, "--set", "homography.estimator=ransac")
    assert "12 of 12 images are done already" in again.stderr
    assert "10 of 10 pairs are done already" in again.stderr
    second = json.loads((out / "hpatches" / "results.json").read_text())
    assert second["methods"][0]["groups"]["overall"]["mma"] == first["methods"][0]["groups"]["overall"]["mma"]
    assert second["config"]["homography"]["estimator"] == "ransac"
    # Another budget of keypoints, and another rule of matching, have a place of their own.
    fewer = results("hpatches", "--root", root, "--out", out, "--workers", 1, "--max-keypoints", 40)
    assert fewer["methods"][0]["fingerprint"] != first["methods"][0]["fingerprint"]
    assert fewer["methods"][0]["groups"]["overall"]["features"] == 40
    stricter = results(*arguments, "--ratio", 0.7)
    assert stricter["matcher"]["ratio"] == 0.7
    counts = [one["methods"][0]["groups"]["overall"]["matches"] for one in (stricter, first)]
    assert counts[0] < counts[1]
    assert len(list((out / "predictions").glob("rootsift-*"))) == 2
    assert len(list(features.parent.glob("mutual-nn-*"))) == 2
    with open_features(features) as store:
        assert len(store.names()) == 12
    # A changed image is extracted and matched anew, alone.
    cv2.imwrite(str(root / "wood" / "img6.png"), warped(9, np.eye(3)))
    ran = run(*arguments)
    assert "11 of 12 images are done already" in ran.stderr
    assert "9 of 10 pairs are done already" in ran.stderr
    changed = json.loads((out / "hpatches" / "results.json").read_text())["methods"][0]["pairs"]
    assert changed[:9] == first["methods"][0]["pairs"][:9]
    assert changed[9]["mma"][9] < 0.3


def test_oxford_reuses_the_features(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results("hpatches", "--root", root, "--sequences", "stone", "--out", out, *FAST)
    ran = run("oxford", "--root", root, "--features", "rootsift", "--out", out, *FAST)
    assert ran.exit_code == 0, ran.output
    assert "6 of 12 images are done already" in ran.stderr
    assert "overlap" in ran.stdout
    found = json.loads((out / "oxford" / "results.json").read_text())
    (method,) = found["methods"]
    assert found["config"]["matching"] == "nearest"
    assert method["map"].keys() == {"overlap", "distance"}
    for rule in ("overlap", "distance"):
        means = [method["sequences"][name][rule] for name in ("stone", "wood")]
        assert method["map"][rule] == pytest.approx(np.mean(means), abs=1e-5)
        assert method["map"][rule] > 0.5
    assert "AP by pair, right by overlap" in (out / "oxford" / "report.html").read_text()
    assert (out / "hpatches" / "report.html").is_file()


def test_sequences_of_two_three_and_six_images(tmp_path: Path) -> None:
    """Data like EVD: the share of pairs whose homography is found, for sequences of any length."""
    root = tmp_path / "root"
    for name, images in (("adam", 2), ("cafe", 3), ("graf", 6)):
        write_sequence(root, name, seed=images, oxford=False, strength=0.5, images=images)
    cv2.imwrite(str(root / "cafe" / "3.ppm"), np.full((SIZE[1], SIZE[0], 3), 90, np.uint8))  # nothing to be found
    arguments = ("hpatches", "--root", root, "--out", tmp_path / "out", *FAST)
    ran = run(*arguments)
    assert ran.exit_code == 0, ran.output
    assert "H within 10 px" in ran.stdout
    found = json.loads((tmp_path / "out" / "hpatches" / "results.json").read_text())
    (method,) = found["methods"]
    assert found["pairs"] == 1 + 2 + 5
    assert [(pair["sequence"], pair["image"]) for pair in method["pairs"]] == [
        ("adam", 2), ("cafe", 2), ("cafe", 3), *(("graf", number) for number in range(2, 7))
    ]  # fmt: skip
    errors = [pair["corner_error_px"] for pair in method["pairs"]]
    assert errors[2] is None
    assert max(error for error in errors if error is not None) < 3, "exact views"
    overall = method["groups"]["overall"]
    assert overall["homography_found"] == [pytest.approx(7 / 8)]
    assert [one["homography_found"] for one in method["sequences"].values()] == [[1.0], [0.5], [1.0]]
    again = results(*arguments, "--set", "homography.correct_within_px=[0.0001,3]")
    assert again["methods"][0]["groups"]["overall"]["homography_found"] == [0.0, pytest.approx(7 / 8)]
    oxford = results("oxford", "--root", root, "--features", "rootsift", "--out", tmp_path / "out", *FAST)
    assert oxford["methods"][0]["sequences"]["adam"]["distance"] > 0.5


def test_hpatches_layout_has_groups(tmp_path: Path) -> None:
    write_sequence(tmp_path / "root", "v_stone", seed=1, oxford=False)
    write_sequence(tmp_path / "root", "i_dome", seed=2, oxford=False, strength=0.3)
    shutil.copytree(tmp_path / "root" / "i_dome", tmp_path / "root" / "i_dc")
    arguments = ("hpatches", "--root", tmp_path / "root", "--out", tmp_path / "out", *FAST)
    found = results(*arguments)
    assert list(found["methods"][0]["groups"]) == ["illumination", "viewpoint", "overall"]
    assert found["left_out"] == ["i_dc"]
    assert found["sequences"] == ["i_dome", "v_stone"]
    assert results(*arguments, "--all-sequences")["sequences"] == ["i_dc", "i_dome", "v_stone"]
    page = (tmp_path / "out" / "hpatches" / "report.html").read_text()
    for group in ("illumination", "viewpoint", "overall"):
        assert f"MMA, {group}" in page


def test_published_curves_are_drawn_behind_ours() -> None:
    from featkit.core.content import Curve, Curves
    from featkit.report.charts import COLOURS, curves_figure

    x = np.arange(3.0)
    figure = curves_figure(
        Curves("t", "x", "y", [Curve("ours", x, x), Curve("theirs", x, x, faint=True), Curve("also ours", x, x)])
    )
    assert [line["name"] for line in figure.data] == ["theirs", "ours", "also ours"]
    assert [line["line"]["color"] for line in figure.data[1:]] == list(COLOURS[:2])
    assert figure.data[0]["line"]["color"] not in COLOURS
    assert [key.text for key in figure.key] == ["ours: last 2", "also ours: last 2", "theirs"]
    assert {curve.name for curve in published_curves().curves} >= {"SCFeat", "PoSFeat", "DISK-W", "D2-Net"}


def test_images_without_texture(root: Path, tmp_path: Path) -> None:
    blank = np.full((SIZE[1], SIZE[0]), 77, np.uint8)
    for number in (1, 3):
        cv2.imwrite(str(root / "wood" / f"img{number}.png"), blank)
    for benchmark in ("hpatches", "oxford"):
        found = results(benchmark, "--root", root, "--features", "rootsift", "--out", tmp_path / "out", *FAST)
        (method,) = found["methods"]
        pairs = [pair for pair in method["pairs"] if pair["sequence"] == "wood"]
        assert all(pair["matches"] == 0 for pair in pairs)
        score = method["sequences"]["wood"]
        assert (score["mma_score"] if benchmark == "hpatches" else score["overlap"]) == 0


def test_errors_are_one_line(root: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    for benchmark in ("hpatches", "oxford"):
        refused(run(benchmark, "--root", tmp_path / "none", *out), 3, "no such folder", "featkit data fetch")
        refused(run(benchmark, "--root", root, "--features", "rootsfit", *out), 2, "did you mean 'rootsift'")
        refused(run(benchmark, "--root", root, "--features", " , ", *out), 2, "--features")
        refused(run(benchmark, "--root", root, "--sequences", "graf", *out), 3, "there are: stone, wood")
        refused(
            run(benchmark, "--root", root, "--features", "sift,rootsift", "--weights", "hynet", *out), 2, "--weights"
        )
        refused(run(benchmark, "--root", root, "--set", "max_eror=3", *out), 2, "unknown key")
    refused(run("hpatches", "--root", root, "--matcher", "mutal", *out), 2, "mutual")
    refused(run("hpatches", "--root", root / "stone", *out), 3, "--sequences stone")
    (root / "wood" / "img4.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (root / "stone" / "H1to5p").write_text("1 0 0\n0 1 0\n")
    refused(run("hpatches", "--root", root, *out), 3, "wood/img4.png", "stone/H1to5p holds 6 numbers")
    assert not (tmp_path / "out").exists()


def test_a_truncated_image(root: Path, tmp_path: Path) -> None:
    """Its header is complete, so the error is found when decoding; earlier extracted features are kept."""
    path = root / "wood" / "img4.png"
    path.write_bytes(path.read_bytes()[:3000])
    ran = run("hpatches", "--root", root, "--out", tmp_path / "out", "--quiet", *FAST)
    refused(ran, 3, "img4.png")
    (stores,) = (tmp_path / "out").glob("predictions/*/features.h5")
    with open_features(stores) as store:
        assert {"stone/img1.png", "wood/img3.png"} <= set(store.names())
        assert "wood/img4.png" not in store.names()
