"""HardNet, HyNet and AdaSample's losses against loops over all triplets."""

import math

import pytest
import torch

from featkit.losses.angular_triplet import AngularTripletConfig, AngularTripletLoss
from featkit.losses.build import build_loss
from featkit.losses.hardnet import HardNetLoss, HardNetLossConfig
from featkit.losses.hynet import HyNetLoss, HyNetLossConfig, largest_slope


def distance(x: torch.Tensor, y: torch.Tensor, epsilon: float = 0.0) -> float:
    return math.sqrt(float(((x - y) ** 2).sum()) + epsilon)


def hardest(batch, i: int, kinds: str, guard: float = 0.008) -> float:
    """The smallest distance of pair i to another one, by trying all of them."""
    a, p = batch.anchor, batch.positive
    found = []
    for j in range(len(a)):
        if j == i:
            continue
        across = [distance(a[i], p[j]), distance(p[i], a[j])]
        same = [distance(a[i], a[j]), distance(p[i], p[j])]
        found += {"cross": across, "same_side": same, "all": across + same}[kinds]
    return min(d for d in found if d > guard)


@pytest.mark.parametrize("kinds", ["cross", "same_side", "all"])
@pytest.mark.parametrize("margin", [1.0, 0.3])
def test_hardnet_is_the_mean_shortfall_of_the_hardest_triplets(pairs, kinds, margin) -> None:
    batch = pairs(20)
    expected = 0.0
    for i in range(20):
        positive = distance(batch.anchor[i], batch.positive[i])
        expected += max(0.0, margin + positive - hardest(batch, i, kinds)) / 20
    result = HardNetLoss(HardNetLossConfig(margin=margin, negatives=kinds, epsilon=1e-12))(batch, 0.0)
    assert float(result.loss) == pytest.approx(expected, abs=1e-9)


def test_hardnet_default_is_the_papers() -> None:
    config = HardNetLossConfig()
    assert (config.margin, config.negatives, config.false_negative_distance) == (1.0, "cross", 0.008)


def test_false_negatives_are_passed_over(raw_pairs, as_pairs) -> None:
    raw = raw_pairs(6)
    raw[1, 5] = raw[0, 0]  # the same point under another label, a hair's breadth apart
    raw[1, 5, 0] += 1e-3
    batch = as_pairs(raw)
    assert 0 < distance(batch.anchor[0], batch.positive[5]) < 0.008
    config = HardNetLossConfig(margin=2.0, epsilon=1e-12)
    expected = sum(
        max(0.0, 2.0 + distance(batch.anchor[i], batch.positive[i]) - hardest(batch, i, "cross")) / 6 for i in range(6)
    )
    assert float(HardNetLoss(config)(batch, 0.0).loss) == pytest.approx(expected, abs=1e-9)
    unguarded = HardNetLoss(config.model_copy(update={"false_negative_distance": 0.0}))(batch, 0.0)
    assert float(unguarded.loss) > expected + 0.1


def hybrid(d: float, alpha: float) -> float:
    return d + alpha * d * d / 2


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("normalise", [True, False])
def test_hynet_is_hinge_plus_norm_term(pairs, reduction, normalise) -> None:
    batch = pairs(15)
    z = largest_slope(2.0) if normalise else 1.0
    total = 0.0
    for i in range(15):
        positive = hybrid(distance(batch.anchor[i], batch.positive[i]), 2.0) / z
        negative = hybrid(hardest(batch, i, "all"), 2.0) / z
        norms = float(batch.anchor_raw[i].norm() - batch.positive_raw[i].norm())
        total += max(0.0, 1.2 + positive - negative) + 0.1 * norms**2
    expected = total / 15 if reduction == "mean" else total
    config = HyNetLossConfig(reduction=reduction, normalise=normalise, epsilon=1e-12)
    assert float(HyNetLoss(config)(batch, 0.0).loss) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0, 7.0])
def test_z_is_the_largest_slope_of_the_hybrid_similarity(alpha) -> None:
    angles = torch.linspace(0, math.pi, 200_001, dtype=torch.float64)
    d = 2 * (angles / 2).sin()
    slope = (d + alpha * d**2 / 2).diff() / angles.diff()
    assert largest_slope(alpha) == pytest.approx(float(slope.max()), rel=1e-5)


def test_without_normalisation_hynet_is_a_smaller_margin_times_z(pairs) -> None:
    batch, z = pairs(15), largest_slope(2.0)
    raw = HyNetLoss(HyNetLossConfig(normalise=False, norm_weight=0))(batch, 0.0).loss
    same = HyNetLoss(HyNetLossConfig(margin=1.2 / z, norm_weight=0))(batch, 0.0).loss
    assert float(raw) == pytest.approx(z * float(same), rel=1e-9)


