"""Pairs from shared points, against counting them one by one."""

from __future__ import annotations

import numpy as np
import pytest

from featkit.core.types import Pair
from featkit.mapping.covisibility import Tracks, covisible_pairs


def tracks_of(seen: list[list[int]], images: int) -> Tracks:
    starts = np.cumsum([0, *map(len, seen)])
    flat = np.array([image for track in seen for image in track], dtype=np.int32)
    return Tracks(tuple(f"{i}.jpg" for i in range(images)), starts, flat)


def pairs_by_counting(seen: list[list[int]], images: int, num: int) -> list[Pair]:
    shared = np.zeros((images, images), int)
    for track in seen:
        for a in set(track):
            for b in set(track) - {a}:
                shared[a, b] += 1
    pairs: list[Pair] = []
    for a in range(images):
        best = sorted((b for b in range(images) if shared[a, b]), key=lambda b: (-shared[a, b], b))[:num]
        for b in best:
            if not any(pair.key() == Pair(f"{a}.jpg", f"{b}.jpg").key() for pair in pairs):
                pairs.append(Pair(f"{a}.jpg", f"{b}.jpg"))
    return pairs


@pytest.mark.parametrize("num", [1, 2, 5, 50])
def test_pairs_equal_slow_counting(num: int) -> None:
    rng = np.random.default_rng(num)
    seen = [rng.integers(0, 8, rng.integers(0, 6)).tolist() for _ in range(60)]  # empty ones and repeats among them
    assert covisible_pairs(tracks_of(seen, 9), num) == pairs_by_counting(seen, 9, num)  # nobody's image: the ninth


def test_no_pairs_without_shared_points() -> None:
    assert covisible_pairs(tracks_of([[0], [1, 1], []], 3), 5) == []
    assert covisible_pairs(tracks_of([], 0), 5) == []
