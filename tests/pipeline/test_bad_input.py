"""Unusual photographs and names with the real commands: each is processed correctly or refused with one line.

docs/robustness.md is the table of all of them.
"""

from __future__ import annotations

import itertools
import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from in_process import refused, results, run
from PIL import Image, ImageOps
from warped_sequences import warped

from featkit.core.types import Features
from featkit.io.features import open_features
from featkit.io.lists import read_poses
from featkit.mapping.model import read_model

ORIENTATION = 0x0112
GREY = warped(7, np.eye(3))  # 160 x 200


def extracted(images: Path, output: Path, *options: object) -> dict[str, Features]:
    results("extract", images, "-o", output, "--workers", 1, "--max-keypoints", 300, *options)
    with open_features(output) as store:
        return {name: store.read(name) for name in store.names()}


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "empty.jpg").touch()
    refused(run("extract", tmp_path / "images", "-o", tmp_path / "f.h5", "-q"), 3, "empty.jpg", "an empty file")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused because of its header; nothing is decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes(20_001 * 200), 9)  # a part of its rows: enough for a decoder to begin
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "bomb.png").write_bytes(bomb)

    def never(*args: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", never)
    ran = run("extract", tmp_path / "images", "-o", tmp_path / "f.h5", "--workers", 1, "-q")
    refused(ran, 3, "bomb.png", "20000 x 20000", "250 megapixels", "scale it down")


def test_pixel_formats(tmp_path: Path) -> None:
    """Grey, colour, alpha, 16-bit and CMYK versions of a picture have the same features."""
    folder = tmp_path / "images"
    folder.mkdir()
    grey = Image.fromarray(GREY)
    grey.save(folder / "grey.png")
    grey.convert("RGB").save(folder / "colour.png")
    grey.convert("RGBA").save(folder / "alpha.png")
    grey.convert("LA").save(folder / "grey_alpha.png")
    cv2.imwrite(str(folder / "sixteen.png"), GREY.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "sixteen.tif"), GREY.astype(np.uint16) * 257)
    grey.convert("RGB").convert("CMYK").save(folder / "cmyk.jpg", quality=100, subsampling=0)
    found = extracted(folder, tmp_path / "f.h5")
    assert len(found) == 7
    expected = found.pop("grey.png")
    assert len(expected) > 50
    lossy = found.pop("cmyk.jpg")
    for name, features in found.items():
        np.testing.assert_allclose(features.keypoints, expected.keypoints, atol=0.05, err_msg=name)
        assert np.abs(features.descriptors - expected.descriptors).max() < 0.05, name
    nearest = np.linalg.norm(lossy.keypoints[:, None] - expected.keypoints[None], axis=2).min(axis=1)
    assert np.mean(nearest < 0.5) > 0.9


def test_exif_orientations(tmp_path: Path) -> None:
    """Features are found in the upright image, as rotated by Pillow, and mapped back to pixels of the file."""
    turned, upright = tmp_path / "turned", tmp_path / "upright"
    turned.mkdir()
    upright.mkdir()
    stored = Image.fromarray(GREY)
    columns, rows = np.meshgrid(np.arange(GREY.shape[1]), np.arange(GREY.shape[0]))
    places = {}
    for tag in range(9):
        exif = Image.Exif()
        exif[ORIENTATION] = tag
        stored.save(turned / f"{tag}.png", exif=exif)
        tagged = Image.open(turned / f"{tag}.png")
        ImageOps.exif_transpose(tagged).save(upright / f"{tag}.png", exif=Image.Exif())
        both = []  # where each upright pixel was stored, by turning the pixels' own places in the same way
        for place in (columns, rows):
            picture = Image.fromarray(place.astype(np.int32))
            picture.getexif()[ORIENTATION] = tag
            both.append(np.asarray(ImageOps.exif_transpose(picture)))
        places[f"{tag}.png"] = np.stack(both, axis=-1)
    found, expected = extracted(turned, tmp_path / "t.h5"), extracted(upright, tmp_path / "u.h5")
    for name, place in places.items():
        seen = expected[name]
        assert len(found[name]) == len(seen) > 50, name
        np.testing.assert_array_equal(found[name].descriptors, seen.descriptors, err_msg=name)
        x, y = np.floor(seen.keypoints).astype(int).T
        here, right, below = place[y, x], place[y, x + 1], place[y + 1, x]  # a pixel's place is linear between
        part = seen.keypoints - np.stack([x, y], axis=1)
        back = here + (right - here) * part[:, :1] + (below - here) * part[:, 1:]
        np.testing.assert_allclose(found[name].keypoints, back, atol=1e-3, err_msg=name)
    assert found["6.png"].image_size == (GREY.shape[1], GREY.shape[0])


