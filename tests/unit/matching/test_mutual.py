"""Mutual nearest neighbours: kornia's matches, ratio test on both sides, and nothing from a neighbour in the batch."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from featkit.core.errors import BadInputError
from featkit.core.types import Features, Matches
from featkit.matching.mutual import MutualConfig, MutualMatcher


def features(rows: np.ndarray) -> Features:
    n = len(rows)
    return Features(np.zeros((n, 2), np.float32), rows, np.ones(n, np.float32), (9, 9))


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def views(n: int, m: int, seed: int, noise: float = 0.6, d: int = 16) -> tuple[Features, Features]:
    """Two images that share half of their descriptors, up to noise."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, d))
    b = rng.normal(size=(m, d))
    shared = min(n, m) // 2
    b[:shared] = a[:shared] + noise * rng.normal(size=(shared, d))
    return features(unit(a)), features(unit(b)[rng.permutation(m)])


def match(a: Features, b: Features, **config: object) -> Matches:
    return MutualMatcher(MutualConfig(**config), "cpu").match([(a, b)])[0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [(300, 420), (7, 500), (1100, 90), (2, 2)])
def test_against_kornia_with_ratio(size: tuple[int, int], seed: int) -> None:
    kornia = pytest.importorskip("kornia.feature")
    a, b = views(*size, seed)
    _, index = kornia.match_smnn(torch.from_numpy(a.descriptors), torch.from_numpy(b.descriptors), 0.8)
    found = match(a, b, ratio=0.8)
    assert found.as_index_pairs().tolist() == sorted(index.tolist())
    if min(size) > 100:
        assert 20 < found.count < min(size)


@pytest.mark.parametrize("seed", range(4))
def test_against_kornia_without_ratio(seed: int) -> None:
    kornia = pytest.importorskip("kornia.feature")
    a, b = views(333, 250, seed)
    _, index = kornia.match_mnn(torch.from_numpy(a.descriptors), torch.from_numpy(b.descriptors))
    found = match(a, b, ratio=None)
    assert found.as_index_pairs().tolist() == sorted(index.tolist())
    similarity = a.descriptors @ b.descriptors.T
    for i, j in found.as_index_pairs():
        assert found.scores0[i] == pytest.approx(similarity[i, j], abs=1e-6)
    assert np.all(found.scores0[found.matches0 < 0] == 0)


def test_a_slow_reference() -> None:
    a, b = views(60, 45, 9)
    distance = np.linalg.norm(a.descriptors[:, None].astype(float) - b.descriptors[None], axis=2)
    expected = []
    for i in range(60):
        first, second = np.argsort(distance[i])[:2]
        back = np.argsort(distance[:, first])[:2]
        ratios = distance[i, first] / distance[i, second], distance[back[0], first] / distance[back[1], first]
        if back[0] == i and max(ratios) <= 0.7:
            expected.append([i, int(first)])
    assert match(a, b, ratio=0.7).as_index_pairs().tolist() == expected


def test_the_ratio_counts_on_both_sides() -> None:
    """Two rows of image 0 are near the one of image 1: unique for them, not for it."""
    a = features(unit(np.array([[1, 0.1, 0], [1, 0.12, 0], [0, 0, 1]])))
    b = features(unit(np.array([[1, 0.0, 0], [0, -1, 0], [0, 0.1, 1]])))
    assert match(a, b, ratio=0.8).matches0.tolist() == [-1, -1, 2]
    assert match(a, b, ratio=None).matches0[0] == 0
    assert match(b, a, ratio=0.8).matches0.tolist() == [-1, -1, 2]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("length", [1.0, 1.01])
def test_a_repeated_descriptor_is_ambiguous(dtype: type, length: float) -> None:
    """Two equally good answers are none, also when rounding makes the rows a little longer than 1."""
    rng = np.random.default_rng(0)
    rows = length * unit(rng.normal(size=(4, 16)))
    a, b = features(rows.astype(dtype)), features(rows[[0, 0, 1, 2]].astype(dtype))
    assert match(a, b, ratio=0.8).matches0.tolist() == [-1, 2, 3, -1]
    assert match(b, a, ratio=0.8).matches0.tolist() == [-1, -1, 1, 2]


