"""SDGMNet's pseudo loss against the paper's equations, pair by pair."""

import math
from statistics import NormalDist

import pytest
import torch

from featkit.losses.sdgm import TABLE_ROWS, SdgmLoss, SdgmLossConfig

LATE = 0.5  # progress after the warm-up and with the anti-noise threshold of 0.6 rad
STEEP = 0.4  # threshold for tests in few dimensions, where everything is near


def theta(x: torch.Tensor, y: torch.Tensor) -> float:
    return math.acos(max(-1.0, min(1.0, float(x @ y) / float(x.norm() * y.norm()))))


def triplets(raw: torch.Tensor, threshold: float) -> list[tuple[int, tuple[int, int], tuple[int, int]]]:
    """Per pair: its number and the (side, number) of both ends of its hardest negative farther than the threshold."""
    n, out = raw.shape[1], []
    for i in range(n):
        ends = [
            (theta(raw[s, i], raw[t, j]), (s, i), (t, j)) for j in range(n) if j != i for s in (0, 1) for t in (0, 1)
        ]
        _, first, second = min(end for end in ends if end[0] > threshold)
        out.append((i, first, second))
    return out


class Paper:
    """Eq. 9 to 14 with plain numbers."""

    def __init__(self, config: SdgmLossConfig):
        self.config = config
        self.beta = {"relative_angle_mean": config.relative_mean_start_rad}
        self.power = {"+": config.power_start, "-": config.power_start}

    def step(self, positive: list[float], negative: list[float], warming: bool) -> tuple[list[float], list[float]]:
        """The factors of theta^+ and theta^- in eq. 15."""
        c = self.config
        relative = [p - n for p, n in zip(positive, negative, strict=True)]
        for name, values in (("relative", relative), ("positive", positive), ("negative", negative)):
            mean = sum(values) / len(values)
            std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
            for statistic, mu in ((f"{name}_angle_mean", mean), (f"{name}_angle_std", std)):
                beta = self.beta.get(statistic, mu)
                self.beta[statistic] = c.statistics_memory * beta + (1 - c.statistics_memory) * mu
        weights = {"+": [], "-": []}
        distribution = NormalDist(self.beta["relative_angle_mean"], self.beta["relative_angle_std"])
        for p, n in zip(positive, negative, strict=True):
            for sign, name, angle in (("+", "positive", p), ("-", "negative", n)):
                mean, std = self.beta[f"{name}_angle_mean"], self.beta[f"{name}_angle_std"]
                s, length = math.cos(angle), math.sqrt(2 - 2 * math.cos(angle))
                slope = {
                    "theta": 1.0,
                    "s": math.sqrt(1 - s * s),
                    "l2": math.sqrt(4 * length**2 - length**4) / 2 / length,
                }
                w = slope[c.distance]
                if c.auto_focus:
                    w *= math.exp(-((angle - mean) ** 2) / (2 * (math.pi / 6 + std) ** 2))
                above = p - n > distribution.inv_cdf(c.hard_margin) if c.hard_margin > 0 else True
                coupled = distribution.cdf(p - n) if c.coupled_weight == "paper" else 1.0
                weights[sign].append(1.0 if warming else w * coupled * above)
        for sign in "+-":
            self.power[sign] = c.statistics_memory * self.power[sign] + (1 - c.statistics_memory) * sum(weights[sign])
        if not c.power_adjustment:
            return [w / len(positive) for w in weights["+"]], [w / len(positive) for w in weights["-"]]
        return (
            [c.attenuation * w / self.power["+"] for w in weights["+"]],
            [w / self.power["-"] for w in weights["-"]],
        )

    @property
    def rows(self) -> dict[str, float]:
        return {**self.beta, "positive_power": self.power["+"], "negative_power": self.power["-"]}


