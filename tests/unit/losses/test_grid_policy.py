"""How keypoints are drawn from scores: probabilities by counting, and their logarithms pixel by pixel."""

import math

import pytest
import torch

from featkit.losses.scfeat_detection import GridPolicyConfig, KeypointSample, sample_keypoints, sort_accepted_first


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scores(pairs: int = 2, height: int = 17, width: int = 26) -> torch.Tensor:
    return 2 * torch.randn(pairs, 1, height, width, generator=generator(1), dtype=torch.float64)


def probability(cell: torch.Tensor, score: float) -> float:
    return math.exp(score) / sum(math.exp(s) for s in cell.flatten().tolist()) / (1 + math.exp(-score))


def test_log_probabilities_pixel_by_pixel() -> None:
    maps = scores()
    found = sample_keypoints(maps, GridPolicyConfig(), generator())
    assert found.points.shape == (2, 6, 2)  # two rows of three whole cells
    for pair in range(2):
        for number, (x, y) in enumerate(found.points[pair].int().tolist()):
            row, column = divmod(number, 3)
            assert (y // 8, x // 8) == (row, column)
            cell = maps[pair, 0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            expected = math.log(probability(cell, float(maps[pair, 0, y, x])))
            assert float(found.log_probability[pair, number]) == pytest.approx(expected, rel=1e-9)


def test_pixels_become_keypoints_as_often_as_they_should() -> None:
    cell = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    draws = 40_000
    found = sample_keypoints(cell.expand(draws, 1, 2, 2), GridPolicyConfig(cell_px=2), generator())
    code = (found.points[:, 0, 1] * 2 + found.points[:, 0, 0]).long()
    proposed = torch.bincount(code, minlength=4) / draws
    accepted = torch.bincount(code[found.accepted[:, 0]], minlength=4) / draws
    for at, score in enumerate(cell.flatten().tolist()):
        share = math.exp(score) / float(cell.exp().sum())
        assert float(proposed[at]) == pytest.approx(share, abs=5 * (share * (1 - share) / draws) ** 0.5)
        share = probability(cell, score)
        assert float(accepted[at]) == pytest.approx(share, abs=5 * (share * (1 - share) / draws) ** 0.5)


def test_gradient() -> None:
    maps = scores(1, 8, 8).requires_grad_()
    config = GridPolicyConfig(cell_px=4)
    assert torch.autograd.gradcheck(lambda s: sample_keypoints(s, config, generator()).log_probability, maps)


def test_extreme_scores_stay_finite() -> None:
    maps = torch.zeros(1, 1, 16, 16)
    maps[..., 3, 4], maps[..., 8:, 8:], maps[..., 8:, :8] = 500.0, -500.0, 500.0
    maps.requires_grad_()
    found = sample_keypoints(maps, GridPolicyConfig(), generator())
    found.log_probability.sum().backward()
    assert found.log_probability.isfinite().all()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()
    assert found.points[0, 0].tolist() == [4.0, 3.0]
    assert found.accepted[0].tolist()[0::3] == [True, False]


def test_invalid_pixels_are_no_keypoints() -> None:
    valid = torch.ones(1, 1, 16, 32, dtype=torch.bool)
    valid[..., 12:] = False
    found = sample_keypoints(torch.full((1, 1, 16, 32), 50.0), GridPolicyConfig(), generator(), valid)
    assert torch.equal(found.accepted, found.points[..., 0] < 12)
    assert 0 < found.accepted.sum() < 8


def test_nan_is_kept_for_the_loss_to_show() -> None:
    maps = scores(1, 16, 16)
    maps[0, 0, 9, 9] = torch.nan
    found = sample_keypoints(maps, GridPolicyConfig(), generator())
    assert found.log_probability[0, 3].isnan()
    assert found.accepted[0, 3]
    assert found.log_probability[0, :3].isfinite().all()


def test_half_precision_scores_are_drawn_from_in_full() -> None:
    found = sample_keypoints(scores().bfloat16(), GridPolicyConfig(), generator())
    assert found.points.dtype == found.log_probability.dtype == torch.float32


def test_accepted_first_keeps_what_was_accepted() -> None:
    sample = KeypointSample(
        torch.arange(20.0).view(2, 5, 2),
        torch.arange(10.0).view(2, 5),
        torch.tensor([[False, True, False, False, True], [False, False, False, True, False]]),
    )
    found = sort_accepted_first(sample)
    assert found.accepted.tolist() == [[True, True], [True, False]]
    assert found.log_probability[0].tolist() == [1.0, 4.0]
    assert found.log_probability[1, 0] == 8.0
    assert found.points[0].tolist() == [[2.0, 3.0], [8.0, 9.0]]
    nothing = sort_accepted_first(KeypointSample(sample.points, sample.log_probability, sample.accepted & False))
    assert nothing.accepted.tolist() == [[False], [False]]


def test_a_map_smaller_than_a_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="7 x 20 px has no cell of 8 px"):
        sample_keypoints(torch.zeros(1, 1, 20, 7), GridPolicyConfig(), generator())
