"""L2-Net, HyNet and what stands around them. Parity with kornia's networks: tests/unit/weights/test_published.py."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featkit.models.patch import PatchNetwork, PatchNetworkConfig, standardise

ARCHITECTURES = ("l2net", "hynet")


def network(architecture: str = "hynet", seed: int = 0, **fields: Any) -> PatchNetwork:
    config = PatchNetworkConfig(architecture=architecture, **fields)  # type: ignore[arg-type]
    return PatchNetwork(config, torch.Generator().manual_seed(seed))


def patches(count: int = 6, side: int = 32) -> Tensor:
    return torch.rand((count, 1, side, side), generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module", params=[*ARCHITECTURES, "doap", "doap-binary"])
def trained(request: pytest.FixtureRequest) -> PatchNetwork:
    """Networks in eval mode that have seen some patches, so that BatchNorm has statistics of its own."""
    doap = {"spatial_transformer": True, "bits": 256 if request.param == "doap-binary" else 0}
    made = network(request.param) if request.param in ARCHITECTURES else network("l2net", **doap)
    with torch.no_grad():
        for _ in range(4):
            made(patches(32, made.input_px))
    return made.eval()


@pytest.mark.parametrize(("architecture", "count"), [("l2net", 1_334_560), ("hynet", 1_336_355)])
def test_numbers_of_parameters(architecture: str, count: int) -> None:
    assert sum(parameter.numel() for parameter in network(architecture).parameters()) == count


def test_descriptors_are_unit_rows_of_the_raw_vectors(trained: PatchNetwork) -> None:
    raw, descriptor = (values.detach() for values in trained(patches(side=trained.input_px)))
    assert raw.shape == descriptor.shape == (6, trained.dimension)
    assert raw.dtype == descriptor.dtype == torch.float32
    array = raw.numpy()
    expected = np.tanh(array) if trained.is_binary else array / np.linalg.norm(array, axis=1, keepdims=True)
    np.testing.assert_allclose(descriptor, expected, atol=1e-6)


def test_a_patch_is_described_by_itself(trained: PatchNetwork) -> None:
    """In eval mode."""
    some = patches(side=trained.input_px)
    alone = torch.cat([trained(patch[None]).raw for patch in some])
    torch.testing.assert_close(alone, trained(some).raw, rtol=1e-4, atol=1e-4)


def test_a_patch_without_contrast_gives_numbers(trained: PatchNetwork) -> None:
    side = trained.input_px
    flat = torch.cat([torch.zeros(1, 1, side, side), torch.full((1, 1, side, side), 0.7)])
    assert all(torch.isfinite(values).all() for values in trained(flat))
    assert all(torch.isfinite(values).all() for values in copy.deepcopy(trained).train()(flat))


def test_no_patches(trained: PatchNetwork) -> None:
    raw, descriptor = trained(patches(0, trained.input_px))
    assert raw.shape == descriptor.shape == (0, trained.dimension)


@pytest.mark.parametrize("shape", [(2, 1, 64, 64), (2, 3, 32, 32), (2, 32, 32)])
def test_patches_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"not \(b, 1, 32, 32\)"):
        network()(torch.zeros(shape))


def test_bf16_autocast_is_close(trained: PatchNetwork) -> None:
    some = patches(side=trained.input_px)
    with torch.autocast("cpu", torch.bfloat16):
        raw, descriptor = trained(some)
    assert raw.dtype == descriptor.dtype == torch.float32
    assert torch.cosine_similarity(raw, trained(some).raw).min() > 0.995


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bf16_autocast_trains(architecture: str) -> None:
    made = network(architecture)
    with torch.autocast("cpu", torch.bfloat16):
        descriptor = made(patches()).descriptor
    descriptor[0].sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in made.parameters())


def test_copies_and_state_dicts_are_the_same_network(trained: PatchNetwork) -> None:
    some = patches(side=trained.input_px)
    copied = copy.deepcopy(trained)
    other = PatchNetwork(trained.config).eval()
    other.load_state_dict(trained.state_dict())
    for same in (copied, other):
        assert torch.equal(same(some).raw, trained(some).raw)
    with torch.no_grad():
        next(copied.trunk.parameters()).zero_()
    assert torch.equal(other(some).raw, trained(some).raw)
    assert not torch.equal(copied(some).raw, trained(some).raw)


def test_the_generator_decides_the_first_weights() -> None:
    first, again, other = (network("l2net", seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["trunk.features.0.weight"], other["trunk.features.0.weight"])


def test_l2net_starts_orthogonal_with_hardnets_gain() -> None:
    for layer in network("l2net").modules():
        if isinstance(layer, nn.Conv2d):
            rows = layer.weight.detach().flatten(1)
            gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
            torch.testing.assert_close(gram, 0.36 * torch.eye(len(gram)), rtol=0, atol=1e-5)


def test_hynet_starts_as_pytorch_does() -> None:
    """Uniform in +-1 / sqrt(inputs), weights and biases; FRN at 1 and 0, TLU at -1."""
    made = network("hynet")
    for layer in made.modules():
        if isinstance(layer, nn.Conv2d):
            bound = (layer.in_channels * layer.kernel_size[0] ** 2) ** -0.5
            largest = layer.weight.detach().abs().max().item()
            assert 0.9 * bound < largest <= bound
            if layer.bias is not None:
                assert 0.5 * bound < layer.bias.detach().abs().max().item() <= bound
    state = made.state_dict()
    for part, value in (("scale", 1), ("bias", 0), ("tau", -1)):
        assert state[f"trunk.activations.3.{part}"].tolist() == [value] * 64


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_he_start_is_normal_with_variance_two_over_inputs(architecture: str) -> None:
    """He et al. 2015, eq. 10, biases 0; so the squares of a rectified layer keep their mean."""
    made = network(architecture, init="he")
    for layer in made.modules():
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.detach()
            inputs = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
            unit = weight.flatten() / (2 / inputs) ** 0.5
            error = len(unit) ** -0.5  # of one deviation
            assert unit.mean().abs() < 4 * error
            assert unit.std().item() == pytest.approx(1, abs=4 * error)
            assert (unit.abs() > 2).float().mean().item() == pytest.approx(0.0455, abs=4 * (0.0455**0.5) * error)
            assert layer.bias is None or not layer.bias.detach().any()
    again = network(architecture, init="he")
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_init_can_be_chosen(architecture: str) -> None:
    rows = network(architecture, init="orthogonal", init_gain=2.0).get_parameter(
        "trunk.features.3.weight" if architecture == "l2net" else "trunk.convolutions.1.weight"
    )
    gram = rows.detach().flatten(1) @ rows.detach().flatten(1).T
    torch.testing.assert_close(gram, 4 * torch.eye(32), rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_is_for_training_only(architecture: str) -> None:
    made = network(architecture, dropout=0.5)
    assert [layer.p for layer in made.modules() if isinstance(layer, nn.Dropout)] == [0.5]
    assert made.training
    assert not torch.equal(made(patches()).raw, made(patches()).raw)
    assert torch.equal(made.eval()(patches()).raw, made(patches()).raw)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_learns(architecture: str) -> None:
    made = network(architecture, dropout=0.0)
    if architecture == "hynet":  # FRN makes a patch positive: its own threshold cuts nothing until it has grown
        made.get_parameter("trunk.first.tau").data.fill_(0.5)
    weights = torch.randn((6, 128), generator=torch.Generator().manual_seed(1))
    (made(patches()).descriptor * weights).sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, name


def test_convolutions_lie_channels_last() -> None:
    """What they compute is the same; on a CPU it takes 0.6 to 0.8 of the time."""
    made = network("l2net")
    made.load_state_dict(network("l2net", seed=1).state_dict())
    for module in (made, copy.deepcopy(made)):
        weight = module.get_parameter("trunk.features.6.weight")
        assert weight.is_contiguous(memory_format=torch.channels_last)


def test_hynet_does_not_see_brightness_and_l2net_not_contrast_either() -> None:
    some = 0.3 + 0.3 * patches()
    torch.testing.assert_close(
        *(network("hynet", dropout=0.0)(x).descriptor for x in (some, 1.4 * some)), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(
        *(network("l2net", dropout=0.0)(x).descriptor for x in (some, 0.1 + 1.4 * some)), rtol=0, atol=1e-4
    )


def test_standardised_patches_in_numbers() -> None:
    some = patches(3).double()
    array = some.numpy().reshape(3, -1)
    mean = array.mean(axis=1, keepdims=True)
    hardnet = (array - mean) / (array.std(axis=1, ddof=1, keepdims=True) + 0.1)
    sosnet = (array - mean) / np.sqrt(array.var(axis=1, keepdims=True) + 0.1)
    for norm, expected in (("standard_deviation", hardnet), ("variance", sosnet)):
        found = standardise(some, norm, 0.1).reshape(3, -1)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_patchs_own_statistics_carry_no_gradient() -> None:
    """HardNet's code holds them constant: the derivative is 1 / (deviation + eps) for every pixel by itself."""
    some = patches(1).double().requires_grad_()
    standardise(some, "standard_deviation", 0.1)[0, 0, 3, 4].backward()
    assert some.grad is not None
    assert torch.count_nonzero(some.grad) == 1
    assert some.grad[0, 0, 3, 4].item() == pytest.approx(1 / (some.detach().std().item() + 0.1))


def test_the_layer_that_predicts_the_map_learns_slowly() -> None:
    made = network("l2net", spatial_transformer=True, transformer_rate=0.02)
    fast, slow = made.parameter_groups(lr=0.5)
    assert (fast["lr"], slow["lr"]) == (0.5, 0.01)
    assert made.transformer is not None
    assert {id(p) for p in slow["params"]} == {id(p) for p in made.transformer.prediction.parameters()}
    assert len(fast["params"]) + len(slow["params"]) == len(list(made.parameters()))
    assert {id(p) for p in fast["params"]}.isdisjoint(id(p) for p in slow["params"])
    torch.optim.SGD(made.parameter_groups(lr=0.5), momentum=0.9)
    assert [group["lr"] for group in network().parameter_groups(lr=0.5)] == [0.5]


def test_a_float64_network_stays_in_float64() -> None:
    made = network("l2net", spatial_transformer=True).double().eval()
    raw, descriptor = made(patches(2, 42).double())
    assert raw.dtype == descriptor.dtype == torch.float64
    torch.testing.assert_close(made.float()(patches(2, 42)).raw, raw.float(), rtol=1e-4, atol=1e-4)
