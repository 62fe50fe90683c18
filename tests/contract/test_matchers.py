"""Contract of all registered matchers; see featkit/matching/stage.py."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from freed import is_freed
from published_weights import needs_package

from featkit.core.config import Config
from featkit.core.errors import BadInputError
from featkit.core.registry import resolve
from featkit.core.types import Features, Matches

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = sorted(p.stem for p in CONFIGS.glob("*.yaml") if "matcher" in yaml.safe_load(p.read_text(encoding="utf-8")))
SYMMETRIC = {"mutual"}
LEARNED = {"lightglue": "aliked-lightglue"}
"""Matchers with weights, and those of the features here."""
DIMENSION = 128
Views = Callable[..., tuple[Features, Features]]


@pytest.fixture(scope="module", params=NAMES)
def matcher(request: pytest.FixtureRequest) -> Any:
    if request.param in LEARNED:
        needs_package(LEARNED[request.param])
    return resolve("matcher", request.param, device="cpu").built


@pytest.fixture
def views(request: pytest.FixtureRequest) -> Views:
    """A function (n, m, seed, dtype) that makes two images the matcher can match."""
    return learned_views if request.node.callspec.params["matcher"] in LEARNED else drawn_views


@cache
def found_in_noise(seed: int) -> Features:
    """Features of a picture, in any order."""
    smooth = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(320, 320, 3)), (0, 0), 1.5)
    pixels = np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    found = resolve("extractor", "aliked-n16", {"max_keypoints": 320}, "cpu").built.extract(pixels)
    return found.select(np.random.default_rng(seed).permutation(len(found)))


def learned_views(n: int, m: int, seed: int, dtype: type = np.float16) -> tuple[Features, Features]:
    """Two images whose first keypoints correspond, slightly moved; the others do not."""
    rng = np.random.default_rng(seed)
    picture, other = found_in_noise(0), found_in_noise(1)
    start, shared = int(rng.integers(0, 320 - max(n, m))), min(n, m) // 2
    a, moved = picture.select(start + np.arange(n)), picture.select(start + np.arange(shared))
    rest = other.select(np.arange(m - shared))
    keypoints = np.concatenate([moved.keypoints + np.float32([4, 3]), rest.keypoints])
    b = replace(
        other.select(np.arange(m)),
        keypoints=keypoints,
        descriptors=np.concatenate([moved.descriptors, rest.descriptors]).astype(dtype),
    )
    a = replace(a, descriptors=a.descriptors.astype(dtype))
    return replace(a, extractor="aliked-n16"), replace(b, extractor="aliked-n16")


def drawn_views(n: int, m: int, seed: int, dtype: type = np.float16) -> tuple[Features, Features]:
    """Two images with some equal descriptors, up to noise."""
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=(count, DIMENSION)) for count in (n, m)]
    shared = min(n, m) // 2
    rows[1][:shared] = rows[0][:shared] + 0.4 * rng.normal(size=(shared, DIMENSION))
    images = []
    for values in rows:
        unit = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(dtype)
        keypoints = rng.uniform(0, 600, (len(unit), 2)).astype(np.float32)
        score = np.ones(len(unit), np.float32)
        images.append(Features(keypoints, unit, score, (640, 640), scales=2 * score, oris=0 * score))
    return images[0], images[1]


def assert_same(a: Matches, b: Matches) -> None:
    assert a.matches0.tobytes() == b.matches0.tobytes()
    assert a.scores0.tobytes() == b.scores0.tobytes()


def test_attributes(matcher: Any) -> None:
    assert issubclass(type(matcher).Config, Config)
    type(matcher).Config()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_shapes_and_types(matcher: Any, views: Views, dtype: type) -> None:
    a, b = views(200, 150, 0, dtype)
    found = matcher.match([(a, b)])[0]
    assert found.matches0.shape == found.scores0.shape == (200,)
    assert (found.matches0.dtype, found.scores0.dtype) == (np.int32, np.float32)
    assert found.matches0.min() >= -1
    assert found.matches0.max() < 150
    assert np.isfinite(found.scores0).all()
    assert (found.scores0[found.matches0 < 0] == 0).all()
    used = found.matches0[found.matches0 >= 0]
    assert len(set(used.tolist())) == len(used), "no keypoint has two partners"
    right = found.matches0[:75] == np.arange(75)
    assert right.mean() > 0.9


def test_batching_does_not_change_results(matcher: Any, views: Views) -> None:
    pairs = [views(100, 120, 1), views(33, 7, 2), views(64, 64, 3)]
    together = matcher.match(pairs)
    assert len(together) == 3
    for pair, found in zip(pairs, together, strict=True):
        assert_same(matcher.match([pair])[0], found)
    for found, expected in zip(matcher.match(pairs[::-1]), together[::-1], strict=True):
        assert_same(found, expected)
    assert matcher.match([]) == []


def test_freed_with_its_last_user(matcher: Any, views: Views) -> None:
    """No cycle keeps a network in memory until the garbage collector runs."""
    another = [type(matcher)(matcher.config, "cpu")]
    another[0].match([views(64, 64, 3)])
    assert is_freed(another)


def test_inputs_are_not_modified(matcher: Any, views: Views) -> None:
    a, b = views(90, 80, 4)
    copies = [a.descriptors.copy(), b.descriptors.copy(), a.keypoints.copy(), b.keypoints.copy()]
    for array in (a.descriptors, b.descriptors, a.keypoints, b.keypoints):
        array.flags.writeable = False
    first = matcher.match([(a, b)])[0]
    assert_same(matcher.match([(a, b)])[0], first)
    for array, copy in zip((a.descriptors, b.descriptors, a.keypoints, b.keypoints), copies, strict=True):
        assert np.array_equal(array, copy)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 9), (9, 0), (1, 1), (1, 5), (5, 1)])
def test_few_or_no_features(matcher: Any, views: Views, n: int, m: int) -> None:
    found = matcher.match([views(n, m, 5)])[0]
    assert found.matches0.shape == (n,)
    assert found.matches0.dtype == np.int32
    if n == 0 or m == 0:
        assert found.count == 0


def test_swapping_the_images_swaps_the_matches(matcher: Any, views: Views, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["matcher"]
    if name not in SYMMETRIC:
        pytest.skip(f"{name} does not promise it")
    a, b = views(310, 250, 6)
    there, back = matcher.match([(a, b), (b, a)])
    assert sorted(map(tuple, there.as_index_pairs().tolist())) == sorted(
        (i, j) for j, i in back.as_index_pairs().tolist()
    )


def test_other_descriptors_are_refused(matcher: Any, views: Views) -> None:
    a, _ = views(5, 5, 7)
    b = replace(a, descriptors=a.descriptors[:, :64])
    with pytest.raises(BadInputError, match="128 and 64"):
        matcher.match([(a, b)])
