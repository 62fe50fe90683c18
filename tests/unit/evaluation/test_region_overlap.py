"""Regions of features: overlap against polygons, neighbours against all pairs, derivatives against differences."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from featkit.evaluation.oxford import jacobians, maps_inside, near_pairs, near_regions, overlap_errors
from featkit.geometry.pixels import apply_homography

HOMOGRAPHY = np.array([[0.9, 0.3, 12.0], [-0.2, 1.2, 5.0], [4e-4, -3e-4, 1.0]])
CIRCLE = np.linspace(0, 2 * np.pi, 400, endpoint=False)
UNIT = np.stack([np.cos(CIRCLE), np.sin(CIRCLE)], axis=1)


def polygon_error(offset: np.ndarray, shape: np.ndarray, radius: float) -> float:
    """Overlap error of polygons of 400 corners."""
    circle, ellipse = radius * UNIT, UNIT @ shape.T + offset
    areas = [abs(float(cv2.contourArea(polygon.astype(np.float32)))) for polygon in (circle, ellipse)]
    if np.linalg.det(shape) < 0:
        ellipse = ellipse[::-1]
    shared = cv2.intersectConvexConvex(circle.astype(np.float32), ellipse.astype(np.float32))[0]
    return 1 - shared / (sum(areas) - shared)


def test_overlap_against_polygons() -> None:
    rng = np.random.default_rng(0)
    offsets = rng.normal(0, 12, (300, 2))
    shapes = 30 * (np.eye(2) * rng.choice([-1, 1], (300, 1, 1)) + rng.normal(0, 0.35, (300, 2, 2)))
    found = overlap_errors(offsets, shapes, 30.0)
    expected = [polygon_error(*both, 30.0) for both in zip(offsets, shapes, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert 0.1 < np.median(found) < 0.9


def test_overlap_at_its_ends() -> None:
    round_ = 30 * np.eye(2)[None]
    assert overlap_errors(np.zeros((1, 2)), round_, 30.0)[0] == pytest.approx(0, abs=1e-9)
    assert overlap_errors(np.zeros((1, 2)), 2 * round_, 30.0)[0] == pytest.approx(0.75, abs=1e-9)
    assert overlap_errors(np.array([[61.0, 0]]), round_, 30.0)[0] == 1
    assert overlap_errors(np.array([[0.0, 0]]), 0 * round_, 30.0)[0] == 1  # a region without area
    assert overlap_errors(np.full((1, 2), np.nan), round_, 30.0)[0] == 1
    assert overlap_errors(np.zeros((0, 2)), np.zeros((0, 2, 2)), 30.0).shape == (0,)


def test_centres_further_apart_than_the_radius_never_overlap_by_half() -> None:
    """So that neighbours within the radius are all that need be looked at."""
    rng = np.random.default_rng(1)
    direction = rng.uniform(0, 2 * np.pi, 3000)
    offsets = 30.01 * np.stack([np.cos(direction), np.sin(direction)], axis=1)
    shapes = 30 * rng.normal(0, 1.2, (3000, 2, 2))
    assert overlap_errors(offsets, shapes, 30.0).min() > 0.5


def test_neighbours_against_all_pairs() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.uniform(-40, 120, (1500, 2)), rng.uniform(0, 90, (70, 2))
    first[3] = np.nan
    second[5, 1] = np.inf
    for radius in (0.5, 7.0, 300.0):
        with np.errstate(invalid="ignore"):
            expected = np.argwhere(np.linalg.norm(first[:, None] - second[None], axis=2) <= radius)
        found = sorted(map(tuple, np.stack(near_pairs(first, second, radius), axis=1).tolist()))
        assert found == sorted(map(tuple, expected.tolist()))
    assert near_pairs(first[:0], second, 5.0)[0].shape == (0,)
    assert near_pairs(first, second[5:6], 5.0)[0].shape == (0,)


def test_near_regions_miss_no_overlap() -> None:
    rng = np.random.default_rng(4)
    centres, mapped = rng.uniform(0, 150, (300, 2)), rng.uniform(0, 150, (260, 2))
    scales = 1.5 * 2 ** rng.exponential(1.2, 300)
    shapes = (np.eye(2) + rng.normal(0, 0.2, (260, 2, 2))) * (1.5 * 2 ** rng.exponential(1.2, 260))[:, None, None]
    radii = 3 * scales
    found = set(zip(*(a.tolist() for a in near_regions(
        centres, radii, scales, mapped, np.sqrt(np.abs(np.linalg.det(shapes))), 0.5
    )), strict=True))  # fmt: skip
    right = set()
    for i in range(300):
        errors = overlap_errors((mapped - centres[i]) / radii[i], shapes / scales[i], 1.0)
        right |= {(i, int(j)) for j in np.flatnonzero(errors <= 0.5)}
    assert right <= found
    assert len(right) > 50
    assert len(found) < 8 * len(right)


def test_jacobians_against_differences() -> None:
    points = np.random.default_rng(3).uniform(0, 200, (20, 2))
    step = 1e-4
    columns = [
        (apply_homography(HOMOGRAPHY, points + d) - apply_homography(HOMOGRAPHY, points - d)) / (2 * step)
        for d in (np.array([step, 0]), np.array([0, step]))
    ]
    np.testing.assert_allclose(jacobians(HOMOGRAPHY, points), np.stack(columns, axis=2), rtol=1e-6, atol=1e-8)


def test_inside_ends_at_the_borders_of_the_pixels() -> None:
    points = np.array([[-0.5, 0], [-0.51, 0], [9.49, 0], [9.5, 0], [0, 7.49], [0, 7.5]])
    assert maps_inside(points, np.eye(3), (10, 8)).tolist() == [True, False, True, False, True, False]
    behind = np.array([[1.0, 0, 0], [0, 1, 0], [-1.0, 0, 1]])
    assert maps_inside(np.array([[2.0, 0]]), behind, (10, 8)).tolist() == [False]
