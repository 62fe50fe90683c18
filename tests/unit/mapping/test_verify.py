"""Verification by RANSAC: the order in which pairs are listed does not change the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from featkit.core.types import Pair
from featkit.mapping.cameras import to_pose
from featkit.mapping.verify import VerifyConfig, verify_by_poses, verify_by_ransac

NAMES = ("a.png", "b.png")
SIZE = (1000, 800)
RIGHT, WRONG = 100, 100


def write_database(path: Path, seed: int) -> None:
    """Two images of one scene, with noisy correct matches and as many wrong ones."""
    rng = np.random.default_rng(seed)
    points = rng.uniform((-2, -2, 4), (2, 2, 8), (RIGHT, 3))
    turned = points @ pycolmap.Rotation3d(np.array([0.0, 0.1, 0.0])).matrix().T + (0.6, 0.1, 0.0)
    with pycolmap.Database.open(str(path)) as database:
        camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=SIZE[0], height=SIZE[1], params=[800.0, 500.0, 400.0])
        camera_id = database.write_camera(camera)
        for name, seen in zip(NAMES, (points, turned), strict=True):
            right = 800 * seen[:, :2] / seen[:, 2:] + (500, 400) + rng.normal(0, 2.5, (RIGHT, 2))
            keypoints = np.concatenate([right, rng.uniform((0, 0), SIZE, (WRONG, 2))]).astype(np.float32)
            image_id = database.write_image(pycolmap.Image(name=name, camera_id=camera_id))
            database.write_keypoints(image_id, keypoints)
        database.write_matches(1, 2, np.repeat(np.arange(RIGHT + WRONG, dtype=np.uint32)[:, None], 2, axis=1))


def inliers(path: Path, seed: int, pairs: list[Pair] | None) -> list[list[int]]:
    write_database(path, seed)
    verify_by_ransac(path, VerifyConfig(), pairs)
    with pycolmap.Database.open(str(path)) as database:
        return database.read_two_view_geometry(1, 2).inlier_matches.tolist()


@pytest.mark.parametrize("seed", [2, 4, 7, 10])
def test_order_within_a_pair_does_not_matter(tmp_path: Path, seed: int) -> None:
    """For each of these seeds, swapping the images in RANSAC would change the number of inliers."""
    whole = inliers(tmp_path / "whole.db", seed, None)
    assert len(whole) > RIGHT / 2
    assert inliers(tmp_path / "ab.db", seed, [Pair(*NAMES)]) == whole
    assert inliers(tmp_path / "ba.db", seed, [Pair(*NAMES[::-1])]) == whole


class Certain:
    """Keypoints that are exact to a pixel."""

    def uncertainty_px(self, name: str) -> float:
        return 1.0


@pytest.mark.parametrize("models", [("EQUIRECTANGULAR", "EQUIRECTANGULAR"), ("EQUIRECTANGULAR", "PINHOLE")])
def test_panoramas_by_their_poses(models: tuple[str, str], tmp_path: Path) -> None:
    """Matches all around, also of what a camera with a plane has behind it; half of them wrong."""
    rng = np.random.default_rng(0)
    poses = [
        pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0, 0.3, 0.1])), np.array([0.5, 0, 0])),
        pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0.2, -0.1, 0])), np.array([-0.4, 0.2, 0.3])),
    ]
    directions = rng.normal(size=(400, 3))
    points = 5 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    if "PINHOLE" in models:
        points = points[(poses[1] * points)[:, 2] > 1]
    parameters = {"EQUIRECTANGULAR": [800, 400], "PINHOLE": [300, 300, 400, 200]}
    with pycolmap.Database.open(str(tmp_path / "database.db")) as database:
        for name, model, pose in zip(NAMES, models, poses, strict=True):
            camera = pycolmap.Camera(model=model, width=800, height=400, params=parameters[model])
            camera_id = database.write_camera(camera)
            image_id = database.write_image(pycolmap.Image(name=name, camera_id=camera_id))
            database.write_keypoints(image_id, np.asarray(camera.img_from_cam(pose * points)).astype(np.float32))
        right = np.repeat(np.arange(len(points), dtype=np.uint32)[:, None], 2, axis=1)
        wrong = np.column_stack([right[:, 0], (right[:, 1] + len(points) // 2) % len(points)])
        database.write_matches(1, 2, np.concatenate([right, wrong]).astype(np.uint32))
        known = dict(zip(NAMES, map(to_pose, poses), strict=True))
        verify_by_poses(database, [Pair(*NAMES)], Certain(), known, VerifyConfig())
        found = {tuple(row) for row in database.read_two_view_geometry(1, 2).inlier_matches.tolist()}
    assert found >= {tuple(row) for row in right.tolist()}
    assert len(found) < 1.2 * len(right)


def verified_by_poses(
    path: Path, camera: pycolmap.Camera, poses: list[pycolmap.Rigid3d], points: np.ndarray, noise_px: float
) -> tuple[set[tuple[int, ...]], pycolmap.TwoViewGeometry]:
    """The verified ones of the correct matches, and as many wrong ones, of two images with one camera."""
    rng = np.random.default_rng(1)
    with pycolmap.Database.open(str(path)) as database:
        camera_id = database.write_camera(camera)
        for name, pose in zip(NAMES, poses, strict=True):
            image_id = database.write_image(pycolmap.Image(name=name, camera_id=camera_id))
            seen = np.asarray(camera.img_from_cam(pose * points)) + rng.normal(0, noise_px, (len(points), 2))
            database.write_keypoints(image_id, seen.astype(np.float32))
        right = np.arange(len(points))
        wrong = np.column_stack([right, (right + len(points) // 2) % len(points)])
        database.write_matches(1, 2, np.concatenate([np.column_stack([right, right]), wrong]).astype(np.uint32))
        known = dict(zip(NAMES, map(to_pose, poses), strict=True))
        verify_by_poses(database, [Pair(*NAMES)], Certain(), known, VerifyConfig())
        geometry = database.read_two_view_geometry(1, 2)
    return {tuple(row) for row in geometry.inlier_matches.tolist()}, geometry


def test_a_fisheye_lens_keeps_matches_far_from_its_axis(tmp_path: Path) -> None:
    """From 60 to 88 degrees off the axis, where the plane at depth 1 is stretched up to 800 times."""
    rng = np.random.default_rng(0)
    camera = pycolmap.Camera(model="OPENCV_FISHEYE", width=1900, height=1900, params=[600, 600, 950, 950, 0, 0, 0, 0])
    off, around = np.radians(rng.uniform(60, 86, 400)), rng.uniform(0, 2 * np.pi, 400)
    directions = np.column_stack([np.sin(off) * np.cos(around), np.sin(off) * np.sin(around), np.cos(off)])
    points = directions * rng.uniform(4, 12, (400, 1))
    poses = [pycolmap.Rigid3d(), pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([0.0, 0.0, 0.1]))]
    found, _ = verified_by_poses(tmp_path / "d.db", camera, poses, points, 0.7)
    kept = sum((number, number) in found for number in range(400))
    assert kept > 0.99 * 400
    assert len(found) < 1.2 * 400


def test_cameras_at_one_place_have_no_lines_but_directions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform((-2, -2, 4), (2, 2, 8), (300, 3))
    camera = pycolmap.Camera(model="PINHOLE", width=1000, height=800, params=[800.0, 800.0, 500.0, 400.0])
    rotation = pycolmap.Rotation3d(np.array([0.0, 0.1, 0.05]))
    first = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0.1, 0, 0])), np.array([5.0, -3.0, 2.0]))
    points = np.asarray(first.inverse() * points)
    second = pycolmap.Rigid3d(rotation, np.zeros(3)) * first
    found, geometry = verified_by_poses(tmp_path / "d.db", camera, [first, second], points, 0.7)
    assert {(number, number) for number in range(300)} <= found
    assert len(found) < 1.05 * 300
    assert geometry.config == pycolmap.TwoViewGeometryConfiguration.PANORAMIC
