"""Matching the patches of two images: HPatches' matching task on any set whose patches know their image.

Every patch of image A is matched with its nearest neighbour among those of image B; AP of the matches ranked by
distance, of all patches of A (Balntas et al., CVPR 2017, section 5); mean over pairs of images. Only points that both
images show take part, so every patch has its right partner among the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

from featkit.data.patch_pairs import all_matching
from featkit.evaluation.descriptor_distances import distance_matrix
from featkit.evaluation.retrieval_ap import average_precision


@dataclass(frozen=True)
class ImagePair:
    """Patches of two images of one scene: rows of a PatchSet, those at one place show the same point."""

    rows0: Int[np.ndarray, " k"]
    rows1: Int[np.ndarray, " k"]

    def __len__(self) -> int:
        return len(self.rows0)


def matching_ap(descriptors0: Shaped[np.ndarray, "n d"], descriptors1: Shaped[np.ndarray, "n d"]) -> float:
    """AP in [0, 1] of the nearest neighbours of rows of the one among the other; right is the row of the same number.

    Unit vectors by Euclidean, packed bits by Hamming distance.
    """
    distances = distance_matrix(descriptors0, descriptors1)
    nearest, rows = distances.argmin(axis=1), np.arange(len(distances))
    return average_precision(distances[rows, nearest], nearest == rows, num_relevant=len(rows))


def image_pairs(
    classes: Int[np.ndarray, " n"],
    scenes: Int[np.ndarray, " n"],
    images: Int[np.ndarray, " n"],
    min_shared: int,
    max_shared: int,
    generator: np.random.Generator,
) -> Iterator[ImagePair]:
    """Pairs of images that share at least `min_shared` classes, in random order, of all scenes in turn.

    Of each at most `max_shared` classes, drawn at random. images: -1 where not known.
    """
    first, second = all_matching(classes)
    swap = images[first] > images[second]
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    known = (images[first] >= 0) & (images[first] != images[second])
    first, second = first[known], second[known]
    key = images[first] * (int(images.max(initial=0)) + 1) + images[second]
    order = np.lexsort((classes[first], key))
    first, second, key = first[order], second[order], key[order]
    once = np.r_[True, (np.diff(key) != 0) | (np.diff(classes[first]) != 0)] if len(key) else np.zeros(0, bool)
    first, second, key = first[once], second[once], key[once]
    starts = np.flatnonzero(np.r_[True, np.diff(key) != 0]) if len(key) else np.zeros(0, np.int64)
    counts = np.diff(np.r_[starts, len(key)])
    chosen = generator.permutation(np.flatnonzero(counts >= min_shared))
    for pair in chosen[_in_turn(scenes[first[starts[chosen]]])]:
        rows = starts[pair] + np.sort(generator.permutation(counts[pair])[:max_shared])
        yield ImagePair(first[rows], second[rows])


def _in_turn(scenes: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
    """An order in which every scene comes once before any comes twice."""
    by_scene = np.argsort(scenes, kind="stable")
    ordered = scenes[by_scene]
    turn = np.arange(len(scenes)) - np.searchsorted(ordered, ordered)
    return by_scene[np.argsort(turn, kind="stable")]