def equation_13(raw: torch.Tensor, paper: Paper, warming: bool = False, threshold: float = STEEP) -> torch.Tensor:
    """Weights times the gradients of the angles, each by autograd on two vectors of its own."""
    chosen = triplets(raw, threshold)
    positive = [theta(raw[0, i], raw[1, i]) for i, _, _ in chosen]
    negative = [theta(raw[s], raw[t]) for _, s, t in chosen]
    plus, minus = paper.step(positive, negative, warming)
    gradient = torch.zeros_like(raw)

    def add(factor: float, first: tuple[int, int], second: tuple[int, int]) -> None:
        x, y = raw[first].clone().requires_grad_(), raw[second].clone().requires_grad_()
        torch.acos((x @ y) / (x.norm() * y.norm())).backward()
        gradient[first] += factor * x.grad
        gradient[second] += factor * y.grad

    for (i, s, t), w_plus, w_minus in zip(chosen, plus, minus, strict=True):
        add(w_plus, (0, i), (1, i))
        add(-w_minus, s, t)
    return gradient


VARIANTS = [
    {},
    {"coupled_weight": "authors"},
    {"auto_focus": False},
    {"auto_focus": False, "distance": "s"},
    {"auto_focus": False, "distance": "l2"},
    {"power_adjustment": False},
    {"hard_margin": 0.0},
    {"hard_margin": 0.3, "attenuation": 0.7},
]


@pytest.mark.parametrize("change", VARIANTS, ids=lambda change: ",".join(map(str, change)) or "paper")
def test_gradient_is_equation_13_over_several_steps(raw_pairs, as_pairs, change) -> None:
    config = SdgmLossConfig(noise_angle_rad=STEEP, statistics_memory=0.9, power_start=50.0, **change)
    loss, paper = SdgmLoss(config), Paper(config)
    for seed in range(4):
        raw = raw_pairs(16, seed=seed).requires_grad_()
        result = loss(as_pairs(raw), LATE)
        result.loss.backward()
        expected = equation_13(raw.detach(), paper)
        assert raw.grad is not None
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(raw.grad, expected, rtol=1e-4, atol=1e-7)  # statistics are kept in float32
        assert result.statistics.keys() - {"negatives_found"} == paper.rows.keys() == TABLE_ROWS.keys()
        for name, value in paper.rows.items():
            assert float(result.statistics[name]) == pytest.approx(value, rel=1e-4), name


def test_first_batch_is_taken_over_but_for_the_mean_difference_and_the_powers(raw_pairs, as_pairs) -> None:
    loss = SdgmLoss(SdgmLossConfig(noise_angle_rad=STEEP))
    raw = raw_pairs(16)
    chosen = triplets(raw, STEEP)
    positive = torch.tensor([theta(raw[0, i], raw[1, i]) for i, _, _ in chosen])
    negative = torch.tensor([theta(raw[s], raw[t]) for _, s, t in chosen])
    statistics = loss(as_pairs(raw), LATE).statistics
    assert float(statistics["positive_angle_mean"]) == pytest.approx(float(positive.mean()), rel=1e-5)
    assert float(statistics["negative_angle_std"]) == pytest.approx(float(negative.std()), rel=1e-5)
    assert float(statistics["relative_angle_std"]) == pytest.approx(float((positive - negative).std()), rel=1e-5)
    mean = float((positive - negative).mean())
    assert float(statistics["relative_angle_mean"]) == pytest.approx(-0.999 + 0.001 * mean, rel=1e-5)
    assert 9_990 < float(statistics["positive_power"]) < 9_991


def test_defaults_are_the_papers() -> None:
    config = SdgmLossConfig()
    assert (config.hard_margin, config.attenuation, config.statistics_memory) == (0.6, 0.9, 0.999)
    assert (config.power_start, config.warm_up_share, config.noise_angle_rad) == (10_000, 0.1, 0.6)
    assert (config.distance, config.auto_focus, config.coupled_weight) == ("theta", True, "paper")


