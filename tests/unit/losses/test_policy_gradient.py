"""SCFeat's detection loss against loops over keypoints, and its gradient against the expected reward's."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from synthetic_views import two_views

from featkit.losses.scfeat_detection import (
    NOT_DRAWN,
    DetectionLossConfig,
    GridPolicyConfig,
    KeypointSample,
    RewardConfig,
    detection_loss,
    match_probability,
    sample_keypoints,
    sort_accepted_first,
)
from featkit.losses.scfeat_fundamental import FundamentalError, FundamentalErrorConfig, fundamental_error
from featkit.losses.two_views import LossContext, TwoViews

SIZE = (64, 48)
ROWS = torch.tensor([[[0.0, 0, 0], [0, 0, -1], [0, 1, 0]]])  # lines are rows
POSFEAT = RewardConfig(error_factor=False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(pairs: int = 2) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Scores and maps of both images, and fundamental matrices, in float64."""
    draw = generator(7)
    scores = [torch.randn(pairs, 1, 48, 64, generator=draw, dtype=torch.float64) for _ in range(2)]
    maps = [torch.randn(pairs, 5, 12, 16, generator=draw, dtype=torch.float64) for _ in range(2)]
    return scores, maps, torch.cat([two_views(seed).tensors()[2] for seed in range(pairs)])


def unit_descriptor(values: np.ndarray, x: float, y: float) -> np.ndarray:
    """A map (c, 12, 16) of the image at a pixel, bilinear, with the border repeated."""
    column, row = (min(max((v + 0.5) / 4 - 0.5, 0), last) for v, last in ((x, 15), (y, 11)))
    total = np.zeros(len(values))
    for i in (math.floor(column), math.floor(column) + 1):
        for j in (math.floor(row), math.floor(row) + 1):
            share = (1 - abs(column - i)) * (1 - abs(row - j))
            if share > 0:
                total += share * values[:, j, i]
    return total / np.linalg.norm(total)


def loop_matches(
    samples: list[KeypointSample], maps: list[torch.Tensor], fundamental: torch.Tensor, config: DetectionLossConfig
) -> dict[str, torch.Tensor]:
    """good, mutual and likely of all proposals of all pairs, (b, n, m), one pair of keypoints after the other."""
    shape = (len(fundamental), samples[0].points.shape[1], samples[1].points.shape[1])
    found = {name: torch.zeros(shape, dtype=torch.bool) for name in ("good", "mutual")}
    found["likely"] = torch.zeros(shape, dtype=torch.float64)
    for pair in range(len(fundamental)):
        rows, columns = (s.accepted[pair].nonzero()[:, 0].tolist() for s in samples)
        points = [s.points[pair].tolist() for s in samples]
        described = [
            [unit_descriptor(m[pair].numpy(), *ps[i]) for i in which]
            for m, ps, which in zip(maps, points, (rows, columns), strict=True)
        ]
        cosine = np.array([[a @ b for b in described[1]] for a in described[0]])
        affinity = np.exp(-config.temperature * (1 - cosine))
        f = fundamental[pair].numpy()
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                p, q = [*points[0][row], 1.0], [*points[1][column], 1.0]
                line1, line0 = f @ p, f.T @ q
                good = all(abs(line1 @ q) / np.hypot(*line[:2]) < config.epsilon_px for line in (line0, line1))
                found["good"][pair, row, column] = good
                found["mutual"][pair, row, column] = bool(cosine[i].argmax() == j and cosine[:, j].argmax() == i)
                likely = affinity[i, j] / affinity[i].sum() * affinity[i, j] / affinity[:, j].sum()
                found["likely"][pair, row, column] = likely
    return found


def loop_loss(
    samples: list[KeypointSample],
    matches: dict[str, torch.Tensor],
    error: FundamentalError,
    config: DetectionLossConfig,
) -> float:
    """Eq. 21 over all pairs, one pair of keypoints after the other."""
    losses = []
    for pair in range(len(error.value)):
        rows, columns = (s.accepted[pair].nonzero()[:, 0].tolist() for s in samples)
        logs = [s.log_probability[pair].tolist() for s in samples]
        known = config.reward.error_factor and bool(error.defined[pair])
        value = float(error.value[pair])
        total = 0.0
        for i in rows:
            for j in columns:
                good = bool(matches["good"][pair, i, j])
                if known:
                    reward = 1 - math.tanh(value) if good else -math.tanh(value)
                else:
                    reward = config.reward.good if good else config.reward.bad
                total += float(matches["likely"][pair, i, j]) * reward * (logs[0][i] + logs[1][j])
        factor = (math.tanh(value) if config.reward.regulariser == "tanh" else value) if known else 1.0
        total += config.regulariser * factor * (sum(logs[0][i] for i in rows) + sum(logs[1][j] for j in columns))
        losses.append(total / (len(rows) + len(columns)) if config.per_keypoint else total * len(error.value))
    return -float(np.mean(losses))


