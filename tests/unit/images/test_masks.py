"""Masks and alpha channels: which pixels of the file may have keypoints, whatever way the file is turned."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from featkit.core.errors import BadInputError
from featkit.core.types import Features
from featkit.images.masks import find_masks, masked
from featkit.images.read import DecodeConfig, DecodedImage, as_stored, decode, stored_from_upright, upright

PLAIN = DecodeConfig()
KEPT = np.random.default_rng(0).random((11, 17)) < 0.6  # of the file's pixels, 17 x 11


def saved(path: Path, pixels: np.ndarray, tag: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if tag is not None:
        exif[0x0112] = tag
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def photo(folder: Path, tag: int | None = None) -> DecodedImage:
    return decode(saved(folder / "a.png", np.full((11, 17), 90, np.uint8), tag), PLAIN)


def at(points: np.ndarray, size: tuple[int, int]) -> Features:
    return Features(
        keypoints=points.astype(np.float32),
        descriptors=np.arange(len(points), dtype=np.float32)[:, None],
        scores=np.ones(len(points), np.float32),
        image_size=size,
    )


@pytest.mark.parametrize("tag", [None, *range(9)])
def test_a_mask_of_the_files_size_masks_the_files_pixels(tmp_path: Path, tag: int | None) -> None:
    mask = saved(tmp_path / "m.png", np.uint8(255) * KEPT)
    assert np.array_equal(masked(photo(tmp_path, tag), mask, PLAIN).usable, KEPT)


@pytest.mark.parametrize("tag", [5, 6, 7, 8])
def test_a_mask_of_the_upright_size_is_upright(tmp_path: Path, tag: int) -> None:
    mask = saved(tmp_path / "m.png", np.uint8(1) * upright(KEPT, tag))
    assert np.array_equal(masked(photo(tmp_path, tag), mask, PLAIN).usable, KEPT)


@pytest.mark.parametrize("tag", [2, 3, 6, 8])
def test_a_mask_with_an_orientation_of_its_own(tmp_path: Path, tag: int) -> None:
    """As an editor writes one that keeps the photograph's metadata."""
    mask = saved(tmp_path / "m.png", np.uint8(255) * KEPT, tag)
    assert np.array_equal(masked(photo(tmp_path, tag), mask, PLAIN).usable, KEPT)


@pytest.mark.parametrize("tag", range(9))
def test_stored_again(tag: int) -> None:
    assert np.array_equal(as_stored(upright(KEPT, tag), tag), KEPT)


@pytest.mark.parametrize("tag", [0, 3, 6])
@pytest.mark.parametrize("resize_max", [None, 16])
def test_no_keypoint_in_a_masked_pixel(tmp_path: Path, tag: int, resize_max: int | None) -> None:
    """A pixel is the square of half a pixel around its centre; points are compared one by one."""
    config = DecodeConfig(resize_max=resize_max)
    path = saved(tmp_path / "a.png", np.full((11, 17), 90, np.uint8), tag)
    image = masked(decode(path, config), saved(tmp_path / "m.png", np.uint8(255) * KEPT), config)
    stored = np.random.default_rng(1).random((300, 2)) * [17, 11] - 0.5
    found = image.features_in_file(at(image.pixels_from_file(stored), image.size))
    expected = [i for i, (x, y) in enumerate(stored) if KEPT[int(y + 0.5), int(x + 0.5)]]
    assert found.descriptors[:, 0].tolist() == expected
    np.testing.assert_allclose(found.keypoints, stored[expected], atol=1e-4)


def test_keypoints_at_the_edge(tmp_path: Path) -> None:
    usable = np.ones((11, 17), bool)
    usable[:, -1] = False
    image = DecodedImage(np.zeros((11, 17), np.uint8), (17, 11), stored_from_upright((17, 11), 1), usable)
    points = np.array([[-0.6, -0.6], [16.6, 5.0], [15.4, 10.7]])  # beyond the edge, as refinement may put them
    assert image.features_in_file(at(points, (17, 11))).descriptors[:, 0].tolist() == [0, 2]


