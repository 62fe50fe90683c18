"""Two-way epipolar distances, the match matrix and rewards, pair by pair."""

import math

import numpy as np
import pytest
import torch
from synthetic_views import two_views

from featkit.geometry.epipolar import epipolar_distances
from featkit.losses.scfeat_detection import RewardConfig, match_matrix, regulariser_factor, rewards, two_way_distances
from featkit.losses.scfeat_fundamental import FundamentalError

SIZE = (640, 480)


def test_distances_against_the_numpy_geometry() -> None:
    views = [two_views(seed, 12, SIZE) for seed in range(2)]
    points0 = torch.from_numpy(np.stack([v.points0 for v in views]))
    points1 = torch.from_numpy(np.stack([v.points1[:9] for v in views]))
    fundamental = torch.from_numpy(np.stack([v.fundamental for v in views]))
    in0, in1 = two_way_distances(points0, points1, fundamental)
    good = match_matrix(points0, points1, fundamental, 2.0)
    assert in0.shape == in1.shape == good.shape == (2, 12, 9)
    for pair, view in enumerate(views):
        for i in range(12):
            partners = view.points1[:9]
            expected = epipolar_distances(view.fundamental, np.repeat(view.points0[i : i + 1], 9, axis=0), partners)
            np.testing.assert_allclose(in0[pair, i].numpy(), expected[0], atol=1e-8)
            np.testing.assert_allclose(in1[pair, i].numpy(), expected[1], atol=1e-8)
            both = (expected[0] < 2) & (expected[1] < 2)
            assert good[pair, i].tolist() == both.tolist()


def test_true_matches_are_good_and_lie_on_their_lines() -> None:
    points0, points1, fundamental = two_views(3, 30, SIZE).tensors()
    for distances in two_way_distances(points0, points1, fundamental):
        assert distances[0].diagonal().max() < 1e-6
    good = match_matrix(points0.float(), points1.float(), fundamental, 0.01)
    assert good[0].diagonal().all()
    assert good.sum() < 60  # few of the 870 wrong pairs


def test_one_near_line_is_not_enough() -> None:
    """Camera 1 sees everything twice as large, turned: the same pair is 1 px off in image 0 and 2 px in image 1."""
    larger = torch.diag(torch.tensor([0.5, 0.5, 1.0]))
    rows = torch.tensor([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    fundamental = (larger @ rows)[None]  # x1 / 2 lies in the row of x0
    points0, points1 = torch.tensor([[[10.0, 20.0]]]), torch.tensor([[[50.0, 42.0]]])
    in0, in1 = two_way_distances(points0, points1, fundamental)
    assert (float(in0), float(in1)) == pytest.approx((1.0, 2.0), abs=1e-5)
    assert not match_matrix(points0, points1, fundamental, 1.5).item()
    assert not match_matrix(points1, points0, fundamental.mT, 1.5).item()
    assert match_matrix(points0, points1, fundamental, 2.1).item()


def test_without_geometry_nothing_is_good() -> None:
    points0, points1, fundamental = two_views(0).tensors()
    assert not match_matrix(points0, points1, torch.zeros_like(fundamental), 2.0).any()


def test_distances_are_computed_in_full_under_autocast() -> None:
    points0, points1, fundamental = two_views(0, size=SIZE).tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in0, _ = two_way_distances(points0.float(), points1.float(), fundamental)
    assert in0.dtype == torch.float32
    assert in0[0].diagonal().max() < 1e-2


GOOD = torch.tensor([[[True, False]], [[True, False]]])
ERROR = FundamentalError(torch.tensor([0.3, 0.0]), torch.tensor([True, False]))


def test_rewards_follow_the_error_where_there_is_one() -> None:
    found = rewards(GOOD, ERROR, RewardConfig())
    factor = math.tanh(0.3)
    assert found[0, 0].tolist() == pytest.approx([1 - factor, -factor])
    assert found[1, 0].tolist() == [1.0, -0.25]
    assert regulariser_factor(ERROR, RewardConfig()).tolist() == pytest.approx([factor, 1.0])
    assert regulariser_factor(ERROR, RewardConfig(regulariser="error")).tolist() == pytest.approx([0.3, 1.0])


def test_rewards_without_the_error_factor_are_constants() -> None:
    config = RewardConfig(error_factor=False, good=2.0, bad=-0.5)
    assert rewards(GOOD, ERROR, config).tolist() == [[[2.0, -0.5]], [[2.0, -0.5]]]
    assert regulariser_factor(ERROR, config).tolist() == [1.0, 1.0]


def test_an_exact_matrix_earns_most_and_a_wrong_one_least() -> None:
    values = torch.tensor([0.0, 0.05, 0.1, 10.0])
    found = rewards(GOOD[:1].expand(4, 1, 2), FundamentalError(values, torch.ones(4, dtype=torch.bool)), RewardConfig())
    assert found[0, 0].tolist() == [1.0, 0.0]
    assert found[3, 0].tolist() == pytest.approx([0.0, -1.0], abs=1e-6)
    assert (found[1:] < found[:-1]).all()
