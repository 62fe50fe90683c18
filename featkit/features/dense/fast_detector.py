"""Bridge and detector as they run on one image, or on a tile of it.

At the image's own resolution the detector has hundreds of channels. They are computed some rows at a time, so that they
stay in the cache, and kept between the two passes that an instance norm takes only when that is little memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from featkit.features.dense.convolutions import Convolution, convolution, copied
from featkit.features.dense.fast_peakiness import fast_peakiness
from featkit.features.dense.statistics import Moments, Statistics
from featkit.features.dense.upsampled_conv import BLOCK, UpsampledConv, resampling
from featkit.features.dense.window import Window
from featkit.models.scfeat.backbone import enlarged
from featkit.models.scfeat.cross_norm import EPS, CrossNorm
from featkit.models.scfeat.detector import INSTANCE_NORM_EPS, SCALE, Detector

KEPT_BYTES = 1 << 30
"""Largest map that is kept instead of computed twice."""


class FastBridge:
    """What the bridge computes, with a copy of its weights. float32."""

    def __init__(self, bridge: nn.Module):
        self._bridge = copy.deepcopy(bridge) if isinstance(bridge, CrossNorm) else None

    def __call__(self, fused: Float[Tensor, "1 d h w"], statistics: Statistics) -> Float[Tensor, "1 d h w"]:
        """The descriptor map behind the bridge. Raises NotYetKnown."""
        if self._bridge is None:
            return fused
        channel_scale, channel_shift = statistics.moments(bridge=fused)["bridge"].affine(EPS)
        position_share, channel_share = self._bridge.shares()
        rows = fused.permute(0, 2, 3, 1)
        mean = rows.mean(3, keepdim=True)
        deviation = rows - mean
        variance = deviation.square().sum(3, keepdim=True) / (rows.shape[3] - 1)
        mean_map = mean.permute(0, 3, 1, 2)
        scale, shift = (conv(mean_map).permute(0, 2, 3, 1) for conv in (self._bridge.scale, self._bridge.shift))
        result = torch.addcmul(channel_shift * channel_share, rows, channel_scale * channel_share)
        result.addcmul_(deviation, torch.rsqrt(variance + EPS) * scale * position_share).add_(shift * position_share)
        return result.permute(0, 3, 1, 2)


class FastDetector:
    """What a Detector computes in eval mode, with a copy of its weights. float32."""

    def __init__(self, detector: Detector):
        self._head, self._slope = detector.head, float(detector.activation.weight)
        self._feature = copied(detector.feature)
        self._image_weight, self._image_bias = detector.image.weight.detach().clone(), _bias(detector.image)
        features, merge = detector.feature.out_channels, detector.merge.weight.detach()
        self._merge_feature = UpsampledConv(merge[:, :features], None, SCALE)
        self._merge_image = convolution(merge[:, features:].contiguous(), _bias(detector.merge))
        self._last, self._last_bias = detector.last.weight.detach().flatten().clone(), _bias(detector.last)

    def __call__(
        self,
        images: Float[Tensor, "1 3 h w"],
        normalised: Float[Tensor, "1 d h/4 w/4"],
        shallow: Float[Tensor, "1 64 h/4 w/4"],
        window: Window,
        statistics: Statistics,
    ) -> Float[Tensor, "1 1 h w"]:
        """Scores. images: normalised; what lies in `window`. Raises NotYetKnown."""
        given = torch.cat([normalised.permute(0, 2, 3, 1), shallow.permute(0, 2, 3, 1)], dim=3).permute(0, 3, 1, 2)
        peaks = None
        if self._head == "scfeat":
            largest = statistics.maxima(feature_peak=given, image_peak=images)
            feature_peak = fast_peakiness(given, largest["feature_peak"])
            image_peak = fast_peakiness(images, largest["image_peak"])
            given, images = given.mul_(feature_peak), images * image_peak
            peaks = enlarged(feature_peak, SCALE).mul_(image_peak)
        feature = self._feature(given)
        moments = statistics.moments(feature=feature, image=self._image_bands(images, None))
        feature = self._normed(feature, moments["feature"])
        logits = self._logits(feature, images, moments["image"], window, statistics)
        scale, shift = statistics.moments(last=logits)["last"].affine(INSTANCE_NORM_EPS)
        scores = F.softplus(logits * scale + shift)
        return scores if peaks is None else scores.mul_(peaks)

    def _logits(
        self,
        feature: Float[Tensor, "1 f h/4 w/4"],
        images: Float[Tensor, "1 3 h w"],
        image_moments: Moments,
        window: Window,
        statistics: Statistics,
    ) -> Float[Tensor, "1 1 h w"]:
        """The detector's last convolution."""
        height, width = images.shape[2:]
        keeps = 4 * len(self._last) * height * width <= KEPT_BYTES
        kept: list[tuple[int, Tensor]] = []

        def bands() -> Iterator[tuple[int, Tensor]]:
            for band in self._merged_bands(feature, images, image_moments, window):
                if keeps:
                    kept.append(band)
                yield band

        moments = statistics.moments(merged=bands())["merged"]
        logits = images.new_empty((height, width))
        for first, merged in kept or self._merged_bands(feature, images, image_moments, window):
            values = self._normed(merged, moments).permute(0, 2, 3, 1)
            logits[first : first + values.shape[1]] = values[0] @ self._last
        return logits.add_(self._last_bias)[None, None]

    def _merged_bands(
        self,
        feature: Float[Tensor, "1 f h/4 w/4"],
        images: Float[Tensor, "1 3 h w"],
        image_moments: Moments,
        window: Window,
    ) -> Iterator[tuple[int, Float[Tensor, "1 m rows w"]]]:
        """H1 before its normalisation."""
        coarse = window.at(SCALE)
        image_bands = self._image_bands(images, image_moments, margin=1)
        for (first, image), block in zip(image_bands, resampling(coarse.rows, SCALE, False, BLOCK), strict=True):
            merged = self._merge_image(image, margin=True)
            wide = self._merge_feature.widened(feature[:, :, block.low : block.high], coarse.columns)
            shifted = block._replace(low=0, high=block.high - block.low)
            self._merge_feature.heightened(wide, shifted, merged[0].permute(1, 2, 0))
            yield first, merged

    def _image_bands(
        self, images: Float[Tensor, "1 3 h w"], moments: Moments | None, margin: int = 0
    ) -> Iterator[tuple[int, Float[Tensor, "1 i rows w"]]]:
        """H_r, some rows at a time; before its normalisation when `moments` are not given.

        margin: rows that a band has besides, above and below: zeros beyond the image.
        """
        height = images.shape[2]
        conv = self._image_convolution(moments)
        for first in range(0, height, BLOCK):
            last = min(first + BLOCK, height)
            low, high = max(first - margin, 0), min(last + margin, height)
            rows = images[:, :, max(low - 1, 0) : min(high + 1, height)]
            band = conv(F.pad(rows, (0, 0, int(low == 0), int(high == height))), margin=True)
            if moments is not None and self._head == "scfeat":
                F.leaky_relu_(band, self._slope)
            missing = (low - (first - margin), last + margin - high)
            yield first, F.pad(band, (0, 0, *missing)) if any(missing) else band

    def _image_convolution(self, moments: Moments | None) -> Convolution:
        """The detector's convolution of the image, with its instance norm folded in when that is known."""
        if moments is None:
            return convolution(self._image_weight, self._image_bias)
        scale, shift = moments.affine(INSTANCE_NORM_EPS)
        return convolution(self._image_weight * scale.view(-1, 1, 1, 1), self._image_bias * scale + shift)

    def _normed(self, maps: Float[Tensor, "1 c h w"], moments: Moments) -> Float[Tensor, "1 c h w"]:
        """Instance norm and PReLU; the maps are overwritten."""
        scale, shift = moments.affine(INSTANCE_NORM_EPS)
        rows = maps.permute(0, 2, 3, 1)
        torch.addcmul(shift, rows, scale, out=rows)
        F.leaky_relu_(rows, self._slope)
        return maps


def _bias(conv: nn.Conv2d) -> Float[Tensor, " o"]:
    assert conv.bias is not None
    return conv.bias.detach().clone()