@pytest.mark.parametrize(
    ("reward", "pairs"),
    [
        (RewardConfig(), "likely"),
        (RewardConfig(), "mutual"),
        (RewardConfig(regulariser="error"), "good"),
        (RewardConfig(error_factor=False), "good"),
    ],
)
@pytest.mark.parametrize("per_keypoint", [True, False])
def test_against_loops(reward: RewardConfig, pairs: Literal["mutual", "likely", "good"], per_keypoint: bool) -> None:
    config = DetectionLossConfig(
        policy=GridPolicyConfig(cell_px=6),
        temperature=6.0,
        regulariser=-0.1,
        reward=reward,
        error=FundamentalErrorConfig(draws=1, pairs=pairs),
        per_keypoint=per_keypoint,
    )
    scores, maps, fundamental = batch()
    result = detection_loss(*scores, TwoViews(*maps, fundamental, SIZE), config, LossContext(generator()))
    draw = generator()
    samples = [sort_accepted_first(sample_keypoints(s, config.policy, draw)) for s in scores]
    matches = loop_matches(samples, maps, fundamental, config)
    points = [s.points for s in samples]
    error = fundamental_error(*points, matches[pairs], fundamental, SIZE, config.error, LossContext(draw))
    assert error.defined.all()
    assert error.value.min() > 1e-3
    assert float(result.loss) == pytest.approx(loop_loss(samples, matches, error, config), rel=1e-5)
    mutual, good = matches["mutual"].sum(), (matches["mutual"] & matches["good"]).sum()
    assert float(result.statistics["keypoints"]) == float(sum(s.accepted.sum() for s in samples)) / 4
    assert float(result.statistics["fundamental_error"]) == pytest.approx(float(error.value.mean()))
    assert float(result.statistics["good_share"]) == pytest.approx(float(good / mutual))
    assert float(result.statistics["good_matches"]) == float(good) / 2


def detection_gradient(config: DetectionLossConfig, right: bool) -> torch.Tensor:
    """Of the scores of image 0, whose cells look like those of image 1 seen by the same camera, or like random ones."""
    draw = generator(5)
    views = two_views(3)
    cells = torch.randn(1, 32, 12, 16, generator=draw, dtype=torch.float64)
    other = cells if right else torch.randn(cells.shape, generator=draw, dtype=torch.float64)
    still = torch.tensor([[[0.0, -1, 0], [1, 0, 0], [0, 0, 0]]], dtype=torch.float64)  # lines through the corner
    scores = [torch.randn(1, 1, 48, 64, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2)]
    detection_loss(*scores, TwoViews(cells, other, still, views.size), config, LossContext(generator())).loss.backward()
    assert scores[0].grad is not None
    return scores[0].grad


def test_the_factor_acts_where_matches_are_wrong() -> None:
    """Beside good = 1, bad = 0 and no regulariser: algorithm 1 to the letter changes nothing, the default much."""
    control = DetectionLossConfig(
        policy=GridPolicyConfig(cell_px=4), regulariser=0.0, reward=RewardConfig(error_factor=False, bad=0.0)
    )
    letter = DetectionLossConfig(
        policy=GridPolicyConfig(cell_px=4), error=FundamentalErrorConfig(pairs="good", scale="image")
    )
    default = DetectionLossConfig(policy=GridPolicyConfig(cell_px=4))
    for right in (True, False):
        expected = detection_gradient(control, right)
        assert (detection_gradient(letter, right) - expected).norm() < 1e-2 * expected.norm()
    assert (detection_gradient(default, False) - expected).norm() > 0.5 * expected.norm()


