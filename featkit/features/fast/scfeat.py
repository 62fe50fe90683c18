"""SCFeat inference: on the CPU with less arithmetic, on a GPU in batches, large images in tiles."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cached_property
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from featkit.features.fast.convolutions import (
    BLOCK,
    Convolution,
    UpsampledConv,
    convolution,
    copy_convolution,
    folded_convolution,
    resampling,
)
from featkit.features.fast.tiles import Moments, Statistics, Tile, TiledImage, WholeImage, Window, process_tiles, tiles
from featkit.models.resnet import BasicBlock, Bottleneck, EncoderMaps, ResNetEncoder
from featkit.models.scfeat import (
    EPS,
    FLOOR,
    INSTANCE_NORM_EPS,
    SCALE,
    BackboneMaps,
    Block,
    CrossNorm,
    Detector,
    F2RBackbone,
    SCFeatNetwork,
    upsample,
)

Precision = Literal["fp32", "bf16"]
DescriptorMap = Literal["fused", "normalised"]
BACKBONE_MARGIN_PX = 192
"""Margin for the fused map, whose receptive field to each side is 187 px with ResNet-50, 159 px with ResNet-18."""
DETECTOR_MARGIN_PX = 32
"""Margin for scores, whose receptive field in the fused map is 25 px to each side."""


class DenseFeatures(NamedTuple):
    """Dense output, float32. descriptors: not normalised. scores: > 0."""

    descriptors: Float[Tensor, "b d h/4 w/4"]
    scores: Float[Tensor, "b 1 h w"]


class FrozenSCFeat:
    """An SCFeatNetwork in eval mode on one device, with a copy of its weights.

    descriptor_map: map that descriptors are sampled from. max_pixels: of one forward pass; larger images are computed
    in tiles, in float32, with the same result up to rounding (about ten times slower). fast: use the optimised
    implementation, one image at a time and in float32; None: on the CPU only.
    """

    def __init__(
        self,
        network: SCFeatNetwork,
        device: torch.device,
        precision: Precision = "fp32",
        descriptor_map: DescriptorMap = "fused",
        max_pixels: int = 1 << 62,
        compiled: bool = False,
        fast: bool | None = None,
    ):
        self.device, self.dimension, self.max_pixels = device, network.dimension, max_pixels
        self._network = copy.deepcopy(network).to(device).eval().requires_grad_(False)
        self._precision, self._map = precision, descriptor_map
        self._is_fast = (device.type == "cpu" and precision == "fp32") if fast is None else fast
        self._forward = torch.compile(self._network) if compiled else self._network

    @cached_property
    def _bridge(self) -> FastBridge:
        return FastBridge(self._network.bridge)

    @cached_property
    def _backbone(self) -> FastBackbone:
        return FastBackbone(self._network.backbone)

    @cached_property
    def _detector(self) -> FastDetector:
        return FastDetector(self._network.detector)

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "b h w 3"]) -> DenseFeatures:
        """images: RGB, on any device, sides that are multiples of 16."""
        given = images.to(self.device).permute(0, 3, 1, 2)
        height, width = given.shape[2:]
        if height * width > self.max_pixels:
            return _stack_features([self._in_tiles(image[None]) for image in given])
        if self._is_fast:
            return _stack_features([self._fast(image[None]) for image in given])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            maps, scores = self._forward(given.float().div_(255))
        chosen = maps.normalised if self._map == "normalised" else maps.descriptors
        return DenseFeatures(chosen.float(), scores.float())

    def _fast(self, image: UInt8[Tensor, "1 3 h w"]) -> DenseFeatures:
        window, statistics = Window.whole(*image.shape[2:]), WholeImage()
        pixels = self._normalised(image)
        fused, shallow = self._backbone(pixels, window, statistics)
        normalised = self._bridge(fused, statistics)
        scores = self._detector(pixels, normalised, shallow, window, statistics)
        return DenseFeatures(normalised if self._map == "normalised" else fused, scores)

    def _in_tiles(self, image: UInt8[Tensor, "1 3 h w"]) -> DenseFeatures:
        fused, shallow = self._maps_in_tiles(image)
        height, width = image.shape[2:]
        scores = fused.new_empty((1, 1, height, width))

        def compute(tile: Tile, statistics: TiledImage) -> Tensor:
            pixels = self._normalised(_crop_contiguous(image, tile.window))
            normalised = self._bridge(_crop_contiguous(fused, tile.window.at(SCALE)), statistics)
            return self._detector(
                pixels, normalised, _crop_contiguous(shallow, tile.window.at(SCALE)), tile.window, statistics
            )

        def deliver(tile: Tile, found: Tensor) -> None:
            _crop_view(scores, tile.core).copy_(tile.cropped(found))

        process_tiles(tiles(height, width, DETECTOR_MARGIN_PX, self.max_pixels), compute, deliver)
        return DenseFeatures(self._bridge(fused, WholeImage()) if self._map == "normalised" else fused, scores)

    def _maps_in_tiles(self, image: UInt8[Tensor, "1 3 h w"]) -> BackboneMaps:
        height, width = image.shape[2:]
        channels = (self.dimension, self._network.detector.feature.in_channels - self.dimension)
        whole = BackboneMaps(
            *(
                torch.empty((1, height // SCALE, width // SCALE, count), device=self.device).permute(0, 3, 1, 2)
                for count in channels
            )
        )

        def compute(tile: Tile, statistics: TiledImage) -> BackboneMaps:
            return self._backbone(self._normalised(_crop_contiguous(image, tile.window)), tile.window, statistics)

        def deliver(tile: Tile, found: BackboneMaps) -> None:
            for maps, part in zip(whole, found, strict=True):
                _crop_view(maps, tile.core.at(SCALE)).copy_(tile.cropped(part))

        process_tiles(tiles(height, width, BACKBONE_MARGIN_PX, self.max_pixels), compute, deliver)
        return whole

    def _normalised(self, image: UInt8[Tensor, "1 3 h w"]) -> Float[Tensor, "1 3 h w"]:
        scaled = image.float().contiguous(memory_format=torch.channels_last).div_(255)
        return scaled.sub_(self._network.mean).div_(self._network.std)


def _crop_view(maps: Tensor, window: Window) -> Tensor:
    (_, top, rows), (_, left, columns) = window
    return maps[:, :, top : top + rows, left : left + columns]


def _crop_contiguous(maps: Tensor, window: Window) -> Tensor:
    return _crop_view(maps, window).contiguous(memory_format=torch.channels_last)


def _stack_features(found: list[DenseFeatures]) -> DenseFeatures:
    return found[0] if len(found) == 1 else DenseFeatures(*(torch.cat(maps) for maps in zip(*found, strict=True)))


# ----------------------------------------------------------------------------------------------------------------------
# The F2R backbone for one image or a tile of it: the same maps with a third of the arithmetic.


class FastBackbone:
    """An F2RBackbone in eval mode, with a copy of its weights. float32."""

    def __init__(self, backbone: F2RBackbone):
        self._encoder = FastEncoder(backbone.encoder)
        self._up3 = _upsampled_conv(backbone.up3, factor=2, aligned=True)
        self._up2 = _upsampled_conv(backbone.up2, factor=2, aligned=True)
        self._side1 = _upsampled_conv(backbone.side1, factor=2, aligned=False)
        self._side2 = _upsampled_conv(backbone.side2, factor=4, aligned=False)
        self._join3, self._join2, self._side0, self._fuse = (
            copy_convolution(conv)
            for conv in (backbone.join3.conv, backbone.join2.conv, backbone.side0.conv, backbone.fuse)
        )
        names = ("up3", "join3", "up2", "join2", "side0", "side1", "side2")
        self._activations = {name: _NormElu(cast(Block, getattr(backbone, name)).norm) for name in names}

    def __call__(self, images: Float[Tensor, "1 3 h w"], window: Window, statistics: Statistics) -> BackboneMaps:
        """images: normalised content of `window`, with sides that are multiples of 16. Raises StatisticsPending."""
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
        """GroupNorm and ELU of each, in place."""
        moments = statistics.moments(**maps)
        return [self._activations[name](values, moments[name]) for name, values in maps.items()]


class _NormElu:
    """GroupNorm and ELU of maps with known statistics, in place."""

    def __init__(self, norm: nn.GroupNorm):
        self._eps, self._groups = norm.eps, norm.num_groups
        self._weight, self._bias = norm.weight.detach().clone(), norm.bias.detach().clone()

    def __call__(self, maps: Float[Tensor, "1 c h w"], moments: Moments) -> Float[Tensor, "1 c h w"]:
        scale, shift = moments.affine(self._eps, self._groups, self._weight, self._bias)
        rows = maps.permute(0, 2, 3, 1)
        torch.addcmul(shift, rows, scale, out=rows)
        F.elu_(rows)
        return maps


def _upsampled_conv(block: Block, factor: int, aligned: bool) -> UpsampledConv:
    assert block.conv.bias is not None
    return UpsampledConv(block.conv.weight.detach(), block.conv.bias.detach().clone(), factor, aligned)


# ----------------------------------------------------------------------------------------------------------------------
# Bridge and detector for one image or a tile of it.
#
# At full image resolution the detector has hundreds of channels. They are computed a few rows at a time, so that
# they stay in the cache, and kept between the two passes of an instance norm only if that takes little memory.


KEPT_BYTES = 1 << 30
"""Largest map that is kept instead of computed twice, bytes."""


class FastBridge:
    """The bridge, with a copy of its weights. float32."""

    def __init__(self, bridge: nn.Module):
        self._bridge = copy.deepcopy(bridge) if isinstance(bridge, CrossNorm) else None

    def __call__(self, fused: Float[Tensor, "1 d h w"], statistics: Statistics) -> Float[Tensor, "1 d h w"]:
        """The descriptor map after the bridge. Raises StatisticsPending."""
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
    """A Detector in eval mode, with a copy of its weights. float32."""

    def __init__(self, detector: Detector):
        self._head, self._slope = detector.head, float(detector.activation.weight)
        self._feature = copy_convolution(detector.feature)
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
        """Scores. images: normalised content of `window`. Raises StatisticsPending."""
        given = torch.cat([normalised.permute(0, 2, 3, 1), shallow.permute(0, 2, 3, 1)], dim=3).permute(0, 3, 1, 2)
        peaks = None
        if self._head == "scfeat":
            largest = statistics.maxima(feature_peak=given, image_peak=images)
            feature_peak = fast_peakiness(given, largest["feature_peak"])
            image_peak = fast_peakiness(images, largest["image_peak"])
            given, images = given.mul_(feature_peak), images * image_peak
            peaks = upsample(feature_peak, SCALE).mul_(image_peak)
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
            wide = self._merge_feature.upsample_columns(feature[:, :, block.low : block.high], coarse.columns)
            shifted = block._replace(low=0, high=block.high - block.low)
            self._merge_feature.add_upsampled_rows(wide, shifted, merged[0].permute(1, 2, 0))
            yield first, merged

    def _image_bands(
        self, images: Float[Tensor, "1 3 h w"], moments: Moments | None, margin: int = 0
    ) -> Iterator[tuple[int, Float[Tensor, "1 i rows w"]]]:
        """H_r, a few rows at a time; before its normalisation if `moments` is None.

        margin: extra rows of a band above and below: zeros outside the image.
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
        """The detector's convolution of the image, with its instance norm folded in if known."""
        if moments is None:
            return convolution(self._image_weight, self._image_bias)
        scale, shift = moments.affine(INSTANCE_NORM_EPS)
        return convolution(self._image_weight * scale.view(-1, 1, 1, 1), self._image_bias * scale + shift)

    def _normed(self, maps: Float[Tensor, "1 c h w"], moments: Moments) -> Float[Tensor, "1 c h w"]:
        """Instance norm and PReLU, in place."""
        scale, shift = moments.affine(INSTANCE_NORM_EPS)
        rows = maps.permute(0, 2, 3, 1)
        torch.addcmul(shift, rows, scale, out=rows)
        F.leaky_relu_(rows, self._slope)
        return maps


