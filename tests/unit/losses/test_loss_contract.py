"""What every loss on pairs promises, and how losses are built by name."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from featkit.losses.angular_triplet import AngularTripletConfig
from featkit.losses.average_precision import AveragePrecisionConfig
from featkit.losses.base import GroupBatch, PairBatch, PatchLoss
from featkit.losses.build import LOSSES, LossConfig, build_loss, scaled_to_budget
from featkit.losses.hardnet import HardNetLossConfig
from featkit.losses.hynet import HyNetLossConfig
from featkit.losses.sdgm import SdgmLossConfig
from featkit.losses.sosnet import second_order_term

CONFIGS = [
    HardNetLossConfig(),
    HyNetLossConfig(),
    HyNetLossConfig(normalise=False, reduction="sum"),
    AngularTripletConfig(),
    AngularTripletConfig(distance="euclidean", negatives="cross"),
    SdgmLossConfig(noise_angle_rad=0.3),
    SdgmLossConfig(noise_angle_rad=0.3, distance="l2", coupled_weight="authors", negatives="cross"),
]
every_pair_loss = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


@every_pair_loss
def test_gradient(raw_pairs, as_pairs, config) -> None:
    loss = build_loss(config).eval()
    progress = 0.0 if config.name == "sdgm" else 0.5  # later its weights are no part of its gradient
    raw = raw_pairs(8, 4).requires_grad_()
    weights = torch.rand(8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(as_pairs(x, weights), progress).loss, raw)


@every_pair_loss
def test_order_of_the_batch_does_not_matter(raw_pairs, as_pairs, config) -> None:
    raw = raw_pairs(16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    one = build_loss(config)(as_pairs(raw), 0.5)
    other = build_loss(config)(as_pairs(raw[:, order]), 0.5)
    assert float(one.loss) == pytest.approx(float(other.loss), rel=1e-9)
    for name, value in one.statistics.items():
        assert float(value) == pytest.approx(float(other.statistics[name]), rel=1e-6), name


@every_pair_loss
@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_equal_descriptors_have_finite_gradients(as_pairs, config, progress) -> None:
    raw = torch.ones(2, 6, 4, requires_grad=True)
    result = build_loss(config)(as_pairs(raw), progress)
    result.loss.backward()
    assert raw.grad is not None
    assert result.loss.isfinite()
    assert raw.grad.isfinite().all()
    assert all(value.isfinite() for value in result.statistics.values())


@every_pair_loss
@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_duplicates_and_opposites_have_finite_gradients(raw_pairs, as_pairs, config, progress) -> None:
    raw = raw_pairs(8).float()
    raw[1, :3] = raw[0, :3]  # positives equal to their anchors
    raw[:, 4] = raw[:, 5]  # one pair twice
    raw[0, 6] = -raw[1, 6]  # as far from each other as can be
    raw[:, 7] = 0.0  # a vector of zeros, as a dead network gives
    raw.requires_grad_()
    unit = raw / raw.norm(dim=2, keepdim=True).clamp(min=1e-6)
    result = build_loss(config)(PairBatch(unit[0], unit[1], raw[0], raw[1]), progress)
    result.loss.backward()
    assert raw.grad is not None
    assert result.loss.isfinite()
    assert raw.grad.isfinite().all()


@every_pair_loss
def test_one_pair_is_refused(pairs, config) -> None:
    with pytest.raises(ValueError, match=r"1 pair.* has no negatives; give at least 2 pairs"):
        build_loss(config)(pairs(1), 0.5)


@every_pair_loss
def test_nan_is_not_hidden(raw_pairs, as_pairs, config) -> None:
    raw = raw_pairs(8)
    raw[0, 3, 0] = torch.nan
    assert build_loss(config)(as_pairs(raw), 0.5).loss.isnan()


@every_pair_loss
def test_half_precision_descriptors_are_compared_in_full(pairs, config) -> None:
    """Under autocast too: bfloat16 products would be off by a hundredth."""
    batch = pairs(64, 128)
    half = PairBatch(
        batch.anchor.bfloat16(), batch.positive.bfloat16(), batch.anchor_raw.bfloat16(), batch.positive_raw.bfloat16()
    )
    rounded = PairBatch(half.anchor.float(), half.positive.float(), half.anchor_raw.float(), half.positive_raw.float())
    expected = build_loss(config)(rounded, 0.5).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = build_loss(config)(half, 0.5).loss
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("binary", [False, True])
def test_half_precision_groups_are_compared_in_full(binary: bool) -> None:
    values = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    half = (torch.tanh(values) if binary else torch.nn.functional.normalize(values)).bfloat16()
    loss = build_loss(AveragePrecisionConfig(descriptor="binary") if binary else AveragePrecisionConfig())
    labels = torch.arange(64) // 4
    expected = loss(GroupBatch(half.float(), labels), 0.5).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(GroupBatch(half, labels), 0.5).loss
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("neighbourhood", ["paper", "authors"])
def test_half_precision_second_order_distances_are_compared_in_full(pairs, neighbourhood) -> None:
    batch = pairs(64, 128)
    half = [values.bfloat16() for values in (batch.anchor, batch.positive, batch.anchor_raw, batch.positive_raw)]
    expected = second_order_term(PairBatch(*(values.float() for values in half)), 8, neighbourhood)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = second_order_term(PairBatch(*half), 8, neighbourhood)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@every_pair_loss
def test_statistics_are_detached_scalars(raw_pairs, as_pairs, config) -> None:
    raw = raw_pairs(8).requires_grad_()
    statistics = build_loss(config)(as_pairs(raw), 0.5).statistics
    assert statistics
    assert all(value.shape == () and not value.requires_grad for value in statistics.values())


@every_pair_loss
def test_state_survives_a_checkpoint(raw_pairs, as_pairs, config) -> None:
    one, other = build_loss(config), build_loss(config)
    for seed in range(3):
        one(as_pairs(raw_pairs(10, seed=seed)), 0.5)
    other.load_state_dict(one.state_dict())
    batch = as_pairs(raw_pairs(10, seed=3))
    a, b = one(batch, 0.5), other(batch, 0.5)
    assert torch.equal(a.loss, b.loss)
    assert all(torch.equal(a.statistics[name], b.statistics[name]) for name in a.statistics)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_nan_is_not_hidden_in_groups() -> None:
    descriptors = torch.nn.functional.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    descriptors[2] = torch.nan
    loss = build_loss(AveragePrecisionConfig())
    assert loss(GroupBatch(descriptors, torch.arange(8) // 2), 0.5).loss.isnan()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_built_by_name(name) -> None:
    config = TypeAdapter(LossConfig).validate_python({"name": name})
    loss = build_loss(config)
    assert isinstance(loss, PatchLoss)
    assert type(loss) is LOSSES[name]
    assert isinstance(config, type(loss).Config)
    assert loss.batch_kind == ("groups" if name == "average_precision" else "pairs")


@pytest.mark.parametrize(
    "values", [{"name": "sdgm", "alpha": 1}, {"name": "nothing"}, {"name": "hardnet", "margin": 0}]
)
def test_unknown_fields_and_names_are_refused(values) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(LossConfig).validate_python(values)


def test_only_what_remembers_scales_with_the_budget() -> None:
    for config in CONFIGS:
        scaled = scaled_to_budget(config, 1000, 256)
        assert (scaled != config) == (config.name == "sdgm")


def test_every_field_says_what_it_is() -> None:
    """A docstring under every field, with the paper or the code it comes from where it decides a result."""
    import ast
    import inspect

    for loss in LOSSES.values():
        tree = ast.parse(inspect.getsource(loss.Config))
        body = tree.body[0].body  # type: ignore[attr-defined]
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign):
                described = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert described, f"{loss.Config.__name__}.{ast.unparse(node.target)}"
