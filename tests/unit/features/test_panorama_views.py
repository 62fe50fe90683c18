"""Views of panoramas: their pixels against a camera's own picture, their features against pycolmap's sphere."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest

from featkit.core.types import Features, Pose
from featkit.features.panoramas import View, in_panorama, on_sphere, views_of
from featkit.geometry.poses import camera_centre, look_at, quaternion, rotation_angle_deg, rotation_matrix
from tests.painted_room import UP, pinhole, seen, sphere, walls

WIDTH, HEIGHT = 800, 400


def features(keypoints: np.ndarray, side: int, **more: np.ndarray) -> Features:
    number = len(keypoints)
    return Features(
        keypoints.astype(np.float32), np.eye(number, 4, dtype=np.float32), np.arange(number, dtype=np.float32),
        (side, side), **more,
    )  # fmt: skip


def shown(view: View, directions: np.ndarray) -> np.ndarray:
    """Where a view shows directions of the sphere, by its rotation and focal length alone."""
    local = directions @ view.rotation.T
    return view.focal_px * local[:, :2] / local[:, 2:] + (view.side - 1) / 2


def directions(number: int = 4000) -> np.ndarray:
    found = np.random.default_rng(0).normal(size=(number, 3))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_a_view_shows_what_a_camera_would() -> None:
    """A painted room, by the panorama's rays and by the view's own."""
    painted, pose = walls(), look_at(np.array([0.3, -0.4, 0.2]), np.array([4.0, 1.0, 0.0]), UP)
    panorama = seen(painted, pose, sphere(1600)).astype(np.uint8)
    views = views_of(1600, 800)
    for view in (views[0], views[4], views[10], views[15], views[20]):
        turned = view.rotation @ rotation_matrix(pose.qvec)
        own = Pose(quaternion(turned), view.rotation @ pose.tvec)
        true = seen(painted, own, pinhole(view.side, view.side, view.focal_px))
        cut = view.cut(panorama)
        likeness = {
            shift: np.corrcoef(cut[4:-4, 4:-4].ravel(), np.roll(true, shift, (0, 1))[4:-4, 4:-4].ravel())[0, 1]
            for shift in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
        }
        assert likeness[0, 0] > 0.93
        assert max(likeness, key=likeness.__getitem__) == (0, 0)
    colours = np.dstack([panorama] * 3)
    assert (views[0].cut(colours)[..., 1] == views[0].cut(panorama)).all()


def test_every_direction_is_well_inside_one_view() -> None:
    every = directions()
    cosines = np.stack([every @ view.rotation[2] for view in views_of(WIDTH, HEIGHT)])
    nearest = cosines.argmax(axis=0)
    assert np.degrees(np.arccos(cosines.max(axis=0))).max() < 30.5
    for number, view in enumerate(views_of(WIDTH, HEIGHT)):
        at = shown(view, every[nearest == number])
        assert at.min() > 0.07 * view.side
        assert at.max() < 0.93 * view.side


def test_features_are_where_pycolmap_sees_them() -> None:
    """Each once, whatever views show it, and no more than asked for: those of the highest scores."""
    every = directions(500)
    camera = pycolmap.Camera(model="EQUIRECTANGULAR", width=WIDTH, height=HEIGHT, params=[WIDTH, HEIGHT], camera_id=1)
    true = np.asarray(camera.img_from_cam(every)) - 0.5
    assert on_sphere(every, WIDTH, HEIGHT) == pytest.approx(true, abs=1e-6)
    found = []
    for view in views_of(WIDTH, HEIGHT):
        at = shown(view, every[every @ view.rotation[2] > 0.7])
        found.append(features(at[(at > 0).all(axis=1) & (at < view.side - 1).all(axis=1)], view.side))
    assert sum(map(len, found)) > 600
    joined = in_panorama(found, WIDTH, HEIGHT, None)
    assert joined.image_size == (WIDTH, HEIGHT)
    assert len(joined) == len(every)
    distances = np.linalg.norm(joined.keypoints[:, None] - true[None], axis=2)
    assert distances.min(axis=0).max() < 1e-2
    assert distances.min(axis=1).max() < 1e-2
    best = in_panorama(found, WIDTH, HEIGHT, 50)
    assert sorted(best.scores) == sorted(np.sort(joined.scores)[-50:])


def test_sizes_and_orientations_follow() -> None:
    """Against a small step in the picture: area for the size, direction for the orientation."""
    views = views_of(WIDTH, HEIGHT)
    for number, view in enumerate(views[:20]):  # the poles have no direction to speak of
        own = [features(np.zeros((0, 2)), v.side, scales=np.zeros(0), oris=np.zeros(0)) for v in views]
        middle = np.array([[(view.side - 1) / 2 + 3.0, (view.side - 1) / 2 - 2.0]])
        own[number] = features(middle, view.side, scales=np.array([2.0]), oris=np.array([0.4]))
        [placed], joined = (in_panorama(own, WIDTH, HEIGHT, None).keypoints, in_panorama(own, WIDTH, HEIGHT, None))
        steps = 0.05 * np.array([[1, 0], [0, 1], [np.cos(0.4), np.sin(0.4)]])
        moved = on_sphere(view.rays(middle + steps), WIDTH, HEIGHT) - on_sphere(view.rays(middle), WIDTH, HEIGHT)
        assert placed == pytest.approx(on_sphere(view.rays(middle), WIDTH, HEIGHT)[0], abs=1e-3)
        area = abs(np.linalg.det(moved[:2])) / 0.05**2
        assert joined.scales == pytest.approx([2 * np.sqrt(area)], rel=5e-3)
        assert joined.oris == pytest.approx([np.arctan2(moved[2, 1], moved[2, 0])], abs=5e-3)


def test_poses_of_the_views_are_the_panorama_s_turned() -> None:
    """A rig without baselines, exactly: each view's pose by what it shows, and the panorama's by the views' keypoints.

    Points lie on the rays by which pycolmap's sphere sees the pixels that a view is cut from.
    """
    rng = np.random.default_rng(0)
    pose = look_at(np.array([0.3, -0.4, 0.2]), np.array([4.0, 1.0, -0.5]), UP)
    rotation, centre = rotation_matrix(pose.qvec), camera_centre(pose)
    whole = pycolmap.Camera(model="EQUIRECTANGULAR", width=WIDTH, height=HEIGHT, params=[WIDTH, HEIGHT], camera_id=1)
    views = views_of(WIDTH, HEIGHT)
    found, points = [], []
    for view in views:
        focal, side = view.focal_px, view.side
        pinhole_camera = pycolmap.Camera(
            model="PINHOLE", width=side, height=side, params=[focal, focal, side / 2, side / 2], camera_id=1
        )
        x, y = rng.integers(0, side, (2, 60))
        at = np.column_stack([view.at[0][y, x], view.at[1][y, x]]).astype(np.float64)
        rays = np.asarray(whole.cam_ray_from_img(at + 0.5))
        world = centre + rng.uniform(1, 6, (60, 1)) * rays @ rotation
        keypoints = np.column_stack([x, y]).astype(np.float64)
        posed = pycolmap.estimate_and_refine_absolute_pose(keypoints + 0.5, world, pinhole_camera)["cam_from_world"]
        assert np.linalg.norm(posed.inverse().translation - centre) < 1e-5
        assert rotation_angle_deg(posed.rotation.matrix(), view.rotation @ rotation) < 1e-4
        found.append(features(keypoints, side))
        points.append(world)
    joined = in_panorama(found, WIDTH, HEIGHT, None)
    axes = np.stack([view.rotation[2] for view in views])
    kept = []
    for number, world in enumerate(points):
        ahead = (world - centre) @ rotation.T @ axes.T
        kept.append(world[ahead.argmax(axis=1) == number])  # what is nearer to another view's axis is that one's
    every = np.concatenate(kept)
    assert len(joined) == len(every) > 300
    shown = joined.keypoints.astype(np.float64) + 0.5
    posed = pycolmap.estimate_and_refine_absolute_pose(shown, every, whole)["cam_from_world"]
    assert np.linalg.norm(posed.inverse().translation - centre) < 1e-5
    assert rotation_angle_deg(posed.rotation.matrix(), rotation) < 1e-4
