"""The encoder has torchvision's names, and loads ImageNet checkpoints of its depth only."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from featkit.core.errors import BadInputError
from featkit.models.resnet import ResNetEncoder, load_encoder_weights
from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig

State = dict[str, torch.Tensor]


def imagenet(depth: Any, seed: int = 3) -> State:
    """A state dict as torchvision's: the encoder's tensors, layer4 and fc besides."""
    draw = torch.Generator().manual_seed(seed)
    wanted = ResNetEncoder(depth).state_dict()
    state = {
        name: torch.rand(tensor.shape, generator=draw) if tensor.is_floating_point() else torch.tensor(7)
        for name, tensor in wanted.items()
    }
    more = 2048 if depth == "resnet50" else 512
    return {**state, "layer4.0.conv1.weight": torch.rand(2, 2, 1, 1), "fc.weight": torch.rand(1000, more)}


@pytest.fixture(scope="module")
def small_state() -> State:
    return imagenet("resnet18")


def network() -> SCFeatNetwork:
    return SCFeatNetwork(SCFeatNetworkConfig(encoder="resnet18"))


def test_names_and_sizes() -> None:
    """Spot checks of torchvision's resnet50 and resnet18."""
    large, small = ResNetEncoder("resnet50").state_dict(), ResNetEncoder("resnet18").state_dict()
    for state, name, shape in (
        (large, "conv1.weight", (64, 3, 7, 7)),
        (large, "layer1.0.downsample.0.weight", (256, 64, 1, 1)),
        (large, "layer2.0.conv2.weight", (128, 128, 3, 3)),
        (large, "layer3.5.bn3.running_var", (1024,)),
        (small, "layer1.1.conv2.weight", (64, 64, 3, 3)),
        (small, "layer3.0.downsample.1.weight", (256,)),
    ):
        assert state[name].shape == shape
    assert "layer1.0.downsample.0.weight" not in small
    assert "layer3.6.conv1.weight" not in large
    assert not any(name.startswith(("layer4", "fc")) for name in [*large, *small])
    assert (len(large), len(small)) == (258, 90)


def test_where_it_strides() -> None:
    """In the 3x3 convolution of a bottleneck, as torchvision's weights expect."""
    block: Any = ResNetEncoder("resnet50").layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))
    shallow, layer1, layer2, layer3 = ResNetEncoder("resnet18")(torch.rand(1, 3, 64, 96))
    assert shallow.shape == layer1.shape == (1, 64, 16, 24)
    assert (layer2.shape, layer3.shape) == ((1, 128, 8, 12), (1, 256, 4, 6))


def test_a_narrower_encoder() -> None:
    """Every width goes by the first; ImageNet's weights are then of another network."""
    narrow = SCFeatNetwork(SCFeatNetworkConfig(encoder="resnet18", encoder_width=16))
    assert [tuple(maps.shape) for maps in narrow.backbone.encoder(torch.rand(1, 3, 64, 96))] == [
        (1, 16, 16, 24),
        (1, 16, 16, 24),
        (1, 32, 8, 12),
        (1, 64, 4, 6),
    ]
    assert narrow.describe(torch.rand(1, 3, 64, 96)).shallow.shape == (1, 16, 16, 24)
    assert narrow(torch.rand(1, 3, 64, 96)).scores.shape == (1, 1, 64, 96)


@pytest.mark.parametrize("kind", ["pth", "wrapped", "safetensors"])
def test_an_imagenet_checkpoint_loads(small_state: State, tmp_path: Path, kind: str) -> None:
    made = network()
    path = tmp_path / ("r.safetensors" if kind == "safetensors" else "r.pth")
    if kind == "safetensors":
        save_file(small_state, path)
    elif kind == "pth":
        torch.save(small_state, path)
    else:
        torch.save({"state_dict": {f"module.encoder.{name}": value for name, value in small_state.items()}}, path)
    decoder = made.backbone.up3.conv.weight.detach().clone()
    load_encoder_weights(made, path)
    for name, tensor in made.backbone.encoder.state_dict().items():
        assert torch.equal(tensor, small_state[name]), name
    assert torch.equal(made.backbone.up3.conv.weight, decoder)


def test_other_files_are_refused(small_state: State, tmp_path: Path) -> None:
    made = network()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    path = tmp_path / "r.pth"
    narrow = {**small_state, "layer1.0.conv1.weight": torch.rand(8, 64, 3, 3)}
    for content, problem in (
        (imagenet("resnet50"), "a ResNet, but not resnet18"),
        ({k: v for k, v in small_state.items() if not k.startswith("layer3.1")}, "a ResNet, but not resnet18"),
        (narrow, "a ResNet, but not resnet18"),
        ({"features.0.weight": torch.rand(3)}, "not the weights of a ResNet"),
        ({}, "not the weights of a ResNet"),
        ({"a": 3}, "no named tensors"),
        (torch.rand(3), "no named tensors"),
        ({**small_state, "bn1.weight": torch.full((64,), torch.nan)}, "NaN or infinity"),
        (print, "refused"),
    ):
        torch.save(content, path)
        with pytest.raises(BadInputError, match=problem) as caught:
            load_encoder_weights(made, path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(BadInputError):
        load_encoder_weights(made, path)
    (tmp_path / "r.safetensors").write_bytes(b"x" * 30)
    with pytest.raises(BadInputError, match="safetensors"):
        load_encoder_weights(made, tmp_path / "r.safetensors")
    with pytest.raises(BadInputError, match="no such file"):
        load_encoder_weights(made, tmp_path / "none.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def test_the_other_depth_says_so_too(small_state: State, tmp_path: Path) -> None:
    torch.save(small_state, tmp_path / "r18.pth")
    with pytest.raises(BadInputError, match="a ResNet, but not resnet50"):
        load_encoder_weights(ResNetEncoder("resnet50"), tmp_path / "r18.pth")
