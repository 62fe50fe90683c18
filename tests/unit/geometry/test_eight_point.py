"""The batched eight-point algorithm against singular value decompositions one by one, OpenCV, and exact scenes."""

import cv2
import numpy as np
import pytest
import torch
from eight_point_loop import eight_point
from synthetic_views import two_views

from featkit.geometry.batched import fundamental_of_eight, hartley, nearest_rank_two

SIZE = (640, 480)


def sets_of_eight(seed: int, draws: int, noise_px: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    views = two_views(seed, 60, SIZE)
    which = np.stack([rng.choice(60, 8, replace=False) for _ in range(draws)])
    return views.points0[which], views.points1[which] + noise_px * rng.normal(size=(draws, 8, 2)), views.fundamental


def gap(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Largest difference of entries, of matrices whose signs are arbitrary."""
    return np.minimum(np.abs(found - expected).max((-2, -1)), np.abs(found + expected).max((-2, -1)))


def batched(sets0: np.ndarray, sets1: np.ndarray, normalise: bool = True) -> np.ndarray:
    return fundamental_of_eight(torch.from_numpy(sets0), torch.from_numpy(sets1), normalise).numpy()


@pytest.mark.parametrize("noise_px", [0.0, 0.5, 3.0, 40.0])
def test_against_svd(noise_px: float) -> None:
    sets0, sets1, _ = sets_of_eight(0, 200, noise_px)
    found = batched(sets0, sets1)
    expected = np.stack([eight_point(a, b) for a, b in zip(sets0, sets1, strict=True)])
    gaps = gap(found, expected)
    assert np.median(gaps) < 1e-14
    assert gaps.max() < 1e-9
    assert np.abs(np.linalg.norm(found, axis=(1, 2)) - 1).max() < 1e-12


def test_in_raw_pixels_against_svd() -> None:
    sets0, sets1, _ = sets_of_eight(1, 100, 1.0)
    found = batched(sets0, sets1, normalise=False)
    expected = np.stack([eight_point(a, b, normalise=False) for a, b in zip(sets0, sets1, strict=True)])
    assert np.median(gap(found, expected)) < 1e-10
    assert gap(found, expected).max() < 1e-5  # neither side is sure of more in these units


@pytest.mark.parametrize("seed", range(4))
def test_exact_pairs_give_the_exact_matrix(seed: int) -> None:
    sets0, sets1, truth = sets_of_eight(seed, 50, 0.0)
    gaps = gap(batched(sets0, sets1), truth)
    assert np.median(gaps) < 1e-11
    assert gaps.max() < 1e-6


def test_against_opencv() -> None:
    sets0, sets1, _ = sets_of_eight(2, 30, 1.0)
    for a, b, found in zip(sets0, sets1, batched(sets0, sets1), strict=True):
        theirs, _ = cv2.findFundamentalMat(a, b, cv2.FM_8POINT)
        assert gap(found, theirs / np.linalg.norm(theirs)) < 1e-6


def test_leading_dimensions_are_free() -> None:
    sets0, sets1, _ = sets_of_eight(3, 24, 1.0)
    shaped = batched(sets0.reshape(2, 3, 4, 8, 2), sets1.reshape(2, 3, 4, 8, 2))
    np.testing.assert_allclose(shaped.reshape(24, 3, 3), batched(sets0, sets1), atol=1e-12)
    assert gap(batched(sets0[5], sets1[5]), batched(sets0, sets1)[5]) < 1e-12


def test_rank_two_is_the_nearest() -> None:
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(300, 3, 3))
    matrices[0] = np.diag([3.0, 2.0, 1.0])
    matrices[1] = np.diag([1.0, 1.0, 0.0])  # of rank 2 already
    matrices[2] = 0.0
    matrices[2, 0, 1], matrices[2, 1, 0] = 1.0, -1.0  # camera moved forward
    found = nearest_rank_two(torch.from_numpy(matrices)).numpy()
    u, s, v = np.linalg.svd(matrices)
    s[:, 2] = 0
    np.testing.assert_allclose(found, u @ (s[..., None] * v), atol=1e-7)
    assert np.abs(np.linalg.det(found)).max() < 1e-9


def test_equal_singular_values_still_lose_one() -> None:
    """Which direction goes is arbitrary then; what goes is not more than it must be."""
    matrices = torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))[None]
    found = nearest_rank_two(matrices)
    assert float(torch.linalg.det(found)) == pytest.approx(0, abs=1e-9)
    assert float((found - matrices).norm()) == pytest.approx(1.0, abs=1e-6)


def test_hartley_moves_to_the_middle() -> None:
    points = torch.rand(5, 8, 2, dtype=torch.float64) * 600
    move = hartley(points)
    moved = torch.cat([points, torch.ones(5, 8, 1)], dim=2) @ move.mT
    assert moved[..., :2].mean(1).abs().max() < 1e-12
    torch.testing.assert_close(moved[..., :2].norm(dim=2).mean(1), torch.full((5,), 2**0.5, dtype=torch.float64))
    assert (moved[..., 2] == 1).all()


def test_degenerate_sets_do_not_raise() -> None:
    same = torch.full((2, 8, 2), 7.0)
    line = torch.stack([torch.arange(8.0), torch.arange(8.0)], dim=1).expand(2, 8, 2)
    good0, good1, _ = sets_of_eight(0, 2, 0.0)
    sets0 = torch.cat([same, line, torch.from_numpy(good0), torch.full((1, 8, 2), torch.nan)])
    sets1 = torch.cat([same, line, torch.from_numpy(good1), torch.full((1, 8, 2), torch.nan)])
    found = fundamental_of_eight(sets0, sets1)
    assert gap(found[4:6].numpy(), batched(good0, good1)).max() < 1e-12
    assert found[6].isnan().all()


def test_single_precision_points_are_computed_in_double() -> None:
    sets0, sets1, _ = sets_of_eight(0, 20, 1.0)
    single = [torch.from_numpy(s).float() for s in (sets0, sets1)]
    found = fundamental_of_eight(*single)
    assert found.dtype == torch.float64
    expected = [eight_point(a, b) for a, b in zip(*(s.double().numpy() for s in single), strict=True)]
    assert gap(found.numpy(), np.stack(expected)).max() < 1e-9
