"""F2R-Backbone (SCFeat III-A, eq. 1): a ResNet encoder, a decoder of two stages, and a fusion of three of their maps.

    D_desc = conv1x1(concat[side0(decoder at h/4), side1(decoder at h/8), side2(encoder at h/16)])     (b 128 h/4 w/4)

A block is a convolution with bias, GroupNorm and ELU. What the paper leaves open is the authors' code: the decoder
upsamples with aligned corners, the sides without.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from featkit.models.scfeat.resnet import Depth, ResNetEncoder

GROUP_NORM_EPS = 1e-5


class BackboneMaps(NamedTuple):
    """descriptors: D_desc, before any normalisation. shallow: the encoder's first map, "F_0" of the paper."""

    descriptors: Float[Tensor, "b d h/4 w/4"]
    shallow: Float[Tensor, "b 64 h/4 w/4"]


class Block(nn.Module):
    """Convolution (k x k, same size), GroupNorm, ELU."""

    def __init__(self, before: int, after: int, kernel_px: int, groups: int):
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel_px, padding=kernel_px // 2)
        self.norm = nn.GroupNorm(groups, after, GROUP_NORM_EPS)

    def forward(self, maps: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        return F.elu(self.norm(self.conv(maps)))


class F2RBackbone(nn.Module):
    """Normalised images -> BackboneMaps. decoder: channels at h/8 and h/4. sides: channels of each fused map."""

    def __init__(self, depth: Depth, decoder: tuple[int, int], sides: int, dimension: int, groups: int):
        super().__init__()
        self.encoder = ResNetEncoder(depth)
        layer1, layer2, layer3 = self.encoder.channels
        eighth, quarter = decoder
        self.up3 = Block(layer3, eighth, 3, groups)
        self.join3 = Block(layer2 + eighth, eighth, 3, groups)
        self.up2 = Block(eighth, quarter, 3, groups)
        self.join2 = Block(layer1 + quarter, quarter, 3, groups)
        self.side0 = Block(quarter, sides, 1, groups)
        self.side1 = Block(eighth, sides, 3, groups)
        self.side2 = Block(layer3, sides, 3, groups)
        self.fuse = nn.Conv2d(3 * sides, dimension, 1)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> BackboneMaps:
        """images: h and w multiples of 16."""
        encoded = self.encoder(images)
        eighth = self.up3(doubled(encoded.layer3))
        eighth = self.join3(torch.cat([encoded.layer2, eighth], dim=1))
        quarter = self.up2(doubled(eighth))
        quarter = self.join2(torch.cat([encoded.layer1, quarter], dim=1))
        sides = [
            self.side0(quarter),
            self.side1(enlarged(eighth, 2)),
            self.side2(enlarged(encoded.layer3, 4)),
        ]
        return BackboneMaps(self.fuse(torch.cat(sides, dim=1)), encoded.shallow)


def doubled(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
    """Bilinear with aligned corners: the outermost pixels' centres stay where they are (authors' code)."""
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)


def enlarged(maps: Float[Tensor, "b c h w"], factor: int) -> Float[Tensor, "b c factor*h factor*w"]:
    """Bilinear, corner to corner."""
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)
