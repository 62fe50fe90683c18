"""What runs is what was trained: every shortcut against the plain way, tiles against the whole image."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from featkit.features.fast import convolutions, scfeat
from featkit.features.fast.convolutions import PlainConv, PointwiseConv, UpsampledConv, WinogradConv, convolution
from featkit.features.fast.scfeat import DenseFeatures, FrozenSCFeat, fast_peakiness
from featkit.features.fast.tiles import Moments, Span, Tile, Window, tiles
from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig, peakiness

CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def trained(**config: Any) -> SCFeatNetwork:
    """A network whose norms are not the identity."""
    generator = torch.Generator().manual_seed(0)
    network = SCFeatNetwork(SCFeatNetworkConfig(**config), generator)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.uniform_(-0.3, 0.3, generator=generator)
                layer.running_var.uniform_(0.7, 1.5, generator=generator)
            if isinstance(layer, torch.nn.BatchNorm2d | torch.nn.GroupNorm):
                layer.weight.uniform_(0.6, 1.2, generator=generator)
                layer.bias.uniform_(-0.3, 0.3, generator=generator)
        network.detector.activation.weight.fill_(0.17)
    return network.eval()


@pytest.fixture(scope="module")
def small() -> SCFeatNetwork:
    return trained(encoder="resnet18")


def photograph(height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 (1, h, w, 3): texture with one half dark and dull, so that no part is like the whole."""
    noise = torch.rand((1, 3, height // 4, width // 4), generator=torch.Generator().manual_seed(seed))
    image = F.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1)
    image[..., : width // 2] = 0.1 + 0.3 * image[..., : width // 2]
    return (255 * image).byte().permute(0, 2, 3, 1)


def assert_same(found: DenseFeatures, expected: DenseFeatures, atol: float = 1e-4) -> None:
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=atol)
    rows = [F.normalize(maps.descriptors, dim=1) for maps in (found, expected)]
    torch.testing.assert_close(rows[0], rows[1], rtol=0, atol=atol)


@pytest.mark.parametrize("size", [(12, 16), (13, 18), (4, 4), (3, 5), (30, 90)])
@pytest.mark.parametrize("margin", [False, True])
def test_winograd_is_a_convolution(size: tuple[int, int], margin: bool) -> None:
    weight, bias, maps = draw(7, 9, 3, 3) / 9, draw(7), last(draw(1, 9, *size))
    found = WinogradConv(weight, bias)(maps[:, :4], maps[:, 4:], margin=margin)
    expected = F.conv2d(maps.double(), weight.double(), bias.double(), padding=(int(not margin), 1))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


def test_winograd_rounds_little() -> None:
    weight, maps = draw(8, 256, 3, 3) / (9 * 256) ** 0.5, last(draw(1, 256, 24, 32))
    exact = F.conv2d(maps.double(), weight.double(), padding=1)
    error = (WinogradConv(weight, torch.zeros(8))(maps) - exact).square().mean().sqrt()
    assert error < 3e-6, "of results with deviation 1"


def test_winograds_matrices_are_exact() -> None:
    """Of any tile and kernel the 4x4 correlation, in float64."""
    into, kernel, back = convolutions.winograd_matrices()
    tile, weights = draw(6, 6).double(), draw(3, 3).double()
    found = back @ ((kernel @ weights @ kernel.T) * (into @ tile @ into.T)) @ back.T
    torch.testing.assert_close(found, F.conv2d(tile[None, None], weights[None, None])[0, 0])


def test_how_convolutions_are_computed() -> None:
    for shape, stride, kind in (
        ((128, 128, 3, 3), 1, WinogradConv),
        ((128, 128, 3, 3), 2, PlainConv),
        ((64, 64, 3, 3), 1, PlainConv),
        ((128, 64, 1, 1), 1, PointwiseConv),
        ((128, 64, 1, 1), 2, PlainConv),
    ):
        assert isinstance(convolution(torch.zeros(shape), torch.zeros(shape[0]), stride), kind)


@pytest.mark.parametrize("kind", [PlainConv, PointwiseConv])
def test_other_convolutions(kind: Any) -> None:
    size = 1 if kind is PointwiseConv else 3
    weight, bias, maps = draw(6, 5, size, size), draw(6), last(draw(1, 5, 7, 8))
    conv = PointwiseConv(weight, bias) if kind is PointwiseConv else PlainConv(weight, bias, 1)
    expected = F.conv2d(maps, weight, bias, padding=size // 2)
    torch.testing.assert_close(conv(maps[:, :2], maps[:, 2:]), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(conv(maps, margin=True), expected[:, :, 1:-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("factor", "aligned"), [(2, True), (2, False), (4, False)])
@pytest.mark.parametrize("size", [(7, 9), (1, 2), (20, 13)])
def test_a_convolution_before_enlarging(factor: int, aligned: bool, size: tuple[int, int]) -> None:
    weight, bias, maps = draw(5, 6, 3, 3), draw(5), last(draw(1, 6, *size))
    large = F.interpolate(maps.double(), scale_factor=factor, mode="bilinear", align_corners=aligned)
    expected = F.conv2d(large, weight.double(), bias.double(), padding=1)
    found = UpsampledConv(weight, bias, factor, aligned)(maps)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("aligned", [True, False])
def test_a_part_is_enlarged_as_a_part_of_the_whole(aligned: bool) -> None:
    weight, maps = draw(3, 4, 3, 3), last(draw(1, 4, 24, 30))
    conv = UpsampledConv(weight, None, 2, aligned)
    window = Window(Span(24, 5, 12), Span(30, 9, 21))
    part = conv(last(maps[:, :, 5:17, 9:30]), window)
    whole = conv(maps)[:, :, 10:34, 18:60]
    torch.testing.assert_close(part[:, :, 4:-4, 4:], whole[:, :, 4:-4, 4:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [6, 16])
def test_moments_add_up(channels: int) -> None:
    values = 500 + draw(1, channels, 31, 40)
    rows = values.double()[0].flatten(1)
    parts = [Moments.of(last(part)) for part in values.split(7, dim=2)]
    for found in (Moments.of(last(values)), sum(parts[1:], start=parts[0])):
        assert found.count == 31 * 40
        torch.testing.assert_close(found.mean, rows.mean(1), rtol=2e-6, atol=0)
        torch.testing.assert_close(found.variance, rows.var(1, correction=0), rtol=1e-4, atol=0)


def test_moments_of_a_norm() -> None:
    maps, weight, bias = draw(1, 8, 5, 6) + 3, draw(8), draw(8)
    scale, shift = Moments.of(last(maps)).affine(1e-5, 4, weight, bias)
    found = maps * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
    torch.testing.assert_close(found, F.group_norm(maps, 4, weight, bias, 1e-5), rtol=1e-4, atol=1e-5)
    scale, shift = Moments.of(last(maps)).affine(1e-5)
    found = maps * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
    torch.testing.assert_close(found, F.instance_norm(maps, eps=1e-5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 40, 50), (1, 192, 60, 48), (1, 5, 2, 2)])
def test_peakiness_in_parts(shape: tuple[int, ...]) -> None:
    maps = last(draw(*shape))
    torch.testing.assert_close(fast_peakiness(maps, float(maps.max())), peakiness(maps), rtol=1e-5, atol=1e-6)


NARROW = {"encoder_width": 32, "decoder_channels": (64, 32), "side_channels": 32, "norm_groups": 16}


@pytest.mark.parametrize("config", [{}, {"head": "posfeat"}, {"cross_norm": False}, NARROW])
@pytest.mark.parametrize("size", [(80, 112), (64, 64)])
def test_fast_is_plain(config: dict[str, Any], size: tuple[int, int]) -> None:
    network, image = trained(encoder="resnet18", **config), photograph(*size)
    for which in ("fused", "normalised"):
        fast, plain = (FrozenSCFeat(network, CPU, descriptor_map=which, fast=way)(image) for way in (True, False))
        assert_same(fast, plain)
        with torch.inference_mode():
            maps, scores = network(image.permute(0, 3, 1, 2) / 255)
        expected = maps.descriptors if which == "fused" else maps.normalised
        assert_same(fast, DenseFeatures(expected, scores))
        torch.testing.assert_close(fast.descriptors, expected, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_fast_is_plain_for_the_papers_network() -> None:
    network, image = trained(), photograph(64, 96)
    assert_same(FrozenSCFeat(network, CPU)(image), FrozenSCFeat(network, CPU, fast=False)(image))


def test_batches(small: SCFeatNetwork) -> None:
    images = torch.cat([photograph(64, 80, seed) for seed in range(3)])
    for fast in (True, False):
        frozen = FrozenSCFeat(small, CPU, fast=fast)
        together = frozen(images)
        for index in range(3):
            assert_same(
                DenseFeatures(*(maps[index : index + 1] for maps in together)), frozen(images[index : index + 1])
            )


def test_the_network_is_left_as_it_is(small: SCFeatNetwork) -> None:
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    frozen, image = FrozenSCFeat(small, CPU), photograph(64, 64)
    first = frozen(image)
    with torch.no_grad():
        weight = small.detector.merge.weight
        kept = weight.clone()
        weight.zero_()
    assert torch.equal(frozen(image).scores, first.scores), "a copy of the weights"
    with torch.no_grad():
        weight.copy_(kept)
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())


def test_bf16_is_near(small: SCFeatNetwork) -> None:
    image = photograph(64, 96)
    half, full = FrozenSCFeat(small, CPU, "bf16")(image), FrozenSCFeat(small, CPU)(image)
    assert half.scores.dtype == half.descriptors.dtype == torch.float32
    cosine = F.cosine_similarity(half.descriptors, full.descriptors, dim=1)
    assert cosine.mean() > 0.995
    assert (half.scores - full.scores).abs().mean() < 0.05
    assert not torch.equal(half.scores, full.scores)


@pytest.mark.parametrize("size", [(640, 480), (64, 8000), (8000, 64), (2048, 2048), (16, 16)])
def test_tiles_cover_an_image_once(size: tuple[int, int]) -> None:
    height, width = size
    most = 512 * 512
    times = torch.zeros(1, 1, height, width)
    for tile in tiles(height, width, 192, most):
        (_, top, rows), (_, left, columns) = tile.window
        for start, length, total in ((top, rows, height), (left, columns, width)):
            assert start % 16 == length % 16 == 0
            assert start >= 0
            assert start + length <= total
        assert rows * columns <= most
        for window, core in zip(tile.window, tile.core, strict=True):
            assert core.start - window.start == min(192, core.start)
            assert window.start + window.length == min(window.total, core.start + core.length + 192)
        (_, top, rows), (_, left, columns) = tile.core
        times[:, :, top : top + rows, left : left + columns] += 1
    assert (times == 1).all()
    assert len(tiles(height, width, 192, height * width)) == 1


def test_the_core_of_a_tile() -> None:
    tile = Tile(Window(Span(640, 64, 320), Span(640, 0, 256)), Window(Span(640, 128, 192), Span(640, 0, 64)))
    image = torch.arange(320.0).view(1, 1, -1, 1).expand(1, 1, 320, 256)
    assert tile.cropped(image).shape == (1, 1, 192, 64)
    assert tile.cropped(image)[0, 0, [0, -1], 0].tolist() == [64, 255]
    assert tile.cropped(image[:, :, ::4, ::4]).shape == (1, 1, 48, 16)
    bands = [tile.cropped(band, 32 * index) for index, band in enumerate(image.split(32, dim=2))]
    assert torch.equal(torch.cat(bands, dim=2), tile.cropped(image))


@pytest.mark.slow
def test_tiles_give_the_whole_images_result(small: SCFeatNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven tiles of the backbone, each much narrower than the image, and several of the detector."""
    image = photograph(64, 1024)
    whole = FrozenSCFeat(small, CPU)(image)
    frozen = FrozenSCFeat(small, CPU, max_pixels=64 * (2 * 192 + 160))
    assert len(tiles(64, 1024, 192, frozen.max_pixels)) == 7
    assert len(tiles(64, 1024, 32, frozen.max_pixels)) > 1
    assert_same(frozen(image), whole, atol=1e-4)
    monkeypatch.setattr(scfeat, "BACKBONE_MARGIN_PX", 32)
    naive = frozen(image)
    apart = F.normalize(naive.descriptors, dim=1) - F.normalize(whole.descriptors, dim=1)
    assert apart.abs().max() > 1e-3, "a test that too small a margin passes would say nothing"