def _bias(conv: nn.Conv2d) -> Float[Tensor, " o"]:
    assert conv.bias is not None
    return conv.bias.detach().clone()


# ----------------------------------------------------------------------------------------------------------------------
# The ResNet encoder for inference: the same maps with fewer passes over memory.


class FastEncoder:
    """A ResNetEncoder in eval mode for one image, with a copy of its weights."""

    def __init__(self, encoder: ResNetEncoder):
        self._stem = folded_convolution(encoder.conv1, encoder.bn1)
        self._maxpool = encoder.maxpool
        layers = (encoder.layer1, encoder.layer2, encoder.layer3)
        self._layers = [[_Residual(cast(BasicBlock | Bottleneck, block)) for block in layer] for layer in layers]

    def __call__(self, images: Float[Tensor, "1 3 h w"]) -> EncoderMaps:
        """images: normalised."""
        maps = [self._maxpool(self._stem(images)).relu_()]  # ReLU after pooling: same result, a quarter of the values
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
        *self._inner, self._last = [folded_convolution(conv, norm) for conv, norm in pairs]
        self._shortcut: Convolution | None = None
        if block.downsample is not None:
            self._shortcut = folded_convolution(cast(nn.Conv2d, block.downsample[0]), block.downsample[1])

    def __call__(self, x: Float[Tensor, "1 i h w"]) -> Float[Tensor, "1 o h2 w2"]:
        kept = x if self._shortcut is None else self._shortcut(x)
        for conv in self._inner:
            x = torch.relu_(conv(x))
        return torch.relu_(self._last(x).add_(kept))