@pytest.mark.parametrize("kind", ["angular", "euclidean"])
def test_angular_triplet_is_equation_14(pairs, kind) -> None:
    batch = pairs(20)
    expected = 0.0
    for i in range(20):
        d_pos, d_neg = distance(batch.anchor[i], batch.positive[i]), hardest(batch, i, "same_side")
        if kind == "angular":  # eq. 15
            d_pos, d_neg = 2 * math.asin(d_pos / 2), 2 * math.asin(d_neg / 2)
        expected += max(1.0 + d_pos**2 - d_neg**2, 0.0) / 20
    result = AngularTripletLoss(AngularTripletConfig(distance=kind))(batch, 0.0)
    assert float(result.loss) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("config", [HardNetLossConfig(), HyNetLossConfig(), AngularTripletConfig()])
def test_weights_are_factors_of_the_pairs(raw_pairs, as_pairs, config) -> None:
    raw = raw_pairs(8)
    loss = build_loss(config).eval()
    single = [
        float(loss(as_pairs(raw, torch.eye(8, dtype=torch.float64)[i] * 8), 0.0).loss) / 8 for i in range(8)
    ]  # weights of mean 1, all on one pair
    assert max(single) > 1.3 * min(single)
    weights = torch.rand(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights /= weights.mean()
    assert float(loss(as_pairs(raw), 0.0).loss) == pytest.approx(sum(single), rel=1e-9)
    weighted = sum(w * s for w, s in zip(weights.tolist(), single, strict=True))
    assert float(loss(as_pairs(raw, weights), 0.0).loss) == pytest.approx(weighted, rel=1e-9)


HINGES = [AngularTripletConfig, HardNetLossConfig]


@pytest.mark.parametrize("of", HINGES)
def test_weights_of_the_sampler_are_scaled_to_mean_one_unless_told_otherwise(raw_pairs, as_pairs, of) -> None:
    raw = raw_pairs(8)
    plain = build_loss(of())(as_pairs(raw), 0.0).loss
    threes = torch.full((8,), 3.0, dtype=torch.float64)
    scaled = build_loss(of())(as_pairs(raw, threes), 0.0).loss
    given = build_loss(of(scale_weights=False))(as_pairs(raw, threes), 0.0).loss
    assert float(scaled) == pytest.approx(float(plain))
    assert float(given) == pytest.approx(3 * float(plain))


def test_sum_is_n_times_the_mean(pairs) -> None:
    batch = pairs(9)
    mean = AngularTripletLoss(AngularTripletConfig())(batch, 0.0).loss
    total = AngularTripletLoss(AngularTripletConfig(reduction="sum"))(batch, 0.0).loss
    assert float(total) == pytest.approx(9 * float(mean))


@pytest.mark.parametrize("of", HINGES)
def test_average_loss_moves_towards_the_unweighted_mean(raw_pairs, as_pairs, of) -> None:
    loss = build_loss(of(average_memory=0.9, margin=2.0))
    plain = build_loss(of(margin=2.0))
    expected = 2.0  # starts at the margin
    for seed in range(4):
        raw = raw_pairs(10, seed=seed)
        weights = torch.rand(10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        expected = 0.9 * expected + 0.1 * float(plain(as_pairs(raw), 0.0).loss)
        loss(as_pairs(raw, weights), 0.0)
        assert float(loss.average_loss) == pytest.approx(expected, rel=1e-5)
    before = float(loss.average_loss)
    loss.eval()(as_pairs(raw_pairs(10, seed=9)), 0.0)
    assert float(loss.average_loss) == before


def test_average_loss_may_start_elsewhere() -> None:
    assert float(AngularTripletLoss(AngularTripletConfig(average_start=0.25)).average_loss) == 0.25


def test_statistics_say_what_happened(pairs) -> None:
    batch = pairs(20, noise=0.2)
    statistics = HardNetLoss(HardNetLossConfig())(batch, 0.0).statistics
    positives = [distance(batch.anchor[i], batch.positive[i]) for i in range(20)]
    negatives = [hardest(batch, i, "cross") for i in range(20)]
    active = sum(1 + p - n > 0 for p, n in zip(positives, negatives, strict=True)) / 20
    assert float(statistics["positive_distance"]) == pytest.approx(sum(positives) / 20, abs=1e-4)
    assert float(statistics["negative_distance"]) == pytest.approx(sum(negatives) / 20, abs=1e-4)
    assert float(statistics["active_share"]) == pytest.approx(active)
    assert float(statistics["negatives_found"]) == 1.0
