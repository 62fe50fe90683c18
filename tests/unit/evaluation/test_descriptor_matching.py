"""Ranked matches and their average precision against slow references, ties and nothing at all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from featkit.evaluation.oxford import Correspondences, Ranking, average_precision_of_matches, rank_matches


def unit_rows(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow_distance(a: np.ndarray, b: np.ndarray) -> float:
    if a.dtype == np.uint8:
        return float(sum(bin(int(x) ^ int(y)).count("1") for x, y in zip(a, b, strict=True)))
    return float(np.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))))


def slow_greedy(first: np.ndarray, second: np.ndarray) -> dict[int, tuple[int, float]]:
    edges = sorted(
        (slow_distance(first[i], second[j]), i, j) for i, j in itertools.product(range(len(first)), range(len(second)))
    )
    found: dict[int, tuple[int, float]] = {}
    taken: set[int] = set()
    for distance, i, j in edges:
        if i not in found and j not in taken:
            found[i] = (j, distance)
            taken.add(j)
    return found


def test_nearest_against_a_loop() -> None:
    first, second = unit_rows(40, 0), unit_rows(25, 1)
    ranking = rank_matches(first, second, "nearest")
    np.testing.assert_array_equal(ranking.index0, np.arange(40))
    for i, j, distance in zip(ranking.index0, ranking.index1, ranking.distances, strict=True):
        row = [slow_distance(first[i], other) for other in second]
        assert row.index(min(row)) == j
        assert distance == pytest.approx(min(row))


def test_bits_are_ranked_by_hamming_distance() -> None:
    rng = np.random.default_rng(2)
    first, second = (rng.integers(0, 256, (n, 4), dtype=np.uint8) for n in (30, 20))
    ranking = rank_matches(first, second, "nearest")
    for i, j, distance in zip(ranking.index0, ranking.index1, ranking.distances, strict=True):
        row = [slow_distance(first[i], other) for other in second]
        assert (row.index(min(row)), min(row)) == (j, distance)


@pytest.mark.parametrize("counts", [(40, 25), (25, 40), (1, 9)])
def test_one_to_one_against_the_greedy_rule(counts: tuple[int, int]) -> None:
    first, second = unit_rows(counts[0], 3), unit_rows(counts[1], 4)
    ranking = rank_matches(first, second, "one_to_one")
    found = {
        int(i): (int(j), float(d)) for i, j, d in zip(ranking.index0, ranking.index1, ranking.distances, strict=True)
    }
    expected = slow_greedy(first, second)
    assert found.keys() == expected.keys()
    for i, (j, distance) in expected.items():
        assert found[i] == (j, pytest.approx(distance))


def test_one_to_one_ends_when_all_are_equal() -> None:
    same = np.zeros((5, 4), np.uint8)
    ranking = rank_matches(same, same[:3], "one_to_one")
    assert sorted(ranking.index1) == [0, 1, 2]
    assert len(set(ranking.index0.tolist())) == 3


@pytest.mark.parametrize("rule", ["nearest", "one_to_one"])
def test_no_features_match_nothing(rule: str) -> None:
    for counts in ((0, 3), (3, 0), (0, 0)):
        ranking = rank_matches(unit_rows(counts[0], 0), unit_rows(counts[1], 1), rule)  # type: ignore[arg-type]
        assert len(ranking.index0) == len(ranking.index1) == len(ranking.distances) == 0


def slow_precision(distances: list[float], right: list[bool], total: int) -> float:
    """Trapezoids under the curve, one step per distinct distance."""
    area, before = 0.0, (0.0, 1.0)
    for threshold in sorted(set(distances)):
        kept = [flag for distance, flag in zip(distances, right, strict=True) if distance <= threshold]
        now = (sum(kept) / total, sum(kept) / len(kept))
        area += (now[0] - before[0]) * (now[1] + before[1]) / 2
        before = now
    return area


@pytest.mark.parametrize("levels", [1000, 6, 1])
def test_average_precision_against_a_loop(levels: int) -> None:
    rng = np.random.default_rng(levels)
    distances, right = rng.integers(0, levels, 80).astype(float), rng.random(80) < 0.4
    found = average_precision_of_matches(distances, right, 50)
    assert found == pytest.approx(slow_precision(distances.tolist(), right.tolist(), 50))
    order = rng.permutation(80)  # equal distances: the order of the list does not count
    assert average_precision_of_matches(distances[order], right[order], 50) == pytest.approx(found)


def test_average_precision_at_its_ends() -> None:
    distances = np.arange(4.0)
    assert average_precision_of_matches(distances, np.ones(4, bool), 4) == pytest.approx(1)
    assert average_precision_of_matches(distances, np.zeros(4, bool), 4) == 0
    assert average_precision_of_matches(distances, np.ones(4, bool), 8) == pytest.approx(0.5)
    assert average_precision_of_matches(distances[:0], np.zeros(0, bool), 3) == 0
    assert average_precision_of_matches(distances, np.zeros(4, bool), 0) == 0  # nothing corresponds


def test_what_is_to_be_found() -> None:
    found = Correspondences(np.array([0, 0, 1, 2, 2]), np.array([4, 5, 4, 6, 7]), np.array([0.1, 0.4, 0.2, 0.3, 0.3]))
    assert found.num_correspondences("nearest") == 3
    assert found.num_correspondences("one_to_one") == 2  # 0-4 takes what 1 would need; 2-6
    nothing = Correspondences(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    assert nothing.num_correspondences("nearest") == nothing.num_correspondences("one_to_one") == 0
    ranking = Ranking(np.array([0, 1, 2, 3]), np.array([5, 5, 6, 4]), np.zeros(4))
    assert found.hold(ranking).tolist() == [True, False, True, False]
    assert nothing.hold(ranking).tolist() == [False] * 4