@pytest.mark.parametrize("kind", ["grey", "16 bit", "1 bit", "colour", "palette", "alpha"])
def test_kinds_of_masks(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.png"
    if kind == "16 bit":
        cv2.imwrite(str(path), np.uint16(1) * KEPT)
    elif kind == "1 bit":
        Image.fromarray(KEPT).save(path)
    elif kind == "colour":
        Image.fromarray(np.stack([0 * KEPT, 0 * KEPT, 3 * KEPT], 2).astype(np.uint8)).save(path)
    elif kind == "palette":
        Image.fromarray(np.uint8(200) * KEPT).convert("P").save(path)
    elif kind == "alpha":  # black is zero, however opaque
        Image.fromarray(np.stack([np.uint8(255) * KEPT] * 3 + [np.full(KEPT.shape, 255, np.uint8)], 2)).save(path)
    else:
        saved(path, np.uint8(1) * KEPT)
    assert np.array_equal(masked(photo(tmp_path), path, PLAIN).usable, KEPT)


def test_masks_of_another_size_and_broken_ones(tmp_path: Path) -> None:
    small = saved(tmp_path / "m.png", np.ones((11, 16), np.uint8))
    with pytest.raises(BadInputError, match=r"m\.png: is 16 x 11, its image 17 x 11; "):
        masked(photo(tmp_path), small, PLAIN)
    with pytest.raises(BadInputError, match=r"is 16 x 11, its image 17 x 11 \(upright 11 x 17\)"):
        masked(photo(tmp_path, 6), small, PLAIN)
    small.write_bytes(small.read_bytes()[:40])
    with pytest.raises(BadInputError, match=r"m\.png"):
        masked(photo(tmp_path), small, PLAIN)


def test_names_of_masks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    masks, images = tmp_path / "masks", tmp_path / "images"
    images.mkdir()
    for name in ("a/b.jpg.png", "c.png", "d.png.png", "d.png"):
        saved(masks / name, np.ones((2, 2), np.uint8))
    names = ["a/b.jpg", "a/c.jpg", "c.tif", "d.png", "e.jpg"]
    with caplog.at_level(logging.WARNING):
        found = find_masks(masks, images, names)
    assert found == {"a/b.jpg": masks / "a/b.jpg.png", "c.tif": masks / "c.png", "d.png": masks / "d.png.png"}
    assert [record.message for record in caplog.records] == [
        "2 of 5 images have no mask (a/c.jpg ...): they are used in full"
    ]
    caplog.clear()
    find_masks(masks, images, ["c.tif"])
    assert not caplog.records


def test_folders_that_are_none(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "masks").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for folder, words in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "file", "is a file"),
        (images / "masks", "among the images"),
        (tmp_path, r"no mask for any of 1 images; expected as a\.jpg\.png"),
    ):
        with pytest.raises(BadInputError, match=words):
            find_masks(folder, images, ["a.jpg"])


@pytest.mark.parametrize("kind", ["png", "tif", "webp", "palette", "grey and alpha", "a colour that means clear"])
@pytest.mark.parametrize("tag", [1, 6])
def test_transparent_pixels_are_masked(tmp_path: Path, kind: str, tag: int) -> None:
    path = tmp_path / f"a.{kind if kind in ('tif', 'webp') else 'png'}"
    exif = Image.Exif()
    exif[0x0112] = tag
    grey = np.where(KEPT, 90, 7).astype(np.uint8)
    alpha = np.where(KEPT, 1, 0).astype(np.uint8)
    if kind == "palette":
        Image.fromarray(grey).convert("P").save(path, transparency=7, exif=exif)
    elif kind == "grey and alpha":
        Image.fromarray(np.stack([grey, alpha], 2)).save(path, exif=exif)
    elif kind == "a colour that means clear":
        Image.fromarray(np.stack([grey] * 3, 2)).save(path, transparency=(7, 7, 7), exif=exif)
    else:
        lossless = {"lossless": True, "exact": True} if kind == "webp" else {}
        Image.fromarray(np.stack([grey] * 3 + [alpha], 2)).save(path, exif=exif, **lossless)
    assert np.array_equal(decode(path, PLAIN).usable, KEPT)
    assert decode(path, DecodeConfig(min_alpha=0)).usable is None
    none_is_opaque = decode(path, DecodeConfig(min_alpha=2)).usable
    if kind not in ("palette", "a colour that means clear"):
        assert none_is_opaque is not None
        assert not none_is_opaque.any()
    mask = saved(tmp_path / "m.png", np.eye(11, 17, dtype=np.uint8))
    assert np.array_equal(masked(decode(path, PLAIN), mask, PLAIN).usable, KEPT & np.eye(11, 17, dtype=bool))


def test_an_alpha_channel_that_hides_nothing(tmp_path: Path) -> None:
    opaque = saved(tmp_path / "a.png", np.full((11, 17, 4), 255, np.uint8))
    assert decode(opaque, PLAIN).usable is None
