"""The F2R backbone as it runs on one image, or on a tile of it: the same maps with a third of the arithmetic."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from featkit.features.dense.convolutions import copied
from featkit.features.dense.fast_encoder import FastEncoder
from featkit.features.dense.statistics import Moments, Statistics
from featkit.features.dense.upsampled_conv import UpsampledConv
from featkit.features.dense.window import Window
from featkit.models.scfeat.backbone import BackboneMaps, Block, F2RBackbone


class FastBackbone:
    """What an F2RBackbone computes in eval mode, with a copy of its weights. float32."""

    def __init__(self, backbone: F2RBackbone):
        self._encoder = FastEncoder(backbone.encoder)
        self._up3 = _upsampled(backbone.up3, factor=2, aligned=True)
        self._up2 = _upsampled(backbone.up2, factor=2, aligned=True)
        self._side1 = _upsampled(backbone.side1, factor=2, aligned=False)
        self._side2 = _upsampled(backbone.side2, factor=4, aligned=False)
        self._join3, self._join2, self._side0, self._fuse = (
            copied(conv) for conv in (backbone.join3.conv, backbone.join2.conv, backbone.side0.conv, backbone.fuse)
        )
        names = ("up3", "join3", "up2", "join2", "side0", "side1", "side2")
        self._activations = {name: _NormElu(cast(Block, getattr(backbone, name)).norm) for name in names}

    def __call__(self, images: Float[Tensor, "1 3 h w"], window: Window, statistics: Statistics) -> BackboneMaps:
        """images: normalised; what lies in `window`, with sides that are multiples of 16. Raises NotYetKnown."""
        encoded = self._encoder(images)
        eighth = self._activated(statistics, up3=self._up3(encoded.layer3, window.at(16)))[0]
        eighth = self._activated(statistics, join3=self._join3(encoded.layer2, eighth))[0]
        quarter = self._activated(statistics, up2=self._up2(eighth, window.at(8)))[0]
        quarter = self._activated(statistics, join2=self._join2(encoded.layer1, quarter))[0]
        sides = self._activated(
            statistics,
            side0=self._side0(quarter),
            side1=self._side1(eighth, window.at(8)),
            side2=self._side2(encoded.layer3, window.at(16)),
        )
        return BackboneMaps(self._fuse(*sides), encoded.shallow)

    def _activated(self, statistics: Statistics, **maps: Tensor) -> list[Tensor]:
        """GroupNorm and ELU of each, in its place."""
        moments = statistics.moments(**maps)
        return [self._activations[name](values, moments[name]) for name, values in maps.items()]


class _NormElu:
    """GroupNorm and ELU of maps whose statistics are known; the maps are overwritten."""

    def __init__(self, norm: nn.GroupNorm):
        self._eps, self._groups = norm.eps, norm.num_groups
        self._weight, self._bias = norm.weight.detach().clone(), norm.bias.detach().clone()

    def __call__(self, maps: Float[Tensor, "1 c h w"], moments: Moments) -> Float[Tensor, "1 c h w"]:
        scale, shift = moments.affine(self._eps, self._groups, self._weight, self._bias)
        rows = maps.permute(0, 2, 3, 1)
        torch.addcmul(shift, rows, scale, out=rows)
        F.elu_(rows)
        return maps


def _upsampled(block: Block, factor: int, aligned: bool) -> UpsampledConv:
    assert block.conv.bias is not None
    return UpsampledConv(block.conv.weight.detach(), block.conv.bias.detach().clone(), factor, aligned)
