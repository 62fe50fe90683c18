"""The error of the fundamental matrix against a loop over draws; exact pairs, random pairs, too few pairs."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from eight_point_loop import eight_point, smooth_l1
from synthetic_views import two_views

from featkit.losses.scfeat_fundamental import (
    FundamentalErrorConfig,
    _random_subsets,
    draw_likely_sets,
    draw_sets,
    fundamental_error,
)
from featkit.losses.two_views import LossContext

SIZE = (640, 480)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes(noise_px: float, count: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two pairs of images; the partner of point i of image 0 is number count - 1 - i of image 1."""
    views = [two_views(seed, count, SIZE) for seed in range(2)]
    points0 = torch.from_numpy(np.stack([v.points0 for v in views]))
    points1 = torch.from_numpy(np.stack([v.points1[::-1] for v in views]))
    points1 = points1 + noise_px * torch.randn(points1.shape, generator=generator(9), dtype=torch.float64)
    fundamental = torch.from_numpy(np.stack([v.fundamental for v in views]))
    good = torch.eye(count, dtype=torch.bool).flip(0).expand(2, -1, -1)
    return points0, points1, good, fundamental


def image_units(fundamental: np.ndarray) -> np.ndarray:
    """F for points whose unit is half the longer side, measured from the image's middle."""
    to_pixels = np.array([[320.0, 0, 319.5], [0, 320.0, 239.5], [0, 0, 1]])
    return to_pixels.T @ fundamental @ to_pixels


def ends_in_image(line: np.ndarray) -> list[np.ndarray]:
    """Where a line crosses the image's border: two points, or none."""
    a, b, c = line
    last = np.array(SIZE) - 1
    crossings = [np.array([x, -(a * x + c) / b]) for x in (0.0, last[0])]
    crossings += [np.array([-(b * y + c) / a, y]) for y in (0.0, last[1])]
    return [p for p in crossings if (p >= -1e-9).all() and (p <= last + 1e-9).all()]


def loop_line_error(found: np.ndarray, truth: np.ndarray, side: int, tolerance_px: float, beta: float) -> float:
    """Distances of the true lines' ends from the lines found, of a grid of points of either image, one by one."""
    gaps = []
    for there, estimated in ((truth, found), (truth.T, found.T)):
        for column, row in itertools.product(range(side), range(side)):
            x = np.array([(column + 0.5) / side * (SIZE[0] - 1), (row + 0.5) / side * (SIZE[1] - 1), 1.0])
            line = estimated @ x
            for end in ends_in_image(there @ x):
                distance = abs(line @ [*end, 1.0]) / np.hypot(*line[:2])
                gaps.append(min(distance, np.hypot(SIZE[0] - 1, SIZE[1] - 1)) / tolerance_px)
    assert gaps
    return float(np.mean([g * g / (2 * beta) if g < beta else g - beta / 2 for g in gaps]))


def loop_error(a: np.ndarray, b: np.ndarray, truth: np.ndarray, scale: str) -> float:
    """Smooth L1 of one draw."""
    if scale == "lines":
        return loop_line_error(eight_point(a, b), truth, 5, 192.0, 1.0)
    if scale == "authors":
        found = eight_point(a, b, normalise=False)
        return smooth_l1(found / found[2, 2], truth / (truth[2, 2] + 1e-10))
    found = eight_point(a, b)
    if scale == "image":
        found, truth = image_units(found), image_units(truth)
    found, truth = found / np.linalg.norm(found), truth / np.linalg.norm(truth)
    return min(smooth_l1(found, truth), smooth_l1(-found, truth))


