"""`--masks`: no extractor has keypoints in masked pixels, and changed masks are detected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from in_process import refused, results, run
from PIL import Image

from featkit.features.stage import ExtractConfig, describe_one, detect_one, extract_one, extraction_method
from featkit.images.read import as_stored
from featkit.io.features import open_features

TAG = 6  # the second photograph is stored turned


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/plain.png, and the same image stored rotated as images/sub/turned.png."""
    folder = tmp_path_factory.mktemp("pictures") / "images"
    (folder / "sub").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    pixels = cv2.resize(noise, (200, 150), interpolation=cv2.INTER_CUBIC)
    exif = Image.Exif()
    exif[0x0112] = TAG
    Image.fromarray(pixels).save(folder / "plain.png")
    Image.fromarray(as_stored(pixels, TAG)).save(folder / "sub" / "turned.png", exif=exif)
    return folder


def mask_of(name: str) -> np.ndarray:
    """Mask of the upright photograph; True: kept."""
    kept = np.ones((150, 200), bool)
    kept[40:110, 30:90] = False
    kept[:, 150:] = name == "plain.png"
    return kept


def write_masks(folder: Path) -> Path:
    for name in ("plain.png", "sub/turned.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        stored = mask_of(name) if name == "plain.png" else as_stored(mask_of(name), TAG)
        Image.fromarray(np.uint8(255) * stored).save(folder / f"{name}.png")
    return folder


def digests(path: Path) -> dict[str, str]:
    with open_features(path) as store:
        return {name: store.digest(name) for name in store.names()}


@pytest.mark.parametrize(
    ("features", "upright_masks"), [("rootsift", False), ("rootsift", True), ("dog+hynet", False), ("scfeat", False)]
)
def test_no_keypoint_in_a_masked_pixel(features: str, upright_masks: bool, pictures: Path, tmp_path: Path) -> None:
    masks = write_masks(tmp_path / "masks")
    if upright_masks:
        kept = mask_of("sub/turned.png")
        Image.fromarray(np.uint8(255) * kept).save(masks / "sub" / "turned.png.png")
    options = ("--features", features, "--workers", 1, "--set", "max_keypoints=100")
    results("extract", pictures, "-o", tmp_path / "all.h5", *options)
    results("extract", pictures, "-o", tmp_path / "some.h5", *options, "--masks", masks)
    with open_features(tmp_path / "all.h5") as every, open_features(tmp_path / "some.h5") as some:
        for name in ("plain.png", "sub/turned.png"):
            stored = mask_of(name) if name == "plain.png" else as_stored(mask_of(name), TAG)
            whole, found = every.read(name), some.read(name)
            expected = [i for i, (x, y) in enumerate(whole.keypoints) if stored[int(y + 0.5), int(x + 0.5)]]
            assert 0 < len(expected) < len(whole)
            np.testing.assert_array_equal(found.keypoints, whole.keypoints[expected])
            np.testing.assert_array_equal(found.descriptors, whole.descriptors[expected])
            assert found.image_size == whole.image_size


def test_masks_with_a_two_step_extractor(pictures: Path, tmp_path: Path) -> None:
    """As on a GPU, where one process describes what others detect."""
    method = extraction_method(ExtractConfig(features="dog+hynet"), {"max_keypoints": 60}, "cpu")
    mask = write_masks(tmp_path / "masks") / "sub" / "turned.png.png"
    path = pictures / "sub" / "turned.png"
    alone, finished = extract_one(method, path, mask), describe_one(method, detect_one(method, path, mask))
    assert 0 < len(alone) < 60
    np.testing.assert_array_equal(finished.keypoints, alone.keypoints)


def test_changed_masks_are_detected(pictures: Path, tmp_path: Path) -> None:
    """Only images with changed masks are extracted again; without --masks results are as if there had been no masks."""
    masks, out = write_masks(tmp_path / "masks"), tmp_path / "f.h5"
    command = ("extract", pictures, "-o", out, "--workers", 1)
    results(*command)
    without = digests(out)
    results(*command, "--masks", masks)
    first = digests(out)
    assert all(first[name] != without[name] for name in without)
    changed = np.array(Image.open(masks / "plain.png.png"))
    changed[:20] = 0
    Image.fromarray(changed).save(masks / "plain.png.png")
    again = run(*command, "--masks", masks)
    assert "1 of 2 images are done already" in again.stderr
    second = digests(out)
    assert second["plain.png"] != first["plain.png"]
    assert second["sub/turned.png"] == first["sub/turned.png"]
    (masks / "plain.png.png").unlink()
    ran = run(*command, "--masks", masks)
    assert ran.stderr.count("1 of 2 images have no mask (plain.png ...)") == 1
    assert digests(out) == {"plain.png": without["plain.png"], "sub/turned.png": first["sub/turned.png"]}
    results(*command)
    assert digests(out) == without


def test_transparent_pixels(pictures: Path, tmp_path: Path) -> None:
    images, kept = tmp_path / "images", mask_of("plain.png")
    images.mkdir()
    rgb = np.asarray(Image.open(pictures / "plain.png"))
    Image.fromarray(np.dstack([rgb, np.uint8(255) * kept])).save(images / "a.png")
    command = ("extract", images, "--workers", 1, "-o")
    results(*command, tmp_path / "f.h5")
    results(*command, tmp_path / "all.h5", "--ignore-alpha")
    with open_features(tmp_path / "f.h5") as some, open_features(tmp_path / "all.h5") as every:
        expected = [(x, y) for x, y in every.keypoints("a.png").tolist() if kept[int(y + 0.5), int(x + 0.5)]]
        assert 0 < len(expected) < every.count("a.png")
        assert [tuple(point) for point in some.keypoints("a.png").tolist()] == expected
    refused(run(*command, tmp_path / "f.h5", "--ignore-alpha", "-q"), 3, "decode.min_alpha: 1 -> 0", "--overwrite")


def test_masks_in_worker_processes(pictures: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(pictures, tmp_path / "images"))
    masks = write_masks(tmp_path / "masks")
    for copy in ("p1.png", "p2.png"):
        shutil.copy(images / "plain.png", images / copy)
        shutil.copy(masks / "plain.png.png", masks / f"{copy}.png")
    for count in (1, 2):
        results("extract", images, "-o", tmp_path / f"{count}.h5", "--masks", masks, "--workers", count)
    assert digests(tmp_path / "1.h5") == digests(tmp_path / "2.h5")


def test_a_map_of_masked_photographs(rendered_copy: Path, small_rendered: object, tmp_path: Path) -> None:
    masks = rendered_copy / "masks"
    masks.mkdir()
    for image in sorted((rendered_copy / "images").iterdir())[:2]:
        kept = np.full((300, 400), 255, np.uint8)
        kept[:100, :120] = 0
        cv2.imwrite(str(masks / f"{image.name}.png"), kept)
    data = results(
        "reconstruct",
        rendered_copy,
        "--masks",
        masks,
        "--max-keypoints",
        1000,
        "--workers",
        1,
        "--camera-mode",
        "single",
    )
    assert data["registered"] >= 4
    with h5py.File(rendered_copy / "featkit" / "features.h5") as file:
        for number, name in enumerate(sorted(file)):
            x, y = file[name]["keypoints"][()].T
            hidden = int(((x < 119.5) & (y < 99.5)).sum())
            assert (hidden == 0) == (number < 2)
    assert json.loads((rendered_copy / "featkit" / "metrics.json").read_text())["registered"] == data["registered"]


def test_usage_errors(pictures: Path, tmp_path: Path) -> None:
    command = ("extract", pictures, "-o", tmp_path / "f.h5", "-q", "--workers", 1, "--masks")
    (tmp_path / "empty").mkdir()
    refused(run(*command, tmp_path / "nowhere"), 3, "nowhere", "no such folder")
    refused(run(*command, tmp_path / "empty"), 3, "no mask for any of 2 images", "plain.png.png")
    refused(run(*command, pictures / "sub"), 3, "among the images")
    masks = write_masks(tmp_path / "masks")
    Image.fromarray(np.ones((10, 10), np.uint8)).save(masks / "plain.png.png")
    refused(run(*command, masks), 3, "plain.png.png", "is 10 x 10, its image 200 x 150")
    (masks / "plain.png.png").write_text("no picture")
    refused(run(*command, masks), 3, "plain.png.png", "not an image")
    refused(run("reconstruct", pictures, "-o", tmp_path / "out", "-q", "--masks", tmp_path / "nowhere"), 3, "nowhere")
