"""Epipolar lines of tensors against kornia, exact scenes, and borders of the image one by one."""

import kornia.geometry.epipolar as kornia_epipolar
import numpy as np
import pytest
import torch
from synthetic_views import two_views

from featkit.geometry.batched import clip_to_image, distances_to_lines, epipolar_lines, point_line_distance

SIZE = (64, 48)


@pytest.mark.parametrize("seed", range(5))
def test_true_matches_lie_on_their_lines(seed: int) -> None:
    points0, points1, fundamental = two_views(seed).tensors()
    assert point_line_distance(points1, epipolar_lines(points0, fundamental)).max() < 1e-9
    assert point_line_distance(points0, epipolar_lines(points1, fundamental.mT)).max() < 1e-9


def test_true_matches_lie_on_their_lines_in_single_precision() -> None:
    views = two_views(0, size=(1600, 1200))
    points0, points1 = (torch.from_numpy(p)[None].float() for p in (views.points0, views.points1))
    lines = epipolar_lines(points0, torch.from_numpy(views.fundamental)[None])
    assert lines.dtype == torch.float32
    assert point_line_distance(points1, lines).max() < 1e-3


def test_against_kornia() -> None:
    points0, points1, fundamental = two_views(1).tensors()
    moved = points1 + torch.randn(points1.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lines = epipolar_lines(points0, fundamental)
    expected = kornia_epipolar.left_to_right_epipolar_distance(points0, moved, fundamental)
    torch.testing.assert_close(point_line_distance(moved, lines), expected)
    everyone = distances_to_lines(moved, lines)
    torch.testing.assert_close(everyone[0].diagonal(), expected[0])
    torch.testing.assert_close(everyone[0, 3, 5], point_line_distance(moved[:, 5], lines[:, 3])[0])


def test_scale_of_the_matrix_does_not_matter() -> None:
    points0, _, fundamental = two_views(2).tensors()
    for scale in (1e-9, 1e9):
        torch.testing.assert_close(epipolar_lines(points0, scale * fundamental), epipolar_lines(points0, fundamental))


def test_without_a_line_everything_is_infinitely_far() -> None:
    points0, points1, fundamental = two_views(0).tensors()
    lines = epipolar_lines(points0, torch.zeros_like(fundamental))
    assert point_line_distance(points1, lines).isinf().all()
    assert distances_to_lines(points1, lines).isinf().all()
    ends, crosses = clip_to_image(lines, SIZE)
    assert not crosses.any()
    assert ends.isfinite().all()


def border_crossings(line: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """Where a line meets the four borders, one after the other."""
    a, b, c = line
    right, bottom = size[0] - 1, size[1] - 1
    found = []
    for x in (0, right):
        if abs(b) > 1e-9 and 0 <= -(a * x + c) / b <= bottom:
            found.append(np.array([x, -(a * x + c) / b]))
    for y in (0, bottom):
        if abs(a) > 1e-9 and 0 <= -(b * y + c) / a <= right:
            found.append(np.array([-(b * y + c) / a, y]))
    return found


def test_clipping_finds_the_borders() -> None:
    rng = np.random.default_rng(0)
    angles = np.concatenate([rng.uniform(0, 2 * np.pi, 300), np.arange(8) * np.pi / 4])
    normals = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    through = rng.uniform([-30, -30], [94, 78], (len(angles), 2))
    lines = np.concatenate([normals, -(normals * through).sum(1, keepdims=True)], axis=1)
    ends, crosses = clip_to_image(torch.from_numpy(lines)[None], SIZE)
    assert 50 < crosses.sum() < 300
    for line, (start, stop), crossing in zip(lines, ends[0].numpy(), crosses[0], strict=True):
        expected = border_crossings(line, SIZE)
        assert bool(crossing) == (len(expected) >= 2)
        if crossing:
            gaps = [min(np.abs(end - e).max() for e in expected) for end in (start, stop)]
            assert max(gaps) < 1e-9
            assert np.abs(start - stop).max() > 0


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ((0.0, 1.0, -7.0), {(0.0, 7.0), (63.0, 7.0)}),  # a row
        ((-1.0, 0.0, 5.0), {(5.0, 0.0), (5.0, 47.0)}),  # a column
        ((0.0, 1.0, -60.0), None),  # below the image
        ((1.0, 0.0, 3.0), None),  # left of it
    ],
)
def test_lines_along_the_axes(line: tuple[float, ...], expected: set[tuple[float, float]] | None) -> None:
    ends, crosses = clip_to_image(torch.tensor([[line]]), SIZE)
    assert bool(crosses) == (expected is not None)
    if expected:
        assert {tuple(end) for end in ends[0, 0].tolist()} == expected


def test_ends_stay_inside_in_single_precision() -> None:
    views = two_views(3, count=200, size=(640, 480))
    points0 = torch.from_numpy(views.points0)[None].float()
    ends, crosses = clip_to_image(epipolar_lines(points0, torch.from_numpy(views.fundamental)[None]), views.size)
    assert crosses.all()
    assert (ends >= 0).all()
    assert (ends <= torch.tensor([639.0, 479.0])).all()
