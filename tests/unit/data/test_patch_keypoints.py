"""Keypoints to cut patches at: of every kind of detector, and from files of others."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from featkit.core.config import Config
from featkit.core.errors import BadInputError
from featkit.core.types import Features
from featkit.data.keypoint_classes import PixelGrid
from featkit.data.patch_frames import DetectorConfig, detected
from featkit.images.read import DecodeConfig
from featkit.io.features import append_features


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        coarse = rng.integers(0, 256, (24, 32), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / name), cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_CUBIC))
    return tmp_path


def found(config: DetectorConfig, images: Path, file: Path | None = None, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return list(detected(config, images, ("a.png", "b.png"), "test", rng, 1, file=file))


@pytest.mark.parametrize("kind", ["fast", "random"])
def test_keypoints_without_a_size_get_one(images: Path, kind: str) -> None:
    config = DetectorConfig(kind=kind, free_scale_px=(2.0, 8.0), random_places=400, fast_threshold=5)
    (size, here), (_, other) = found(config, images)
    assert size == (320, 240)
    assert len(here) >= (400 if kind == "random" else 50)
    assert not np.array_equal(here.xy[:20], other.xy[:20])
    assert (here.xy >= -0.5).all()
    assert (here.xy <= (319.5, 239.5)).all()
    octaves = np.log2(here.scales)
    assert 1 <= octaves.min() < 1.3 < 2.7 < octaves.max() <= 3
    assert np.std(np.histogram(here.oris, 8, (-np.pi, np.pi))[0]) < 0.5 * len(here) / 8
    np.testing.assert_array_equal(found(config, images)[0][1].oris, here.oris)


def test_random_sizes_are_of_the_image_they_were_drawn_in(images: Path) -> None:
    """A photograph of twice the size, reduced by half, has the same frames, twice as large."""
    config = DetectorConfig(kind="random", free_scale_px=(2.0, 8.0), random_places=100)
    plain = found(config, images)[0][1]
    for name in ("a.png", "b.png"):
        pixels = cv2.imread(str(images / name))
        cv2.imwrite(str(images / name), cv2.resize(pixels, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC))
    rng = np.random.default_rng(0)
    (_, reduced), _ = detected(config, images, ("a.png", "b.png"), "test", rng, 1, DecodeConfig(resize_max=320))
    np.testing.assert_allclose(reduced.scales, 2 * plain.scales, rtol=1e-6)
    np.testing.assert_allclose(reduced.xy, 2 * plain.xy + 0.5, atol=1e-3)


def test_fast_finds_the_strongest_corners(images: Path) -> None:
    every = cv2.FastFeatureDetector.create(5).detect(cv2.imread(str(images / "a.png"), cv2.IMREAD_GRAYSCALE))
    best = sorted(every, key=lambda point: -point.response)[:10]
    here = found(DetectorConfig(kind="fast", fast_threshold=5, max_num_features=10), images)[0][1]
    np.testing.assert_allclose(here.xy, [point.pt for point in best])


def test_opencv_finds_the_same_keypoints_as_colmap(images: Path) -> None:
    """Position, size and direction: the two detectors share one definition."""
    every, colmap, opencv = (
        found(DetectorConfig(kind=kind, peak_threshold=threshold), images)[0][1]
        for kind, threshold in (("dog", 0.003), ("dog", 0.06), ("opencv-dog", 0.06))
    )
    assert len(every) > 1.3 * len(colmap)
    assert len(opencv) == pytest.approx(len(colmap), rel=0.15)
    query, place, _ = PixelGrid(opencv.xy, 0.5).pairs_within(colmap.xy, 0.5)
    octaves = np.log2(opencv.scales[place] / colmap.scales[query])
    turns = (opencv.oris[place] - colmap.oris[query] + np.pi) % (2 * np.pi) - np.pi
    same = (np.abs(octaves) < 0.2) & (np.abs(turns) < 0.2)
    assert len(colmap) > 50
    assert len(set(query[same])) > 0.6 * len(colmap)
    assert np.abs(np.median((opencv.xy[place] - colmap.xy[query])[same], axis=0)).max() < 0.05


def test_keypoints_of_a_file_are_taken_as_they_are(images: Path, tmp_path: Path) -> None:
    xy = np.array([[10.5, 20.0], [100.0, 50.25]], np.float32)
    one = np.ones(2, np.float32)
    whole = Features(xy, np.eye(2, 4, dtype=np.float32), one, (320, 240), scales=2 * one, oris=np.array([0.5, -1.0]))
    bare = Features(xy + 1, np.eye(2, 4, dtype=np.float32), one, (320, 240))
    with append_features(tmp_path / "f.h5", Config()) as store:
        store.write("a.png", whole)
        store.write("b.png", bare)
    (size, here), (_, free) = found(DetectorConfig(free_scale_px=(3, 4)), images, tmp_path / "f.h5")
    assert size == (320, 240)
    np.testing.assert_allclose(here.xy, xy)
    np.testing.assert_allclose(here.scales, 2)
    np.testing.assert_allclose(here.oris, [0.5, -1.0], atol=1e-6)
    np.testing.assert_allclose(free.xy, xy + 1)
    assert ((free.scales >= 3) & (free.scales <= 4)).all()
    (images / "c.png").write_bytes((images / "a.png").read_bytes())
    rng = np.random.default_rng(0)
    with pytest.raises(BadInputError, match=r"f\.h5: no keypoints of 'c\.png'"):
        list(detected(DetectorConfig(), images, ("c.png",), "test", rng, 1, file=tmp_path / "f.h5"))
