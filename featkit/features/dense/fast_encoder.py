"""The ResNet encoder as it runs: the same maps in fewer passes over memory."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featkit.features.dense.convolutions import Convolution, folded
from featkit.models.scfeat.resnet import BasicBlock, Bottleneck, EncoderMaps, ResNetEncoder


class FastEncoder:
    """What a ResNetEncoder computes in eval mode, for one image, with a copy of its weights."""

    def __init__(self, encoder: ResNetEncoder):
        self._stem = folded(encoder.conv1, encoder.bn1)
        self._maxpool = encoder.maxpool
        layers = (encoder.layer1, encoder.layer2, encoder.layer3)
        self._layers = [[_Residual(cast(BasicBlock | Bottleneck, block)) for block in layer] for layer in layers]

    def __call__(self, images: Float[Tensor, "1 3 h w"]) -> EncoderMaps:
        """images: normalised."""
        maps = [self._maxpool(self._stem(images)).relu_()]  # a maximum of what is cut at 0, in a quarter of the work
        for layer in self._layers:
            x = maps[-1]
            for block in layer:
                x = block(x)
            maps.append(x)
        return EncoderMaps(*maps)


class _Residual:
    def __init__(self, block: BasicBlock | Bottleneck):
        pairs: list[tuple[nn.Conv2d, nn.Module]] = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        *self._inner, self._last = [folded(conv, norm) for conv, norm in pairs]
        self._shortcut: Convolution | None = None
        if block.downsample is not None:
            self._shortcut = folded(cast(nn.Conv2d, block.downsample[0]), block.downsample[1])

    def __call__(self, x: Float[Tensor, "1 i h w"]) -> Float[Tensor, "1 o h2 w2"]:
        kept = x if self._shortcut is None else self._shortcut(x)
        for conv in self._inner:
            x = torch.relu_(conv(x))
        return torch.relu_(self._last(x).add_(kept))
