"""The 3D scene: frusta against projection, what is shown, and that thinning out is always the same."""

from __future__ import annotations

import base64
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise

import numpy as np
import pytest

from featkit.core.content import Camera3D, Scene3D
from featkit.geometry.poses import look_at, rotation_matrix
from featkit.report.scene3d import (
    ASPECTS,
    FIELD_OF_VIEW_DEG,
    FILL,
    FirstView,
    first_views,
    frustum_corners,
    frustum_depth,
    frustum_path,
    scene_figure,
    upright_rotation,
    view_box,
)
from featkit.report.tables import LEVELS, spread


def camera(
    centre: tuple[float, float, float],
    target: tuple[float, float, float] = (0.0, 0.0, 0.0),
    name: str = "a.jpg",
    group: str = "map",
) -> Camera3D:
    pose = look_at(np.array(centre), np.array(target), up=np.array([0.0, 0.0, 1.0]))
    return Camera3D(name, rotation_matrix(pose.qvec), pose.tvec, 640, 480, 700.0, group)


def unpack(base64_array: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(base64_array["bdata"]), dtype=base64_array["dtype"])


def xyz(trace: dict) -> np.ndarray:
    return np.column_stack([unpack(trace[axis]) for axis in "xyz"])


def cloud(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 3)), rng.integers(0, 256, (count, 3), dtype=np.uint8)


@pytest.mark.parametrize("depth", [0.1, 3.0])
def test_frustum_corners_project_to_the_image_corners(depth: float) -> None:
    view = camera((4.0, -3.0, 2.0))
    in_camera = frustum_corners(view, depth) @ view.rotation.T + view.translation
    np.testing.assert_allclose(in_camera[:, 2], depth, rtol=1e-12)
    principal = np.array([(view.width - 1) / 2, (view.height - 1) / 2])  # featkit pixels
    pixels = view.focal_px * in_camera[:, :2] / in_camera[:, 2:] + principal
    corners = [[-0.5, -0.5], [639.5, -0.5], [639.5, 479.5], [-0.5, 479.5]]
    np.testing.assert_allclose(pixels, corners, atol=1e-9)


def test_frustum_path_draws_all_eight_edges_once() -> None:
    view = camera((1.0, 2.0, 0.5))
    path = frustum_path(view, 1.0)
    vertices = np.vstack([frustum_corners(view, 1.0), view.centre])
    drawn = []
    for start, end in pairwise(path):
        if np.isfinite(start).all() and np.isfinite(end).all():
            ends = [int(np.linalg.norm(vertices - p, axis=1).argmin()) for p in (start, end)]
            drawn.append(tuple(sorted(ends)))
    rim, spokes = [(0, 1), (1, 2), (2, 3), (0, 3)], [(i, 4) for i in range(4)]
    assert sorted(drawn) == sorted(rim + spokes)
    assert np.isnan(path[-1]).all()  # the pen is lifted before the next camera


def test_upright_turns_up_to_z_and_the_view_to_y() -> None:
    views = [camera((x, -5.0, 0.0), target=(x, 5.0, 0.0)) for x in (-1.0, 0.0, 1.0)]
    tilt = rotation_matrix(np.array([0.9, 0.3, -0.2, 0.1]))  # the world lies askew
    views = [replace(view, rotation=view.rotation @ tilt.T) for view in views]
    np.testing.assert_allclose(upright_rotation(views) @ tilt @ [0, 0, 1], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(upright_rotation(views) @ tilt @ [0, 1, 0], [0, 1, 0], atol=1e-12)


@pytest.mark.parametrize("angles", [[0, 90, 180, 270], [0, 180], [0]], ids=["all around", "opposite", "one camera"])
@pytest.mark.parametrize("nadir", [False, True])
def test_upright_is_a_rotation_when_directions_cancel(angles: list[int], nadir: bool) -> None:
    views = []
    for angle in np.radians(angles):
        x, y = np.cos(angle), np.sin(angle)
        rotation = np.array([[x, y, 0], [y, -x, 0], [0, 0, -1.0]]) if nadir else None
        view = camera((5 * x, 5 * y, 0.0))
        views.append(view if rotation is None else replace(view, rotation=rotation))
    turn = upright_rotation(views)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1.0)
    if len(angles) > 1:
        np.testing.assert_allclose(turn @ [0, 0, 1], [0, 0, 1], atol=1e-12)


