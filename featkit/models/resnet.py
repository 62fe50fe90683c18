"""The encoder: ResNet-18 or ResNet-50 (He et al. 2016) up to layer3, with torchvision's parameter names.

An ImageNet state dict therefore loads unchanged; its layer4 and fc are ignored.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featkit.core.errors import BadInputError

Depth = Literal["resnet50", "resnet18"]
BLOCKS: dict[str, tuple[int, int, int]] = {"resnet50": (3, 4, 6), "resnet18": (2, 2, 2)}
"""Blocks of layer1, layer2 and layer3."""
WIDTH = 64
"""Channels of the stem and within the blocks of layer1; layer2 has twice, layer3 four times as many."""
EXPANSION = {"resnet50": 4, "resnet18": 1}
"""Ratio of a block's output channels to its inner channels."""
UNUSED = ("layer4.", "fc.")
WRAPPERS = (
    "module.",
    "_orig_mod.",
    "encoder.",
    "backbone.",
)  # prefixes of DataParallel, torch.compile and larger networks
CONTAINERS = ("state_dict", "model_state_dict", "model")


class EncoderMaps(NamedTuple):
    """Feature maps of an image (b 3 h w). shallow: after the stem, "Encoder_0" in the paper; s = width channels."""

    shallow: Float[Tensor, "b s h/4 w/4"]
    layer1: Float[Tensor, "b c1 h/4 w/4"]
    layer2: Float[Tensor, "b c2 h/8 w/8"]
    layer3: Float[Tensor, "b c3 h/16 w/16"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: ResNet-18."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(before, width, stride)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        kept = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + kept)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides) and 1x1 convolutions around a shortcut: ResNet-50."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        after = width * EXPANSION["resnet50"]
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample = _shortcut(before, after, stride)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        kept = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return torch.relu(self.bn3(self.conv3(x)) + kept)


def _shortcut(before: int, after: int, stride: int) -> nn.Sequential | None:
    if before == after and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


class ResNetEncoder(nn.Module):
    """ImageNet-normalised images -> EncoderMaps; 8,543,296 parameters for ResNet-50, 2,782,784 for ResNet-18.

    width: 64 is He et al.'s. channels: of layer1, layer2 and layer3.
    """

    def __init__(self, depth: Depth, width: int = WIDTH):
        super().__init__()
        self.depth: Depth = depth
        self.width = width
        self.channels = tuple(width * times * EXPANSION[depth] for times in (1, 2, 4))
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = self._layer(0, width)
        self.layer2 = self._layer(1, self.channels[0])
        self.layer3 = self._layer(2, self.channels[1])

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> EncoderMaps:
        shallow = self.maxpool(torch.relu(self.bn1(self.conv1(images))))
        layer1 = self.layer1(shallow)
        layer2 = self.layer2(layer1)
        return EncoderMaps(shallow, layer1, layer2, self.layer3(layer2))

    def _layer(self, index: int, before: int) -> nn.Sequential:
        block = Bottleneck if self.depth == "resnet50" else BasicBlock
        width, after = self.width * 2**index, self.channels[index]
        first = block(before, width, stride=1 if index == 0 else 2)
        return nn.Sequential(first, *(block(after, width, 1) for _ in range(BLOCKS[self.depth][index] - 1)))


def load_encoder_weights(network: nn.Module, file: Path) -> None:
    """Fill the ResNetEncoder in `network` (or `network` itself) from an ImageNet checkpoint, .pth or .safetensors.

    Raises BadInputError for a file that is not a ResNet, has another depth, is damaged, or would execute code.
    """
    encoder = next((module for module in network.modules() if isinstance(module, ResNetEncoder)), None)
    if encoder is None:
        raise ValueError("the network has no ResNet encoder")
    given = {_without_prefixes(name): tensor for name, tensor in _read_tensors(file).items()}
    given = {name: tensor for name, tensor in given.items() if not name.startswith(UNUSED)}
    wanted = encoder.state_dict()
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    if "conv1.weight" in missing or "layer1.0.conv1.weight" in missing:
        some = ", ".join(sorted(given)[:3]) or "none"
        raise BadInputError(f"{file}: not the weights of a ResNet (its tensors: {some})")
    unknown = [name for name in given if name.startswith("layer") and name not in wanted]
    misshapen = [name for name in wanted if name in given and given[name].shape != wanted[name].shape]
    if missing or unknown or misshapen:
        first = (missing or unknown or misshapen)[0]
        raise BadInputError(f"{file}: a ResNet, but not {encoder.depth} (they differ at {first!r})")
    for name, tensor in given.items():
        if name in wanted and not bool(torch.isfinite(tensor).all()):
            raise BadInputError(f"{file}: {name!r} contains NaN or infinity; the file cannot be used")
    encoder.load_state_dict({name: given.get(name, wanted[name]) for name in wanted})


def _without_prefixes(name: str) -> str:
    shortened = True
    while shortened:
        shortened = False
        for wrapper in WRAPPERS:
            if name.startswith(wrapper):
                name, shortened = name.removeprefix(wrapper), True
    return name


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors or torch.save file. Raises BadInputError."""
    if not file.is_file():
        raise BadInputError(f"{file}: no such file")
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise BadInputError(f"{file}: not a safetensors file ({str(error).splitlines()[0]})") from None
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise BadInputError(
            f"{file}: a pickle that is not tensors; loading it could run code, so it is refused"
        ) from None
    except Exception as error:  # torch and zipfile raise various exceptions for a damaged file
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"{file}: not a PyTorch checkpoint ({what[:100]})") from None
    for key in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BadInputError(f"{file}: not the weights of a network (no named tensors)")
    return content
