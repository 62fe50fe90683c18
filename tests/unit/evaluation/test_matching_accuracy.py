"""MMA, MMAScore and the homography's AUC against slow references, and their edge cases."""

from __future__ import annotations

import numpy as np
import pytest

from featkit.core.types import Matches
from featkit.evaluation.metrics import (
    THRESHOLDS_PX,
    HomographyConfig,
    accuracy,
    corner_error,
    error_auc,
    estimate_homography,
    mma_score,
    transfer_errors,
)
from featkit.evaluation.published import published, published_curves

HOMOGRAPHY = np.array([[1.1, 0.1, 3.0], [-0.2, 0.9, 5.0], [1e-4, -2e-4, 1.0]])


def matches(index: list[int]) -> Matches:
    return Matches(np.array(index, np.int32), np.ones(len(index), np.float32))


def mapped(points: np.ndarray, homography: np.ndarray) -> np.ndarray:
    rows = []
    for x, y in points:
        u, v, w = (float(row[0] * x + row[1] * y + row[2]) for row in homography)
        rows.append((u / w, v / w))
    return np.array(rows)


def test_errors_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.uniform(0, 300, (2, 30, 2)).astype(np.float32)
    chosen = [int(j) if j % 3 else -1 for j in rng.permutation(30)]
    expected = [
        float(np.hypot(*(mapped(first[i : i + 1], HOMOGRAPHY)[0] - second[j]))) for i, j in enumerate(chosen) if j >= 0
    ]
    found = transfer_errors(first, second, matches(chosen), HOMOGRAPHY)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_scale_of_the_homography_changes_nothing() -> None:
    points = np.random.default_rng(1).uniform(0, 300, (8, 2)).astype(np.float32)
    one = transfer_errors(points, points, matches([*range(8)]), HOMOGRAPHY)
    np.testing.assert_allclose(transfer_errors(points, points, matches([*range(8)]), -7 * HOMOGRAPHY), one)


def test_a_point_behind_the_camera_is_wrong_at_every_threshold() -> None:
    behind = np.array([[1.0, 0, 0], [0, 1, 0], [-0.01, 0, 1]])  # x > 100 px
    points = np.array([[50.0, 10], [100, 10], [200, 10]], np.float32)
    second = np.array([[100.0, 20], [0, 0], [-200, -10]], np.float32)
    errors = transfer_errors(points, second, matches([0, 1, 2]), behind)
    np.testing.assert_array_equal(errors, [0, np.inf, np.inf])
    np.testing.assert_allclose(accuracy(errors), 1 / 3)


