import importlib.util

import numpy as np
import pytest

from featkit.core.errors import UsageError
from featkit.retrieval.search import choose_backend
from featkit.retrieval.vlad import DISTANCE_NORM, DOT_NORM, kmeans, nearest_centroid, to_fixed_point

needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")


def unit_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def points(n: int = 3000, d: int = 16, seed: int = 0) -> np.ndarray:
    return to_fixed_point(unit_rows(n, d, seed), DISTANCE_NORM).astype(np.float32)


@pytest.mark.parametrize("d", [1, 3, 128, 8192])
def test_fixed_point_norms_stay_within_the_exact_range(d: int) -> None:
    rows = np.concatenate([unit_rows(50, d), np.full((1, d), 1 / np.sqrt(d), np.float32)])
    for norm in (DOT_NORM, DISTANCE_NORM):
        lengths = np.linalg.norm(to_fixed_point(rows, norm).astype(np.float64), axis=1)
        assert lengths.max() <= norm
        assert lengths.min() > 0.95 * norm


def test_float32_products_of_fixed_point_vectors_are_exact() -> None:
    fixed = to_fixed_point(unit_rows(200, 1000), DOT_NORM)
    exact = fixed.astype(np.int64) @ fixed.astype(np.int64).T
    assert np.array_equal(fixed.astype(np.float32) @ fixed.astype(np.float32).T, exact)


@needs_faiss
def test_faiss_and_torch_give_the_same_centroids() -> None:
    x = points()
    found = [kmeans(x, 20, np.random.default_rng(3), backend=b) for b in ("faiss", "torch")]  # type: ignore[arg-type]
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize("backend", [pytest.param("faiss", marks=needs_faiss), "torch"])
def test_nearest_centroid_equals_all_distances_with_the_lower_index_of_a_tie(backend: str) -> None:
    x, c = points(500, 8), points(12, 8, seed=1)
    c[7] = c[2]  # every point near centroid 2 is just as near to centroid 7
    distances = ((x[:, None, :].astype(np.int64) - c[None].astype(np.int64)) ** 2).sum(axis=2)
    labels = nearest_centroid(x, c, backend=backend)  # type: ignore[arg-type]
    assert np.array_equal(labels, distances.argmin(axis=1))
    assert 2 in labels
    assert 7 not in labels


def test_kmeans_finds_separate_clusters() -> None:
    centres = to_fixed_point(np.eye(4, dtype=np.float32), DISTANCE_NORM).astype(np.float32)
    noise = np.random.default_rng(0).integers(-20, 21, size=(400, 4))
    x = np.repeat(centres, 100, axis=0) * 0.9 + noise
    found = kmeans(np.rint(x).astype(np.float32), 4, np.random.default_rng(1), iterations=50)
    nearest = np.abs(found[:, None] - 0.9 * centres[None]).max(axis=2).min(axis=0)
    assert nearest.max() < 20


def test_kmeans_is_decided_by_the_generator() -> None:
    x = points()
    a, b, c = (kmeans(x, 10, np.random.default_rng(seed), iterations=2) for seed in (5, 5, 6))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_fewer_points_than_clusters_gives_as_many_centroids_as_points() -> None:
    x = points(3, 4)
    assert np.array_equal(np.unique(kmeans(x, 10, np.random.default_rng(0)), axis=0), np.unique(x, axis=0))


def test_identical_points_leave_no_nan() -> None:
    x = np.repeat(points(1, 4), 50, axis=0)
    assert np.array_equal(kmeans(x, 5, np.random.default_rng(0)), x[:5])


def test_faiss_asked_for_but_missing_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_backend("auto") == "torch"
    with pytest.raises(UsageError, match="faiss-cpu"):
        choose_backend("faiss")


def test_auto_leaves_a_gpu_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert choose_backend("auto", "auto") == "faiss"
    assert choose_backend("auto", "cuda:0") == "torch"