def test_view_ignores_far_points_and_a_lost_camera() -> None:
    points, _ = cloud(5000)
    points[:20] *= 1e6
    centres = np.array([[x, -6.0, 0.0] for x in (-2.0, -1.0, 0.0, 1.0, 2.0)] + [[1e5, 0.0, 0.0]])
    box = view_box(points, centres)
    assert 5.0 < box.side < 20.0
    assert box.contains(centres).tolist() == [True] * 5 + [False]


def scenes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Points and camera centres, z up, cameras looking along y or inwards."""
    rng = np.random.default_rng(0)
    box, angles = rng.uniform(-1, 1, (3000, 3)), np.linspace(0, 2 * np.pi, 24)
    line = np.linspace(-20, 20, 30)
    return {
        "before a wall": (box * [4, 2, 2] + [0, 8, 1], np.stack([line / 6, -np.abs(line) / 5, 0 * line], axis=1)),
        "ring": (box * [2, 2, 0.5], np.stack([6 * np.cos(angles), 6 * np.sin(angles), 1 + 0 * angles], axis=1)),
        "street": (box * [20, 2, 2] + [0, 4, 1], np.stack([line, 0 * line, 0 * line], axis=1)),
        "tower": (box * [1, 1, 20], np.stack([0 * line, 0 * line - 4, line], axis=1)),
        "drone": (box * [9, 9, 0.5], np.stack([line / 3, line / 4, 8 + 0 * line], axis=1)),
        "cameras only": (np.zeros((0, 3)), np.array([[0.0, 0, 0], [1, 0, 0]])),
    }


def chosen(views: list[FirstView], aspect: float) -> FirstView:
    """As the page's script does it."""
    return next((view for view in reversed(views) if view.aspect <= aspect), views[0])


def in_the_picture(points: np.ndarray, view: FirstView, aspect: float) -> np.ndarray:
    """x and y of points in half widths and half heights of the picture, (n, 2); NaN behind the eye."""
    pose = look_at(view.eye, view.centre, up=np.array([0.0, 0.0, 1.0]))
    x, y, z = rotation_matrix(pose.qvec) @ points.T + pose.tvec[:, None]
    half = np.tan(np.radians(FIELD_OF_VIEW_DEG / 2)) * np.where(z > 0, z, np.nan)
    return np.stack([x / (aspect * half), y / half], axis=1)


@pytest.mark.parametrize("aspect", [0.5, 0.67, 0.79, 1.0, 1.35, 1.68, 2.85])
@pytest.mark.parametrize("name", scenes())
def test_the_first_view_shows_every_camera_and_the_points(name: str, aspect: float) -> None:
    points, centres = scenes()[name]
    box = view_box(points, centres)
    depth = frustum_depth(centres, box)
    near = [centres + depth * np.array(step) for step in ((1, 0, 0), (-1, 0, 0), (0, 0, 1), (0, 0, -1))]
    view = chosen(first_views(points, np.concatenate([centres, *near]), box), aspect)
    seen = (np.concatenate([points, centres, *near]) - box.middle) / box.side
    inside = (np.abs(in_the_picture(seen, view, aspect)) < 1).all(axis=1)
    assert inside[len(points) :].all()
    assert inside.mean() > 0.99
    assert box.contains(centres).all()
    assert box.side < 1.5 * np.ptp(np.concatenate([points, centres]), axis=0).max()


@pytest.mark.parametrize("name", sorted(scenes().keys() - {"cameras only"}))
def test_the_scene_fills_its_card(name: str) -> None:
    """As near as it can be: what is seen reaches the margin at the sides, or above and below."""
    points, centres = scenes()[name]
    box = view_box(points, centres)
    for view in first_views(points, centres, box):
        seen = (np.concatenate([points, centres]) - box.middle) / box.side
        reach = np.abs(in_the_picture(seen, view, view.aspect)).max(axis=0)
        assert 0.97 < (reach / FILL).max() < 1.04, view.aspect


