"""L2-Net (Tian et al. 2017) as HardNet trains it: seven convolutions without bias, BatchNorm without affine, ReLU."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

InputNorm = Literal["standard_deviation", "variance"]
CHANNELS = ((1, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))
"""Input channels, output channels and stride of the six 3x3 convolutions."""
LAST_PX = 8
"""Side of the maps that reach the last convolution, which sees all of them."""


class L2Net(nn.Module):
    """Patches of 32x32 px -> vectors that are not yet normalised; 1,334,560 parameters for 128 dimensions.

    Published HardNet checkpoints name their tensors `features.*` too.
    """

    def __init__(self, dimension: int, dropout: float, input_norm: InputNorm, input_eps: float):
        """input_eps: see `standardise`."""
        super().__init__()
        self.input_norm: InputNorm = input_norm
        self.input_eps = input_eps
        layers: list[nn.Module] = []
        for before, after, stride in CHANNELS:
            layers += [
                nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(after, affine=False),
                nn.ReLU(inplace=True),
            ]
        layers += [
            nn.Dropout(dropout),
            nn.Conv2d(CHANNELS[-1][1], dimension, LAST_PX, bias=False),
            nn.BatchNorm2d(dimension, affine=False),
        ]
        self.features = nn.Sequential(*layers)

    def forward(self, patches: Float[Tensor, "b 1 32 32"]) -> Float[Tensor, "b d"]:
        return self.features(standardise(patches, self.input_norm, self.input_eps)).flatten(1)


def standardise(patches: Float[Tensor, "b 1 s s"], norm: InputNorm, eps: float) -> Float[Tensor, "b 1 s s"]:
    """Patches with mean 0 and deviation 1 each; a constant patch becomes 0.

    standard_deviation: divided by (unbiased deviation + eps), mean and deviation held constant in the gradient
    (HardNet's code, eps 1e-7). variance: divided by sqrt(biased variance + eps) (SOSNet's InstanceNorm, eps 1e-5).
    """
    if norm == "variance":
        variance, mean = torch.var_mean(patches, dim=(1, 2, 3), correction=0, keepdim=True)
        return (patches - mean) * torch.rsqrt(variance + eps)
    deviation, mean = torch.std_mean(patches.detach(), dim=(1, 2, 3), keepdim=True)
    return (patches - mean) / (deviation + eps)