@pytest.mark.parametrize("scale", ["lines", "image", "pixels", "authors"])
@pytest.mark.parametrize("noise_px", [1.0, 30.0])
def test_against_a_loop_over_draws(scale: str, noise_px: float) -> None:
    points0, points1, good, fundamental = scenes(noise_px)
    config = FundamentalErrorConfig(draws=25, scale=scale)
    found = fundamental_error(points0, points1, good, fundamental, SIZE, config, LossContext(generator(4)))
    sets, enough = draw_sets(good, 25, generator(4))
    assert found.defined.all()
    assert enough.all()
    for pair in range(2):
        errors = []
        for draw in sets[pair].numpy():
            a, b = points0[pair].numpy()[draw[:, 0]], points1[pair].numpy()[draw[:, 1]]
            errors.append(loop_error(a, b, fundamental[pair].numpy(), scale))
        assert float(found.value[pair]) == pytest.approx(min(errors), rel=1e-3)
    over_batch = FundamentalErrorConfig(draws=25, scale=scale, over="batch")
    summed = fundamental_error(points0, points1, good, fundamental, SIZE, over_batch, LossContext(generator(4)))
    assert summed.value.tolist() == pytest.approx(2 * [float(found.value.sum())])


@pytest.mark.parametrize(("quantile", "side", "tolerance_share", "beta"), [(0.3, 2, 0.02, 1.0), (0.5, 3, 0.1, 0.2)])
def test_fields_of_the_lines(quantile: float, side: int, tolerance_share: float, beta: float) -> None:
    points0, points1, good, fundamental = scenes(5.0)
    fields: dict[str, Any] = {"lines_side": side, "tolerance_share": tolerance_share, "beta": beta}
    config = FundamentalErrorConfig(draws=11, quantile=quantile, **fields)
    found = fundamental_error(points0, points1, good, fundamental, SIZE, config, LossContext(generator(4)))
    sets, _ = draw_sets(good, 11, generator(4))
    for pair in range(2):
        errors = [
            loop_line_error(
                eight_point(points0[pair].numpy()[draw[:, 0]], points1[pair].numpy()[draw[:, 1]]),
                fundamental[pair].numpy(),
                side,
                tolerance_share * SIZE[0],
                beta,
            )
            for draw in sets[pair].numpy()
        ]
        assert float(found.value[pair]) == pytest.approx(np.quantile(errors, quantile), rel=1e-3)


def test_the_share_of_right_matches_decides_the_factor() -> None:
    """Of matches that are all right, half right or all wrong: tanh L_fme grows from next to 0."""
    points0, points1, good, fundamental = scenes(0.3, count=60)
    factors = []
    for right in (60, 40, 20, 0):
        pairs = torch.zeros_like(good)
        pairs[:, :right] = good[:, :right]
        for row in range(right, 60):
            pairs[:, row, (7 * row) % (60 - right or 1)] = True  # columns of the points without a right match
        error = fundamental_error(
            points0, points1, pairs, fundamental, SIZE, FundamentalErrorConfig(), LossContext(generator())
        )
        factors.append(float(error.value.tanh().mean()))
    assert factors == sorted(factors)
    assert factors[0] < 1e-3
    assert factors[-1] > 0.2
    algorithm_1 = FundamentalErrorConfig(scale="image")
    error = fundamental_error(points0, points1, good, fundamental, SIZE, algorithm_1, LossContext(generator()))
    assert error.value.max() < 1e-4


def test_two_index_sets_pair_unrelated_points() -> None:
    points0, points1, good, fundamental = scenes(0.0)
    config = FundamentalErrorConfig(pairs="independent", scale="image", draws=5)
    found = fundamental_error(points0, points1, good, fundamental, SIZE, config, LossContext(generator(3)))
    draw = generator(3)
    first, second = (draw_sets(good, 5, draw)[0] for _ in range(2))
    for pair in range(2):
        a, b = points0[pair].numpy(), points1[pair].numpy()
        errors = [
            loop_error(a[one[:, 0]], b[other[:, 1]], fundamental[pair].numpy(), "image")
            for one, other in zip(first[pair].numpy(), second[pair].numpy(), strict=True)
        ]
        assert float(found.value[pair]) == pytest.approx(min(errors), rel=1e-3)
    assert found.value.min() > 1e-3


