"""Packs of posed pairs and photographs: the geometry stays exact, everything fits, everything is read as it is."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from posed_scenes import MadeScene, make_scene, smooth_noise

from featkit.core.config import digest
from featkit.core.errors import BadInputError, EmptyResultError, UsageError
from featkit.data.image_pack import ImagePackConfig, folder_kind, write_image_pack
from featkit.data.patch_pack import read_patch_data
from featkit.data.posed_pairs import read_posed_pairs
from featkit.data.posed_samples import HomographyPairs, photographs
from featkit.geometry.epipolar import epipolar_distances
from featkit.geometry.pixels import apply_homography, as_homography, resize_affine

CONFIG = ImagePackConfig(max_side=100)


@pytest.fixture
def posed(tmp_path: Path) -> tuple[Path, list[MadeScene]]:
    root = tmp_path / "posed"
    return root, [make_scene(root, name, images=5, size=(161, 122), seed=seed) for seed, name in enumerate("ab")]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(12):
        cv2.imwrite(str(folder / ("more" if number % 2 else ".") / f"{number}.png"), smooth_noise((120, 160), rng, 1.5))
    (folder / "licence.txt").write_text("CC0\n")
    return folder


def test_what_a_folder_holds(posed: tuple[Path, list[MadeScene]], photos: Path, tmp_path: Path) -> None:
    patches = tmp_path / "patches"
    patches.mkdir()
    (patches / "patches0000.bmp").write_bytes(b"")
    folders = (posed[0], posed[1][0].folder, photos, patches, tmp_path / "gone")
    assert [folder_kind(folder) for folder in folders] == ["posed", "posed", "photographs", "patches", "patches"]


def test_packed_pairs_are_as_exact(posed: tuple[Path, list[MadeScene]], photos: Path, tmp_path: Path) -> None:
    root, scenes = posed
    manifest = write_image_pack(CONFIG, [root, photos], tmp_path / "p.zip")
    assert manifest["sets"]["posed"]["pairs"] == 20
    assert manifest["sets"]["photos"]["licence"] == "CC0"
    packed = read_posed_pairs(tmp_path / "p.zip")
    assert len(packed) == 20
    assert [scene.name for scene in packed.scenes] == ["posed/a/dense0", "posed/b/dense0"]
    for index, (number, *images) in enumerate(packed.pairs):
        seen = []
        for image in images:
            width, height = packed.scenes[number].sizes[image]
            pixels = packed.pixels(number, image)
            assert pixels.shape == (height, width, 3)
            assert max(pixels.shape) == 100
            original = tuple(scenes[number].table.sizes[image].tolist())
            resize = as_homography(resize_affine(original, (int(width), int(height))))
            seen.append(apply_homography(resize, scenes[number].seen(image)))
        assert max(d.max() for d in epipolar_distances(packed.fundamental01(index), *seen)) < 1e-6


def test_everything_is_read_as_it_is(posed: tuple[Path, list[MadeScene]], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.zip"
    write_image_pack(CONFIG, [posed[0], photos], out)
    assert len(photographs(out)) == 22
    assert len(photographs(out / "photos")) == 12
    assert len(photographs(out / "photos" / "more")) == 6
    assert HomographyPairs([out]).sample(0, np.random.default_rng(0)).image0.shape == (480, 640, 3)
    assert len(read_posed_pairs(out / "posed")) == 20
    with zipfile.ZipFile(out) as archive:
        archive.extractall(tmp_path / "extracted")
    direct, extracted = read_posed_pairs(out), read_posed_pairs(tmp_path / "extracted")
    np.testing.assert_array_equal(direct.fundamental01(7), extracted.fundamental01(7))
    np.testing.assert_array_equal(direct.pixels(1, 2), extracted.pixels(1, 2))
    with pytest.raises(BadInputError, match="of photographs, not of patches"):
        read_patch_data(out)


def test_boxes_go_along(posed: tuple[Path, list[MadeScene]], tmp_path: Path) -> None:
    root, scenes = posed
    text = (scenes[0].folder / "pairs.txt").read_text()
    boxes = [[10, 20, 100, 110]] * 10
    told = {"of_pairs": digest(text), "box0": boxes, "box1": boxes}
    (scenes[0].folder / "pairs.json").write_text(json.dumps(told))
    write_image_pack(CONFIG, [root], tmp_path / "p.zip")
    packed = read_posed_pairs(tmp_path / "p.zip")
    width, height = packed.scenes[0].sizes[0] / [161, 122]
    expected = np.array([10.5 * width, 20.5 * height, 100.5 * width, 110.5 * height]) - 0.5
    np.testing.assert_allclose(packed.boxes[0, 0], expected, atol=0.051)
    np.testing.assert_allclose(packed.boxes[-1, 0, 2:], packed.scenes[1].sizes[packed.pairs[-1, 1]] - 0.5, atol=0.051)


def test_what_does_not_fit_stays_behind(posed: tuple[Path, list[MadeScene]], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.zip"
    whole = write_image_pack(CONFIG, [posed[0], photos], out)["sets"]
    size = out.stat().st_size / 1e6
    less = ImagePackConfig(max_side=100, max_mb=0.7 * size)
    some = write_image_pack(less, [posed[0], photos], out, seed=1)["sets"]
    assert 0.5 * size < out.stat().st_size / 1e6 <= 0.7 * size
    assert 0 < some["posed"]["images"] + some["photos"]["images"] < 22
    assert whole["posed"]["images"] == 10
    packed = read_posed_pairs(out)
    assert len(packed) == some["posed"]["pairs"]
    assert sum(len(scene.image_names) for scene in packed.scenes) == some["posed"]["images"]
    again = tmp_path / "again.zip"
    write_image_pack(less, [posed[0], photos], again, seed=1)
    assert again.read_bytes() == out.read_bytes()
    with pytest.raises(EmptyResultError, match="--max-mb"):
        write_image_pack(ImagePackConfig(max_mb=0.002), [posed[0]], out)
    assert again.read_bytes() == out.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_small_folders_stay_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("large", 12), ("small", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            cv2.imwrite(str(tmp_path / name / f"{number}.png"), smooth_noise((120, 160), rng, 1.5))
    out = tmp_path / "p.zip"
    write_image_pack(CONFIG, [tmp_path / "large", tmp_path / "small"], out)
    less = ImagePackConfig(max_side=100, max_mb=0.6 * out.stat().st_size / 1e6)
    sets = write_image_pack(less, [tmp_path / "large", tmp_path / "small"], out)["sets"]
    assert sets["small"]["images"] == 2
    assert 4 <= sets["large"]["images"] <= 7


def test_wrong_turns(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two of the folders"):
        write_image_pack(CONFIG, [photos, photos], tmp_path / "p.zip")
    with pytest.raises(BadInputError, match="is a folder"):
        write_image_pack(CONFIG, [photos], tmp_path)
    (photos / "3.png").write_bytes(b"no image")
    (photos / "more" / "3.png").write_bytes(b"no image")
    with pytest.raises(BadInputError, match=r"3\.png"):
        write_image_pack(CONFIG, [photos], tmp_path / "p.zip")
    assert not (tmp_path / "p.zip").exists()