def test_gradient_agrees_with_that_of_the_expected_reward() -> None:
    """One cell of four pixels in either image: small enough to know the expectation, and to draw it often."""
    draws, size = 20_000, (2, 2)
    config = DetectionLossConfig(
        policy=GridPolicyConfig(cell_px=2),
        epsilon_px=0.5,
        regulariser=0.0,
        reward=RewardConfig(error_factor=False, good=1.0, bad=-0.5),
        error=FundamentalErrorConfig(draws=1),
    )
    start = [torch.tensor(v) for v in ([0.5, -1.0, 1.5, 0.0], [2.0, 1.0, -0.5, -2.0])]
    exact = [v.clone().double().requires_grad_() for v in start]
    chance = [v.softmax(0) * v.sigmoid() for v in exact]
    reward = torch.tensor([[1.0 if a // 2 == b // 2 else -0.5 for b in range(4)] for a in range(4)]).double()
    (chance[0] @ reward @ chance[1] / 2).backward()  # eq. 21 divides by two keypoints
    scores = [v.view(1, 1, 2, 2).repeat(draws, 1, 1, 1).requires_grad_() for v in start]
    maps = [torch.ones(draws, 3, 2, 2)] * 2
    detection_loss(
        *scores, TwoViews(*maps, ROWS.expand(draws, -1, -1), size), config, LossContext(generator())
    ).loss.backward()
    for expected, found in zip(exact, scores, strict=True):
        assert expected.grad is not None
        assert found.grad is not None
        ascent = -draws * found.grad.flatten(1).double()  # of every draw
        standard_error = ascent.std(0) / draws**0.5
        assert (standard_error < 0.1 * expected.grad.abs().max()).all()
        assert ((ascent.mean(0) - expected.grad).abs() < 4.5 * standard_error).all()


def test_gradient_to_the_scores() -> None:
    scores, maps, fundamental = batch(1)
    small = [s[..., :16, :24].clone().requires_grad_() for s in scores]
    config = DetectionLossConfig(policy=GridPolicyConfig(cell_px=4), epsilon_px=4.0, temperature=5.0)

    def loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return detection_loss(
            first, second, TwoViews(*maps, fundamental, (24, 16)), config, LossContext(generator())
        ).loss

    assert torch.autograd.gradcheck(loss, small, fast_mode=True)


def test_maps_have_no_gradient() -> None:
    scores, maps, fundamental = batch()
    scores, maps = ([v.requires_grad_() for v in values] for values in (scores, maps))
    detection_loss(
        *scores, TwoViews(*maps, fundamental, SIZE), DetectionLossConfig(), LossContext(generator())
    ).loss.backward()
    assert all(s.grad is not None and s.grad.abs().max() > 0 for s in scores)
    assert all(m.grad is None for m in maps)


def test_probabilities_of_matches_without_noise() -> None:
    """Three keypoints of each image, one column not drawn: of what was drawn each is its own match."""
    cosine = torch.eye(3)[None]
    drawn = torch.tensor([[[True, True, False]]]).expand(1, 3, 3)
    found = match_probability(cosine.masked_fill(~drawn, NOT_DRAWN), drawn, 60.0)
    torch.testing.assert_close(found[0], torch.diag(torch.tensor([1.0, 1.0, 0.0])), atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("reward", [POSFEAT, RewardConfig()])
def test_both_images_learn_to_agree(reward: RewardConfig) -> None:
    """Every cell looks like its partner, and a pair of keypoints is good in one row: a quarter by chance."""
    draw = generator(2)
    cells = torch.randn(1, 32, 4, 8, generator=draw)
    scores = [torch.zeros(1, 1, 16, 32).requires_grad_() for _ in range(2)]
    config = DetectionLossConfig(policy=GridPolicyConfig(cell_px=4), epsilon_px=0.5, reward=reward)
    maps = [cells.repeat_interleave(4, 2).repeat_interleave(4, 3)] * 2
    optimiser = torch.optim.Adam(scores, lr=0.2)
    shares = []
    for _ in range(150):
        result = detection_loss(*scores, TwoViews(*maps, ROWS, (32, 16)), config, LossContext(draw))
        optimiser.zero_grad()
        result.loss.backward()
        optimiser.step()
        shares.append(float(result.statistics["good_share"]))
    assert sum(shares[:10]) / 10 < 0.45
    assert sum(shares[-10:]) / 10 > 0.8


@pytest.mark.parametrize("which", ["scores", "maps"])
def test_nan_is_not_hidden(which: str) -> None:
    scores, maps, fundamental = batch()
    {"scores": scores, "maps": maps}[which][1][1, 0] = torch.nan
    assert detection_loss(
        *scores, TwoViews(*maps, fundamental, SIZE), DetectionLossConfig(), LossContext(generator())
    ).loss.isnan()


def test_without_keypoints_the_loss_is_zero() -> None:
    scores, maps, fundamental = batch()
    valid = torch.zeros(2, 1, 48, 64, dtype=torch.bool)
    scores = [s.requires_grad_() for s in scores]
    for masks in ((valid, None), (valid, valid)):
        config = DetectionLossConfig(regulariser=0.0)
        result = detection_loss(*scores, TwoViews(*maps, fundamental, SIZE, *masks), config, LossContext(generator()))
        result.loss.backward()
        assert float(result.loss.detach()) == 0
        assert all(value.isfinite() for value in result.statistics.values())
        assert result.statistics["error_defined_share"] == 0
    assert all(s.grad is not None and (s.grad == 0).all() for s in scores)


def test_pairs_do_not_touch_each_other() -> None:
    """What is padding for one pair is no keypoint: a pair with few keypoints has the loss it has alone."""
    scores, maps, fundamental = batch()
    scores = [s.clone() for s in scores]
    for s in scores:
        s[0] -= 3.0  # few are accepted
    config = DetectionLossConfig(reward=POSFEAT, per_keypoint=False)
    together = [s.clone().requires_grad_() for s in scores]
    detection_loss(*together, TwoViews(*maps, fundamental, SIZE), config, LossContext(generator())).loss.backward()
    draw = generator()
    samples = [sample_keypoints(s, config.policy, draw) for s in scores]
    alone = [KeypointSample(s.points[:1], s.log_probability[:1], s.accepted[:1]) for s in samples]
    assert 0 < alone[0].accepted.sum() < samples[0].accepted[1].sum()
    rest = [KeypointSample(s.points[1:], s.log_probability[1:], s.accepted[1:]) for s in samples]

    def slow(of: list[KeypointSample], rows: slice) -> float:
        matches = loop_matches(of, [m[rows] for m in maps], fundamental[rows], config)
        count = len(fundamental[rows])
        return loop_loss(of, matches, FundamentalError(torch.zeros(count), torch.zeros(count) > 0), config)

    expected, other, both = slow(alone, slice(1)), slow(rest, slice(1, 2)), slow(samples, slice(2))
    found = detection_loss(*scores, TwoViews(*maps, fundamental, SIZE), config, LossContext(generator())).loss
    assert float(found) == pytest.approx(expected + other, rel=1e-6) == pytest.approx(both, rel=1e-6)
    assert all(s.grad is not None and s.grad[0].abs().max() > 0 for s in together)


def test_half_precision_is_computed_in_full() -> None:
    scores, maps, fundamental = batch()
    half = [v.bfloat16() for v in (*scores, *maps)]
    expected = detection_loss(
        *(v.float() for v in half[:2]),
        TwoViews(*(v.float() for v in half[2:]), fundamental, SIZE),
        DetectionLossConfig(),
        LossContext(generator()),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = detection_loss(
            *half[:2], TwoViews(*half[2:], fundamental, SIZE), DetectionLossConfig(), LossContext(generator())
        )
    assert found.loss.dtype == torch.float32
    assert float(found.loss) == pytest.approx(float(expected.loss), rel=1e-5)


def test_statistics_are_detached_scalars() -> None:
    scores, maps, fundamental = batch()
    scores = [s.requires_grad_() for s in scores]
    statistics = detection_loss(
        *scores, TwoViews(*maps, fundamental, SIZE), DetectionLossConfig(), LossContext(generator())
    ).statistics
    assert {"keypoints", "good_share", "fundamental_error", "reward"} < set(statistics)
    assert all(value.shape == () and not value.requires_grad for value in statistics.values())


def test_wrong_shapes_and_fields_are_refused() -> None:
    scores, maps, fundamental = batch()
    with pytest.raises(ValueError, match="for images of"):
        detection_loss(*scores, TwoViews(*maps, fundamental, (48, 64)), DetectionLossConfig(), LossContext(generator()))
    with pytest.raises(ValidationError):
        DetectionLossConfig(error={"scale": "metres"})
