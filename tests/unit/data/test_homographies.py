"""Canvases and views: where pixels go, what is valid, and that content and matrix agree."""

from __future__ import annotations

import numpy as np
import pytest
from posed_scenes import smooth_noise

from featkit.data.views import CanvasConfig, ViewConfig, content, draw_canvas, draw_view, draw_zoom, warp
from featkit.geometry.pixels import apply_homography

CANVAS = CanvasConfig(width=128, height=96)
STRONG = ViewConfig(rotation_deg=40, scale_max=1.6, perspective=0.25)
IDENTITY = CanvasConfig(width=128, height=96, cover_min=1)


def corners(size: tuple[int, int]) -> np.ndarray:
    return np.array([[-0.5, -0.5], [size[0] - 0.5, -0.5], [size[0] - 0.5, size[1] - 0.5], [-0.5, size[1] - 0.5]])


def test_the_same_shape_is_only_scaled() -> None:
    for seed in range(5):
        found = draw_canvas(CANVAS, (256, 192), np.random.default_rng(seed))
        np.testing.assert_allclose(apply_homography(found, corners((256, 192))), corners((128, 96)), atol=1e-9)


@pytest.mark.parametrize("size", [(90, 160), (300, 100), (64, 64)])
def test_between_fitting_and_covering(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    scales = []
    for _ in range(100):
        found = draw_canvas(CanvasConfig(width=128, height=96, cover_min=0), size, rng)
        low, high = apply_homography(found, corners(size))[[0, 2]]
        for axis, side in enumerate((128, 96)):  # either it lies inside the canvas, or it covers it
            inside = low[axis] >= -0.5 - 1e-9 and high[axis] <= side - 0.5 + 1e-9
            covers = low[axis] <= -0.5 + 1e-9 and high[axis] >= side - 0.5 - 1e-9
            assert inside or covers
        scales.append(found[0, 0])
    ratios = np.array([128, 96]) / size
    assert ratios.min() <= min(scales) < ratios.min() * 1.1
    assert ratios.max() >= max(scales) > ratios.max() / 1.1


def test_cover_leaves_no_margin_and_fit_loses_nothing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        covered = draw_canvas(IDENTITY, (90, 160), rng)
        assert content(covered, (90, 160), CANVAS.size).all()
    fit = CanvasConfig(width=128, height=96, cover_min=0)
    areas = [content(draw_canvas(fit, (90, 160), rng), (90, 160), CANVAS.size).mean() for _ in range(50)]
    assert min(areas) < 0.5 < max(areas)


def test_the_cut_is_about_the_box() -> None:
    """A tall image on a wide canvas: its cut holds the place that is asked for."""
    box = np.array([10.0, 300.0, 80.0, 390.0])
    for place in np.random.default_rng(0).random((30, 2)):
        found = draw_canvas(IDENTITY, (96, 400), np.random.default_rng(1), place, box)
        seen = apply_homography(found, (box[:2] + place * (box[2:] - box[:2]))[None])[0]
        assert -0.5 <= seen[1] <= 95.5
        top = apply_homography(np.linalg.inv(found), np.array([[0.0, -0.5]]))[0, 1]
        assert top > 200


def test_two_images_are_cut_about_the_same_place() -> None:
    places = np.random.default_rng(0).random((40, 2))
    tops = [
        [
            apply_homography(
                np.linalg.inv(draw_canvas(IDENTITY, (96, 400), np.random.default_rng(seed), place)), np.zeros((1, 2))
            )[0, 1]
            for seed in (1, 2)
        ]
        for place in places
    ]
    np.testing.assert_allclose(*np.array(tops).T)
    assert np.std(tops) > 30


def test_a_zoom_shows_a_part_and_no_more_than_there_is() -> None:
    size, rng = (8 * CANVAS.width, 8 * CANVAS.height), np.random.default_rng(0)
    for zoom, expected in ((1.0, 1 / 8), (4.0, 1 / 2), (30.0, 1.0)):
        found = draw_canvas(CANVAS, size, rng, zoom=zoom)
        assert found[0, 0] == pytest.approx(expected)
        assert content(found, size, CANVAS.size).all()
    small = CANVAS.width // 2, CANVAS.height // 2
    assert draw_canvas(CANVAS, small, rng, zoom=4.0)[0, 0] == pytest.approx(2.0), "what must be enlarged is not zoomed"
    zooms = [draw_zoom(CanvasConfig(zoom_max=3.0), rng) for _ in range(200)]
    assert 1 <= min(zooms) < 1.1 < 2.7 < max(zooms) <= 3


def test_views_without_strength_stand_still() -> None:
    np.testing.assert_allclose(draw_view(ViewConfig(), (128, 96), np.random.default_rng(0)), np.eye(3), atol=1e-12)


def test_views_are_as_strong_as_they_say() -> None:
    rng = np.random.default_rng(0)
    middle = np.array([[63.5, 47.5]])
    turned = [draw_view(ViewConfig(rotation_deg=40), (128, 96), rng) for _ in range(200)]
    angles = np.degrees([np.arctan2(view[1, 0], view[0, 0]) for view in turned])
    assert 37 < angles.max() <= 40
    assert -40 <= angles.min() < -37
    assert all(np.abs(apply_homography(view, middle) - middle).max() < 1e-9 for view in turned)
    zoomed = np.array([draw_view(ViewConfig(scale_max=2), (128, 96), rng)[0, 0] for _ in range(200)])
    assert (zoomed.max(), zoomed.min()) == (pytest.approx(2, rel=0.05), pytest.approx(0.5, rel=0.05))
    assert np.exp(np.log(zoomed).mean()) == pytest.approx(1, abs=0.1)
    tilted = [np.linalg.inv(draw_view(ViewConfig(perspective=0.25), (128, 96), rng)) for _ in range(200)]
    tilts = np.array([view[2, 0] / (view[2] @ [63.5, 47.5, 1]) * 64 for view in tilted])
    assert 0.23 < tilts.max() <= 0.25 + 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_the_pixels_go_where_the_matrix_says(seed: int) -> None:
    """Every canvas pixel shows what a bilinear reading of the photograph shows at the matrix's place."""
    rng = np.random.default_rng(seed)
    size = [(160, 120), (100, 140), (400, 300)][seed % 3]
    picture = smooth_noise(size[::-1], rng, sigma_px=max(size) / 30)
    whole = draw_view(STRONG, CANVAS.size, rng) @ draw_canvas(CANVAS, size, rng)
    warped, valid = warp(picture, whole, CANVAS.size)
    y, x = np.mgrid[:96, :128]
    back = apply_homography(np.linalg.inv(whole), np.stack([x, y], axis=2).reshape(-1, 2).astype(float))
    inside = ((back >= -0.5) & (back <= np.array(size) - 0.5)).all(axis=1)
    np.testing.assert_array_equal(valid.ravel(), inside)
    assert valid.mean() > 0.2
    read = bilinear(picture, np.clip(back, 0, np.array(size) - 1))
    difference = np.abs(warped.reshape(-1, 3) - read)[inside]
    assert difference.max() < 12
    assert difference.mean() < 1.0
    moved = np.abs(warped.reshape(-1, 3) - bilinear(picture, np.clip(back + max(size) / 200, 0, np.array(size) - 1)))[
        inside
    ]
    assert moved.mean() > 2 * difference.mean()


def bilinear(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    low = np.minimum(np.floor(places).astype(int), np.array(picture.shape[1::-1]) - 2)
    share = places - low
    total = np.zeros((len(places), 3))
    for dx in (0, 1):
        for dy in (0, 1):
            weight = np.abs(1 - dx - share[:, 0]) * np.abs(1 - dy - share[:, 1])
            total += weight[:, None] * picture[low[:, 1] + dy, low[:, 0] + dx]
    return total


def test_a_much_larger_photograph_does_not_alias() -> None:
    board = (np.indices((960, 1280)).sum(axis=0) % 2 * 255).astype(np.uint8)
    board = np.repeat(board[:, :, None], 3, axis=2)
    warped, valid = warp(board, draw_canvas(CANVAS, (1280, 960), np.random.default_rng(0)), CANVAS.size)
    assert valid.all()
    assert warped.std() < 5


def test_reading_never_reaches_behind_the_horizon() -> None:
    """The strongest tilts: neighbours on the canvas come from neighbours in the image."""
    view = ViewConfig(perspective=0.49)
    for seed in range(50):
        back = np.linalg.inv(draw_view(view, CANVAS.size, np.random.default_rng(seed)))
        y, x = np.mgrid[:96, :128]
        depth = back[2, 0] * x + back[2, 1] * y + back[2, 2]
        assert (depth > 0).all() or (depth < 0).all()
