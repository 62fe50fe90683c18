"""Estimators of relative pose on exact geometry, with outliers, and where there is no pose to be found."""

from __future__ import annotations

import numpy as np
import pytest
from pose_worlds import World, make_world

from featkit.core.config import make
from featkit.core.errors import UsageError
from featkit.core.types import Pair
from featkit.evaluation.metrics import RelativePose, pose_errors_deg, relative_pose, symmetric_epipolar_errors
from featkit.evaluation.pose_estimators import (
    OpencvEstimator,
    PoseEstimator,
    PoseEstimators,
    PoselibEstimator,
    RayMatches,
)

ESTIMATORS: dict[str, PoseEstimator] = {
    "poselib": PoselibEstimator(),
    "opencv": OpencvEstimator(),
    "opencv magsac": OpencvEstimator(method="magsac", max_error_px=1.0),
}
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=list(ESTIMATORS))
PAIR = Pair("00.png", "02.png")


def rays(world: World, pair: Pair = PAIR, focal_px: tuple[float, float] = (600.0, 600.0)) -> RayMatches:
    """Of an undistorted world, by its own camera."""
    first, second = ((world.seen(name) + 0.5 - world.centre) / world.focal for name in (pair.name0, pair.name1))
    return RayMatches(first, second, focal_px)


def truth(world: World, pair: Pair = PAIR) -> RelativePose:
    return RelativePose(*world.true_pose(pair))


@every_estimator
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_matches_give_the_pose(estimator: PoseEstimator, seed: int) -> None:
    world = make_world(seed)
    found = estimator.estimate(rays(world), 0)
    assert found is not None
    assert max(pose_errors_deg(found.pose, truth(world), signed=True)) < 0.01
    assert found.inlier.all()


@every_estimator
def test_outliers_are_found_and_do_not_count(estimator: PoseEstimator) -> None:
    world, rng = make_world(3, points=300), np.random.default_rng(0)
    matches = rays(world)
    noise = rng.normal(0, 0.2 / 600, (2, 300, 2))
    wrong = rng.permutation(300)[:120]
    points1 = matches.points1 + noise[1]
    points1[wrong] = rng.uniform(-0.4, 0.4, (120, 2))
    found = estimator.estimate(RayMatches(matches.points0 + noise[0], points1, matches.focal_px), 0)
    assert found is not None
    assert max(pose_errors_deg(found.pose, truth(world), signed=True)) < 1.0
    right = np.ones(300, bool)
    right[wrong] = False
    assert found.inlier[right].mean() > 0.8
    assert found.inlier[wrong].mean() < 0.1


@every_estimator
def test_the_same_seed_gives_the_same_pose(estimator: PoseEstimator) -> None:
    rng = np.random.default_rng(1)
    matches = rays(make_world(4))
    noisy = RayMatches(matches.points0, matches.points1 + rng.normal(0, 2 / 600, (200, 2)), matches.focal_px)
    first, second = (estimator.estimate(noisy, 5) for _ in range(2))
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.pose.rotation, second.pose.rotation)
    np.testing.assert_array_equal(first.pose.translation, second.pose.translation)
    np.testing.assert_array_equal(first.inlier, second.inlier)


@every_estimator
@pytest.mark.parametrize("count", [0, 1, 4])
def test_too_few_matches_are_no_pose(estimator: PoseEstimator, count: int) -> None:
    matches = rays(make_world())
    assert estimator.estimate(RayMatches(matches.points0[:count], matches.points1[:count], (600.0, 600.0)), 0) is None


@every_estimator
@pytest.mark.parametrize("kind", ["one place", "one line", "noise"])
def test_degenerate_matches_end_without_an_error(estimator: PoseEstimator, kind: str) -> None:
    rng = np.random.default_rng(2)
    points0, points1 = rng.uniform(-0.5, 0.5, (2, 30, 2))
    if kind == "one place":
        points0[:], points1[:] = 0.1, 0.2
    if kind == "one line":
        points0[:, 1], points1[:, 1] = 0.0, 0.0
    found = estimator.estimate(RayMatches(points0, points1, (600.0, 600.0)), 0)
    if found is not None:
        assert found.inlier.shape == (30,)
        assert np.isfinite(max(pose_errors_deg(found.pose, truth(make_world()))))


@every_estimator
def test_a_plane_is_not_degenerate_for_calibrated_cameras(estimator: PoseEstimator) -> None:
    """Two poses explain a plane (Longuet-Higgins 1986); depth in front of both cameras leaves the true one, or both."""
    world = make_world(5)
    flat = World(world.poses, world.points * [1, 0, 1])
    found = estimator.estimate(rays(flat), 0)
    assert found is not None
    errors = symmetric_epipolar_errors(found.pose, rays(flat).points0, rays(flat).points1)
    assert np.median(errors) < 1e-6


def test_thresholds_are_in_pixels_of_the_focal_length_given() -> None:
    """The same rays at half the focal length: noise of 1.5 px becomes one of 0.75 px."""
    rng, world = np.random.default_rng(7), make_world(6)
    matches = rays(world)
    points1 = matches.points1 + rng.normal(0, 1.5 / 600, (200, 2))
    for name in ("poselib", "opencv"):
        estimator = ESTIMATORS[name]
        counts = []
        for focal in (600.0, 300.0, 150.0):
            found = estimator.estimate(RayMatches(matches.points0, points1, (focal, focal)), 0)
            assert found is not None
            counts.append(int(found.inlier.sum()))
        assert counts[0] < counts[1] < counts[2], name


def test_estimators_are_named_fields() -> None:
    named = dict(PoseEstimators().named())
    assert list(named) == ["poselib", "opencv"]
    config = make(PoseEstimators, {"poselib": {"max_error_px": 2.5}})
    assert config.poselib.max_error_px == 2.5
    assert config.opencv.max_error_px == 0.5
    with pytest.raises(UsageError, match="did you mean 'max_error_px'"):
        make(PoseEstimators, {"opencv": {"max_eror_px": 1}})


def test_errors_against_angles_that_are_known() -> None:
    """A turn about the optical axis and one of the translation in a plane, each by a chosen angle."""
    for turn, swing in ((0.0, 0.0), (1e-5, 1e-6), (3.0, 7.0), (90.0, 60.0), (179.0, 120.0)):
        a, b = np.radians([turn, swing])
        rotation = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        true = RelativePose(np.eye(3), np.array([0.0, 0.0, 5.0]))
        found = RelativePose(rotation, 0.1 * np.array([np.sin(b), 0, np.cos(b)]))
        assert pose_errors_deg(found, true, signed=True) == pytest.approx((turn, swing), abs=1e-9)
        assert pose_errors_deg(found, true) == pytest.approx((turn, min(swing, 180 - swing)), abs=1e-9)
    assert pose_errors_deg(None, true) == (np.inf, np.inf)
    still = RelativePose(np.eye(3), np.zeros(3))
    assert pose_errors_deg(true, still) == (0.0, 0.0)
    assert not still.essential.any()


def test_relative_pose_and_its_inverse() -> None:
    world = make_world(8)
    first, second = (world.poses[name] for name in (PAIR.name0, PAIR.name1))
    found, wanted = relative_pose(first, second), truth(world)
    np.testing.assert_allclose(found.rotation, wanted.rotation, atol=1e-12)
    np.testing.assert_allclose(found.translation, wanted.translation, atol=1e-12)
    back = relative_pose(second, first)
    np.testing.assert_allclose(found.inverse().rotation, back.rotation, atol=1e-12)
    np.testing.assert_allclose(found.inverse().translation, back.translation, atol=1e-12)
    assert not relative_pose(first, first).translation.any()
