"""How images see points, in closed form; and which pixels lie near which, against brute force."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from featkit.data.keypoint_classes import PixelGrid, expand
from featkit.data.tracks import SceneTracks
from featkit.geometry.poses import rotation_matrix


@dataclass(frozen=True)
class Pinhole:
    """The simplest camera."""

    focal: float = 500.0
    centre: tuple[float, float] = (320.0, 240.0)

    def project(self, points: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = self.focal * points[:, :2] / points[:, 2:] + self.centre
        pixels[points[:, 2] <= 0] = np.nan
        return pixels

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        return np.concatenate([(pixels - self.centre) / self.focal, np.ones((len(pixels), 1))], axis=1)


def scene(points: np.ndarray, seed: int = 0) -> SceneTracks:
    """Two cameras: one at the origin along +z, one turned and moved a little."""
    rng = np.random.default_rng(seed)
    turned = rotation_matrix(np.array([1.0, *rng.normal(scale=0.1, size=3)]))
    return SceneTracks(
        name="s",
        image_names=("a", "b"),
        image_sizes=np.array([[640, 480], [640, 480]]),
        rotations=np.stack([np.eye(3), turned]),
        translations=np.array([[0.0, 0, 0], [0.3, -0.2, 0.4]]),
        projectors=(Pinhole(), Pinhole(700.0)),
        points=points,
        observed_points=np.zeros(0, np.int64),
        observed_images=np.zeros(0, np.int64),
        observed_xy=np.zeros((0, 2)),
    )


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(1).uniform((-1, -1, 3), (1, 1, 8), (40, 3))


def test_a_pinhole_in_closed_form(points: np.ndarray) -> None:
    views = scene(points).views(0, np.arange(40))
    x, y, z = points.T
    zero = np.zeros(40)
    np.testing.assert_allclose(views.xy, 500 * points[:, :2] / points[:, 2:] + (320, 240))
    np.testing.assert_allclose(views.depth, z)
    np.testing.assert_allclose(views.magnification, 500 / z, rtol=1e-6)
    exact = 500 * np.array([[1 / z, zero, -x / z**2], [zero, 1 / z, -y / z**2]]).transpose(2, 0, 1)
    np.testing.assert_allclose(views.jacobian, exact, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(views.directions, -points / np.linalg.norm(points, axis=1, keepdims=True))


def test_a_turned_camera_sees_small_steps_as_its_jacobian_says(points: np.ndarray) -> None:
    tracks, step = scene(points), np.array([1e-5, -2e-5, 3e-5])
    views, moved = tracks.views(1, np.arange(40)), tracks.views_of(1, points + step)
    np.testing.assert_allclose(moved.xy - views.xy, views.jacobian @ step, rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(views.magnification, 700 / views.depth, rtol=1e-6)


def test_directions_in_the_plane_point_where_they_should(points: np.ndarray) -> None:
    tracks = scene(points)
    angles = np.random.default_rng(2).uniform(-np.pi, np.pi, 40)
    views = tracks.views(1, np.arange(40))
    directions = tracks.in_plane(1, views, angles)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    np.testing.assert_allclose(directions @ tracks.rotations[1][2], 0, atol=1e-7)  # parallel to the image
    moved = tracks.views_of(1, points + 1e-4 * directions)
    flow = moved.xy - views.xy
    np.testing.assert_allclose(np.exp(1j * np.arctan2(flow[:, 1], flow[:, 0])), np.exp(1j * angles), atol=1e-4)
    np.testing.assert_allclose(moved.depth, views.depth)


def test_back_projection_undoes_projection(points: np.ndarray) -> None:
    tracks = scene(points)
    views = tracks.views(1, np.arange(40))
    np.testing.assert_allclose(tracks.back_projected(1, views.xy, views.depth), points, atol=1e-12)


def test_what_lies_behind_is_not_seen() -> None:
    views = scene(np.array([[0.0, 0, -3], [0, 0, 3]])).views(0, np.arange(2))
    assert np.isnan(views.xy[0]).all()
    assert np.isfinite(views.xy[1]).all()


def test_near_pixels_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(3)
    points, queries = rng.uniform(-20, 100, (300, 2)), rng.uniform(-25, 105, (200, 2))
    points[7], queries[9] = np.nan, np.nan
    distances = np.linalg.norm(queries[:, None] - points[None], axis=2)
    with np.errstate(invalid="ignore"):
        wanted = np.argwhere(distances <= 6.5)
    query, point, distance = PixelGrid(points, 7.0).pairs_within(queries, 6.5)
    np.testing.assert_array_equal(np.stack([query, point], axis=1), wanted)
    np.testing.assert_allclose(distance, distances[query, point])
    assert len(wanted) > 100


def test_a_grid_of_nothing() -> None:
    empty = np.zeros((0, 2))
    assert [len(part) for part in PixelGrid(empty, 5.0).pairs_within(np.ones((3, 2)), 5.0)] == [0, 0, 0]
    assert [len(part) for part in PixelGrid(np.ones((3, 2)), 5.0).pairs_within(empty, 5.0)] == [0, 0, 0]


def test_a_radius_beyond_the_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than the cells"):
        PixelGrid(np.ones((3, 2)), 5.0).pairs_within(np.ones((3, 2)), 5.1)


def test_runs_are_expanded() -> None:
    which, place = expand(np.array([10, 3, 7]), np.array([2, 0, 3]))
    assert which.tolist() == [0, 0, 2, 2, 2]
    assert place.tolist() == [10, 11, 7, 8, 9]