def test_a_rotated_copy_of_a_scene_gives_the_same_map(mapped_scene: Any, tmp_path: Path) -> None:
    """Every photograph is stored rotated, with the EXIF tag that makes it upright: the camera centres are the same."""
    images = tmp_path / "images"
    images.mkdir()
    for number, path in enumerate(sorted((mapped_scene.folder / "images").iterdir())):
        tag, turns = ((1, 0), (6, 1), (3, 2), (8, 3))[number % 4]  # 6: the stored picture is to be turned clockwise
        pixels = np.rot90(np.asarray(Image.open(path)), turns)
        exif = Image.Exif()
        exif[ORIENTATION] = tag
        Image.fromarray(pixels).save(images / path.name, quality=97, exif=exif)
    truth = mapped_scene.folder / "truth" / "poses.txt"
    # the true focal length is 0.9 of the longer side, and the principal point the middle
    given = ("--camera-model", "SIMPLE_PINHOLE", "--set", "map.camera.default_focal_factor=0.9", "--fix-intrinsics")
    more = ("--max-keypoints", 1500, "--truth", truth, "--workers", 1)
    found, plain = results("reconstruct", images, "--out", tmp_path / "map", *given, *more), mapped_scene.ran.json()
    assert found["registered"] == 6
    assert found["points"] > 0.8 * plain["points"]
    assert found["truth"]["centre_max"] < 2 * plain["truth"]["centre_max"] + 0.002  # metres


NAMES = ["a picture.jpg", "Übersicht 図.jpg", "-dash.jpg", "deep/er/two words.jpg", "deep/-x.jpg", "ends in dots...jpg"]


def test_unusual_file_names(mapped_scene: Any, tmp_path: Path) -> None:
    """Spaces, Unicode, leading dashes and nested folders, from the photograph to the pose."""
    scene = tmp_path / "my scene"
    for name, path in zip(NAMES, sorted((mapped_scene.folder / "images").iterdir()), strict=True):
        place = scene / "images" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    made = results("reconstruct", scene, *mapped_scene.options, "--workers", 1)
    assert made["registered"] == 6
    model = read_model(scene / "featkit" / "sparse" / "0")
    assert {image.name for image in model.images.values()} == set(NAMES)
    queries = tmp_path / "-queries"
    queries.mkdir()
    shutil.copy(next((mapped_scene.folder / "queries").iterdir()), queries / "-a query ü.jpg")
    params = " ".join(map(str, mapped_scene.rendered.intrinsics.params))
    (tmp_path / "list.txt").write_text(f"-a query ü.jpg PINHOLE 400 300 {params}\n", encoding="utf-8")
    out = tmp_path / "poses"
    asked = ("localize", scene, "--queries", queries, "--intrinsics", tmp_path / "list.txt", "-o", out, "--workers", 1)
    assert results(*asked)["localized"] == 1
    assert set(read_poses(out / "poses.txt")) == {"-a query ü.jpg"}


