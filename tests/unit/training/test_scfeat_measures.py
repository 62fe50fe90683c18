"""Held-out measures are 0 for maps that know every point's place, and near 1 for maps that know nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from featkit.data.posed_samples import HomographyBatch, PosedBatch
from featkit.training.scfeat_validation import (
    GAP_PX,
    keypoint_picture,
    line_picture,
    off_line_share,
    strongest,
    unmatched_share,
    wrong_share,
)

WIDTH, HEIGHT = 96, 64
SIDEWAYS = torch.tensor([[[0.0, 0, 0], [0, 0, -1], [0, 1, 0]]], dtype=torch.float64)  # lines are rows


def places(points: Tensor) -> Tensor:
    """A unit vector for every place, (h, w, 2) px -> (1, 64, h, w): near places have similar ones."""
    directions = torch.randn(32, 2, generator=torch.Generator().manual_seed(0)).double() * 0.15
    phases = points @ directions.T
    return torch.cat([phases.cos(), phases.sin()], dim=-1).permute(2, 0, 1)[None].float()


def cells() -> Tensor:
    y, x = torch.meshgrid(torch.arange(HEIGHT // 4), torch.arange(WIDTH // 4), indexing="ij")
    return torch.stack([x, y], dim=-1).double() * 4 + 1.5  # where the maps' cells are, in pixels


def images() -> dict[str, Tensor]:
    pixels, valid = torch.zeros(1, HEIGHT, WIDTH, 3, dtype=torch.uint8), torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    return {"images0": pixels, "images1": pixels, "valid0": valid, "valid1": valid}


def test_matches_of_a_known_homography() -> None:
    angle = np.radians(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 9.0], [np.sin(angle), np.cos(angle), -7.0], [1e-4, 0, 1]])
    batch = HomographyBatch(**images(), homographies01=torch.from_numpy(turn)[None], names=("a",))
    back = torch.from_numpy(np.linalg.inv(turn))
    moved = torch.cat([cells(), torch.ones_like(cells()[..., :1])], -1) @ back.T
    knowing = torch.cat([places(cells()), places(moved[..., :2] / moved[..., 2:])])
    assert wrong_share(knowing, batch) == 0
    ignorant = torch.randn(2, 8, HEIGHT // 4, WIDTH // 4, generator=torch.Generator().manual_seed(1))
    assert wrong_share(ignorant, batch) > 0.9


def test_matches_when_the_first_pixel_lies_beyond_the_horizon() -> None:
    middle = np.array([[1, 0, 47.5], [0, 1, 31.5], [0, 0, 1]])
    tilt = middle @ np.array([[1, 0, 0], [0, 1, 0], [0.015, 0.015, 1]]) @ np.linalg.inv(middle)
    assert tilt[2, 2] < 0
    batch = HomographyBatch(**images(), homographies01=torch.from_numpy(tilt)[None], names=("a",))
    moved = torch.cat([cells(), torch.ones_like(cells()[..., :1])], -1) @ torch.from_numpy(np.linalg.inv(tilt)).T
    knowing = torch.cat([places(cells()), places(moved[..., :2] / moved[..., 2:])])
    assert wrong_share(knowing, batch) < 0.2  # 1 when nothing is seen


def test_matches_on_epipolar_lines() -> None:
    batch = PosedBatch(**images(), fundamentals01=SIDEWAYS, names=(("a", "b"),))
    knowing = torch.cat([places(cells()), places(cells() + torch.tensor([8.0, 0.0]))])
    assert off_line_share(knowing, batch) == 0
    above = torch.cat([places(cells()), places(cells() + torch.tensor([0.0, 16.0]))])
    assert off_line_share(above, batch) > 0.7  # the lowest rows have no other place to go


def test_points_without_content_do_not_count() -> None:
    given = images()
    given["valid0"] = torch.zeros_like(given["valid0"])
    batch = PosedBatch(**given, fundamentals01=SIDEWAYS, names=(("a", "b"),))
    assert off_line_share(places(cells()).repeat(2, 1, 1, 1), batch) == 1.0


def test_pictures_show_points_and_lines() -> None:
    grey = np.full((40, 60, 3), 90, np.uint8)
    points, lines = np.array([[10.0, 20.0], [30.0, 5.0]]), np.array([[0.0, 1.0, -20.0], [1.0, 0.0, -12.0]])
    picture = line_picture(grey, grey, points, points, lines, np.array([True, True]))
    assert picture.shape == (40, 60 * 2 + GAP_PX, 3)
    right = picture[:, 60 + GAP_PX :]
    assert (right[20] != 90).any(axis=-1).all(), "the first line is row 20"
    assert (right[:, 12] != 90).any(axis=-1).all(), "the second is column 12"
    nothing = line_picture(grey, grey, points, points, lines, np.array([False, False]))
    assert (nothing[:, :60] == 90).all()
    scores = np.random.default_rng(0).random((40, 60))
    assert keypoint_picture(grey, scores, points).shape == picture.shape
    assert np.isfinite(keypoint_picture(grey, np.zeros((40, 60)), points)).all()


def test_keypoints_that_match_on_their_lines() -> None:
    batch = PosedBatch(**images(), fundamentals01=SIDEWAYS, names=(("a", "b"),))
    scores = torch.zeros(2, 1, HEIGHT, WIDTH)
    corners = [(10, 8), (30, 20), (60, 40), (80, 50)]
    for rank, (x, y) in enumerate(corners):
        scores[0, 0, y, x] = scores[1, 0, y, x - 8] = 1.0 + rank
    knowing = torch.cat([places(cells()), places(cells() + torch.tensor([8.0, 0.0]))])
    assert [tuple(int(v) for v in point) for point in strongest(scores)[0]] == corners[::-1]
    assert len(strongest(scores, 2)[0]) == 2
    assert unmatched_share(scores, knowing, batch) == 0
    scores[1, 0, 20, 22], scores[1, 0, 23, 22] = 0, 9.0  # one of them three pixels off its line
    assert unmatched_share(scores, knowing, batch) == 0.25
    assert unmatched_share(torch.zeros_like(scores), knowing, batch) == 1.0
