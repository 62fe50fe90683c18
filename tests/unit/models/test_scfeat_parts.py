"""Cross normalisation, peakiness and the detector against the equations written out."""

import pytest
import torch
from torch import Tensor

from featkit.models.scfeat import FLOOR, CrossNorm, Detector, largest_value, peakiness


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_cross_norm(bridge: CrossNorm, x: Tensor) -> Tensor:
    """Equation 2, a pixel and a channel at a time."""
    batch, channels, height, width = x.shape
    a, b = bridge.position_weight.item(), bridge.channel_weight.item()
    out = torch.zeros_like(x)
    for n in range(batch):
        mean_map = x[n].mean(0)
        for i in range(height):
            for j in range(width):
                gamma, beta = bridge.scale.bias[0].clone(), bridge.shift.bias[0].clone()
                for di in range(-3, 4):
                    for dj in range(-3, 4):
                        if 0 <= i + di < height and 0 <= j + dj < width:
                            gamma += bridge.scale.weight[0, 0, di + 3, dj + 3] * mean_map[i + di, j + dj]
                            beta += bridge.shift.weight[0, 0, di + 3, dj + 3] * mean_map[i + di, j + dj]
                vector = x[n, :, i, j]
                sigma2 = ((vector - vector.mean()) ** 2).sum() / (channels - 1)
                out[n, :, i, j] += a / (a + b) * (gamma * (vector - vector.mean()) / (sigma2 + 1e-5).sqrt() + beta)
        for c in range(channels):
            values = x[n, c]
            sigma2 = ((values - values.mean()) ** 2).sum() / values.numel()
            out[n, c] += b / (a + b) * (values - values.mean()) / (sigma2 + 1e-5).sqrt()
    return out


def bridge() -> CrossNorm:
    made = CrossNorm().double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for conv in (made.scale, made.shift):
            conv.weight.uniform_(-0.3, 0.3, generator=draw)
            conv.bias.uniform_(-0.3, 0.3, generator=draw)
    return made


def test_cross_normalisation_is_equation_2() -> None:
    made, x = bridge(), 3 * maps(2, 5, 8, 9) + 2
    torch.testing.assert_close(made(x), slow_cross_norm(made, x))


def test_its_weights_start_at_7_to_3() -> None:
    shares = CrossNorm().shares()
    assert [float(share) for share in shares] == pytest.approx([0.7, 0.3])
    assert sum(p.numel() for p in CrossNorm().parameters()) == 102


def test_gradients_of_cross_normalisation() -> None:
    made, x = bridge(), maps(1, 3, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(made, (x,))
    parameters = [p.detach().clone().requires_grad_() for p in made.parameters()]
    names = [name for name, _ in made.named_parameters()]

    def by_parameters(*values: Tensor) -> Tensor:
        return torch.func.functional_call(made, dict(zip(names, values, strict=True)), (x.detach(),))

    assert torch.autograd.gradcheck(by_parameters, parameters)


def slow_peakiness(x: Tensor, floor: float) -> Tensor:
    """Equations 4 to 6, a value at a time."""
    batch, channels, height, width = x.shape
    out = torch.zeros((batch, 1, height, width), dtype=x.dtype)
    for n in range(batch):
        y = x[n] / max(float(x[n].max()), floor)
        for i in range(height):
            for j in range(width):
                found = []
                for k in range(channels):
                    around = [
                        y[k, _mirrored(i + di, height), _mirrored(j + dj, width)]
                        for di in (-1, 0, 1)
                        for dj in (-1, 0, 1)
                    ]
                    eta = torch.log1p(torch.exp(y[k, i, j] - y[:, i, j].mean()))
                    zeta = torch.log1p(torch.exp(y[k, i, j] - sum(around) / 9))
                    found.append(eta * zeta)
                out[n, 0, i, j] = max(found)
    return out


def _mirrored(index: int, size: int) -> int:
    return -index if index < 0 else 2 * (size - 1) - index if index >= size else index


def test_peakiness_is_equation_6() -> None:
    x = maps(2, 4, 5, 6)
    torch.testing.assert_close(peakiness(x), slow_peakiness(x, FLOOR))


def test_gradients_of_peakiness() -> None:
    assert torch.autograd.gradcheck(peakiness, (maps(1, 3, 4, 5).requires_grad_(),))


def test_a_dark_image_keeps_its_peaks() -> None:
    """All values negative: dividing by the maximum would turn them round."""
    x = torch.full((1, 3, 9, 9), -2.0)
    x[0, :, 4, 4] = -1.9
    assert largest_value(x).item() == pytest.approx(FLOOR)
    assert peakiness(x)[0, 0].argmax() == 4 * 9 + 4
    torch.testing.assert_close(peakiness(x.double()), slow_peakiness(x.double(), FLOOR))


@pytest.mark.parametrize("head", ["scfeat", "posfeat"])
def test_the_detector_is_equations_7_to_13(head: str) -> None:
    """In float64, convolutions as sums over their taps."""
    detector = Detector(before=5, feature=4, image=3, merged=6, head=head).double()  # type: ignore[arg-type]
    features, images = maps(1, 5, 4, 6), maps(1, 3, 16, 24, seed=1)
    slope = float(detector.activation.weight)

    def conv(layer: torch.nn.Conv2d, x: Tensor) -> Tensor:
        reach = layer.kernel_size[0] // 2
        padded = torch.nn.functional.pad(x, (reach,) * 4)
        height, width = x.shape[2:]
        total = layer.bias.view(1, -1, 1, 1).expand(1, -1, height, width).clone()  # type: ignore[union-attr]
        for i in range(2 * reach + 1):
            for j in range(2 * reach + 1):
                part = padded[:, :, i : i + height, j : j + width]
                total += torch.einsum("oi,bihw->bohw", layer.weight[:, :, i, j], part)
        return total

    def standard(x: Tensor) -> Tensor:
        return (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()

    def prelu(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, slope * x)

    def up(x: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(x, size=(16, 24), mode="bilinear")

    with torch.no_grad():
        is_scfeat = head == "scfeat"
        s_l = slow_peakiness(features, FLOOR) if is_scfeat else torch.ones(1, 1, 4, 6, dtype=torch.float64)
        s_r = slow_peakiness(images, FLOOR) if is_scfeat else torch.ones(1, 1, 16, 24, dtype=torch.float64)
        h_l = prelu(standard(conv(detector.feature, s_l * features)))
        h_r = standard(conv(detector.image, s_r * images))
        h_r = prelu(h_r) if is_scfeat else h_r
        h_1 = prelu(standard(conv(detector.merge, torch.cat([up(h_l), h_r], 1))))
        h_2 = torch.log1p(torch.exp(standard(conv(detector.last, h_1))))
        torch.testing.assert_close(detector(images, features), up(s_l) * s_r * h_2)
