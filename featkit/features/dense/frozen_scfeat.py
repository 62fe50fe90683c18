"""A trained SCFeat network as it runs: on the CPU with less arithmetic, on a GPU in batches, large images in tiles."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from featkit.features.dense.fast_backbone import FastBackbone
from featkit.features.dense.fast_detector import FastBridge, FastDetector
from featkit.features.dense.statistics import WholeImage
from featkit.features.dense.tiles import Tile, TiledImage, over_tiles, tiles
from featkit.features.dense.window import Window
from featkit.models.scfeat import SCFeatNetwork
from featkit.models.scfeat.backbone import BackboneMaps
from featkit.models.scfeat.detector import SCALE

Precision = Literal["fp32", "bf16"]
DescriptorMap = Literal["fused", "normalised"]
BACKBONE_MARGIN_PX = 192
"""What a value of the fused map sees to each side: 187 px with ResNet-50, 159 px with ResNet-18."""
DETECTOR_MARGIN_PX = 32
"""What a score sees of the fused map to each side: 25 px."""


class DenseFeatures(NamedTuple):
    """descriptors: not normalised. scores: > 0. float32."""

    descriptors: Float[Tensor, "b d h/4 w/4"]
    scores: Float[Tensor, "b 1 h w"]


class FrozenSCFeat:
    """What an SCFeatNetwork computes in eval mode, on one device, with a copy of its weights.

    descriptor_map: the one that descriptors are read from. max_pixels: of one forward; an image with more is computed
    in tiles, in float32, with the same result (to rounding; some ten times slower). fast: with less arithmetic instead
    of as written down, one image at a time and in float32; None: on the CPU.
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
            return _stacked([self._in_tiles(image[None]) for image in given])
        if self._is_fast:
            return _stacked([self._fast(image[None]) for image in given])
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
            pixels = self._normalised(_part(image, tile.window))
            normalised = self._bridge(_part(fused, tile.window.at(SCALE)), statistics)
            return self._detector(pixels, normalised, _part(shallow, tile.window.at(SCALE)), tile.window, statistics)

        def deliver(tile: Tile, found: Tensor) -> None:
            _view(scores, tile.core).copy_(tile.cropped(found))

        over_tiles(tiles(height, width, DETECTOR_MARGIN_PX, self.max_pixels), compute, deliver)
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
            return self._backbone(self._normalised(_part(image, tile.window)), tile.window, statistics)

        def deliver(tile: Tile, found: BackboneMaps) -> None:
            for maps, part in zip(whole, found, strict=True):
                _view(maps, tile.core.at(SCALE)).copy_(tile.cropped(part))

        over_tiles(tiles(height, width, BACKBONE_MARGIN_PX, self.max_pixels), compute, deliver)
        return whole

    def _normalised(self, image: UInt8[Tensor, "1 3 h w"]) -> Float[Tensor, "1 3 h w"]:
        scaled = image.float().contiguous(memory_format=torch.channels_last).div_(255)
        return scaled.sub_(self._network.mean).div_(self._network.std)


def _view(maps: Tensor, window: Window) -> Tensor:
    (_, top, rows), (_, left, columns) = window
    return maps[:, :, top : top + rows, left : left + columns]


def _part(maps: Tensor, window: Window) -> Tensor:
    return _view(maps, window).contiguous(memory_format=torch.channels_last)


def _stacked(found: list[DenseFeatures]) -> DenseFeatures:
    return found[0] if len(found) == 1 else DenseFeatures(*(torch.cat(maps) for maps in zip(*found, strict=True)))
