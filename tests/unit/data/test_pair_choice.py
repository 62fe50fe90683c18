"""Which pairs are chosen: the limits by hand-made geometry, the spread by counting."""

from __future__ import annotations

import numpy as np
import pytest
from posed_scenes import RadialLens, tracks_of

from featkit.data.pair_choice import (
    PairChoiceConfig,
    PairStatistics,
    PinholeView,
    candidates,
    choose_training_pairs,
    shared_counts,
)
from featkit.data.tracks import SceneTracks
from featkit.geometry.poses import look_at, rotation_matrix

UP = np.array([0.0, 0.0, 1.0])
SIZE = (200, 150)
FOCAL = 180.0


def scene(
    cameras: list[tuple[float, float]], points: int = 200, roll_deg: float = 0
) -> tuple[SceneTracks, list[PinholeView]]:
    """Cameras by (degrees on a circle, distance) around a small cloud; the last one rolled about its axis."""
    rng = np.random.default_rng(0)
    cloud = rng.uniform(-0.3, 0.3, (points, 3))
    poses = []
    for degrees, distance in cameras:
        angle = np.radians(degrees)
        pose = look_at(distance * np.array([np.sin(angle), -np.cos(angle), 0]), np.zeros(3), UP)
        poses.append((rotation_matrix(pose.qvec), pose.tvec))
    roll = np.radians(roll_deg)
    turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    poses[-1] = (turn @ poses[-1][0], turn @ poses[-1][1])
    lens = RadialLens(FOCAL, (99.5, 74.5))
    intrinsics = np.array([[FOCAL, 0, 99.5], [0, FOCAL, 74.5], [0, 0, 1]])
    views = [PinholeView(SIZE, intrinsics, rotation, translation) for rotation, translation in poses]
    return tracks_of("s", cloud, {f"{i}.png": lens for i in range(len(cameras))}, poses, SIZE), views


def chosen(
    cameras: list[tuple[float, float]], config: PairChoiceConfig | None = None, **more: float
) -> set[tuple[int, int]]:
    found = candidates(*scene(cameras, **more), config or PairChoiceConfig())  # type: ignore[arg-type]
    return {tuple(pair) for pair in found.pairs.tolist()}


def test_what_is_measured() -> None:
    found = candidates(*scene([(0, 5), (20, 5), (10, 10)]), PairChoiceConfig())
    assert found.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert found.shared.tolist() == [200] * 3
    np.testing.assert_allclose(found.overlap, 1)
    np.testing.assert_allclose(found.rotation_deg, [20, 10, 10], atol=1e-6)
    np.testing.assert_allclose(found.angle_deg, [20, 10, 10], rtol=0.03)
    np.testing.assert_allclose(found.scale, [1, 2, 2], rtol=0.03)
    np.testing.assert_allclose(candidates(*scene([(0, 10), (20, 5)]), PairChoiceConfig()).scale, [2], rtol=0.03)


def test_boxes_hold_what_both_see() -> None:
    tracks, views = scene([(0, 5), (20, 10)])
    found = candidates(tracks, views, PairChoiceConfig())
    for view, box in zip(views, (found.box0[0], found.box1[0]), strict=True):
        seen, _ = view.project(tracks.points)
        inside = ((seen >= box[:2]) & (seen <= box[2:])).mean(axis=0)
        assert inside == pytest.approx(0.9, abs=0.02)


def test_the_limits() -> None:
    assert chosen([(0, 5), (79, 5)], PairChoiceConfig(max_angle_deg=90)) == {(0, 1)}
    assert chosen([(0, 5), (81, 5)], PairChoiceConfig(max_angle_deg=90)) == set()
    assert chosen([(0, 5), (61, 5)]) == set()
    assert chosen([(0, 5), (0.5, 5)]) == set()
    assert chosen([(0, 5), (10, 5)], roll_deg=70) == {(0, 1)}
    assert chosen([(0, 5), (10, 5)], roll_deg=85) == set()
    assert chosen([(0, 2.5), (10, 9)]) == {(0, 1)}
    assert chosen([(0, 2.5), (10, 12)]) == set()
    assert chosen([(0, 5), (20, 5)], points=29) == set()
    assert chosen([(0, 5), (20, 5)], points=30) == {(0, 1)}


def test_points_outside_of_the_picture_do_not_count() -> None:
    tracks, views = scene([(0, 5), (20, 5)])
    half = [PinholeView((100, 150), view.intrinsics, view.rotation, view.translation) for view in views]
    found = candidates(tracks, half, PairChoiceConfig())
    assert 60 < found.shared[0] < 140
    assert (found.box0[:, 2] < 100).all()


def test_counts_of_shared_points() -> None:
    seen = [np.array([0, 1, 2]), np.array([1, 2, 5]), np.array([7])]
    assert shared_counts(seen, 8).tolist() == [[0, 2, 0], [2, 0, 0], [0, 0, 0]]


def statistics(images: int) -> PairStatistics:
    """All pairs; neighbours share much, and there are many more easy pairs than hard ones."""
    pairs = np.array([(a, b) for a in range(images) for b in range(a + 1, images)])
    overlap = 1 / (1.0 + np.abs(pairs[:, 1] - pairs[:, 0]))
    empty = np.zeros(len(pairs))
    return PairStatistics(
        pairs, empty, overlap, empty, empty, empty, np.zeros((len(pairs), 4)), np.zeros((len(pairs), 4))
    )


def test_at_most_so_many_pairs_of_each_image_and_all_difficulties() -> None:
    everything = statistics(40)
    drawn = [choose_training_pairs(everything, 40, 8, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    counts = np.bincount(drawn[0].pairs.ravel(), minlength=40)
    assert counts.max() == 8
    assert counts.min() >= 6
    assert len(np.unique(drawn[0].pairs, axis=0)) == len(drawn[0])
    np.testing.assert_array_equal(drawn[0].pairs, drawn[1].pairs)
    assert drawn[0].pairs.tolist() != drawn[2].pairs.tolist()
    gaps = np.abs(np.diff(drawn[0].pairs, axis=1))[:, 0]
    assert (gaps <= 3).sum() > 10
    assert (gaps >= 15).sum() > 10


def test_all_pairs_where_there_is_room() -> None:
    everything = statistics(6)
    assert len(choose_training_pairs(everything, 6, 5, np.random.default_rng(0))) == 15
    assert len(choose_training_pairs(everything.select(np.zeros(15, bool)), 6, 5, np.random.default_rng(0))) == 0
