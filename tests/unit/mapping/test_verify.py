"""Verification by RANSAC: the order in which pairs are listed does not change the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from featkit.core.types import Pair
from featkit.mapping.verify import VerifyConfig, verify_by_ransac

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
