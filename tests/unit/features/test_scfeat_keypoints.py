"""Score maps -> keypoints, vectors -> descriptors: against slow and obvious ways."""

import numpy as np
import pytest
import torch

from featkit.features.scfeat import (
    LIFT_RADIUS,
    find_keypoints,
    fusion,
    lift_to_unit,
    local_maxima,
    normalised_rows,
    refine_positions,
)

Scores = torch.Tensor


def scores(height: int = 30, width: int = 41, seed: int = 0) -> Scores:
    return torch.rand((height, width), generator=torch.Generator().manual_seed(seed)) * 2


def pixels_of(found: torch.Tensor) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in found.tolist()]


def slow_maxima(values: np.ndarray, window: int, border: int) -> list[tuple[int, int]]:
    reach, (height, width) = window // 2, values.shape
    found = []
    for y in range(border, height - border):
        for x in range(border, width - border):
            around = values[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
            if values[y, x] == around.max():
                found.append((x, y))
    return found


@pytest.mark.parametrize("window", [1, 3, 5, 9])
@pytest.mark.parametrize("border", [0, 1, 4])
def test_local_maxima_best_first(window: int, border: int) -> None:
    values = scores()
    found = find_keypoints(values, 0.5, window, border, 10_000, refine=False)
    expected = [(x, y) for x, y in slow_maxima(values.numpy(), window, border) if values[y, x] > 0.5]
    expected.sort(key=lambda place: -float(values[place[1], place[0]]))
    assert pixels_of(found.points) == expected
    assert found.scores.tolist() == [float(values[y, x]) for x, y in expected]


def test_of_equal_neighbours_the_first_counts() -> None:
    values = torch.zeros(9, 12)
    values[2, 3:6] = values[3, 3:6] = 1.5  # a plateau
    values[6, 9] = 1.5
    assert pixels_of(find_keypoints(values, 1.0, 3, 1, 10, refine=False).points) == [(3, 2), (9, 6)]
    assert local_maxima(torch.ones(4, 4), 3).sum() == 1


def test_limits() -> None:
    values = scores()
    everything = find_keypoints(values, 0.0, 3, 1, 10_000, refine=False)
    best = find_keypoints(values, 0.0, 3, 1, 7, refine=False)
    assert pixels_of(best.points) == pixels_of(everything.points)[:7]
    assert len(find_keypoints(values, 9.0, 3, 1, 100).points) == 0
    filled = find_keypoints(values, 9.0, 3, 1, 100, min_keypoints=5, refine=False)
    assert pixels_of(filled.points) == pixels_of(everything.points)[:5]
    above = int((everything.scores > 1.9).sum())
    assert 0 < above < 60
    assert len(find_keypoints(values, 1.9, 3, 1, 100, min_keypoints=above - 1).points) == above
    assert len(find_keypoints(values, 1.9, 3, 1, 100, min_keypoints=60).points) == 60
    assert len(find_keypoints(values[:2, :2], 0.0, 3, 1, 100).points) == 0


def test_refinement_is_the_mean_of_nine() -> None:
    values = scores() + 0.1
    found = find_keypoints(values, 0.5, 3, 0, 50)
    whole = find_keypoints(values, 0.5, 3, 1, 50, refine=False)
    for (x, y), (px, py) in zip(found.points.tolist(), pixels_of(whole.points), strict=True):
        patch = values[py - 1 : py + 2, px - 1 : px + 2].double().numpy()
        ys, xs = np.mgrid[py - 1 : py + 2, px - 1 : px + 2]
        assert (x, y) == pytest.approx(((patch * xs).sum() / patch.sum(), (patch * ys).sum() / patch.sum()), abs=1e-4)


def test_refinement_finds_a_peak_between_pixels() -> None:
    """Of a parabola the weighted mean lies on the right side; of a symmetric peak it stays."""
    ys, xs = torch.meshgrid(torch.arange(11.0), torch.arange(11.0), indexing="ij")
    for x, y in ((5.0, 5.0), (5.3, 4.8)):
        values = torch.exp(-((xs - x) ** 2 + (ys - y) ** 2))
        found = refine_positions(values, torch.tensor([[5, 5]]))[0]
        assert torch.sign((found - 5).round(decimals=4)).tolist() == [np.sign(x - 5), np.sign(round(y - 5, 4))]


def vectors(count: int = 200) -> torch.Tensor:
    return torch.randn((count, 128), generator=torch.Generator().manual_seed(1)) * 3


def test_l2() -> None:
    rows = normalised_rows(vectors(), "l2")
    expected = vectors() / vectors().square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(rows, expected)


def test_fusion_is_equation_25() -> None:
    given = vectors(5).double()
    found = fusion(given)
    for vector, row in zip(given, found, strict=True):
        total = sum(p * vector / (vector.abs() ** p).sum() ** (1 / p) for p in (1, 2, 3, 4))
        torch.testing.assert_close(row, total / 10)
    assert torch.isfinite(fusion(torch.zeros(1, 128))).all()


def test_lifted_rows_order_pairs_by_distance() -> None:
    """What a matcher of unit rows sees of vectors of several lengths."""
    given = fusion(vectors())
    rows = lift_to_unit(given)
    assert rows.shape == (200, 129)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(200))
    apart = torch.cdist(given.double(), given.double())
    seen = LIFT_RADIUS * torch.cdist(rows.double(), rows.double())
    torch.testing.assert_close(seen, apart, rtol=0.01, atol=1e-3)
    assert given.norm(dim=1).std() > 0.005, "lengths differ: otherwise this says nothing"
    nearest = [(values + 99 * torch.eye(200)).argmin(1) for values in (apart, seen)]
    assert (nearest[0] == nearest[1]).float().mean() > 0.98
