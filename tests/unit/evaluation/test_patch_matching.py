"""Pairs of images by the points they share, against a slow count."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from featkit.evaluation.patches import image_pairs, matching_ap


def some(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes, scenes and images of 3,000 patches: 4 images in each of 3 scenes, now and then unknown or twice."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 600, 3000)
    scenes = classes % 3
    images = scenes * 4 + rng.choice(4, 3000, p=[0.4, 0.3, 0.2, 0.1])
    images[rng.random(3000) < 0.05] = -1
    return classes, scenes, images


def test_pairs_are_those_that_share_enough_classes() -> None:
    classes, scenes, images = some()
    shown = {image: set(classes[images == image]) for image in range(12)}
    wanted = {(i, j) for i, j in itertools.combinations(range(12), 2) if len(shown[i] & shown[j]) >= 20}
    found = list(image_pairs(classes, scenes, images, 20, 1000, np.random.default_rng(0)))
    assert len(wanted) == 18, "all of a scene; none with those of no image"
    assert len(found) == len(wanted)
    for pair in found:
        i, j = set(images[pair.rows0]), set(images[pair.rows1])
        assert len(i) == len(j) == 1
        wanted.remove((i.pop(), j.pop()))
        np.testing.assert_array_equal(classes[pair.rows0], classes[pair.rows1])
        assert set(classes[pair.rows0]) == shown[images[pair.rows0[0]]] & shown[images[pair.rows1[0]]]
        assert len(set(classes[pair.rows0])) == len(pair)


def test_scenes_take_turns_and_large_pairs_are_cut() -> None:
    classes, scenes, images = some()
    found = list(image_pairs(classes, scenes, images, 60, 40, np.random.default_rng(0)))
    assert {len(pair) for pair in found} == {40}
    turns = [int(scenes[pair.rows0[0]]) for pair in found]
    assert set(turns[:3]) == set(turns[3:6]) == {0, 1, 2}
    other = list(image_pairs(classes, scenes, images, 60, 40, np.random.default_rng(1)))
    assert any(not np.array_equal(a.rows0, b.rows0) for a, b in zip(found, other, strict=True))
    assert list(image_pairs(classes, scenes, images, 400, 1000, np.random.default_rng(0))) == []
    assert list(image_pairs(classes, scenes, np.full(3000, -1), 2, 9, np.random.default_rng(0))) == []


def test_precision_of_matches_ranked_by_distance() -> None:
    """Worked out by hand: matches at 0.1 (right), 0.2 (wrong), 0.3 (right) of three patches."""
    first = np.array([[0.0, 0], [10, 0], [20, 0]])
    second = np.array([[0.1, 0], [30, 0], [20.3, 0]])
    first[1] = (20.1, 0)  # its nearest is the third patch, at 0.2
    expected = (1 + 1) / 2 / 3 + (1 / 2 + 2 / 3) / 2 / 3
    assert matching_ap(first, second) == pytest.approx(expected)
