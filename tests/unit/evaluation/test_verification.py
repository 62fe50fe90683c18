"""FPR95 and the curves against counts made pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest

from featkit.core.errors import BadInputError
from featkit.evaluation.metrics import cumulative_counts, fpr95


def slow_fpr95(distances: np.ndarray, match: np.ndarray, recall: float = 0.95, later: int = 0) -> float:
    """Walk along the ranks as the definition says; at equal distance the non-matches come first."""
    ranked = sorted(zip(distances.tolist(), match.tolist(), strict=True))
    matches, passed, false = sum(match.tolist()), 0, 0
    for _, is_match in ranked:
        if is_match:
            passed += 1
            if passed >= min(math.ceil(round(recall * matches, 6)) + later, matches):
                return false / (len(match) - matches)
        else:
            false += 1
    raise AssertionError


@pytest.mark.parametrize("levels", [None, 40, 3])
@pytest.mark.parametrize("matches", [1, 7, 20, 100, 137])
def test_fpr95_is_what_counting_by_rank_gives(matches: int, levels: int | None) -> None:
    rng = np.random.default_rng(matches)
    match = np.r_[np.ones(matches, bool), np.zeros(90, bool)]
    distances = rng.normal(np.where(match, 1.0, 2.0), 0.7)
    if levels is not None:  # ties, as a binary descriptor has them
        distances = np.round(np.clip(distances, 0, 3) * levels / 3)
    assert fpr95(distances, match) == slow_fpr95(distances, match)
    assert fpr95(distances, match, rule="index") == slow_fpr95(distances, match, later=1)
    assert fpr95(distances, match, recall=0.5) == slow_fpr95(distances, match, recall=0.5)


def test_fpr95_by_hand() -> None:
    """20 matches at 1..20: the 19th is the first with a recall of 0.95."""
    matching = np.arange(1.0, 21.0)
    other = np.array([0.5, 18.5, 19.0, 19.5, 20.5])
    distances, match = np.r_[matching, other], np.r_[np.ones(20, bool), np.zeros(5, bool)]
    assert fpr95(distances, match) == pytest.approx(3 / 5), "0.5, 18.5 and, at the threshold itself, 19"
    assert fpr95(distances, match, rule="index") == pytest.approx(4 / 5)


def test_the_order_of_the_pairs_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    match = rng.random(500) < 0.5
    distances = rng.integers(0, 8, 500).astype(np.float32)
    shuffled = rng.permutation(500)
    assert fpr95(distances, match) == fpr95(distances[shuffled], match[shuffled])
    assert cumulative_counts(distances, match).auc == pytest.approx(
        cumulative_counts(distances[shuffled], match[shuffled]).auc, abs=1e-15
    )


def test_a_descriptor_that_says_nothing_lets_everything_through() -> None:
    match = np.arange(10) < 5
    assert fpr95(np.ones(10), match) == 1.0
    assert cumulative_counts(np.ones(10), match).auc == pytest.approx(0.5)


def test_area_under_the_roc_curve_is_a_count_of_pairs() -> None:
    rng = np.random.default_rng(1)
    match = rng.random(200) < 0.3
    distances = rng.integers(0, 20, 200) - 3.0 * match
    near, far = distances[match][:, None], distances[~match][None]
    wins = np.mean((near < far) + 0.5 * (near == far))
    assert cumulative_counts(distances, match).auc == pytest.approx(float(wins), abs=1e-12)


def test_curve_counts() -> None:
    found = cumulative_counts(np.array([3.0, 1.0, 2.0, 2.0]), np.array([False, True, True, False]))
    assert found.distance.tolist() == [-np.inf, 1.0, 2.0, 3.0]
    assert found.true_positives.tolist() == [0, 1, 2, 2]
    assert found.false_positives.tolist() == [0, 0, 1, 2]
    assert found.precision.tolist() == pytest.approx([1, 1, 2 / 3, 1 / 2])
    assert found.recall.tolist() == [0, 0.5, 1, 1]
    assert found.false_positive_rate.tolist() == [0, 0, 0.5, 1]


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(BadInputError, match="0 of 3 test pairs match"):
        fpr95(np.ones(3), np.zeros(3, bool))
    with pytest.raises(BadInputError, match="3 of 3 test pairs match"):
        fpr95(np.ones(3), np.ones(3, bool))
    with pytest.raises(BadInputError, match="1 of 3 distances are not finite"):
        cumulative_counts(np.array([1.0, np.nan, 2.0]), np.array([True, False, True]))
    with pytest.raises(ValueError, match="2 distances for 3 pairs"):
        fpr95(np.ones(2), np.ones(3, bool))