def test_names_with_the_same_matches_key_are_refused(tmp_path: Path) -> None:
    """hloc's matches file has one place for `a/b-c` and `a-b/c`."""
    for name in ("a/b-c.png", "a-b/c.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(GREY).save(path)
    extracted(tmp_path / "images", tmp_path / "f.h5")
    results("pairs", tmp_path / "images", "-o", tmp_path / "pairs.txt", "--method", "exhaustive")
    ran = run("match", tmp_path / "f.h5", tmp_path / "pairs.txt", "-o", tmp_path / "m.h5", "-q")
    refused(ran, 3, "'a/b-c.png'", "'a-b/c.png'", "rename one")


def test_images_without_keypoints(mapped_scene: Any, tmp_path: Path) -> None:
    """They are reported and the others are mapped; with only such images there is no result."""
    images = Path(shutil.copytree(mapped_scene.folder / "images", tmp_path / "images"))
    Image.fromarray(np.full((300, 400), 128, np.uint8)).save(images / "flat.png")
    ran = run("reconstruct", images, "--out", tmp_path / "map", *mapped_scene.options, "--workers", 1, "--json")
    assert ran.exit_code == 0, ran.output
    assert "flat.png: no keypoints found in 400 x 300 px; it matches no image" in ran.stderr
    found = json.loads(ran.stdout)
    assert (found["images"], found["registered"]) == (7, 6)
    bare = tmp_path / "bare"
    bare.mkdir()
    for number in range(3):
        shutil.copy(images / "flat.png", bare / f"{number}.png")
    ran = run("reconstruct", bare, "--out", tmp_path / "none", "--workers", 1, "-q")
    assert ran.exit_code == 4
    assert "no two of 3 images match" in ran.stderr.splitlines()[-1]
    assert not (tmp_path / "none" / "database.db").exists()


def test_two_scenes_in_one_folder_give_two_models(mapped_scene: Any, tmp_path: Path) -> None:
    """Two models, largest first; no image is in the model of the other scene."""
    from featkit.demo.scene import RenderedConfig, render_scene

    other = render_scene(
        RenderedConfig(width=400, height=300, num_map=4, num_queries=1, texel_m=0.012, seed=5), tmp_path / "other"
    )
    images = tmp_path / "images"
    shutil.copytree(mapped_scene.folder / "images", images / "first")
    shutil.copytree(other.images, images / "second")
    found = results("reconstruct", images, "--out", tmp_path / "map", *mapped_scene.options, "--workers", 1)
    assert len(found["models"]) == 2
    assert (found["images"], found["registered"]) == (10, 6)
    folders = [
        {image.name.split("/")[0] for image in read_model(tmp_path / "map" / "sparse" / number).images.values()}
        for number in ("0", "1")
    ]
    assert folders == [{"first"}, {"second"}]


def test_own_pairs_of_photographs_that_are_left_out(mapped_scene: Any, tmp_path: Path) -> None:
    """A broken photograph in the list is passed over with a warning, one that is nowhere is a mistake."""
    images = Path(shutil.copytree(mapped_scene.folder / "images", tmp_path / "images"))
    (images / "bad.jpg").write_bytes(b"no photograph")
    names = sorted(path.name for path in images.iterdir())
    pairs = tmp_path / "mine.txt"
    pairs.write_text("".join(f"{a} {b}\n" for a, b in itertools.combinations(names, 2)))
    command = ("reconstruct", images, "--pairs", pairs, "--skip-broken", *mapped_scene.options, "--workers", 1)
    ran = run(*command, "--out", tmp_path / "map", "--json")
    assert ran.exit_code == 0, ran.output
    assert "mine.txt: 6 of 21 pairs are of photographs that are left out (bad.jpg)" in ran.stderr
    assert json.loads(ran.stdout)["registered"] == 6
    pairs.write_text(pairs.read_text() + "0000.jpg typo.jpg\n")
    ran = run(*command, "--out", tmp_path / "other", "-q")
    assert ran.exit_code == 3
    assert "'typo.jpg' has no features" in ran.stderr.splitlines()[-1]
