"""Recall against a table made by hand."""

import numpy as np
import pytest

from featkit.core.errors import BadInputError
from featkit.core.types import Pose
from featkit.evaluation.metrics import pose_error, score_localization


def pose(x: float, degrees: float) -> Pose:
    """Camera with its centre at (x, 0, 0), turned about z."""
    half = np.radians(degrees) / 2
    c, s = np.cos(2 * half), np.sin(2 * half)
    return Pose(np.array([np.cos(half), 0, 0, np.sin(half)]), -np.array([c * x, s * x, 0.0]))


TRUTH = {name: pose(10.0, 30.0) for name in "abcdef"}
FOUND = {
    "a": pose(10.1, 31.0),  # within all
    "b": pose(10.2, 33.0),  # too much turned for the first
    "c": pose(10.4, 30.0),  # too far for the first
    "d": pose(14.0, 39.0),  # only the last
    "e": pose(10.0, 41.0),  # right place, too much turned for all
}


def test_recall() -> None:
    score = score_localization(FOUND, TRUTH, list("abcdef"))
    assert (score.queries, score.localized) == (6, 5)
    assert score.thresholds == ((0.25, 2.0), (0.5, 5.0), (5.0, 10.0))
    assert score.recall == pytest.approx((1 / 6, 3 / 6, 4 / 6)), "f has no pose and counts as wrong"
    assert score.errors["b"] == pytest.approx((0.2, 3.0))
    assert score.median_m == pytest.approx(0.2)
    assert score.median_deg == pytest.approx(3.0)


def test_own_thresholds() -> None:
    score = score_localization(FOUND, TRUTH, list("abcdef"), [(0.05, 20.0), (100.0, 2.0)])
    assert score.recall == pytest.approx((1 / 6, 2 / 6))


def test_only_queries_with_a_true_pose_are_judged() -> None:
    score = score_localization({**FOUND, "z": pose(0, 0)}, TRUTH, ["a", "z", "unknown"])
    assert (score.queries, score.localized, score.recall[0]) == (1, 1, 1.0)
    score = score_localization(FOUND, TRUTH, ["f"])
    assert (score.localized, score.recall) == (0, (0.0, 0.0, 0.0))
    assert np.isnan(score.median_m)
    with pytest.raises(BadInputError, match="names none of the queries"):
        score_localization(FOUND, {"elsewhere": pose(0, 0)}, ["a"])


def test_pose_error_is_of_centres() -> None:
    """Not of translations, which grow with the rotation's error."""
    centre, angle = pose_error(pose(1000.0, 30.0), pose(1000.0, 31.0))
    assert centre == pytest.approx(0, abs=1e-9)
    assert angle == pytest.approx(1.0)
