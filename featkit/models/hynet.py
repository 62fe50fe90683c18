"""HyNet's network (Tian et al. 2020), SDGMNet's too: L2-Net with FRN and TLU (Singh and Krishnan 2020) between."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from featkit.models.frn_tlu import FrnTlu
from featkit.models.l2net import CHANNELS, LAST_PX


class HyNet(nn.Module):
    """Patches of 32x32 px -> vectors that are not yet normalised; 1,336,355 parameters for 128 dimensions."""

    def __init__(self, dimension: int, dropout: float, frn_eps: float, tau_init: float):
        super().__init__()
        self.first = FrnTlu(1, frn_eps, tau_init)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride, padding=1) for before, after, stride in CHANNELS
        )
        self.activations = nn.ModuleList(FrnTlu(after, frn_eps, tau_init) for _, after, _ in CHANNELS)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Conv2d(CHANNELS[-1][1], dimension, LAST_PX, bias=False)
        self.norm = nn.BatchNorm2d(dimension, affine=False)

    def forward(self, patches: Float[Tensor, "b 1 32 32"]) -> Float[Tensor, "b d"]:
        maps = self.first(patches)
        for convolution, activation in zip(self.convolutions, self.activations, strict=True):
            maps = activation(convolution(maps))
        return self.norm(self.last(self.dropout(maps))).flatten(1)