# ----------------------------------------------------------------------------------------------------------------------
# Peakiness (`models/scfeat.py`) a few rows at a time, so that intermediate maps stay in the cache.


CHUNK_VALUES = 1 << 18  # 1 MB
FEW_CHANNELS = 8
"""Up to this number of channels, sums are faster with each channel contiguous."""


def fast_peakiness(maps: Float[Tensor, "1 c h w"], largest: float) -> Float[Tensor, "1 1 h w"]:
    """Peakiness of maps. largest: the maps' maximum over the complete image."""
    _, channels, height, width = maps.shape
    mirrored = torch.arange(-1, height + 1, device=maps.device).abs()
    mirrored[-1] = height - 2
    found = maps.new_empty((1, 1, height, width))
    step = max(1, CHUNK_VALUES // (width * channels))
    for first in range(0, height, step):
        last = min(first + step, height)
        y = _rows(maps, mirrored[first : last + 2]).mul_(1 / max(largest, FLOOR))
        inner = y[:, :, 1:-1]
        zeta = F.softplus(inner - _neighbour_mean(y))
        eta = F.softplus(inner - inner.mean(1, keepdim=True))
        found[:, :, first:last] = zeta.mul_(eta).amax(1, keepdim=True)
    return found


def _rows(maps: Float[Tensor, "1 c h w"], index: Int[Tensor, " n"]) -> Float[Tensor, "1 c n w"]:
    """Copies of rows, in the faster memory layout for the number of channels."""
    if maps.shape[1] <= FEW_CHANNELS:
        return maps.index_select(2, index).contiguous()
    return maps[0].permute(1, 2, 0)[index].permute(2, 0, 1)[None]


def _neighbour_mean(y: Float[Tensor, "1 c h+2 w"]) -> Float[Tensor, "1 c h w"]:
    """Mean of 3x3 pixels, with the first and last column mirrored."""
    columns = y[:, :, :-2] + y[:, :, 1:-1]
    columns += y[:, :, 2:]
    total = columns.clone()
    total[..., 1:] += columns[..., :-1]
    total[..., :-1] += columns[..., 1:]
    total[..., 0] += columns[..., 1]
    total[..., -1] += columns[..., -2]
    return total.div_(9)
