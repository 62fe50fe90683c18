"""SIFT: positions in featkit's pixels, COLMAP's budget, and tiles that neither lose nor double a keypoint."""

from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from featkit.core.types import Features
from featkit.features.sift import Sift, SiftConfig

PHOTOS = Path(__file__).resolve().parents[4] / "shared" / "data"


def texture(width: int, height: int, seed: int = 0, smooth: float = 1.2) -> np.ndarray:
    """Noise on three scales: blobs of all sizes everywhere."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width))
    for step in (1, 4, 16):
        noise = rng.normal(size=(height // step + 2, width // step + 2)).astype(np.float32)
        total += cv2.GaussianBlur(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), (0, 0), smooth)
    return np.clip(128 + 45 * total / total.std(), 0, 255).astype(np.uint8)


def extract(pixels: np.ndarray, **config: object) -> Features:
    return Sift(SiftConfig(**config)).extract(pixels)


@pytest.fixture(scope="module")
def small() -> np.ndarray:
    return texture(320, 240)


@pytest.mark.parametrize("normalization", ["l1_root", "l2"])
def test_unit_rows(small: np.ndarray, normalization: str) -> None:
    found = extract(small, normalization=normalization)
    norms = np.linalg.norm(found.descriptors.astype(np.float64), axis=1)
    assert len(found) > 300
    assert found.descriptors.dtype == np.float16
    assert np.abs(norms - 1).max() < 0.02
    assert found.descriptors.min() >= 0


def test_rootsift_is_the_root_of_sift(small: np.ndarray) -> None:
    """RootSIFT: L1-normalise, take the root (Arandjelovic and Zisserman 2012)."""
    root, plain = extract(small), extract(small, normalization="l2")
    assert np.array_equal(root.keypoints, plain.keypoints)
    rows = plain.descriptors.astype(np.float64)
    expected = np.sqrt(rows / rows.sum(1, keepdims=True))
    difference = np.abs(expected - root.descriptors)
    assert difference.mean() < 2e-3
    assert difference.max() < 0.05  # a small number that was rounded to whole 512ths before the root was taken


def test_against_pycolmap(small: np.ndarray) -> None:
    options = pycolmap.FeatureExtractionOptions()
    options.use_gpu = False
    keypoints, descriptors = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu).extract_from_uint8_array(
        small
    )
    matrix = np.asarray(pycolmap.keypoints_to_matrix(keypoints))
    found = extract(small)
    assert found.keypoints == pytest.approx(matrix[:, :2] - 0.5, abs=1e-5)
    assert found.scales == pytest.approx(matrix[:, 2])
    assert found.oris == pytest.approx(matrix[:, 3])
    assert np.array_equal(found.descriptors.astype(np.float64) * 512, np.asarray(descriptors.data))


@pytest.mark.parametrize("limit", [1, 17, 100])
def test_max_keypoints_is_exact_and_keeps_the_largest(small: np.ndarray, limit: int) -> None:
    every, some = extract(small, max_num_features=100_000), extract(small, max_keypoints=limit)
    assert len(some) == limit
    assert some.scales is not None
    assert every.scales is not None
    assert np.sort(some.scales)[::-1] == pytest.approx(np.sort(every.scales)[::-1][:limit])


def test_the_budget_counts_whole_levels(small: np.ndarray) -> None:
    every, some = extract(small, max_num_features=100_000), extract(small, max_num_features=200)
    assert 200 <= len(some) < len(every)


BLOBS = np.array([[40.0, 40.0], [100.25, 41.6], [41.7, 100.1], [159.33, 99.8], [100.6, 100.3], [160.9, 40.15]])


@pytest.mark.parametrize("sigma", [3.0, 5.0, 8.0])
@pytest.mark.parametrize("first_octave", [-1, 0])
def test_blobs_are_found_where_they_are(sigma: float, first_octave: int) -> None:
    """The centre of the top-left pixel is (0, 0): a half pixel of difference would show at once."""
    y, x = np.mgrid[:140, :200].astype(np.float64)
    image = np.full((140, 200), 40.0)
    for u, v in BLOBS:
        image += 180 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma**2))
    found = extract(np.clip(np.round(image), 0, 255).astype(np.uint8), first_octave=first_octave, upright=True)
    offsets = []
    for blob in BLOBS:
        distance = np.linalg.norm(found.keypoints - blob, axis=1)
        offsets.append(found.keypoints[distance.argmin()] - blob)
    offsets_px = np.array(offsets)
    assert np.linalg.norm(offsets_px, axis=1).mean() < 0.05
    assert np.abs(offsets_px.mean(axis=0)).max() < 0.03


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (3, 5), (1, 40), (40, 1), (2, 2), (15, 15), (16, 33)])
@pytest.mark.parametrize("megapixels", [1.5, 1e-6])
def test_tiny_images(size: tuple[int, int], megapixels: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0])).astype(np.uint8)
    found = extract(pixels, coarse_first_megapixels=max(megapixels, size[0] * size[1] / 9e6))
    assert found.image_size == size
    assert found.descriptors.shape == (len(found), 128)


@pytest.mark.parametrize("megapixels", [1.5, 0.01])
def test_a_flat_image_has_no_keypoint(megapixels: float) -> None:
    found = extract(np.full((120, 160), 128, np.uint8), coarse_first_megapixels=megapixels)
    assert (len(found), found.descriptors.shape, found.keypoints.shape) == (0, (0, 128), (0, 2))
    assert found.descriptors.dtype == np.float16


def test_a_filled_budget_leaves_the_finest_octave_out() -> None:
    """The same as detection that begins one octave later."""
    pixels = texture(640, 480)
    found = extract(pixels, coarse_first_megapixels=0.1, max_num_features=300)
    later = extract(pixels, first_octave=0, num_octaves=3, max_num_features=300)
    assert len(found) >= 300
    for name in ("keypoints", "scales", "oris", "descriptors"):
        assert np.array_equal(getattr(found, name), getattr(later, name))


def rows_of(found: Features) -> np.ndarray:
    assert found.scales is not None
    assert found.oris is not None
    return np.column_stack([found.keypoints, found.scales, found.oris])


def assert_same_keypoints(found: Features, whole: Features) -> None:
    """Nearly every keypoint of the one is in the other, in place, scale and orientation, and none twice."""
    a, b = rows_of(found), rows_of(whole)
    assert len(a) == pytest.approx(len(b), rel=0.005)
    order = np.argsort(b[:, 0])
    b = b[order]
    descriptors = whole.descriptors[order]
    hits, same_descriptor = 0, 0
    taken: set[int] = set()
    for row, descriptor in zip(a, found.descriptors, strict=True):
        first, last = np.searchsorted(b[:, 0], [row[0] - 0.01, row[0] + 0.01])
        near = b[first:last]
        turned = np.abs(np.angle(np.exp(1j * (near[:, 3] - row[3]))))
        fits = (np.abs(near[:, 1] - row[1]) < 0.01) & (np.abs(near[:, 2] / row[2] - 1) < 0.01) & (turned < 0.02)
        places = first + np.flatnonzero(fits)
        new = [int(place) for place in places if place not in taken]
        if new:
            taken.add(new[0])
            hits += 1
            close = np.abs(descriptors[new[0]].astype(float) - descriptor).max() < 0.02
            same_descriptor += bool(close)
    assert hits > 0.98 * len(a)
    assert hits > 0.98 * len(b)
    assert same_descriptor > 0.98 * hits


@pytest.mark.slow
@pytest.mark.parametrize("megapixels", [0.02, 0.05])
def test_tiles_are_the_whole_image(megapixels: float) -> None:
    """Many seams: a lost or doubled row along each would be several percent."""
    assert_tiles_are_the_whole(texture(512, 384, 3), megapixels)


def assert_tiles_are_the_whole(pixels: np.ndarray, megapixels: float) -> None:
    """Features of the finest octave come first, then those of the coarser ones."""
    found = extract(pixels, coarse_first_megapixels=megapixels, max_num_features=10**6)
    finest = extract(pixels, num_octaves=1, max_num_features=10**6)
    coarser = extract(pixels, first_octave=0, num_octaves=3, max_num_features=10**6)
    assert len(finest) > 300
    split = len(found) - len(coarser)
    assert np.array_equal(found.keypoints[split:], coarser.keypoints)
    assert_same_keypoints(found.select(np.arange(split)), finest)


@pytest.mark.slow
def test_tiles_of_a_photograph() -> None:
    photo = PHOTOS / "eth" / "fountain-P11"
    files = sorted(photo.rglob("*.png")) + sorted(photo.rglob("*.jpg")) if photo.is_dir() else []
    if not files:
        pytest.skip("no photograph in shared/data/eth/fountain-P11")
    pixels = cv2.imread(str(files[0]), cv2.IMREAD_GRAYSCALE)[300:900, 300:1200]
    assert_tiles_are_the_whole(pixels, 0.3)


@pytest.mark.slow
def test_a_budget_between_takes_the_coarsest_levels() -> None:
    pixels = texture(512, 384, 3)
    every = extract(pixels, coarse_first_megapixels=0.05, max_num_features=10**6)
    coarse = extract(pixels, first_octave=0, num_octaves=3, max_num_features=10**6)
    budget = (len(every) + len(coarse)) // 2
    some = extract(pixels, coarse_first_megapixels=0.05, max_num_features=budget)
    whole = extract(pixels, max_num_features=budget)
    assert budget <= len(some) <= len(every)
    assert len(some) == pytest.approx(len(whole), rel=0.02), "COLMAP's own rule on the whole image"


def assert_identical(a: Features, b: Features) -> None:
    for name in ("keypoints", "scales", "oris", "descriptors"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("config", [{"num_octaves": 1}, {"coarse_first_megapixels": 0.02}, {"num_octaves": 4}])
def test_the_image_before_leaves_nothing_behind(config: dict) -> None:
    """VLFeat keeps the gradients of an octave when the next image has the same size."""
    first, second = texture(320, 240, 1), texture(320, 240, 2)
    sift = Sift(SiftConfig(**config))
    sift.extract(first)
    assert_identical(sift.extract(second), extract(second, **config))


def test_a_blob_before_leaves_nothing_behind() -> None:
    """Both images have keypoints of one octave only."""
    y, x = np.mgrid[:140, :200].astype(np.float64)
    images = []
    for u, v in [(60, 60), (130, 80)]:
        blob = 40 + 180 * np.exp(-((x - u) ** 2) / (2 * 10.0**2) - (y - v) ** 2 / (2 * (6.0 + u / 30) ** 2))
        images.append(blob.astype(np.uint8))
    sift = Sift(SiftConfig())
    sift.extract(images[0])
    assert_identical(sift.extract(images[1]), extract(images[1]))


def test_tiles_cover_the_image_once() -> None:
    sift = Sift(SiftConfig(coarse_first_megapixels=0.01))
    for width, height in [(1000, 700), (101, 99), (1, 5000), (300, 300)]:
        counts = np.zeros((height, width), int)
        for x0, y0, x1, y1 in sift._tiles(width, height):
            counts[y0:y1, x0:x1] += 1
        assert np.all(counts == 1)