def test_half_a_pixel_is_seen() -> None:
    """Magnified by 2 around the corner of the image, the pixel (x, y) lies at (2 x + 0.5, 2 y + 0.5)."""
    zoom = np.array([[2.0, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])
    points = np.random.default_rng(2).uniform(0, 100, (9, 2)).astype(np.float32)
    there = ((points + 0.5) * 2 - 0.5).astype(np.float32)
    all_of_them = matches([*range(9)])
    assert transfer_errors(points, there, all_of_them, zoom).max() < 1e-4
    corner = np.diag([2.0, 2.0, 1.0])
    np.testing.assert_allclose(transfer_errors(points, there, all_of_them, corner), np.hypot(0.5, 0.5), atol=1e-4)


def test_accuracy_counts_an_error_at_the_threshold() -> None:
    errors = np.array([0.0, 1.0, 1.0 + 1e-9, 2.5, 10.0, 10.1])
    np.testing.assert_allclose(accuracy(errors)[[0, 1, 2, 9]], [2 / 6, 3 / 6, 4 / 6, 5 / 6])


def test_nothing_matched_counts_as_zero() -> None:
    nothing = np.zeros((0, 2), np.float32)
    for first, found in ((nothing, matches([])), (np.ones((3, 2), np.float32), matches([-1, -1, -1]))):
        errors = transfer_errors(first, nothing, found, HOMOGRAPHY)
        assert errors.shape == (0,)
        np.testing.assert_array_equal(accuracy(errors), np.zeros(10))
        assert mma_score(accuracy(errors)) == 0


def test_score_against_the_equation() -> None:
    curve = np.random.default_rng(3).uniform(0, 1, 10)
    above = below = 0.0
    for threshold in range(1, 11):
        above += (2 - 0.1 * threshold) * curve[threshold - 1]
        below += 2 - 0.1 * threshold
    assert below == pytest.approx(14.5)
    assert mma_score(curve) == pytest.approx(above / below)
    assert mma_score(np.ones(10)) == pytest.approx(1)


def test_shipped_curves_have_the_score_of_scfeats_tables() -> None:
    known, curves = published("hpatches_mma"), published_curves()
    assert known.columns[2:] == ["viewpoint", "illumination", "overall"]
    table = {row.name: row.values[2:] for one in reversed(known.tables) for row in one.rows}
    assert tuple(curves.thresholds_px) == THRESHOLDS_PX
    assert len(curves.curves) == 13
    for curve in curves.curves:
        scores = [mma_score(np.array(curve.of(group))) for group in known.columns[2:]]  # type: ignore[arg-type]
        np.testing.assert_allclose(scores, table[curve.name], atol=0.1, err_msg=curve.name)


def slow_auc(errors: list[float], threshold: float) -> float:
    """The area below straight lines through (error, share), by many thin slices."""
    points = [(0.0, 0.0)]
    for number, error in enumerate(sorted(errors), start=1):
        if error < threshold:
            points.append((error, number / len(errors)))
    points.append((threshold, points[-1][1]))
    x = (np.arange(200_000) + 0.5) / 200_000 * threshold
    return float(np.interp(x, [p[0] for p in points], [p[1] for p in points]).mean())


def test_auc_against_thin_slices() -> None:
    errors = [*np.random.default_rng(4).exponential(3, 40).tolist(), float("inf"), float("nan")]
    plain = [error if np.isfinite(error) else float("inf") for error in errors]
    for threshold, found in zip((1.0, 3.0, 5.0), error_auc(errors, (1.0, 3.0, 5.0)), strict=True):
        assert found == pytest.approx(slow_auc(plain, threshold), abs=1e-5)


def test_auc_at_its_ends() -> None:
    assert error_auc([], (1.0, 5.0)) == (0.0, 0.0)
    assert error_auc([float("inf")] * 3, (5.0,)) == (0.0,)
    assert error_auc([7.0, 9.0], (5.0,)) == (0.0,)
    assert error_auc([0.0, 0.0], (5.0,))[0] == pytest.approx(1)


def test_corner_error_of_a_shift_is_the_shift() -> None:
    shifted = np.array([[1.0, 0, 3], [0, 1, 4], [0, 0, 1]]) @ HOMOGRAPHY
    assert corner_error(shifted / shifted[2, 2], HOMOGRAPHY, (640, 480)) == pytest.approx(5)
    assert corner_error(None, HOMOGRAPHY, (640, 480)) == float("inf")
    turned = np.array([[-1.0, 0, 639], [0, -1, 479], [0, 0, 1]])  # corner pixel on corner pixel: the diagonal's length
    assert corner_error(turned, np.eye(3), (640, 480)) == pytest.approx(np.hypot(639, 479))


@pytest.mark.parametrize("estimator", ["magsac", "ransac"])
def test_a_homography_is_found_among_outliers(estimator: str) -> None:
    rng = np.random.default_rng(5)
    first = rng.uniform(0, 500, (300, 2))
    second = mapped(first, HOMOGRAPHY) + rng.normal(0, 0.2, (300, 2))
    second[120:] = rng.uniform(0, 500, (180, 2))
    config = HomographyConfig(estimator=estimator)  # type: ignore[arg-type]
    found = estimate_homography(first, second, config)
    assert corner_error(found, HOMOGRAPHY, (500, 500)) < 0.5
    np.testing.assert_array_equal(estimate_homography(first, second, config), found)


@pytest.mark.parametrize("estimator", ["magsac", "ransac"])
def test_no_homography_is_a_failure(estimator: str) -> None:
    config = HomographyConfig(estimator=estimator)  # type: ignore[arg-type]
    three = np.random.default_rng(6).uniform(0, 100, (3, 2))
    assert estimate_homography(three, three, config) is None
    same = np.full((20, 2), 7.0)
    assert corner_error(estimate_homography(same, same, config), np.eye(3), (90, 90)) > 20
