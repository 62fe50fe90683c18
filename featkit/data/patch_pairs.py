"""Test pairs drawn as UBC's are: half of them two patches of one point, half patches of two points of one scene."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from featkit.data.patch_set import ClassIndex
from featkit.data.phototour import TestPairs


def draw_pairs(
    classes: Int[np.ndarray, " n"], scenes: Int[np.ndarray, " n"], count: int, generator: np.random.Generator
) -> TestPairs:
    """Up to `count` pairs, half of them matching, in random order; fewer when there are not as many matching ones.

    Matching pairs are drawn without repetition from all there are; two patches of a class come from different images
    when the class has one patch per image, as `featkit data patches` makes them.
    """
    first, second = all_matching(classes)
    half = min(count // 2, len(first))
    chosen = generator.permutation(len(first))[:half]
    swap = generator.random(half) < 0.5
    a, b = np.where(swap, second[chosen], first[chosen]), np.where(swap, first[chosen], second[chosen])
    c, d = _non_matching(classes, scenes, half, generator)
    order = generator.permutation(half + len(c))
    match = np.r_[np.ones(half, bool), np.zeros(len(c), bool)]
    return TestPairs(np.r_[a, c][order], np.r_[b, d][order], match[order])


def all_matching(classes: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """All pairs of patches of one class, each once."""
    index = ClassIndex.of(classes)
    firsts, seconds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for size in np.unique(index.counts):
        a, b = np.triu_indices(int(size), 1)
        starts = index.starts[index.counts == size][:, None]
        firsts.append(index.members[starts + a].ravel())
        seconds.append(index.members[starts + b].ravel())
    return np.concatenate(firsts), np.concatenate(seconds)


def _non_matching(
    classes: Int[np.ndarray, " n"], scenes: Int[np.ndarray, " n"], count: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of different classes of one scene: a patch drawn uniformly, then another one of its scene."""
    order = np.argsort(scenes, kind="stable")
    starts = np.searchsorted(scenes[order], np.arange(scenes.max(initial=-1) + 2))
    a, b = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for _ in range(100):  # a draw fails with the share of the largest class in its scene
        missing = count - len(a)
        if missing == 0:
            break
        first = generator.integers(0, len(classes), missing)
        low, high = starts[scenes[first]], starts[scenes[first] + 1]
        second = order[low + (generator.random(missing) * (high - low)).astype(np.int64)]
        differ = classes[first] != classes[second]
        a, b = np.r_[a, first[differ]], np.r_[b, second[differ]]
    return a, b
