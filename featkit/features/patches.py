"""DoG keypoints by pycolmap, or any detector's, each described by a patch network: HardNet, HyNet, SDGMNet, ...

The square patch around a keypoint has a side of `magnification` times the keypoint's scale and is rotated by its
orientation. pycolmap cannot detect without describing; its SIFT descriptors are discarded.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from pydantic import Field
from torch import Tensor, nn

from featkit.core.config import Config, KeypointCount, Later, Magnification, Pixels, Runtime
from featkit.core.runtime import threads_on_cores, torch_device
from featkit.core.types import Features, PatchArray
from featkit.features.base import BYTE, pack_bits
from featkit.features.sift import Sift, SiftConfig
from featkit.images.patches import KeypointPatches, PatchPyramid
from featkit.models.patch import FrnTlu, HyNet, L2Net, PatchNetwork, standardise
from featkit.weights.files import load_patch_network
from featkit.weights.manifest import find_weights, sha256_of


class PatchesConfig(Config):
    """Keypoint detection, patch geometry and the network that describes the patches."""

    weights: str = "sdgmnet"
    """Name of weights in weights/manifest.json, or the path of a safetensors file."""
    detector: SiftConfig = SiftConfig()
    """COLMAP's SIFT options for detection. `upright` skips orientation estimation; `normalization` has no effect."""
    max_keypoints: KeypointCount | None = None
    """Maximum keypoints per image, which is also the detector's budget. None: the detector's own budget."""
    magnification: Magnification | None = None
    """Side of a patch divided by the keypoint's scale. None: that of the patches the network was trained on."""
    cut_px: int = Field(64, ge=0, le=1024)
    """Side of the cropped patches, px, before resizing to the network's input; 0: crop at the network's input size."""
    unscaled_side_px: Later[Pixels] = 64.0
    """Side of the patch of a given keypoint without scale, px of the resized image. Keypoints without orientation have
    upright patches; upright patches of 64 px are cropped without resampling."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the network's activations. Half precision needs a GPU, or a CPU that supports it natively."""
    batch_size: Runtime[int] = Field(0, ge=0, le=10**6)
    """Patches per batch; 0: 32 on the CPU, 2048 on a GPU. Changes descriptors only by rounding."""


@dataclass(frozen=True)
class DetectedKeypoints:
    """An image with detected keypoints whose descriptors are still empty."""

    pixels: UInt8[np.ndarray, "h w"]
    keypoints: Features


