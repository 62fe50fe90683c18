"""Similarities from positions with outliers: exact positions, and known noise."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest
from geotagged import turned

from featkit.core.errors import BadInputError, EmptyResultError
from featkit.mapping.align import SimilarityConfig, fit_similarity

CONFIG = SimilarityConfig()


def world(number: int, seed: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions in a local frame, the same in metres (with noise), and the true similarity."""
    rng = np.random.default_rng(seed)
    metric = rng.uniform(-50, 50, (number, 3)) * [1, 1, 0.2] + [4e5, 5e6, 300]  # as far from 0 as UTM coordinates
    own_from_metric = turned(seed)
    source = np.array([own_from_metric * point for point in metric])
    return source, metric + rng.normal(0, noise, metric.shape), np.asarray(own_from_metric.inverse().matrix())


@pytest.mark.parametrize("number", [3, 4, 7, 40])
@pytest.mark.parametrize("max_error", [None, 0.5])
def test_exact_positions(number: int, max_error: float | None) -> None:
    source, metric, truth = world(number, number)
    fit = fit_similarity(source, metric, SimilarityConfig(max_error_m=max_error), 0)
    assert fit.used.all()
    assert fit.residuals.max() < 1e-6
    assert fit.scale == pytest.approx(20)
    assert fit.target_from_source[:, :3] == pytest.approx(truth[:, :3], abs=1e-6)
    assert max(fit.orientation_std_deg, fit.scale_std) < 1e-6


@pytest.mark.parametrize("max_error", [None, 4.0])
@pytest.mark.parametrize(("number", "wrong"), [(8, 2), (30, 10), (60, 24)])
def test_outlier_positions_are_found(number: int, wrong: int, max_error: float | None) -> None:
    source, metric, truth = world(number, wrong, noise=0.5)
    rng = np.random.default_rng(1)
    bad = rng.choice(number, wrong, replace=False)
    directions = rng.normal(size=(wrong, 3))
    metric[bad] += directions / np.linalg.norm(directions, axis=1, keepdims=True) * rng.uniform(30, 500, (wrong, 1))
    fit = fit_similarity(source, metric, SimilarityConfig(max_error_m=max_error), 0)
    assert set(np.flatnonzero(~fit.used)) == set(bad.tolist())
    right = np.ones(number, bool)
    right[bad] = False
    plain = np.asarray(pycolmap.estimate_sim3d(source[right], metric[right]).matrix())
    assert fit.target_from_source == pytest.approx(plain, rel=1e-9, abs=1e-6)
    assert fit.scale == pytest.approx(np.cbrt(np.linalg.det(truth[:, :3])), rel=0.05)
    moved = source @ fit.target_from_source[:, :3].T + fit.target_from_source[:, 3]
    assert fit.offsets == pytest.approx(moved - metric, abs=1e-6)


def test_the_same_seed_gives_the_same_fit() -> None:
    source, metric, _ = world(60, 3, noise=2.0)
    first, second = (fit_similarity(source, metric, CONFIG, 5) for _ in range(2))
    assert np.array_equal(first.target_from_source, second.target_from_source)


def test_standard_deviations_agree_with_simulation() -> None:
    """The stated standard deviations equal the scatter of results, for a long and narrow flight."""
    rng = np.random.default_rng(0)
    metric = rng.uniform(-1, 1, (25, 3)) * [60, 8, 2]
    angles, scales, stated = [], [], []
    for _ in range(200):
        fit = fit_similarity(metric, metric + rng.normal(0, 0.3, metric.shape), SimilarityConfig(max_error_m=50), 0)
        rotation = fit.target_from_source[:, :3] / fit.scale
        angles.append(np.degrees(np.arctan2(rotation[2, 1], rotation[1, 1])))  # about the long axis, x
        scales.append(fit.scale)
        stated.append((fit.orientation_std_deg, fit.scale_std))
    assert np.std(angles) == pytest.approx(np.mean(stated, axis=0)[0], rel=0.2)
    assert np.std(scales) == pytest.approx(np.mean(stated, axis=0)[1], rel=0.2)


def test_too_few_or_collinear_positions_are_refused() -> None:
    source, metric, _ = world(5, 0)
    with pytest.raises(BadInputError, match="2 positions; 3"):
        fit_similarity(source[:2], metric[:2], CONFIG, 0)
    line = np.outer(np.arange(5.0), [1, 2, 3]) + np.random.default_rng(0).normal(0, 1e-4, (5, 3))
    with pytest.raises(BadInputError, match="the model's camera centres of the 5 images are on one line"):
        fit_similarity(line, metric, CONFIG, 0)
    with pytest.raises(BadInputError, match="the given positions of the 5 images are on one line"):
        fit_similarity(source, line, CONFIG, 0)
    with pytest.raises(BadInputError, match="at one place"):
        fit_similarity(source, np.ones((5, 3)), CONFIG, 0)


def test_collinear_inliers_are_refused() -> None:
    """Only the outlier is off the line: the inliers do not determine the rotation about it."""
    line = np.outer(np.arange(9.0), [1, 2, 3])
    source, target = line.copy(), line.copy()
    source[4] += [0, 5, 0]
    target[4] += [70, 0, 0]
    with pytest.raises((BadInputError, EmptyResultError)):
        fit_similarity(source, target, CONFIG, 0)


def test_unrelated_positions_are_refused() -> None:
    source, metric, _ = world(30, 2)
    with pytest.raises(EmptyResultError, match=r"only \d+ of 30 .* within 1 m"):
        fit_similarity(source, metric[::-1], SimilarityConfig(max_error_m=1.0), 0)
    assert fit_similarity(source, metric[np.random.default_rng(0).permutation(30)], CONFIG, 0).orientation_std_deg > 5
