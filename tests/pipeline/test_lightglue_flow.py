"""ALIKED and LightGlue with all commands: a map, poses, shards of a plan; unsupported features are refused."""

from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from in_process import refused, results, run
from published_weights import needs_package
from same_stores import assert_same

import featkit
from featkit.core.errors import UsageError
from featkit.io.features import open_features
from featkit.io.lists import read_pairs, read_poses
from featkit.io.matches import open_matches
from featkit.localization.localizer import LocalizerConfig
from featkit.weights.catalogue import published_network

KEYPOINTS = 350


@pytest.fixture(scope="module")
def scene(small_rendered: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene mapped by `featkit reconstruct`. Never written to, except for localize/."""
    needs_package("aliked-n16")
    needs_package("aliked-lightglue")
    folder = tmp_path_factory.mktemp("learned")
    (folder / "scene").symlink_to(small_rendered.images.parent)
    params = ",".join(map(str, small_rendered.intrinsics.params))
    camera = ("--camera-model", "PINHOLE", "--camera-params", params, "--camera-mode", "single", "--fix-intrinsics")
    found = results(
        "reconstruct", folder / "scene", "--out", folder / "featkit", "--features", "aliked-n16", "--matcher",
        "lightglue", "--max-keypoints", KEYPOINTS, *camera, "--truth", folder / "scene" / "truth" / "poses.txt",
    )  # fmt: skip
    assert found["registered"] == 6
    assert found["truth"]["centre_mean"] < 0.05
    return folder


def test_matches_record_the_weights(scene: Path) -> None:
    sha256 = published_network("aliked-lightglue").files[0].sha256
    with open_matches(scene / "featkit" / "matches.h5") as store:
        assert store.attributes()["weights_sha256"] == sha256
        assert store.attributes()["config"]["filter_threshold"] == 0.1
        assert len(store.pairs()) == 15


def test_queries_are_localized(scene: Path, small_rendered: Any) -> None:
    """With the command and with a map in memory."""
    queries, out = scene / "scene" / "queries", scene / "localize"
    found = results("localize", scene / "featkit", "--queries", queries, "--out", out, "--matcher", "lightglue")
    assert found["localized"] == found["queries"] == 2
    poses = read_poses(out / "poses.txt")
    with featkit.Localizer(scene / "featkit", LocalizerConfig(matcher="lightglue"), device="cpu") as warm:
        for path in sorted(queries.iterdir()):
            pose = warm.localize(path).pose
            assert pose is not None
            np.testing.assert_allclose(pose.tvec, poses[path.name].tvec, atol=1e-6)
    with pytest.raises(UsageError, match=r"points_only.*lightglue"):
        featkit.Localizer(scene / "featkit", LocalizerConfig(matcher="lightglue", points_only=True))


def test_shards_of_a_plan(scene: Path, tmp_path: Path) -> None:
    files = (scene / "featkit" / "features.h5", scene / "featkit" / "pairs.txt")
    words = ("match", *files, "--out", tmp_path / "matches.h5", "--matcher", "lightglue")
    planned = run("plan", "--shards", 2, *words)
    assert planned.exit_code == 0, planned.output
    (plan,) = (tmp_path / "matches.h5.shards").iterdir()
    results("run", plan)
    assert_same(scene / "featkit" / "matches.h5", tmp_path / "matches.h5")


def test_rotated_and_resized_photographs_match(scene: Path, small_rendered: Any, tmp_path: Path) -> None:
    """The network sees it upright: stored rotated with an EXIF tag, it has the same matches as upright."""
    names = sorted(path.name for path in (scene / "scene" / "images").iterdir())[:2]
    counts = {}
    for kind in ("upright", "on its side"):
        folder = tmp_path / kind
        folder.mkdir()
        for index, name in enumerate(names):
            pixels = cv2.imread(str(scene / "scene" / "images" / name))
            on_side = kind != "upright" and index == 1
            stored = cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE) if on_side else pixels
            write_with_tag(folder / f"{index}.png", stored, 6 if on_side else 1)
        (folder / "pairs.txt").write_text("0.png 1.png\n")
        feats, out = folder / "feats.h5", folder / "matches.h5"
        resized = ("--features", "aliked-n16", "--max-keypoints", KEYPOINTS, "--resize-max", 320)
        results("extract", folder, "--out", feats, *resized)
        counts[kind] = results("match", feats, folder / "pairs.txt", "--out", out, "--matcher", "lightglue")["matches"]
        with open_features(feats) as store:
            assert store.read("1.png").from_seen is not None
    assert counts["upright"] == counts["on its side"] > 50


def write_with_tag(path: Path, pixels: np.ndarray, tag: int) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)).save(path, exif=exif)


def test_features_without_weights_are_refused_before_anything_is_written(scene: Path, tmp_path: Path) -> None:
    images, pairs = scene / "scene" / "images", scene / "featkit" / "pairs.txt"
    results(
        "extract", images, "--out", tmp_path / "sift.h5", "--features", "sift", "--max-keypoints", 50, "--workers", 1
    )
    out = tmp_path / "m.h5"
    learned = ("--matcher", "lightglue", "--out", out)
    ran = run("match", tmp_path / "sift.h5", pairs, *learned)
    refused(ran, 2, "sift.h5: lightglue has no weights for features of sift", "aliked-n16", "disk", "xfeat")
    results(
        "extract",
        images,
        "--out",
        tmp_path / "root.h5",
        "--features",
        "rootsift",
        "--max-keypoints",
        50,
        "--workers",
        1,
    )
    ran = run("match", tmp_path / "root.h5", pairs, *learned)
    refused(ran, 3, "the weights of sift-lightglue are not installed", "featkit weights fetch sift-lightglue")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        for name in {name for pair in read_pairs(pairs) for name in (pair.name0, pair.name1)}:
            file[f"{name}/keypoints"], file[f"{name}/descriptors"] = np.zeros((5, 2)), np.zeros((128, 5))
    refused(
        run("match", tmp_path / "foreign.h5", pairs, *learned),
        2,
        "foreign.h5: the extractor of these features is unknown",
    )
    ran = run("match", tmp_path / "root.h5", pairs, *learned, "--ratio", 0.8)
    refused(ran, 2, "unknown key 'ratio'")
    assert not out.exists()


def test_a_map_of_few_images_suggests_options(scene: Path, tmp_path: Path) -> None:
    """Three photographs of the scene, three of noise: SIFT's map has half of them."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for index, path in enumerate(sorted((scene / "scene" / "images").iterdir())[:4]):
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), cv2.imread(str(path)))
    for index in range(3):
        smooth = cv2.GaussianBlur(rng.normal(size=(300, 400)), (0, 0), 2)
        noise = np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "images" / f"n{index}.png"), noise)
    ran = run("reconstruct", tmp_path / "images", "--out", tmp_path / "out", "--max-keypoints", 800, "--workers", 1)
    assert ran.exit_code == 0, ran.output
    assert "of 7 images; reconstruct with --features aliked-n16 --matcher lightglue" in " ".join(ran.stderr.split())
    (tmp_path / "noise").mkdir()
    for path in (tmp_path / "images").glob("n*.png"):
        path.rename(tmp_path / "noise" / path.name)
    ran = run("localize", tmp_path / "out", "--queries", tmp_path / "noise", "--out", tmp_path / "located")
    assert "a map with --features aliked-n16 --matcher lightglue may help" in " ".join(ran.stderr.split())
    assert ran.exit_code != 0
