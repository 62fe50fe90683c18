"""A teacher's keypoints follow a photograph onto its canvas."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from featkit.core.config import Config
from featkit.core.errors import BadInputError
from featkit.core.types import Features
from featkit.data.posed_samples import HomographyPairs, WarpConfig
from featkit.data.teacher import Teacher
from featkit.data.views import CanvasConfig, PhotometricConfig, ViewConfig
from featkit.images.read import EXIF_ORIENTATION, DecodeConfig, as_stored, decode
from featkit.io.features import append_features, open_features

SIZE = (160, 120)


def write(file: Path, names: list[str], length: int = 8, size: tuple[int, int] = SIZE, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    with append_features(file, Config()) as store:
        for name in names:
            keypoints = (rng.random((40, 2)) * (np.array(size) - 1)).astype(np.float32)
            descriptors = rng.normal(size=(40, length)).astype(np.float32)
            store.write(name, Features(keypoints, descriptors, rng.random(40).astype(np.float32), size))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photographs; a white square of 5 px stands at each keypoint of the first."""
    folder = tmp_path / "photos"
    (folder / "in").mkdir(parents=True)
    write(tmp_path / "teacher.h5", ["in/a.png"])
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    with open_features(tmp_path / "teacher.h5") as store:
        for x, y in store.keypoints("in/a.png"):
            cv2.circle(pixels, (round(float(x)), round(float(y))), 2, (255, 255, 255), -1)
    cv2.imwrite(str(folder / "in" / "a.png"), pixels)
    cv2.imwrite(str(folder / "in" / "b.png"), pixels)
    return folder


def test_keypoints_lie_on_what_they_lay_on(photos: Path, tmp_path: Path) -> None:
    config = WarpConfig(
        canvas=CanvasConfig(width=128, height=96, zoom_max=1),
        jitter=WarpConfig().jitter.model_copy(update={"probability": 0.0}),
        photometric=PhotometricConfig(),
        views=ViewConfig(rotation_deg=180, scale_max=1.5, perspective=0.2),
    )
    pairs = HomographyPairs([photos], config, teacher=Teacher([photos], [tmp_path / "teacher.h5"]), taught=30)
    assert len(pairs) == 1, "the teacher has not seen b.png"
    seen = 0
    for seed in range(20):
        sample = pairs.sample(0, np.random.default_rng(seed))
        assert sample.taught is not None
        for image, valid, taught in zip(
            (sample.image0, sample.image1), (sample.valid0, sample.valid1), sample.taught, strict=True
        ):
            assert len(taught.points) == 30
            points = np.rint(taught.points[taught.shown]).astype(int)
            shown = valid[points[:, 1], points[:, 0]]
            assert shown.all()
            light = image[points[:, 1], points[:, 0], 0]
            assert (light > 100).mean() > 0.9
            seen += len(points)
            assert (np.diff(taught.scores[taught.shown]) <= 0).all(), "the best ones first"
            assert not taught.scores[~taught.shown].any()
        # both views have the same keypoints where both show them, and the homography joins them
        first, second = sample.taught
        moved = np.c_[first.points, np.ones(30)] @ sample.homography01.T
        same = (np.abs(first.descriptors[:, None] - second.descriptors[None]).max(2) == 0) & first.shown[:, None]
        same &= second.shown[None]
        for i, j in np.argwhere(same):
            assert moved[i, 2] > 0
            assert np.linalg.norm(moved[i, :2] / moved[i, 2] - second.points[j]) < 1e-3
    assert seen > 200
    batch = pairs.collate([pairs.sample(0, np.random.default_rng(s)) for s in range(3)])
    assert batch.taught is not None
    assert batch.taught.points.shape == (6, 30, 2)
    again = pairs.sample(0, np.random.default_rng(1))
    assert again.taught is not None
    assert np.array_equal(batch.taught.points[1], again.taught[0].points)
    assert np.array_equal(batch.taught.points[4], again.taught[1].points)


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_photographs_stored_rotated(photos: Path, tmp_path: Path, tag: int, kind: str) -> None:
    """Features of a file are in its pixels as stored, and the canvas shows it upright."""
    with open_features(tmp_path / "teacher.h5") as store:
        upright = store.read("in/a.png")
    pixels = cv2.imread(str(photos / "in" / "a.png"))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = tag
    folder = tmp_path / "stored"
    folder.mkdir()
    Image.fromarray(as_stored(pixels, tag)).save(folder / "a.png", exif=exif)
    image = decode(folder / "a.png", DecodeConfig(), colour=True)
    np.testing.assert_array_equal(image.pixels, pixels)
    with append_features(tmp_path / "stored.h5", Config()) as store:
        store.write("a.png", image.features_in_file(upright))
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "stored.zip", "w") as archive:
            archive.write(folder / "a.png", "a.png")
        folder = tmp_path / "stored.zip"
    config = WarpConfig(
        canvas=CanvasConfig(width=128, height=96, zoom_max=1),
        jitter=WarpConfig().jitter.model_copy(update={"probability": 0.0}),
        photometric=PhotometricConfig(),
        views=ViewConfig(rotation_deg=20),
    )
    sample = HomographyPairs([folder], config, teacher=Teacher([folder], [tmp_path / "stored.h5"])).sample(
        0, np.random.default_rng(0)
    )
    assert sample.taught is not None
    points = np.rint(sample.taught[0].points[sample.taught[0].shown]).astype(int)
    assert len(points) > 20
    assert (sample.image0[points[:, 1], points[:, 0], 0] > 100).mean() > 0.9


def test_wrong_teachers(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"1 teacher file\(s\) for 2 folder"):
        Teacher([photos, photos], [tmp_path / "teacher.h5"])
    write(tmp_path / "long.h5", ["in/a.png"], length=9)
    with pytest.raises(BadInputError, match="different descriptor dimensions"):
        Teacher([photos, tmp_path], [tmp_path / "teacher.h5", tmp_path / "long.h5"])
    write(tmp_path / "other.h5", ["c.png"])
    with pytest.raises(BadInputError, match="none of the photographs"):
        HomographyPairs([photos], teacher=Teacher([photos], [tmp_path / "other.h5"]))
