"""Packed bits are matched as brute force matches them by Hamming distance, ties included."""

import numpy as np
import pytest
import torch

from featkit.core.errors import BadInputError
from featkit.core.types import Features, Matches
from featkit.features.base import is_packed, pack_bits, unpack_signs
from featkit.matching.mutual import MutualConfig, MutualMatcher
from featkit.matching.nearest import nearest_two, rows_of


def features(rows: np.ndarray) -> Features:
    n = len(rows)
    return Features(np.zeros((n, 2), np.float32), rows, np.ones(n, np.float32), (9, 9))


def views(n: int, m: int, seed: int, flips: float = 0.15, bits: int = 256) -> tuple[Features, Features]:
    """Two images that share half of their descriptors, some bits flipped."""
    rng = np.random.default_rng(seed)
    a, b = rng.random((n, bits)) < 0.5, rng.random((m, bits)) < 0.5
    shared = min(n, m) // 2
    b[:shared] = a[:shared] ^ (rng.random((shared, bits)) < flips)
    return features(pack_bits(a)), features(pack_bits(b[rng.permutation(m)]))


def popcounts(a: Features, b: Features) -> np.ndarray:
    table = np.array([bin(value).count("1") for value in range(256)])
    return table[a.descriptors[:, None] ^ b.descriptors[None]].sum(2)


def brute_force(a: Features, b: Features, ratio: float | None) -> list[int]:
    """matches0 by its definition: the first of equally near ones, the ratio on both sides."""
    distance = popcounts(a, b)

    def passes(row: np.ndarray) -> bool:
        first, second = np.sort(row)[:2]
        return ratio is None or (first <= ratio * second and second > 0)

    found = []
    for i, row in enumerate(distance):
        j = int(np.argmin(row))
        column = distance[:, j]
        good = int(np.argmin(column)) == i and passes(row) and passes(column)
        found.append(j if good else -1)
    return found


def match(a: Features, b: Features, **config: object) -> Matches:
    return MutualMatcher(MutualConfig(**config), "cpu").match([(a, b)])[0]


@pytest.mark.parametrize("ratio", [None, 0.7, 0.8, 0.95, 1.0])
@pytest.mark.parametrize(("n", "m", "bits"), [(200, 260, 256), (300, 40, 64), (90, 90, 24), (150, 150, 8)])
def test_against_brute_force(n: int, m: int, bits: int, ratio: float | None) -> None:
    """With 8 and 24 bits nearly every nearest neighbour has others just as near."""
    a, b = views(n, m, n, bits=bits)
    expected = brute_force(a, b, ratio)
    found = match(a, b, ratio=ratio)
    assert found.matches0.tolist() == expected
    if bits == 256:
        assert 20 < found.count < min(n, m)


def test_large_enough_for_several_tiles() -> None:
    a, b = views(1100, 1050, 3, bits=16)
    assert match(a, b, ratio=None).matches0.tolist() == brute_force(a, b, None)


def test_both_directions_agree() -> None:
    for seed in range(3):
        a, b = views(120, 100, seed, bits=16)
        there, back = match(a, b, ratio=None).as_index_pairs(), match(b, a, ratio=None).as_index_pairs()
        assert sorted(map(tuple, there.tolist())) == sorted((i, j) for j, i in back.tolist())


def test_scores_are_equal_bits_minus_unequal_ones() -> None:
    a, b = views(80, 90, 1)
    found = match(a, b, ratio=None)
    distance = popcounts(a, b)
    for i, j in found.as_index_pairs():
        assert found.scores0[i] == 1 - 2 * distance[i, j] / 256
    some = match(a, b, ratio=None, min_score=0.5)
    keep = found.scores0 >= 0.5
    assert 0 < keep.sum() < found.count
    assert np.array_equal(some.matches0, np.where(keep, found.matches0, -1))


def test_a_batch_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 16)).astype(np.float32)
    real = features(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    pairs = [views(100, 50, 1), (real, real), views(7, 80, 2, bits=64)]
    matcher = MutualMatcher(MutualConfig(), "cpu")
    for pair, found in zip(pairs, matcher.match(pairs), strict=True):
        alone = matcher.match([pair])[0]
        assert alone.matches0.tobytes() == found.matches0.tobytes()
        assert alone.scores0.tobytes() == found.scores0.tobytes()


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 5), (5, 0), (1, 1)])
def test_few_or_none(n: int, m: int) -> None:
    found = match(features(np.zeros((n, 4), np.uint8)), features(np.zeros((m, 4), np.uint8)))
    assert found.matches0.tolist() == ([0] if n == m == 1 else [-1] * n)


def test_bits_and_real_numbers_do_not_match() -> None:
    a, _ = views(5, 5, 0, bits=32)
    real = features(np.ones((5, 4), np.float32) / 2)
    for pair in ((a, real), (real, a)):
        with pytest.raises(BadInputError, match="binary"):
            match(*pair)
    with pytest.raises(BadInputError, match="32 and 64"):
        match(a, views(5, 5, 0, bits=64)[0])


def test_packing() -> None:
    bits = np.random.default_rng(0).random((9, 24)) < 0.5
    packed = pack_bits(bits)
    assert (packed.dtype, packed.shape) == (np.uint8, (9, 3))
    assert packed[0, 0] == sum(int(bit) << (7 - i) for i, bit in enumerate(bits[0, :8]))
    assert np.array_equal(unpack_signs(packed), np.where(bits, 1.0, -1.0))
    assert is_packed(packed)
    assert not is_packed(bits.astype(np.float16))


@pytest.mark.parametrize(("n", "m"), [(70, 33), (40, 1500), (2100, 64)])
def test_of_equal_bests_the_first_is_found(n: int, m: int) -> None:
    draw = torch.Generator().manual_seed(n)
    a, b = (torch.randint(-1, 2, (count, 3), generator=draw).float() for count in (n, m))
    across, down = nearest_two(rows_of(a), rows_of(b)), nearest_two(rows_of(b), rows_of(a))
    product = (a @ b.T).numpy()
    assert np.array_equal(across.index.numpy(), product.argmax(1))
    assert np.array_equal(down.index.numpy(), product.argmax(0))