def test_likely_pairs_are_drawn_as_often_as_their_weights_say() -> None:
    weights = torch.rand(2, 6, 7, generator=generator(1), dtype=torch.float64)
    weights[0, 2] = 0
    weights[1, :, 3] = 0
    weights[1] *= 1e-6  # only ratios count
    sets, enough = draw_likely_sets(weights, 4000, generator())
    assert enough.all()
    assert sets.shape == (2, 4000, 8, 2)
    for pair in range(2):
        codes = sets[pair, ..., 0] * 7 + sets[pair, ..., 1]
        shares = torch.bincount(codes.flatten(), minlength=42) / codes.numel()
        expected = (weights[pair] / weights[pair].sum()).flatten()
        assert (shares - expected).abs().max() < 5 * (0.1 / codes.numel()) ** 0.5
        assert (shares[expected == 0] == 0).all()
    few = torch.zeros(1, 4, 4)
    few[0, 0, :] = few[0, 1, :3] = 0.5
    assert not draw_likely_sets(few, 3, generator())[1].any()
    assert draw_likely_sets(torch.zeros(2, 0, 5), 3, generator())[0].shape == (2, 3, 8, 2)


def test_a_set_that_names_a_pair_twice_is_passed_over() -> None:
    """Nine pairs with noise: most sets have fewer than eight different ones, and those would fit anything."""
    points0, points1, good, fundamental = scenes(3.0)
    weights = good.double()
    weights[:, 9:] = 0
    config = FundamentalErrorConfig(draws=300, scale="image", pairs="likely")
    found = fundamental_error(points0, points1, weights, fundamental, SIZE, config, LossContext(generator(2)))
    sets, _ = draw_likely_sets(weights, 300, generator(2))
    for pair in range(2):
        whole = [one for one in sets[pair].numpy() if len({tuple(row) for row in one}) == 8]
        assert 0 < len(whole) < 60
        a, b = points0[pair].numpy(), points1[pair].numpy()
        errors = [loop_error(a[one[:, 0]], b[one[:, 1]], fundamental[pair].numpy(), "image") for one in whole]
        assert float(found.value[pair]) == pytest.approx(min(errors), rel=1e-3)


def test_exact_pairs_have_no_error() -> None:
    points0, points1, good, fundamental = scenes(0.0)
    found = fundamental_error(
        points0, points1, good, fundamental, SIZE, FundamentalErrorConfig(), LossContext(generator())
    )
    assert found.value.max() < 1e-12
    single = [p.float() for p in (points0, points1)]
    found = fundamental_error(
        *single, good, fundamental.float(), SIZE, FundamentalErrorConfig(), LossContext(generator())
    )
    assert found.value.dtype == torch.float32
    assert found.value.max() < 1e-8


def test_random_pairs_have_a_large_error() -> None:
    _, _, good, fundamental = scenes(0.0)
    draw = generator()
    points0, points1 = (torch.rand(2, 30, 2, generator=draw) * torch.tensor(SIZE) for _ in range(2))
    found = fundamental_error(
        points0, points1, good, fundamental, SIZE, FundamentalErrorConfig(draws=5, scale="image"), LossContext(draw)
    )
    assert found.defined.all()
    assert found.value.min() > 0.01
    assert found.value.max() <= 1 / 9 + 1e-6  # two matrices of norm 1 and the same sign: |difference|^2 <= 2


def test_the_error_grows_with_the_noise() -> None:
    values = []
    for noise_px in (0.0, 0.3, 3.0, 30.0):
        points0, points1, good, fundamental = scenes(noise_px)
        config = FundamentalErrorConfig(draws=30)
        values.append(
            fundamental_error(points0, points1, good, fundamental, SIZE, config, LossContext(generator())).value.sum()
        )
    assert values == sorted(values)
    assert values[1] < 0.1 * values[3]


def test_the_sign_and_length_of_the_truth_do_not_matter() -> None:
    points0, points1, good, fundamental = scenes(1.0)
    config = FundamentalErrorConfig(draws=10)
    one, other = (
        fundamental_error(points0, points1, good, factor * fundamental, SIZE, config, LossContext(generator())).value
        for factor in (1.0, -50.0)
    )
    torch.testing.assert_close(one, other)


def test_fewer_than_eight_pairs_define_nothing() -> None:
    points0, points1, good, fundamental = scenes(1.0)
    good = good.clone()
    good[0, :-7] = False
    found = fundamental_error(
        points0, points1, good, fundamental, SIZE, FundamentalErrorConfig(), LossContext(generator())
    )
    assert found.defined.tolist() == [False, True]
    assert found.value[0] == 0
    assert found.value[1] > 0
    none = fundamental_error(
        points0, points1, good & False, fundamental, SIZE, FundamentalErrorConfig(), LossContext(generator())
    )
    assert not none.defined.any()
    assert (none.value == 0).all()


