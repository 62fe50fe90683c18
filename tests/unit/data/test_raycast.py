"""The renderer against COLMAP's camera model and against plane geometry."""

from __future__ import annotations

import cv2
import numpy as np
import pycolmap
import pytest

from featkit.core.types import Pose
from featkit.demo.render import Rectangle, Surface, facing_matrix, first_hits, pyramid, render
from featkit.geometry.poses import look_at, rotation_matrix
from featkit.io.lists import Intrinsics

CAMERA = Intrinsics("PINHOLE", 320, 240, (300.0, 300.0, 160.0, 120.0))
UP = np.array([0.0, 0.0, 1.0])
# A 3 m × 2 m board in the plane y = 0, seen from y < 0.
BOARD = Rectangle(np.array([-1.5, 0.0, 2.0]), np.array([3.0, 0.0, 0.0]), np.array([0.0, 0.0, -2.0]))
POSES = [
    look_at(np.array([0.4, -3.0, 1.2]), np.array([0.1, 0.0, 1.0]), UP),
    look_at(np.array([-2.1, -2.6, 2.3]), np.array([0.1, 0.0, 0.9]), UP),
    look_at(np.array([1.9, -3.9, 0.3]), np.array([-0.2, 0.0, 1.1]), UP),
]
TEXTURE_SHAPE = (512, 768)