def test_warm_up_weighs_everything_alike(raw_pairs, as_pairs) -> None:
    config = SdgmLossConfig(statistics_memory=0.9, power_start=50.0)
    loss, paper = SdgmLoss(config), Paper(config)
    raw = raw_pairs(16).requires_grad_()
    loss(as_pairs(raw), 0.0999).loss.backward()
    torch.testing.assert_close(raw.grad, equation_13(raw.detach(), paper, True, 0.0045), rtol=1e-4, atol=1e-7)
    assert float(loss.powers[0]) == pytest.approx(0.9 * 50 + 0.1 * 16)
    once, later = SdgmLoss(config), SdgmLoss(config)
    a = once(as_pairs(raw.detach()), 0.0999).loss
    b = later(as_pairs(raw.detach()), 0.1001).loss
    assert abs(float(a) - float(b)) > 1e-3


def test_gradient_of_the_warm_up_in_float64(raw_pairs, as_pairs) -> None:
    """With weights of 1 the pseudo loss is a loss."""
    loss = SdgmLoss(SdgmLossConfig()).eval()
    assert torch.autograd.gradcheck(lambda x: loss(as_pairs(x), 0.0).loss, raw_pairs(7, 4).requires_grad_())


def test_share_of_triplets_kept_is_what_the_margin_says(raw_pairs, as_pairs) -> None:
    config = SdgmLossConfig(statistics_memory=0.0, power_start=1.0, noise_angle_rad=0.0, auto_focus=False)
    kept = {}
    for margin in (0.0, 0.6, 0.9):
        loss = SdgmLoss(config.model_copy(update={"hard_margin": margin, "power_adjustment": False}))
        loss(as_pairs(raw_pairs(400, 16)), LATE)
        kept[margin] = float(loss.powers[0])
    # Sum of the CDF over the triplets above the quantile m: about n (1 - m^2) / 2.
    for margin, power in kept.items():
        assert power == pytest.approx(400 * (1 - margin**2) / 2, rel=0.12)


def test_anti_noise_threshold(raw_pairs, as_pairs) -> None:
    """0.6 rad after an eighth of the training; before it only equal descriptors are passed over."""
    raw = raw_pairs(20, 4)
    config = SdgmLossConfig()
    early, late = (float(SdgmLoss(config)(as_pairs(raw), p).statistics["negative_angle_mean"]) for p in (0.12, 0.13))
    nearest = [theta(raw[s], raw[t]) for _, s, t in triplets(raw, 0.0045)]
    assert min(nearest) < 0.6
    assert early == pytest.approx(sum(nearest) / 20, rel=1e-5)
    far = [theta(raw[s], raw[t]) for _, s, t in triplets(raw, 0.6)]
    assert late == pytest.approx(sum(far) / 20, rel=1e-5)


def test_pairs_without_negatives_change_nothing(raw_pairs, as_pairs) -> None:
    loss = SdgmLoss(SdgmLossConfig(power_start=20.0))
    loss(as_pairs(raw_pairs(10)), LATE)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    raw = torch.ones(2, 5, 4, dtype=torch.float64) + 1e-3 * raw_pairs(5, 4)
    raw.requires_grad_()
    result = loss(as_pairs(raw), LATE)
    result.loss.backward()
    assert float(result.loss.detach()) == 0.0
    assert float(result.statistics["negatives_found"]) == 0.0
    assert raw.grad is not None
    assert float(raw.grad.abs().max()) == 0.0
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())


