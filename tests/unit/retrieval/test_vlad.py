from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from featkit.core.config import Config
from featkit.core.errors import BadInputError
from featkit.core.types import Features
from featkit.io.features import FeatureStore, append_features
from featkit.retrieval.vlad import (
    DISTANCE_NORM,
    Codebook,
    VladConfig,
    to_fixed_point,
    train_codebook,
    unit_descriptors,
    vlad,
)

MakeStore = Callable[..., FeatureStore]


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[MakeStore]:
    with ExitStack() as stack:

        def make(images: dict[str, np.ndarray], scores: np.ndarray | None = None) -> FeatureStore:
            path = tmp_path / f"features{len(list(tmp_path.iterdir()))}.h5"
            store = stack.enter_context(append_features(path, Config()))
            for name, rows in images.items():
                n = len(rows)
                best = np.ones(n, np.float32) if scores is None else scores
                store.write(name, Features(np.zeros((n, 2), np.float32), rows, best, (8, 8)))
            return store

        yield make


def random_rows(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def obvious_vlad(rows: np.ndarray, codebook: Codebook, config: VladConfig) -> np.ndarray:
    """VLAD written out entry by entry."""
    points = to_fixed_point(rows @ codebook.basis, DISTANCE_NORM).astype(float)
    total = np.zeros(codebook.centroids.shape)
    for point in points:
        nearest = min(
            range(len(total)), key=lambda k: float(((point - codebook.centroids[k].astype(float)) ** 2).sum())
        )
        total[nearest] += point - codebook.centroids[nearest]
    for k in range(len(total)):
        if config.intra_normalize and np.linalg.norm(total[k]) > 0:
            total[k] /= np.linalg.norm(total[k])
    flat = [np.sign(v) * abs(v) ** config.power for v in total.ravel()]
    return np.array(flat) / np.linalg.norm(flat)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"intra_normalize": False}, {"power": 1.0}, {"descriptor_dims": 0}, {"descriptor_dims": 4}],
)
def test_vlad_equals_the_obvious_loop(make_store: MakeStore, changes: dict, backend: str) -> None:
    config = VladConfig(num_clusters=6, backend=backend, **changes)
    store = make_store({"a": random_rows(200), "b": random_rows(150, seed=1)})
    codebook = train_codebook(store, ["a", "b"], config, np.random.default_rng(0))
    rows = random_rows(80, seed=2)
    vector = vlad(rows, codebook, config)
    assert len(vector) == codebook.dims == 6 * (changes.get("descriptor_dims", 16) or 16)
    assert np.allclose(vector, obvious_vlad(rows, codebook, config), atol=1e-6)


def test_backends_train_the_same_codebook(make_store: MakeStore) -> None:
    pytest.importorskip("faiss")
    store = make_store({"a": random_rows(300)})
    books = [
        train_codebook(store, ["a"], VladConfig(num_clusters=8, backend=b), np.random.default_rng(0))
        for b in ("faiss", "torch")
    ]
    assert np.array_equal(books[0].centroids, books[1].centroids)


def test_no_descriptors_is_a_zero_vector() -> None:
    book = Codebook(np.eye(4, dtype=np.float32), np.zeros((2, 4), np.float32))
    vector = vlad(np.empty((0, 4), np.float32), book, VladConfig())
    assert vector.tolist() == [0.0] * 8


def test_a_descriptor_on_its_centroid_is_not_nan() -> None:
    rows = random_rows(1, 4)
    book = Codebook(np.eye(4, dtype=np.float32), to_fixed_point(rows, DISTANCE_NORM).astype(np.float32))
    assert vlad(rows, book, VladConfig()).tolist() == [0.0] * 4


@pytest.mark.parametrize("kind", ["float16", "float32", "uint8"])
def test_descriptors_of_any_type_become_unit_rows(make_store: MakeStore, kind: str) -> None:
    rows = np.abs(random_rows(20))
    stored = (rows * 512).clip(0, 255).astype(np.uint8) if kind == "uint8" else rows.astype(kind)
    found = unit_descriptors(make_store({"a": stored}), "a", 100)
    plain = stored.astype(float)
    if kind == "uint8":  # packed bits: +1 where one is set, -1 where not
        signs = [[1.0 if byte >> (7 - bit) & 1 else -1.0 for byte in row for bit in range(8)] for row in stored]
        plain = np.array(signs)
    expected = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, atol=1e-6)


def test_zero_rows_are_left_out_and_tiny_ones_kept(make_store: MakeStore) -> None:
    rows = np.array([[0, 0], [3e-30, 4e-30], [0, 2]], np.float32)
    found = unit_descriptors(make_store({"a": rows}), "a", 10)
    assert np.allclose(found, [[0.6, 0.8], [0, 1]])


def test_the_best_scored_descriptors_describe_an_image(make_store: MakeStore) -> None:
    rows = np.eye(4, dtype=np.float32)
    store = make_store({"a": rows}, scores=np.array([1, 3, 2, 3], np.float32))
    assert np.array_equal(unit_descriptors(store, "a", 2), rows[[1, 3]])
    assert np.array_equal(unit_descriptors(store, "a", 3), rows[[1, 2, 3]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_descriptors_are_refused(make_store: MakeStore, bad: float) -> None:
    rows = random_rows(3)
    rows[1, 1] = bad
    with pytest.raises(BadInputError, match=r"'a'.*finite"):
        unit_descriptors(make_store({"a": rows}), "a", 10)


def test_different_lengths_and_nothing_at_all_are_refused(make_store: MakeStore) -> None:
    mixed = make_store({"a": random_rows(20, 8), "b": random_rows(20, 4)})
    with pytest.raises(BadInputError, match="the same method"):
        train_codebook(mixed, ["a", "b"], VladConfig(), np.random.default_rng(0))
    empty = make_store({"a": random_rows(0)})
    with pytest.raises(BadInputError, match="none of 1 images has a keypoint"):
        train_codebook(empty, ["a"], VladConfig(), np.random.default_rng(0))


def test_training_takes_no_more_than_it_may(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{i}" for i in range(12)]
    store = make_store({n: random_rows(0 if n == "3" else 50, seed=int(n)) for n in names})
    read: list[str] = []
    plain = FeatureStore.read
    monkeypatch.setattr(FeatureStore, "read", lambda self, name: read.append(name) or plain(self, name))
    config = VladConfig(train_images=4, train_descriptors=90, num_clusters=1000, min_per_cluster=9)
    book = train_codebook(store, names, config, np.random.default_rng(0))
    assert len(book.centroids) == 10  # 90 descriptors, 9 for each cluster
    assert len(set(read) - {"3"}) == 4
    with_all = VladConfig(train_descriptors=100_000, num_clusters=1000, min_per_cluster=1)
    assert len(train_codebook(store, names, with_all, np.random.default_rng(0)).centroids) == 550


def test_the_principal_axes_are_those_of_the_covariance(make_store: MakeStore) -> None:
    spread = np.array([0.01, 0.5, 0.02, 0.3, 0.01, 0.01])
    rows = (np.random.default_rng(0).normal(size=(2000, 6)) * spread + [3, 0, 0, 0, 0, 0]).astype(np.float32)
    store = make_store({"a": rows})
    book = train_codebook(store, ["a"], VladConfig(descriptor_dims=2), np.random.default_rng(0))
    # The common offset along the first axis is the longest direction but not one of large variance.
    assert np.argmax(np.abs(book.basis), axis=0).tolist() == [1, 3]
    assert np.allclose(book.basis.T @ book.basis, np.eye(2), atol=1e-5)
