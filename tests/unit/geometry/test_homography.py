"""Homographies and fundamental matrices against exact synthetic geometry and kornia."""

from __future__ import annotations

import numpy as np
import pytest

from featkit.geometry.epipolar import epipolar_distances, fundamental_matrix
from featkit.geometry.pixels import (
    apply_homography,
    as_homography,
    intrinsics_from_colmap,
    local_scale,
    resize_affine,
    warped_fundamental,
)
from featkit.geometry.poses import look_at, rotation_matrix

UP = np.array([0.0, 0.0, 1.0])
HALF = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])  # from featkit's principal point to COLMAP's


def views(seed: int) -> tuple[list[tuple[np.ndarray, np.ndarray, np.ndarray]], list[np.ndarray]]:
    """K (featkit pixels), R, t of two cameras, and where they see 200 random points."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-2, 2, (200, 3))
    cameras, seen = [], []
    for angle in rng.uniform(-0.6, 0.6, 2):
        pose = look_at(np.array([7 * np.sin(angle), -7 * np.cos(angle), rng.uniform(-1, 1)]), rng.normal(0, 0.2, 3), UP)
        focal = rng.uniform(500, 900, 2)
        intrinsics = np.array([[focal[0], 0, 319.5 + rng.normal(0, 20)], [0, focal[1], 239.5], [0, 0, 1]])
        camera = (intrinsics, rotation_matrix(pose.qvec), pose.tvec)
        cameras.append(camera)
        seen.append(projected(points, *camera))
    return cameras, seen


def projected(points: np.ndarray, intrinsics: np.ndarray, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    mapped = (points @ rotation.T + translation) @ intrinsics.T
    return mapped[:, :2] / mapped[:, 2:]


@pytest.mark.parametrize("seed", range(8))
def test_true_matches_lie_on_their_lines(seed: int) -> None:
    cameras, (x0, x1) = views(seed)
    fundamental = fundamental_matrix(*cameras[0], *cameras[1])
    assert max(d.max() for d in epipolar_distances(fundamental, x0, x1)) < 1e-7
    assert np.linalg.norm(fundamental) == pytest.approx(1)
    assert epipolar_distances(fundamental, x0, x1 + np.array([0, 1]))[1].mean() > 0.3


def test_of_many_pairs_at_once() -> None:
    many = [views(seed)[0] for seed in range(3)]
    stacked = [np.stack([pair[side][part] for pair in many]) for side in (0, 1) for part in (0, 1, 2)]
    found = fundamental_matrix(*stacked)
    for row, (first, second) in zip(found, many, strict=True):
        np.testing.assert_allclose(row, fundamental_matrix(*first, *second), atol=1e-15)


def test_fundamental_against_kornia() -> None:
    torch = pytest.importorskip("torch")
    epipolar = pytest.importorskip("kornia.geometry.epipolar")
    (first, second), _ = views(5)
    projections = [torch.from_numpy(k @ np.concatenate([r, t[:, None]], axis=1))[None] for k, r, t in (first, second)]
    theirs = epipolar.fundamental_from_projections(*projections)[0].numpy()
    ours = fundamental_matrix(*first, *second)
    theirs *= np.sign((theirs * ours).sum()) / np.linalg.norm(theirs)
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_cameras_at_one_place() -> None:
    (first, _), _ = views(0)
    with pytest.raises(ValueError, match="same place"):
        fundamental_matrix(*first, *first)


def test_the_half_pixel_counts() -> None:
    """A COLMAP K used as if it were in featkit's pixels misses by what the test of 1e-3 px would see."""
    (first, second), (x0, x1) = views(1)
    colmap = [(k + HALF, r, t) for k, r, t in (first, second)]
    wrong = fundamental_matrix(*colmap[0], *colmap[1])
    assert max(d.max() for d in epipolar_distances(wrong, x0, x1)) > 1e-2
    right = fundamental_matrix(*(part for k, r, t in colmap for part in (intrinsics_from_colmap(k), r, t)))
    assert max(d.max() for d in epipolar_distances(right, x0, x1)) < 1e-7


@pytest.mark.parametrize("seed", range(4))
def test_lines_follow_the_warped_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cameras, (x0, x1) = views(seed)
    warps = [np.eye(3) + rng.normal(0, 1, (3, 3)) * [[0.2, 0.2, 30], [0.2, 0.2, 30], [1e-4, 1e-4, 0]] for _ in range(2)]
    warped = warped_fundamental(fundamental_matrix(*cameras[0], *cameras[1]), *warps)
    there0, there1 = (apply_homography(h, x) for h, x in zip(warps, (x0, x1), strict=True))
    seen = np.isfinite(there0).all(axis=1) & np.isfinite(there1).all(axis=1)
    assert seen.sum() > 100
    assert max(d.max() for d in epipolar_distances(warped, there0[seen], there1[seen])) < 1e-6


def test_points_behind() -> None:
    homography = np.array([[1.0, 0, 0], [0, 1, 0], [-0.01, 0, 1]])
    found = apply_homography(homography, np.array([[50.0, 10], [100, 10], [150, 10]]))
    np.testing.assert_allclose(found[0], [100, 20])
    assert np.isnan(found[1:]).all()
    np.testing.assert_array_equal(apply_homography(-homography, np.array([[50.0, 10], [150, 10]])), found[[0, 2]])
    assert apply_homography(homography, np.zeros((0, 2))).shape == (0, 2)


def test_resizing_as_a_homography() -> None:
    """The corner of an image stays its corner."""
    resize = as_homography(resize_affine((100, 50), (20, 25)))
    np.testing.assert_allclose(
        apply_homography(resize, np.array([[-0.5, -0.5], [99.5, 49.5]])), [[-0.5] * 2, [19.5, 24.5]]
    )


def test_local_scale_against_small_steps() -> None:
    rng = np.random.default_rng(0)
    homography = np.array([[0.8, 0.3, 5], [-0.2, 1.1, 3], [4e-4, -3e-4, 1]])
    points = rng.uniform(0, 500, (20, 2))
    step = 1e-4
    here, right, down = (apply_homography(homography, points + step * np.array(d)) for d in ((0, 0), (1, 0), (0, 1)))
    along, across = (right - here) / step, (down - here) / step
    area = np.abs(along[:, 0] * across[:, 1] - along[:, 1] * across[:, 0])
    np.testing.assert_allclose(local_scale(homography, points), np.sqrt(area), rtol=1e-4)
