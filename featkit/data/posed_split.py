"""Posed pairs to learn from, and pairs that are kept aside to choose weights by."""

from __future__ import annotations

import logging

import numpy as np
from jaxtyping import Bool, Int

from featkit.data.posed_pairs import PosedPairs
from featkit.errors import BadInputError

LOGGER = logging.getLogger(__name__)


def split_pairs(pairs: PosedPairs, share: float, seed: int) -> tuple[PosedPairs, PosedPairs]:
    """(to learn from, held out). share: of the images of every scene that are held out.

    The images of a scene that are held out lie together: they grow from one drawn at random along pairs. A pair of two
    of them is held out, a pair of one of them is in neither part. Where that leaves no held-out pair (few images), a
    share of the pairs is held out instead, whose images are also learned from. Raises BadInputError when a part would
    be empty.
    """
    generator = np.random.default_rng([seed, 3])
    learned, held = [], []
    for number, scene in enumerate(pairs.scenes):
        rows = np.flatnonzero(pairs.pairs[:, 0] == number)
        if not len(rows):
            continue
        of_scene = pairs.pairs[rows, 1:]
        out = _grown(of_scene, len(scene.image_names), share, generator)[of_scene]
        train, test = ~out.any(axis=1), out.all(axis=1)
        if not test.any() or not train.any():
            test = _some(len(rows), share, generator)
            train = ~test
            LOGGER.info("%s: too few images to hold some of them out; pairs are held out instead", scene.name)
        learned.append(rows[train])
        held.append(rows[test])
    parts = [np.concatenate(part) if part else np.zeros(0, np.int64) for part in (learned, held)]
    if not all(len(part) for part in parts):
        raise BadInputError(f"only {len(pairs)} pairs: too few to learn from and hold some of them out")
    return pairs.select(parts[0]), pairs.select(parts[1])


def _grown(
    of_scene: Int[np.ndarray, "n 2"], images: int, share: float, generator: np.random.Generator
) -> Bool[np.ndarray, " m"]:
    """Images to hold out: from a random one, always the one next that has most pairs with those already held."""
    wanted = round(share * images)
    held = np.zeros(images, bool)
    tie = generator.random(images)
    while held.sum() < wanted:
        links = np.zeros(images)
        for one, other in ((0, 1), (1, 0)):
            np.add.at(links, of_scene[:, one], held[of_scene[:, other]].astype(float))
        paired = np.bincount(of_scene.ravel(), minlength=images) > 0
        score = np.where(held | ~paired, -1.0, links + tie)
        if score.max() < 0:
            break
        held[score.argmax()] = True
    return held


def _some(count: int, share: float, generator: np.random.Generator) -> Bool[np.ndarray, " n"]:
    """A share of the pairs, at least one where two or more are there."""
    chosen = np.zeros(count, bool)
    chosen[generator.permutation(count)[: max(round(share * count), int(count > 1))]] = True
    return chosen
