"""Descriptors of turned images: which turn a pair is compared at."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from featkit.core.errors import BadInputError
from featkit.core.types import Features
from featkit.evaluation.oxford import OxfordConfig, precision_of_pair
from featkit.evaluation.sequences import Sequence
from featkit.io.features import FeatureStore
from featkit.matching.mutual import MutualConfig, MutualMatcher
from featkit.matching.nearest import relative_rotation, rolled


def features(seed: int, count: int = 60, turns: int = 4, length: int = 16) -> Features:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, turns, length))
    rows /= np.linalg.norm(rows, axis=2, keepdims=True) * turns**0.5
    points = rng.uniform(0, 100, (count, 2)).astype(np.float32)
    scores = rng.permutation(count).astype(np.float32)
    return Features(points, rows.reshape(count, turns * length).astype(np.float32), scores, (100, 100), turns=turns)


def seen_turned(a: Features, places: int, seed: int = 1) -> tuple[Features, np.ndarray]:
    """Features of the same image turned, in another order and with noise; and where those of `a` are among them."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(a))
    rows = np.roll(a.descriptors.reshape(len(a), a.turns, -1), -places, axis=1).reshape(len(a), -1)[order]
    rows = rows + rng.normal(0, 0.02, rows.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return replace(a, descriptors=rows.astype(np.float32)), np.argsort(order)


@pytest.mark.parametrize("places", range(4))
def test_the_turn_of_a_pair_is_found(places: int) -> None:
    a = features(0)
    b, expected = seen_turned(a, places)
    assert relative_rotation(torch.from_numpy(a.descriptors), torch.from_numpy(b.descriptors), 4) == places
    matches = MutualMatcher(MutualConfig(), "cpu").match([(a, b)])[0]
    np.testing.assert_array_equal(matches.matches0, expected)


def test_without_turns_a_turned_image_is_another() -> None:
    a = features(0)
    b, expected = seen_turned(a, 1)
    plain = MutualMatcher(MutualConfig(), "cpu").match([(replace(a, turns=1), replace(b, turns=1))])[0]
    assert (plain.matches0 == expected).mean() < 0.1


def test_rows_moved_round() -> None:
    rows = torch.arange(8.0)[None]
    assert rolled(rows, 4, 1).tolist() == [[6, 7, 0, 1, 2, 3, 4, 5]]
    assert rolled(rows, 4, 0).tolist() == rows.tolist()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_keypoints(count: int) -> None:
    a, b = features(0), features(1, count=count)
    for pair in ((a, b), (b, a)):
        matches = MutualMatcher(MutualConfig(ratio=None), "cpu").match([pair])[0]
        assert len(matches.matches0) == len(pair[0])


def test_a_broken_row_decides_nothing() -> None:
    a = features(0)
    b, expected = seen_turned(a, 2)
    b.descriptors[3] = np.nan
    matches = MutualMatcher(MutualConfig(), "cpu").match([(a, b)])[0].matches0
    assert (matches[expected != 3] == expected[expected != 3]).all()
    assert matches[expected == 3] == -1


def test_turns_must_agree() -> None:
    a = features(0)
    with pytest.raises(BadInputError, match="4 and 1 turns"):
        MutualMatcher(MutualConfig(), "cpu").match([(a, replace(a, turns=1))])


@pytest.mark.parametrize("places", range(4))
def test_the_precision_of_a_pair_is_that_of_its_turn(places: int) -> None:
    """Turned features of one image, of which the other shows the left half: found as in the whole images."""
    a = replace(features(0, count=200), descriptors=features(0, count=200).descriptors.astype(np.float16))
    b, place = seen_turned(a, places)
    points = np.empty_like(a.keypoints)
    points[place] = a.keypoints
    b = replace(b, keypoints=points, image_size=(50, 100))
    homographies = np.tile(np.eye(3), (5, 1, 1))
    pair = next(Sequence("s", tuple(Path(f"{i}.png") for i in range(6)), homographies).pairs())
    store = cast(FeatureStore, SimpleNamespace(read={pair.pair.name0: a, pair.pair.name1: b}.__getitem__))
    found = precision_of_pair(pair, store, OxfordConfig(max_error_px=0.1))
    assert found.features_in_both[0] < 120
    assert found.ap["distance"] == pytest.approx(1.0)
