"""The detection network (SCFeat III-C, eq. 7 to 13): a score for every pixel of the image.

    S_l = peak(F_cn + F_0)    S_r = peak(I)                                     eq. 7, 8: (b 1 h/4 w/4), (b 1 h w)
    H_l = prelu(IN(conv3x3(S_l * (F_cn + F_0))))    H_r = prelu(IN(conv3x3(S_r * I)))                    eq. 9, 10
    H1 = prelu(IN(conv3x3(up(H_l) + H_r)))    H2 = softplus(IN(conv1x1(H1)))                            eq. 11, 12
    S = up(S_l) * S_r * H2                                                                  eq. 13: (b 1 h w), > 0

"+" on maps is concatenation. F_cn: the map behind the bridge, 128 channels at h/4. F_0: the encoder's first map, 64
channels at h/4. I: the normalised image. IN: instance norm, neither affine nor with running statistics. All PReLUs
share one slope (authors' code). Head "posfeat" (Li et al. 2022): S_l = S_r = 1, and no PReLU on H_r.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from featkit.models.scfeat.backbone import enlarged
from featkit.models.scfeat.peakiness import peakiness

Head = Literal["scfeat", "posfeat"]
INSTANCE_NORM_EPS = 1e-5
SCALE = 4
"""Pixels of the image per pixel of the descriptor map."""


class Detector(nn.Module):
    """Descriptor maps and image -> scores; 628,930 parameters in the paper's widths.

    before: channels of F_cn and F_0 together. feature, image, merged: channels of H_l, H_r and H1.
    """

    def __init__(self, before: int, feature: int, image: int, merged: int, head: Head):
        super().__init__()
        self.head: Head = head
        self.feature = nn.Conv2d(before, feature, 3, padding=1)
        self.image = nn.Conv2d(3, image, 3, padding=1)
        self.merge = nn.Conv2d(feature + image, merged, 3, padding=1)
        self.last = nn.Conv2d(merged, 1, 1)
        self.activation = nn.PReLU()

    def forward(self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b c h/4 w/4"]) -> Float[Tensor, "b 1 h w"]:
        """images: normalised. maps: F_cn and F_0."""
        if self.head == "posfeat":
            feature = self.activation(instance_norm(self.feature(maps)))
            image = instance_norm(self.image(images))
            return self._merged(feature, image)
        feature_peaks, image_peaks = peakiness(maps), peakiness(images)
        feature = self.activation(instance_norm(self.feature(feature_peaks * maps)))
        image = self.activation(instance_norm(self.image(image_peaks * images)))
        return enlarged(feature_peaks, SCALE) * image_peaks * self._merged(feature, image)

    def _merged(
        self, feature: Float[Tensor, "b f h/4 w/4"], image: Float[Tensor, "b i h w"]
    ) -> Float[Tensor, "b 1 h w"]:
        both = torch.cat([enlarged(feature, SCALE), image], dim=1)
        merged = self.activation(instance_norm(self.merge(both)))
        return F.softplus(instance_norm(self.last(merged)))


def instance_norm(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Every channel of every image with mean 0 and (biased) variance 1."""
    return F.instance_norm(maps, eps=INSTANCE_NORM_EPS)
