"""SCFeat's network: its sizes, what it gives, what learns and what does not."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from featkit.models.scfeat import F2RBackbone, SCFeatNetwork, SCFeatNetworkConfig, upsample, upsample_twice


def make(**config: Any) -> SCFeatNetwork:
    return SCFeatNetwork(SCFeatNetworkConfig(**config), torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def small() -> SCFeatNetwork:
    return make(encoder="resnet18")


def pictures(batch: int = 1, height: int = 48, width: int = 64, seed: int = 0) -> Tensor:
    return torch.rand((batch, 3, height, width), generator=torch.Generator().manual_seed(seed))


def count(parameters: list[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def test_the_papers_network_has_its_parameters() -> None:
    network = make()
    assert count(network.description_parameters()) == 22_197_158
    assert count(network.detection_parameters()) == 628_930
    assert count(list(network.backbone.encoder.parameters())) == 8_543_296
    assert count(list(network.bridge.parameters())) == 102
    assert count(list(network.parameters())) == 22_197_158 + 628_930, "each parameter belongs to one of the two stages"
    with torch.inference_mode():
        found = network(pictures())
    assert found.maps.descriptors.shape == found.maps.normalised.shape == (1, 128, 12, 16)


def test_the_small_network_has_few(small: SCFeatNetwork) -> None:
    assert count(list(small.parameters())) <= 3_900_000
    assert count(list(small.backbone.encoder.parameters())) == 2_782_784
    assert small.config.detector_merged_channels <= 16, "of maps with all of an image's pixels"


def test_shapes(small: SCFeatNetwork) -> None:
    with torch.inference_mode():
        maps, scores = small(pictures(2, 64, 96))
    assert maps.descriptors.shape == maps.normalised.shape == (2, 128, 16, 24)
    assert maps.shallow.shape == (2, 64, 16, 24)
    assert scores.shape == (2, 1, 64, 96)
    assert scores.min() > 0
    assert maps.shallow.min() >= 0


def test_an_image_does_not_depend_on_its_batch(small: SCFeatNetwork) -> None:
    images = torch.cat([pictures(), 0.2 * pictures(seed=1)])
    with torch.inference_mode():
        together, alone = small(images), small(images[1:])
    torch.testing.assert_close(together.scores[1:], alone.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.maps.descriptors[1:], alone.maps.descriptors, rtol=1e-4, atol=1e-5)


def test_images_are_normalised_as_imagenets(small: SCFeatNetwork) -> None:
    """What the encoder is given: an image of the mean colour is 0, one deviation brighter is 1."""
    given = []
    small.backbone.encoder.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    colour = torch.tensor([0.485, 0.456 + 0.224, 0.406]).view(1, 3, 1, 1)
    with torch.inference_mode():
        small.describe(colour.expand(1, 3, 16, 16))
    small.backbone.encoder._forward_pre_hooks.clear()
    torch.testing.assert_close(given[0].mean(dim=(0, 2, 3)), torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 40, 64), (1, 3, 64, 8), (1, 1, 64, 64), (3, 64, 64), (1, 3, 0, 64)])
def test_other_shapes_are_refused(small: SCFeatNetwork, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images of"):
        small.describe(torch.zeros(shape))


def test_detection_passes_nothing_on(small: SCFeatNetwork) -> None:
    maps, scores = small(pictures())
    scores.sum().backward()
    assert all(p.grad is None for p in small.description_parameters())
    assert all(p.grad is not None for p in small.detection_parameters())
    small.zero_grad()
    (maps.normalised.sum() + maps.normalised.square().sum()).backward()
    assert all(p.grad is not None for p in small.description_parameters())
    assert all(p.grad is None for p in small.detection_parameters())
    small.zero_grad()


def test_the_same_generator_draws_the_same_network() -> None:
    first, second = (make(encoder="resnet18").state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = SCFeatNetwork(SCFeatNetworkConfig(encoder="resnet18"), torch.Generator().manual_seed(1)).state_dict()
    assert not torch.equal(first["detector.merge.weight"], other["detector.merge.weight"])


def test_nothing_but_weights_is_saved(small: SCFeatNetwork) -> None:
    """The constants of the normalisation belong to the code."""
    assert not {"mean", "std"} & small.state_dict().keys()
    with torch.device("meta"):
        empty = SCFeatNetwork(small.config)
    empty.to_empty(device="cpu")
    empty.load_state_dict(small.state_dict())
    empty.fill_constants()
    with torch.inference_mode():
        torch.testing.assert_close(empty.eval()(pictures()).scores, small(pictures()).scores)


def test_ablations_change_what_they_say() -> None:
    with torch.inference_mode():
        plain = make(encoder="resnet18", cross_norm=False)
        maps = plain.describe(pictures())
        assert torch.equal(maps.descriptors, maps.normalised)
        assert count(list(plain.bridge.parameters())) == 0
        ours, theirs = make(encoder="resnet18"), make(encoder="resnet18", head="posfeat")
        theirs.load_state_dict(ours.state_dict())
        assert not torch.allclose(ours(pictures()).scores, theirs(pictures()).scores, atol=0.1)


def test_the_config_knows_the_two_sizes() -> None:
    paper, small = SCFeatNetworkConfig(), SCFeatNetworkConfig(encoder="resnet18")
    assert (paper.decoder_channels, paper.detector_merged_channels) == ((512, 256), 128)
    assert small.decoder_channels != paper.decoder_channels
    assert SCFeatNetworkConfig(**small.result_fields()) == small
    wide = SCFeatNetworkConfig(encoder="resnet18", side_channels=96)
    assert (wide.side_channels, wide.decoder_channels) == (96, small.decoder_channels)
    with pytest.raises(ValidationError, match="48 channels cannot be normalised in 32 groups"):
        SCFeatNetworkConfig(side_channels=48)


def test_the_backbone_is_equation_1(small: SCFeatNetwork) -> None:
    """Its layers, written out once more in float64 with other functions."""
    backbone = small.backbone.double()
    assert isinstance(backbone, F2RBackbone)
    images = pictures(1, 32, 48).double()

    def block(part: Any, maps: Tensor) -> Tensor:
        size, channels = part.conv.kernel_size[0], part.conv.out_channels
        flat = F.unfold(maps, size, padding=size // 2)
        made = part.conv.weight.flatten(1) @ flat[0] + part.conv.bias[:, None]
        groups = made.view(32, -1)
        made = (groups - groups.mean(1, keepdim=True)) / (groups.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        made = made.view(channels, -1) * part.norm.weight[:, None] + part.norm.bias[:, None]
        return torch.where(made > 0, made, torch.expm1(made)).view(1, channels, *maps.shape[2:])

    with torch.no_grad():
        _, layer1, layer2, layer3 = backbone.encoder(images)
        eighth = block(backbone.join3, torch.cat([layer2, block(backbone.up3, upsample_twice(layer3))], 1))
        quarter = block(backbone.join2, torch.cat([layer1, block(backbone.up2, upsample_twice(eighth))], 1))
        sides = block(backbone.side0, quarter), block(backbone.side1, upsample(eighth, 2))
        all_sides = torch.cat([*sides, block(backbone.side2, upsample(layer3, 4))], 1)
        expected = torch.einsum("oi,bihw->bohw", backbone.fuse.weight[:, :, 0, 0], all_sides)
        found = backbone(images).descriptors
    torch.testing.assert_close(found, expected + backbone.fuse.bias.view(1, -1, 1, 1))
    backbone.float()


def test_the_two_ways_of_enlarging() -> None:
    line = torch.arange(4.0).expand(1, 1, 4, 4)
    assert upsample_twice(line)[0, 0, 0].tolist() == pytest.approx([3 * i / 7 for i in range(8)]), "the end points stay"
    expected = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert upsample(line, 2)[0, 0, 0].tolist() == pytest.approx(expected), "pixels cover the image corner to corner"
