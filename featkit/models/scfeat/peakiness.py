"""How much a pixel stands out, among its neighbours and among its channels (SCFeat III-C (2), eq. 4 to 6).

    eta  = softplus(y - mean of y over the channels)          one per channel and pixel
    zeta = softplus(y - mean of y over the 3x3 neighbours)    one per channel and pixel, the border mirrored
    S    = max over the channels of zeta * eta                (b 1 h w)

y: a map (b c h w) over its largest value in all channels and pixels of the image. The paper leaves this scaling out;
the authors' code has it. It takes a positive maximum for granted, which a dark image does not have: `floor` bounds it
below.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

KERNEL_PX = 3
FLOOR = 0.1
"""Least divisor: an image normalised as ImageNet's has this maximum when nothing in it is brighter than 0.5."""


def peakiness(maps: Float[Tensor, "b c h w"], floor: float = FLOOR) -> Float[Tensor, "b 1 h w"]:
    """Eq. 6 of maps scaled by their own maximum."""
    return peakiness_of_scaled(maps / largest(maps, floor))


def largest(maps: Float[Tensor, "b c h w"], floor: float = FLOOR) -> Float[Tensor, "b 1 1 1"]:
    """What maps are divided by."""
    return maps.amax(dim=(1, 2, 3), keepdim=True).clamp_min(floor)


def peakiness_of_scaled(y: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Eq. 4 to 6."""
    eta = F.softplus(y - y.mean(dim=1, keepdim=True))
    zeta = F.softplus(y - neighbour_mean(y))
    return (zeta * eta).amax(dim=1, keepdim=True)


def neighbour_mean(y: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Mean over 3x3 pixels, the border mirrored (without repeating the outermost pixel)."""
    margin = KERNEL_PX // 2
    return F.avg_pool2d(F.pad(y, (margin,) * 4, mode="reflect"), KERNEL_PX, stride=1)