def disc_board(centre: np.ndarray, radius_m: float) -> Surface:
    """The board, grey, with one bright disc centred at a world point; its edge is smooth over two texels."""
    rows, columns = TEXTURE_SHAPE
    s, t = (np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows
    points = BOARD.at(*np.meshgrid(s, t))
    outside = np.linalg.norm(points - centre, axis=2) - radius_m
    texel = 3.0 / columns
    bright = 40.0 + 200.0 / (1.0 + np.exp(np.clip(outside / (0.5 * texel), -50, 50)))
    return Surface(BOARD, pyramid(np.repeat(bright[..., None], 3, axis=2)))


def noise_board() -> Surface:
    coarse = np.random.default_rng(5).uniform(20, 235, (20, 30)).astype(np.float32)
    smooth = cv2.resize(coarse, TEXTURE_SHAPE[::-1], interpolation=cv2.INTER_CUBIC)
    return Surface(BOARD, pyramid(np.repeat(smooth[..., None], 3, axis=2)))


def projected(pose: Pose, points: np.ndarray) -> np.ndarray:
    """featkit pixels of world points, by pycolmap's camera."""
    camera = pycolmap.Camera(model="PINHOLE", width=CAMERA.width, height=CAMERA.height, params=list(CAMERA.params))
    return camera.img_from_cam(points @ rotation_matrix(pose.qvec).T + pose.tvec) - 0.5


def disc_centroid(pose: Pose, centre: np.ndarray, radius_m: float) -> np.ndarray:
    """Centroid of the ellipse that a disc on the board projects to (not quite the projection of its centre)."""
    angle = np.linspace(0.0, 2 * np.pi, 720, endpoint=False)[:, None]
    rim = centre + radius_m * (np.cos(angle) * [1.0, 0.0, 0.0] + np.sin(angle) * [0.0, 0.0, 1.0])
    outline = projected(pose, rim)
    after = np.roll(outline, -1, axis=0)
    cross = outline[:, 0] * after[:, 1] - outline[:, 1] * after[:, 0]
    return ((outline + after) * cross[:, None]).sum(axis=0) / (3.0 * cross.sum())


@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize("supersampling", [2, 3])
@pytest.mark.parametrize("centre", [(0.313, 0.0, 1.172), (-0.457, 0.0, 0.718)])
def test_disc_appears_where_colmap_projects_it(
    pose: Pose, supersampling: int, centre: tuple[float, float, float]
) -> None:
    point = np.array(centre)
    image = render([disc_board(point, 0.06)], CAMERA, pose, supersampling)[..., 0]
    expected = disc_centroid(pose, point, 0.06)
    column, row = np.round(expected).astype(int)
    window = image[row - 14 : row + 15, column - 14 : column + 15].astype(np.float64) - 40.0
    offsets = np.arange(-14, 15)
    found = np.array([(window.sum(0) @ offsets), (window.sum(1) @ offsets)]) / window.sum() + (column, row)
    assert window.max() > 190  # the disc is there, not only a smear
    np.testing.assert_allclose(found, expected, atol=0.01)
    np.testing.assert_allclose(found, projected(pose, point[None])[0], atol=0.07)


def test_two_views_of_a_plane_are_related_by_its_homography() -> None:
    surface = noise_board()
    first, second = (render([surface], CAMERA, pose, 3)[..., 0] for pose in POSES[:2])
    principal = np.array([[300.0, 0.0, 159.5], [0.0, 300.0, 119.5], [0.0, 0.0, 1.0]])
    to_board = [facing_matrix(BOARD, pose) @ np.linalg.inv(principal) for pose in POSES[:2]]
    columns, rows = np.meshgrid(np.arange(320.0), np.arange(240.0))
    pixels = np.stack([columns, rows, np.ones_like(rows)])
    board = np.einsum("ij,jhw->ihw", to_board[0], pixels)
    mapped = np.einsum("ij,jhw->ihw", np.linalg.inv(to_board[1]), board)
    at_x, at_y = (mapped[:2] / mapped[2]).astype(np.float32)
    warped = cv2.remap(second, at_x, at_y, cv2.INTER_CUBIC)
    place = board[:2] / board[2]
    inside = ((place > 0.05) & (place < 0.95)).all(axis=0)
    inside &= (at_x > 3) & (at_x < 316) & (at_y > 3) & (at_y < 236)
    assert inside.sum() > 20000
    residual = (warped - first)[inside]
    # A shift of d px shows as d × gradient; the two views are blurred by differently shaped pixels on top of that.
    steps = [axis_step[inside] for axis_step in np.gradient(first)]
    gradient = np.hypot(*steps)
    assert np.sqrt(np.mean(residual**2)) < 0.08 * np.sqrt(np.mean(gradient**2))
    for step in steps:
        assert abs((residual * step).sum() / (step**2).sum()) < 0.01  # mean shift in px


def test_the_nearer_surface_hides_the_farther_one_whatever_their_order() -> None:
    near = Rectangle(BOARD.corner + np.array([1.0, -1.0, -0.5]), BOARD.edge_u / 4, BOARD.edge_v / 4)
    dark, bright = (Surface(r, pyramid(np.full((32, 32, 3), value))) for r, value in ((BOARD, 30.0), (near, 220.0)))
    one, other = (render(order, CAMERA, POSES[0], 2) for order in ([dark, bright], [bright, dark]))
    np.testing.assert_array_equal(one, other)
    middle = near.at(np.array([0.5]), np.array([0.5]))
    column, row = np.round(projected(POSES[0], middle)[0]).astype(int)
    assert one[row, column, 0] == pytest.approx(220.0)


def test_pixels_on_an_edge_are_blended_by_the_area_covered() -> None:
    facing = Pose(qvec=np.array([1.0, 0.0, 0.0, 0.0]), tvec=np.zeros(3))
    # At depth 1 the pixel column c spans x from (c - 160) / 300 to (c - 159) / 300; the left edge lies in its middle.
    left = (200.5 - 160.0) / 300.0
    half = Rectangle(np.array([left, -2.0, 1.0]), np.array([4.0, 0.0, 0.0]), np.array([0.0, 4.0, 0.0]))
    image = render([Surface(half, pyramid(np.full((32, 32, 3), 200.0)))], CAMERA, facing, 4)
    sky = image[120, 199, 2]
    assert image[120, 200, 2] == pytest.approx(0.5 * (200.0 + sky), abs=0.5)
    assert image[120, 201, 2] == pytest.approx(200.0)


def test_the_back_of_a_rectangle_and_what_is_behind_the_camera_are_not_seen() -> None:
    behind = look_at(np.array([0.0, 3.0, 1.0]), np.array([0.0, 0.0, 1.0]), UP)
    away = look_at(np.array([0.0, -3.0, 1.0]), np.array([0.0, -9.0, 1.0]), UP)
    centre = np.array([[159.5, 119.5]])
    for pose in (behind, away):
        assert np.isnan(first_hits([BOARD], CAMERA, pose, centre)).all()
    assert np.isfinite(first_hits([BOARD], CAMERA, POSES[0], centre)).all()


def test_fine_stripes_far_away_become_grey_instead_of_aliasing() -> None:
    stripes = np.zeros((1024, 1024, 3), dtype=np.float32)
    stripes[:, ::2] = 200.0  # 3 mm stripes; a pixel sees 20 mm
    far = look_at(np.array([0.3, -6.0, 1.0]), np.array([0.0, 0.0, 1.0]), UP)
    image = render([Surface(BOARD, pyramid(stripes))], CAMERA, far, 2)
    assert image[110:130, 140:180].std() < 1.0
    assert image[110:130, 140:180].mean() == pytest.approx(100.0, abs=1.0)


def test_a_skewed_rectangle_is_refused() -> None:
    with pytest.raises(ValueError, match="orthogonal"):
        Rectangle(np.zeros(3), np.array([1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0]))
