"""The shared coupling bridge: cross normalisation of a descriptor map (SCFeat III-B, eq. 2 and 3; Fig. 5).

    D^ = w_s * (gamma * (D - mu_s) / sqrt(sigma_s^2 + eps) + beta) + w_c * (D - mu_c) / sqrt(sigma_c^2 + eps)

D: (b c h w). mu_s, sigma_s: of a pixel's channels. mu_c, sigma_c: of a channel's pixels. gamma and beta are one value
a pixel, each a 7x7 convolution of the map of mu_s. The paper leaves gamma, beta and w open; the authors' code settles
them: unbiased sigma_s, biased sigma_c, no affine map on the channel side, (w_s, w_c) = (a, b) / (a + b) with a and b
learned from 0.7 and 0.3. 102 parameters.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

KERNEL_PX = 7
START = (0.7, 0.3)
"""Weights of the position and the channel branch before training (authors' code)."""
EPS = 1e-5


class CrossNorm(nn.Module):
    """Eq. 3: the descriptor map before the bridge -> the one behind it, of the same shape. Its vectors are not unit."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Conv2d(1, 1, KERNEL_PX, padding=KERNEL_PX // 2)
        self.shift = nn.Conv2d(1, 1, KERNEL_PX, padding=KERNEL_PX // 2)
        self.position_weight = nn.Parameter(torch.tensor(START[0]))
        self.channel_weight = nn.Parameter(torch.tensor(START[1]))

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        variance, mean = torch.var_mean(maps, dim=(2, 3), correction=0, keepdim=True)
        return self.mixed(maps, mean, variance)

    def mixed(
        self, maps: Float[Tensor, "b c h w"], mean: Float[Tensor, "b c 1 1"], variance: Float[Tensor, "b c 1 1"]
    ) -> Float[Tensor, "b c h w"]:
        """The same when mean and variance of each channel over the whole image are known."""
        position_share, channel_share = self.shares()
        channel = (maps - mean) * torch.rsqrt(variance + EPS)
        return position_share * self.position_branch(maps) + channel_share * channel

    def position_branch(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        variance, mean = torch.var_mean(maps, dim=1, correction=1, keepdim=True)
        return (maps - mean) * (torch.rsqrt(variance + EPS) * self.scale(mean)) + self.shift(mean)

    def shares(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """w_s and w_c: they add up to 1."""
        total = self.position_weight + self.channel_weight
        return self.position_weight / total, self.channel_weight / total