class Patches:
    """DoG keypoints with patch descriptors (float16 unit rows or uint8 packed bits). Scores are scales, as in SIFT."""

    Config: ClassVar[type[Config]] = PatchesConfig
    colour: ClassVar[bool] = False
    holds_gil = True

    def __init__(self, config: PatchesConfig, device: str = "auto"):
        self.config, self._device_name = config, device
        limit = {} if config.max_keypoints is None else {"max_keypoints": config.max_keypoints}
        self._detector = Sift(config.detector.model_copy(update=limit))
        self._network: FrozenNetwork | None = None
        self._loading = threading.Lock()

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file. Raises UsageError for missing weights."""

        return sha256_of(find_weights(self.config.weights))

    @property
    def two_steps(self) -> bool:
        """Whether one process should describe what others detect: many processes share a GPU poorly."""

        return torch_device(self._device_name).type != "cpu"

    def extract(self, pixels: UInt8[np.ndarray, "h w"]) -> Features:
        """Features of one grey image; see `Extractor.extract`."""
        return self.describe(self.detect(pixels))

    def detect(self, pixels: UInt8[np.ndarray, "h w"]) -> DetectedKeypoints:
        """Detect only; needs neither the network nor its device."""
        found = self._detector.extract(pixels)
        return DetectedKeypoints(pixels, replace(found, descriptors=np.zeros((len(found), 0), np.float16)))

    def describe(self, detected: DetectedKeypoints) -> Features:
        """Describe detected keypoints."""

        network = self._load_network()
        found = detected.keypoints
        assert found.scales is not None
        assert found.oris is not None
        pixels = torch.as_tensor(np.require(detected.pixels, requirements=["C", "W"])).to(network.device)
        centres, scales, oris = (torch.from_numpy(v) for v in (found.keypoints, found.scales, found.oris))
        cut_px = self.config.cut_px or network.input_px
        patches = KeypointPatches(PatchPyramid(pixels), centres, self._magnification(network) * scales, oris, cut_px)
        descriptors = describe_patches(network, patches, batch_size=self.config.batch_size)
        if not network.is_binary:
            descriptors = descriptors.astype(np.float16)
        return replace(found, descriptors=descriptors)

    def describe_points(self, pixels: UInt8[np.ndarray, "h w"], points: Features) -> Features:
        """Describe given keypoints by patches with their scales and orientations; see `DescribesPoints`.

        Without scales the side of a patch is `unscaled_side_px`; without orientations patches are upright.
        """
        ones = np.ones(len(points), np.float32)
        side = self.config.unscaled_side_px / self._magnification(self._load_network())
        scales = ones * np.float32(side) if points.scales is None else points.scales
        oris = np.zeros_like(ones) if points.oris is None else points.oris
        framed = replace(points, scales=scales, oris=oris)
        return replace(points, descriptors=self.describe(DetectedKeypoints(pixels, framed)).descriptors)

    def _magnification(self, network: FrozenNetwork) -> float:
        return self.config.magnification or network.config.magnification

    def _load_network(self) -> FrozenNetwork:
        with self._loading:
            if self._network is None:
                device = torch_device(self._device_name)
                network, _ = load_patch_network(self.config.weights, device)
                self._network = FrozenNetwork(network, device, self.config.precision)
            return self._network


# ----------------------------------------------------------------------------------------------------------------------
# Patches -> descriptors: resizing as in training and tests, and the network in batches that fit into the cache.


BATCH_SIZES = {"cpu": 32, "cuda": 2048}  # on a CPU, the largest map of a batch (4 MB) fits into the cache

AnyPatches: TypeAlias = PatchArray | KeypointPatches | Tensor


def resize_patches(patches: Shaped[Tensor, "n s s"], out_px: int) -> Float[Tensor, "n out out"]:
    """Resize patches to [0, 1] values, bilinear with half-pixel centres: 64 -> 32 is the mean of 2 x 2 pixels.

    patches: uint8, or floating point in [0, 1].
    """
    values = patches.float() / 255.0 if patches.dtype == torch.uint8 else patches.float()
    if values.shape[-1] == out_px:
        return values
    if values.shape[-1] == 2 * out_px:
        return F.avg_pool2d(values[:, None], 2)[:, 0]  # the same, faster
    return F.interpolate(values[:, None], size=(out_px, out_px), mode="bilinear", align_corners=False)[:, 0]


def describe_patches(
    network: PatchNetwork | FrozenNetwork,
    patches: AnyPatches,
    device: str | torch.device = "auto",
    batch_size: int = 0,
    precision: Precision = "fp32",
) -> Float[np.ndarray, "n d"] | UInt8[np.ndarray, "n d/8"]:
    """Descriptors of patches (n, s, s): uint8 (possibly memory-mapped), or floating point in [0, 1].

    Returns float32 with unit rows, or the packed bits (np.packbits) of a binary descriptor: 1 for raw values above 0.
    network: not modified; a FrozenNetwork determines device and precision itself. batch_size: 0 for the default. Every
    batch is full (the last one is padded with zeros), so on the CPU a patch's descriptor does not depend on the other
    patches, bit by bit; another batch size changes it by rounding (1e-6) in BLAS.
    """
    if not isinstance(network, FrozenNetwork):
        device = torch_device(device) if isinstance(device, str) else device
        network = FrozenNetwork(network, device, precision)
    size = batch_size or BATCH_SIZES.get(network.device.type, BATCH_SIZES["cpu"])
    batches = [np.arange(start, min(start + size, len(patches))) for start in range(0, len(patches), size)]
    width, kind = (network.dimension // BYTE, np.uint8) if network.is_binary else (network.dimension, np.float32)
    found = np.empty((len(patches), width), kind)

    def describe(index: np.ndarray) -> None:
        found[index] = _describe_batch(network, patches, index, size)

    if network.device.type != "cpu":
        for index in batches:
            describe(index)
        return found
    with threads_on_cores("describe", len(batches), cores_each=1) as pool:
        list(pool.map(describe, batches))
    return found


def _describe_batch(network: FrozenNetwork, patches: AnyPatches, index: np.ndarray, size: int) -> np.ndarray:
    with torch.inference_mode():
        given = torch.as_tensor(patches[index]).to(network.device)
        values = resize_patches(given, network.input_px)
        if len(values) < size:
            values = F.pad(values, (0, 0, 0, 0, 0, size - len(values)))
        described = network(values)[: len(index)]
        if network.is_binary:
            return pack_bits((described > 0).cpu().numpy())
        return described.cpu().numpy()


# ----------------------------------------------------------------------------------------------------------------------
# A trained patch network for inference: the same function with fewer passes over memory.
#
# BatchNorm is folded into the convolutions, the last 8x8 convolution is one matrix product, and FRN and TLU are
# computed in place. All maps are channels-last. On the CPU the maps of a batch of 32 patches fit into the cache, so
# nearly all of the time is spent on the arithmetic of the convolutions.


Precision = Literal["fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ResponseNorm:
    """FRN and TLU: max(scale * x / sqrt(mean of x^2 + eps) + bias, tau). The factors are always float32."""

    scale: Float[Tensor, " c"]
    bias: Float[Tensor, " c"]
    tau: Float[Tensor, " c"]
    eps: float

    def __call__(self, maps: Float[Tensor, "b p c"]) -> Float[Tensor, "b p c"]:
        """Normalise in place. maps: p positions with c channels, contiguous."""
        factor = self.scale * torch.rsqrt(_mean_square(maps) + self.eps)
        torch.addcmul(self.bias, maps, factor, out=maps)  # computed in float32 and rounded once, for any dtype of maps
        return torch.maximum(maps, self.tau, out=maps)


def _mean_square(maps: Float[Tensor, "b p c"]) -> Float[Tensor, "b 1 c"]:
    """Mean over the positions, in float32."""
    if maps.device.type == "cpu":  # strided reductions are slow on a CPU, adding complete rows is not
        x = maps.float()
        return torch.mul(x, x).sum(1, keepdim=True) / maps.shape[1]
    norm = torch.linalg.vector_norm(maps, dim=1, keepdim=True, dtype=torch.float32)
    return norm.square() / maps.shape[1]


@dataclass(frozen=True)
class FoldedConvolution:
    """A 3x3 convolution with bias, then FRN and TLU, or ReLU (`activation` None)."""

    weight: Float[Tensor, "o i 3 3"]
    bias: Float[Tensor, " o"]
    stride: int
    activation: ResponseNorm | None

    def __call__(self, maps: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        """maps and result: channels last."""
        maps = F.conv2d(maps, self.weight, self.bias, self.stride, padding=1)
        if self.activation is None:
            return maps.relu_()
        b, channels, height, width = maps.shape
        flat = self.activation(maps.permute(0, 2, 3, 1).reshape(b, -1, channels))
        return flat.view(b, height, width, channels).permute(0, 3, 1, 2)


class FrozenNetwork:
    """A PatchNetwork in eval mode on one device, with a copy of its weights.

    precision: of the maps between layers. Float32 convolutions on a GPU follow torch's settings (TF32).
    """

    def __init__(self, network: PatchNetwork, device: torch.device, precision: Precision = "fp32"):
        self.config, self.input_px, self.dimension = network.config, network.input_px, network.dimension
        self.is_binary = network.is_binary
        self.device, self.dtype = device, DTYPES[precision]
        self._transformer: nn.Module | None = None
        if network.transformer is not None:  # only 1 % of the arithmetic: used as it is, in float32
            self._transformer = copy.deepcopy(network.transformer).to(device).eval()
        self._first: ResponseNorm | None = None
        with torch.no_grad():
            if isinstance(network.trunk, HyNet):
                self._first = self._response_norm(network.trunk.first)
                self._convolutions, last = self._hynet(network.trunk)
            else:
                self._convolutions, last = self._l2net(network.trunk)
            weight, bias = last
            # maps are stored as (height, width, channel)
            self._last = weight.permute(0, 2, 3, 1).flatten(1).to(device, self.dtype), bias.to(device, self.dtype)

    def __call__(self, patches: Float[Tensor, "b s s"]) -> Float[Tensor, "b d"]:
        """Descriptors with unit rows, or raw values of a binary descriptor (bit: above 0), float32.

        patches: in [0, 1], s = `input_px`.
        """
        maps = patches[:, None].to(self.device, torch.float32)
        if self._transformer is not None:
            maps = self._transformer(maps)
        if self._first is None:
            maps = standardise(maps, self.config.input_norm, self.config.input_eps)
        else:
            maps = self._first(maps.flatten(2).transpose(1, 2).clone()).transpose(1, 2).view_as(maps)
        maps = maps.to(self.dtype)
        for convolution in self._convolutions:
            maps = convolution(maps)
        raw = F.linear(maps.permute(0, 2, 3, 1).flatten(1), *self._last).float()
        if self.is_binary:
            return raw
        return raw / torch.sqrt(raw.square().sum(1, keepdim=True) + self.config.norm_eps)

    def _l2net(self, trunk: L2Net) -> tuple[list[FoldedConvolution], tuple[Tensor, Tensor]]:
        convolutions = [layer for layer in trunk.features if isinstance(layer, nn.Conv2d)]
        norms = [layer for layer in trunk.features if isinstance(layer, nn.BatchNorm2d)]
        *parts, last = [
            (*fold_batch_norm(convolution, norm), convolution.stride[0])
            for convolution, norm in zip(convolutions, norms, strict=True)
        ]
        return [self._convolution(*part, None) for part in parts], last[:2]

    def _hynet(self, trunk: HyNet) -> tuple[list[FoldedConvolution], tuple[Tensor, Tensor]]:
        parts = []
        for convolution, activation in zip(trunk.convolutions, trunk.activations, strict=True):
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(activation, FrnTlu)
            assert convolution.bias is not None
            response_norm = self._response_norm(activation)
            parts.append(self._convolution(convolution.weight, convolution.bias, convolution.stride[0], response_norm))
        return parts, fold_batch_norm(trunk.last, trunk.norm)

    def _convolution(
        self, weight: Tensor, bias: Tensor, stride: int, activation: ResponseNorm | None
    ) -> FoldedConvolution:
        copied = weight.to(self.device, self.dtype, copy=True, memory_format=torch.channels_last)
        return FoldedConvolution(copied, bias.to(self.device, self.dtype, copy=True), stride, activation)

    def _response_norm(self, layer: FrnTlu) -> ResponseNorm:
        scale, bias, tau = (p.to(self.device, torch.float32, copy=True) for p in (layer.scale, layer.bias, layer.tau))
        return ResponseNorm(scale, bias, tau, layer.eps)


def fold_batch_norm(
    convolution: nn.Conv2d, norm: nn.BatchNorm2d
) -> tuple[Float[Tensor, "o i k k"], Float[Tensor, " o"]]:
    """Weight and bias equivalent to a bias-free convolution followed by a BatchNorm without affine parameters."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = torch.rsqrt(norm.running_var.double() + norm.eps)
    weight = convolution.weight.double() * factor[:, None, None, None]
    return weight.float(), (-norm.running_mean.double() * factor).float()