@pytest.mark.parametrize("warm_up", [0.1, 1.0])
def test_a_pair_without_negative_is_left_out(as_pairs, warm_up) -> None:
    """Pair 0 lies in the middle of a circle of 0.45 rad: nobody is farther than 0.6 rad from it."""
    turns = torch.arange(8, dtype=torch.float64) * math.pi / 4
    tilt = torch.stack([torch.tensor([0.0, *([0.45] * 8)]), torch.tensor([0.0, *([0.47] * 8)])]).double()
    around = torch.cat([torch.zeros(1, dtype=torch.float64), turns])
    raw = torch.stack([tilt.sin() * around.cos(), tilt.sin() * around.sin(), tilt.cos()], dim=2)
    raw[1, 0] = torch.tensor([math.sin(0.1), 0.0, math.cos(0.1)], dtype=torch.float64)
    config = SdgmLossConfig(power_start=8.0, statistics_memory=0.5, warm_up_share=warm_up)
    found = SdgmLoss(config)(as_pairs(raw), 0.0999)
    assert float(found.statistics["negatives_found"]) == 1.0
    found = SdgmLoss(config)(as_pairs(raw), LATE)
    assert float(found.statistics["negatives_found"]) == pytest.approx(8 / 9)
    assert float(found.statistics["positive_angle_mean"]) == pytest.approx(0.02, rel=1e-3)  # not pair 0's 0.1
    alone = SdgmLoss(config)(as_pairs(raw[:, 1:]), LATE)
    assert float(found.loss) == pytest.approx(float(alone.loss), rel=1e-6)
    for name in TABLE_ROWS:
        assert float(found.statistics[name]) == pytest.approx(float(alone.statistics[name]), rel=1e-5), name


def test_evaluation_leaves_the_statistics_alone(raw_pairs, as_pairs) -> None:
    loss = SdgmLoss(SdgmLossConfig(power_start=20.0))
    loss(as_pairs(raw_pairs(10)), LATE)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    loss.eval()(as_pairs(raw_pairs(10, seed=1)), LATE)
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())


def test_statistics_survive_a_checkpoint(raw_pairs, as_pairs) -> None:
    config = SdgmLossConfig(statistics_memory=0.9, power_start=20.0)
    one, other = SdgmLoss(config), SdgmLoss(config)
    for seed in range(3):
        one(as_pairs(raw_pairs(10, seed=seed)), LATE)
    other.load_state_dict(one.state_dict())
    batch = as_pairs(raw_pairs(10, seed=3))
    fresh = SdgmLoss(config)(batch, LATE).loss
    assert torch.equal(one(batch, LATE).loss, other(batch, LATE).loss)
    assert not torch.equal(fresh, other(batch, LATE).loss)


def test_scaled_to_a_budget_the_powers_come_down_at_the_same_share_of_the_training(raw_pairs, as_pairs) -> None:
    def powers_at(config: SdgmLossConfig, steps: int, pairs: int, shares: tuple[float, ...]) -> list[float]:
        """E[P] per pair when every batch has the power of its warm-up."""
        power, out = config.power_start, []
        for step in range(1, steps + 1):
            power = config.statistics_memory * power + (1 - config.statistics_memory) * pairs
            if step in {round(share * steps) for share in shares}:
                out.append(power / pairs)
        return out

    shares = (0.01, 0.02, 0.05, 0.1)
    paper = powers_at(SdgmLossConfig(), 200_000, 1024, shares)
    short = powers_at(SdgmLossConfig().scaled_to(5_000, 256), 5_000, 256, shares)
    assert short == pytest.approx(paper, rel=0.05)
    assert SdgmLossConfig().scaled_to(200_000, 1024) == SdgmLossConfig()
    assert SdgmLossConfig().scaled_to(100, 1024).statistics_memory == pytest.approx(0.9)
    assert SdgmLossConfig(hard_margin=0.3).scaled_to(100, 64).hard_margin == 0.3
    chosen = SdgmLossConfig(statistics_memory=0.95, power_start=7.0).scaled_to(100, 64)
    assert (chosen.statistics_memory, chosen.power_start) == (0.95, 7.0)


def test_weights_of_the_sampler_multiply_both_sides(raw_pairs, as_pairs) -> None:
    config = SdgmLossConfig(noise_angle_rad=STEEP, power_adjustment=False)
    raw = raw_pairs(16)
    halves = torch.full((16,), 0.5, dtype=torch.float64)
    assert float(SdgmLoss(config)(as_pairs(raw, halves), LATE).loss) == pytest.approx(
        0.5 * float(SdgmLoss(config)(as_pairs(raw), LATE).loss), rel=1e-6
    )
