"""FRN and TLU: the fast form and its derivatives against the formula and against finite differences."""

import copy

import pytest
import torch
from torch import Tensor

from featkit.models import patch
from featkit.models.patch import FrnTlu


def layer_and_maps(
    batch: int = 5, channels: int = 3, side: int = 4, dtype: torch.dtype = torch.float64, channels_last: bool = True
) -> tuple[FrnTlu, Tensor]:
    """A layer with values that are not those of the start, and maps of which about a third is cut off."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    layer = FrnTlu(channels, eps=0.1, tau=-1.0).to(dtype)
    with torch.no_grad():
        layer.scale.copy_(1 + 0.3 * draw(channels))
        layer.bias.copy_(0.3 * draw(channels))
        layer.tau.copy_(-0.5 + 0.1 * draw(channels))
    maps = draw(batch, channels, side, side)
    order = torch.channels_last if channels_last else torch.contiguous_format
    return layer, maps.contiguous(memory_format=order).requires_grad_()


@pytest.fixture(params=[1, 400, 2**20], ids=["patch by patch", "two patches at once", "all at once"])
def part_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(patch, "PART_BYTES", request.param)
    return int(request.param)


@pytest.mark.parametrize("channels_last", [True, False])
def test_its_derivatives_are_those_of_finite_differences(part_bytes: int, channels_last: bool) -> None:
    layer, maps = layer_and_maps(batch=3, channels=2, side=3, channels_last=channels_last)
    arguments = (maps, layer.scale, layer.bias, layer.tau)
    assert torch.autograd.gradcheck(lambda *given: patch._FrnTlu.apply(*given, layer.eps), arguments)


@pytest.mark.parametrize("channels_last", [True, False])
def test_it_equals_the_formula(part_bytes: int, channels_last: bool) -> None:
    layer, maps = layer_and_maps(batch=7, dtype=torch.float32, channels_last=channels_last)
    weights = torch.randn(maps.shape, generator=torch.Generator().manual_seed(1))
    wanted = [maps, *layer.parameters()]
    results = []
    for out in (layer(maps), patch.frn_tlu(maps, layer.scale, layer.bias, layer.tau, layer.eps)):
        results.append([out, *torch.autograd.grad((out * weights).sum(), wanted)])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    assert results[0][0].is_contiguous(memory_format=torch.channels_last) == channels_last


def test_the_formula_in_numbers() -> None:
    """One map with the values 3, -4, 0, 0: mean square 6.25; with eps 0 it is divided by 2.5."""
    layer = FrnTlu(1, eps=0.0, tau=-1.0)
    maps = torch.tensor([3.0, -4.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    assert layer(maps).flatten().tolist() == pytest.approx([1.2, -1.0, 0.0, 0.0])


def test_what_is_never_cut_gives_its_threshold_no_gradient() -> None:
    """Exactly 0: Adam would turn a rounding error into a step of full length."""
    layer, maps = layer_and_maps(batch=40, side=8, dtype=torch.float32)
    layer.tau.data.fill_(-1e3)
    (layer(maps) * torch.randn(maps.shape)).sum().backward()
    assert layer.tau.grad is not None
    assert layer.tau.grad.tolist() == [0, 0, 0]


def test_maps_of_zeros_stay_finite() -> None:
    layer, _ = layer_and_maps(dtype=torch.float32)
    maps = torch.zeros(2, 3, 4, 4, requires_grad=True)
    out = layer(maps)
    out.sum().backward()
    assert torch.equal(out[0, :, 0, 0], torch.maximum(layer.bias, layer.tau))
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()


def test_half_precision_is_computed_in_float32() -> None:
    """Squares of 300 overflow float16; in and out are float16 all the same."""
    layer, maps = layer_and_maps(dtype=torch.float32)
    large = (300 * maps.detach()).half().requires_grad_()
    out = layer(large)
    out.float().square().sum().backward()
    assert out.dtype == torch.float16
    assert large.grad is not None
    assert large.grad.dtype == torch.float16
    assert torch.isfinite(large.grad).all()
    torch.testing.assert_close(out.float(), layer(large.float()), rtol=1e-3, atol=1e-3)


def test_no_maps() -> None:
    layer, _ = layer_and_maps(dtype=torch.float32)
    maps = torch.zeros(0, 3, 4, 4, requires_grad=True)
    out = layer(maps)
    out.sum().backward()
    assert out.shape == (0, 3, 4, 4)
    assert layer.scale.grad is not None
    assert layer.scale.grad.tolist() == [0, 0, 0]


def test_its_input_is_left_as_it_was() -> None:
    layer, maps = layer_and_maps(dtype=torch.float32)
    before = copy.deepcopy(maps.detach())
    with torch.inference_mode():
        layer(maps)
    assert torch.equal(maps, before)


def test_a_compiler_sees_the_formula() -> None:
    layer, maps = layer_and_maps(dtype=torch.float32)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(maps), layer(maps), rtol=1e-5, atol=1e-5)