@pytest.mark.parametrize("config", [{}, {"ratio": None}, {"min_score": 0.5}])
def test_a_batch_changes_nothing(config: dict) -> None:
    pairs = [views(n, m, n) for n, m in [(1030, 50), (3, 70), (64, 64), (700, 33)]]
    pairs.append((pairs[0][0], pairs[2][1]))
    matcher = MutualMatcher(MutualConfig(**config), "cpu")
    together = matcher.match(pairs)
    for pair, found in zip(pairs, together, strict=True):
        alone = matcher.match([pair])[0]
        assert alone.matches0.tobytes() == found.matches0.tobytes()
        assert alone.scores0.tobytes() == found.scores0.tobytes()


@pytest.mark.parametrize("scale", [512.0, 0.02])
def test_descriptors_of_any_length_match_like_unit_ones(scale: float) -> None:
    """As OpenCV's SIFT in another program's file, where rows have about 512."""
    a, b = views(80, 70, 7)
    lengths = scale * np.random.default_rng(0).uniform(0.9, 1.1, (2, 80, 1)).astype(np.float32)
    long = [features(one.descriptors * length[: len(one)]) for one, length in zip((a, b), lengths, strict=True)]
    found, expected = match(*long, ratio=0.8), match(a, b, ratio=0.8)
    assert (expected.matches0 >= 0).sum() > 5
    assert found.matches0.tolist() == expected.matches0.tolist()
    np.testing.assert_allclose(found.scores0, expected.scores0, atol=1e-5)


def test_min_score() -> None:
    a, b = views(200, 200, 5)
    every = match(a, b, ratio=None)
    some = match(a, b, ratio=None, min_score=0.9)
    keep = every.scores0 >= 0.9
    assert 0 < keep.sum() < every.count
    assert np.array_equal(some.matches0, np.where(keep, every.matches0, -1))


def test_types() -> None:
    a, b = views(40, 30, 0)
    found = match(a, b)
    assert (found.matches0.dtype, found.scores0.dtype) == (np.int32, np.float32)
    half = match(features(a.descriptors.astype(np.float16)), features(b.descriptors.astype(np.float16)))
    assert half.matches0.dtype == np.int32
    assert (half.matches0 == found.matches0).mean() > 0.9


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 5), (5, 0)])
def test_empty(n: int, m: int) -> None:
    found = match(features(np.zeros((n, 8), np.float16)), features(np.ones((m, 8), np.float16)))
    assert found.matches0.tolist() == [-1] * n
    assert found.scores0.tolist() == [0] * n
    assert found.matches0.dtype == np.int32


def test_one_descriptor_on_a_side() -> None:
    """No second neighbour is infinitely far away."""
    a, b = features(unit(np.array([[1.0, 0.2]]))), features(unit(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])))
    assert match(a, b).matches0.tolist() == [0]
    assert match(b, a).matches0.tolist() == [0, -1, -1]
    assert match(a, a).matches0.tolist() == [0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("ratio", [0.8, None])
def test_a_row_that_is_not_finite_matches_nothing_and_spoils_nothing(bad: float, ratio: float | None) -> None:
    a, b = views(50, 40, 2)
    clean = match(a, b, ratio=ratio).matches0
    rows_a = np.insert(a.descriptors, 10, a.descriptors[3], axis=0)
    rows_a[10, 5] = bad
    rows_b = np.insert(b.descriptors, 0, b.descriptors[7], axis=0)
    rows_b[0] = bad
    found = match(features(rows_a), features(rows_b), ratio=ratio).matches0
    assert found[10] == -1
    assert np.array_equal(np.delete(found, 10), np.where(clean >= 0, clean + 1, -1))


def test_nothing_finite() -> None:
    rows = np.full((3, 4), np.nan, np.float32)
    assert match(features(rows), features(rows)).matches0.tolist() == [-1] * 3


def test_other_dimensions_are_refused() -> None:
    with pytest.raises(BadInputError, match="8 and 16 numbers"):
        match(features(np.ones((2, 8))), features(np.ones((2, 16))))


def test_wrong_ratio() -> None:
    with pytest.raises(ValidationError):
        MutualConfig(ratio="x")  # type: ignore[arg-type]


def test_a_later_batch_changes_nothing() -> None:
    """Descriptors of a batch are kept for the next one: of the same images, and never of others."""
    matcher = MutualMatcher(MutualConfig(), "cpu")
    a, b = views(60, 70, 1)
    for pair in ((a, b), (b, a), (a, a), views(60, 70, 2), (a, b), views(50, 60, 3, d=8)):
        [kept], [fresh] = matcher.match([pair]), MutualMatcher(MutualConfig(), "cpu").match([pair])
        assert np.array_equal(kept.matches0, fresh.matches0)
        assert np.array_equal(kept.scores0, fresh.scores0)