def test_pairs_that_determine_nothing_define_nothing() -> None:
    """All points in one place, and a truth that is no matrix."""
    points0, points1, good, fundamental = scenes(1.0)
    points0 = torch.full_like(points0, 5.0)
    fundamental = torch.stack([fundamental[0], torch.zeros(3, 3, dtype=torch.float64)])
    found = fundamental_error(
        points0,
        torch.full_like(points1, 5.0),
        good,
        fundamental,
        SIZE,
        FundamentalErrorConfig(),
        LossContext(generator()),
    )
    assert found.value.isfinite().all()
    assert not found.defined[1]


def test_draws_are_good_pairs_without_repetition() -> None:
    good = torch.rand(3, 6, 7, generator=generator(1)) < 0.4
    good[2] = False
    good[2, 1, 1:] = True  # just eight
    good[2, 5, 2:4] = True
    sets, enough = draw_sets(good, 500, generator())
    assert sets.shape == (3, 500, 8, 2)
    assert enough.all()
    for pair in range(3):
        codes = sets[pair, ..., 0] * 7 + sets[pair, ..., 1]
        assert good[pair].flatten()[codes].all()
        assert (codes.sort(1).values.diff(dim=1) > 0).all()
        counts = torch.bincount(codes.flatten(), minlength=42)[good[pair].flatten()].float()
        share = 8 / int(good[pair].sum())
        assert (counts / 500 - share).abs().max() < 5 * (share * (1 - share) / 500) ** 0.5 + 1e-6


def test_all_subsets_are_equally_likely() -> None:
    good = torch.ones(1, 2, 5, dtype=torch.bool)  # 45 subsets of eight of ten
    sets, _ = draw_sets(good, 9000, generator())
    codes = (2 ** (sets[0, ..., 0] * 5 + sets[0, ..., 1])).sum(1)
    counts = codes.unique(return_counts=True)[1].float()
    assert len(counts) == 45
    chi_squared = ((counts - 200) ** 2 / 200).sum()
    assert chi_squared < 90  # 44 degrees of freedom: five deviations


@pytest.mark.parametrize("shape", [(1, 1, 8), (3, 7, 37), (2, 16, 16), (2, 64, 70), (3, 40, 193)])
@pytest.mark.parametrize("share", [0.03, 0.5, 1.0])
def test_numbers_become_places_as_in_a_list_of_all(shape: tuple[int, int, int], share: float) -> None:
    """Blocks that end anywhere, empty ones, and a matrix that begins or lies anyhow in memory."""
    good = torch.rand(shape, generator=generator(2)) < share
    good[-1, :, shape[2] // 2 :] &= share == 1.0
    listed = [one.nonzero() for one in good]
    numbers = _random_subsets(torch.tensor([len(one) for one in listed]), 20, generator(3))
    somewhere = torch.cat([good.flatten()[:3], good.flatten()])[3:].view(shape)
    for same in (good, somewhere, good.mT.contiguous().mT):
        sets, enough = draw_sets(same, 20, generator(3))
        assert enough.tolist() == [len(one) >= 8 for one in listed]
        for pair in enough.nonzero()[:, 0].tolist():
            assert torch.equal(sets[pair], listed[pair][numbers[pair]])
        assert (sets >= 0).all()
        assert (sets < torch.tensor(shape[1:])).all()


def test_no_keypoints_at_all() -> None:
    sets, enough = draw_sets(torch.zeros(2, 0, 5, dtype=torch.bool), 3, generator())
    assert sets.shape == (2, 3, 8, 2)
    assert not enough.any()


def test_another_seed_draws_other_pairs() -> None:
    good = torch.ones(1, 20, 20, dtype=torch.bool)
    assert not torch.equal(draw_sets(good, 10, generator(0))[0], draw_sets(good, 10, generator(1))[0])
    assert torch.equal(draw_sets(good, 10, generator(0))[0], draw_sets(good, 10, generator(0))[0])
