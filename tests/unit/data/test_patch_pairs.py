"""Test pairs: half matching, never a class against itself, never across scenes, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from featkit.data.phototour import draw_pairs

CLASSES = np.repeat(np.arange(60), np.tile([2, 3, 5], 20))
SCENES = (CLASSES >= 30).astype(np.int64)
ALL_MATCHING = 20 * (1 + 3 + 10)


def draw(count: int = 200, seed: int = 0, classes: np.ndarray = CLASSES, scenes: np.ndarray = SCENES):  # type: ignore[no-untyped-def]
    return draw_pairs(classes, scenes, count, np.random.default_rng(seed))


def test_half_of_the_pairs_match() -> None:
    pairs = draw()
    assert len(pairs) == 200
    assert pairs.match.sum() == 100
    np.testing.assert_array_equal(CLASSES[pairs.index0] == CLASSES[pairs.index1], pairs.match)
    assert (pairs.index0 != pairs.index1).all()
    assert 30 < pairs.match[:100].sum() < 70  # mixed, not one half after the other


def test_other_pairs_lie_within_one_scene() -> None:
    pairs = draw(2 * ALL_MATCHING)
    np.testing.assert_array_equal(SCENES[pairs.index0], SCENES[pairs.index1])
    assert set(SCENES[pairs.index0[~pairs.match]]) == {0, 1}


def test_no_matching_pair_comes_twice_and_all_come_when_asked() -> None:
    pairs = draw(10_000)
    matching = {tuple(sorted(p)) for p in zip(pairs.index0[pairs.match], pairs.index1[pairs.match], strict=True)}
    assert len(matching) == pairs.match.sum() == ALL_MATCHING
    assert len(pairs) == 2 * ALL_MATCHING


def test_both_orders_of_a_pair_occur() -> None:
    pairs = draw(10_000)
    first = (pairs.index0 < pairs.index1)[pairs.match].mean()
    assert 0.4 < first < 0.6


def test_the_seed_decides() -> None:
    one, same, other = draw(seed=1), draw(seed=1), draw(seed=2)
    np.testing.assert_array_equal([one.index0, one.index1], [same.index0, same.index1])
    assert (one.index0 != other.index0).any()


@pytest.mark.parametrize("classes", [np.arange(9), np.zeros(0, np.int64)])
def test_without_matching_pairs_there_are_none(classes: np.ndarray) -> None:
    assert len(draw(classes=classes, scenes=np.zeros(len(classes), np.int64))) == 0


def test_a_scene_of_one_class_gives_no_other_pairs() -> None:
    pairs = draw(classes=np.zeros(4, np.int64), scenes=np.zeros(4, np.int64))
    assert pairs.match.all()
    assert len(pairs) == 6