def test_the_scene_opens_with_a_view_for_its_card() -> None:
    layout = scene_figure(Scene3D(*cloud(100)), LEVELS[0]).layout
    views = layout["meta"]["views"]
    assert [view["aspect"] for view in views] == list(ASPECTS)
    usual = next(view for view in views if view["aspect"] == 1.6)
    opened = layout["scene"]["camera"]
    assert (opened["eye"], opened["center"]) == (usual["eye"], usual["center"])
    script = files("featkit.report").joinpath("script.js").read_text(encoding="utf-8")
    assert "views.findLast((view) => view.aspect <= div.clientWidth / div.clientHeight) ?? views[0]" in script


def test_a_georeferenced_world_keeps_its_detail() -> None:
    points, colours = cloud(100)
    far = points + np.array([456_789.0, 5_412_345.0, 300.0])
    near = scene_figure(Scene3D(points, colours), LEVELS[0])
    moved = scene_figure(Scene3D(far, colours), LEVELS[0])
    np.testing.assert_allclose(xyz(moved.data[0]), xyz(near.data[0]), atol=1e-6)


def test_spread_is_even_and_whole_when_all_fit() -> None:
    assert spread(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert spread(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert spread(0, 5).tolist() == spread(5, 0).tolist() == []
    assert len(np.unique(spread(2_000_003, 120_000))) == 120_000


def test_thinning_out_is_deterministic_and_bounded() -> None:
    points, colours = cloud(20_000)
    detail = replace(LEVELS[0], points=1000)
    first = scene_figure(Scene3D(points, colours), detail)
    again = scene_figure(Scene3D(points.copy(), colours.copy()), detail)
    assert first == again
    assert len(xyz(first.data[0])) == 1000
    rgb = base64.b64decode(first.data[0]["meta"]["rgb"])
    assert len(rgb) == 3000
    assert "1000 of 20,000 points shown" in first.caption


def test_points_keep_their_colours() -> None:
    points = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [np.nan, 0, 0]])
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], dtype=np.uint8)
    trace = scene_figure(Scene3D(points, colours), LEVELS[0]).data[0]
    kept = xyz(trace)
    rgb = np.frombuffer(base64.b64decode(trace["meta"]["rgb"]), np.uint8).reshape(-1, 3)
    right = kept[:, 0].argmax()
    assert rgb[right].tolist() == [0, 255, 0]


def test_groups_share_a_legend_entry_and_plotly_accepts_the_figure() -> None:
    from plotly.graph_objects import Figure

    points, colours = cloud(50)
    cameras = [camera((3.0, i, 1.0), name=f"{i}.jpg", group=g) for i, g in enumerate(("map", "query", "map"))]
    figure = scene_figure(Scene3D(points, colours, cameras), LEVELS[0])
    Figure(data=figure.data, layout=figure.layout)  # raises on a property that plotly does not know
    named = [t["name"] for t in figure.data if t.get("showlegend", True)]
    assert named == ["points", "map cameras (2)", "query cameras (1)"]
    hover = [text for t in figure.data for text in t.get("hovertext", [])]
    assert [text.split("</b>")[0] for text in hover] == ["<b>0.jpg", "<b>2.jpg", "<b>1.jpg"]


def test_empty_and_broken_scenes() -> None:
    nothing = Scene3D(np.zeros((0, 3)), np.zeros((0, 3), np.uint8))
    assert scene_figure(nothing, LEVELS[0]).data == []
    only_cameras = scene_figure(replace(nothing, cameras=[camera((1.0, 0.0, 0.0))]), LEVELS[0])
    assert len(only_cameras.data) == 2
    one = scene_figure(Scene3D(np.ones((1, 3)), np.zeros((1, 3), np.uint8)), LEVELS[0])
    assert len(xyz(one.data[0])) == 1
    lost = replace(camera((1.0, 0.0, 0.0)), translation=np.full(3, np.nan))
    assert scene_figure(replace(nothing, cameras=[lost]), LEVELS[0]).data == []
    with pytest.raises(ValueError, match="2 points but 1 colours"):
        scene_figure(Scene3D(np.zeros((2, 3)), np.zeros((1, 3), np.uint8)), LEVELS[0])
