"""DOAP's Spatial Transformer (He et al. 2018, section 4.2 and appendix B): aligns a patch before it is described.

The paper says: 42x42 px in, three convolutions that predict a 6-DOF affine map, 32x32 px sampled by it, identity at the
start, learning rate of the prediction layer x 0.01, boundary pixels repeated outside the patch. It does not give the
convolutions' sizes: they are ours, in the manner of L2-Net.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from featkit.models.l2net import standardise

INPUT_PX = 42
OUTPUT_PX = 32
CHANNELS = (16, 32)
STANDARDISE_EPS = 1e-7


class SpatialTransformer(nn.Module):
    """Patches of 42x42 px -> patches of 32x32 px of the same grey values, seen through a predicted affine map.

    Untrained it is the identity map: the whole patch at 32x32 px, bilinear with half-pixel centres, so that the same
    square of the image is described as without it.
    """

    def __init__(self) -> None:
        super().__init__()
        first, second = CHANNELS
        self.features = nn.Sequential(
            nn.Conv2d(1, first, 5, stride=2, padding=2, bias=False),  # 42 -> 21
            nn.BatchNorm2d(first, affine=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 5, stride=2, padding=2, bias=False),  # 21 -> 11
            nn.BatchNorm2d(second, affine=False),
            nn.ReLU(inplace=True),
        )
        self.prediction = nn.Conv2d(second, 6, 11)

    def start_as_identity(self) -> None:
        """Predict the identity map for every patch."""
        nn.init.zeros_(self.prediction.weight)
        nn.init.zeros_(self.prediction.bias)

    def affine(self, patches: Float[Tensor, "b 1 42 42"]) -> Float[Tensor, "b 2 3"]:
        """Maps from output to input coordinates (x, y, 1), both in [-1, 1] over the whole patch."""
        change = self.prediction(self.features(standardise(patches, "standard_deviation", STANDARDISE_EPS)))
        change = change.to(torch.promote_types(change.dtype, torch.float32))
        return torch.eye(2, 3, dtype=change.dtype, device=change.device) + change.reshape(-1, 2, 3)

    def forward(self, patches: Float[Tensor, "b 1 42 42"]) -> Float[Tensor, "b 1 32 32"]:
        affine = self.affine(patches)
        with torch.autocast(patches.device.type, enabled=False):  # a sampling position needs all its bits
            grid = F.affine_grid(affine, [len(patches), 1, OUTPUT_PX, OUTPUT_PX], align_corners=False)
            return F.grid_sample(patches.to(grid.dtype), grid, padding_mode="border", align_corners=False)
