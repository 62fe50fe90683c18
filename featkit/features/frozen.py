"""A trained patch network as it runs: the same function in fewer passes over memory.

BatchNorm is folded into the convolutions, the last 8x8 convolution is one matrix product, FRN and TLU work in place.
Everything is channels-last. On the CPU the maps of a batch of 32 patches stay in the cache, and the convolutions'
arithmetic is nearly all of the time.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from featkit.models.hynet import FrnTlu, HyNet
from featkit.models.l2net import L2Net, standardise
from featkit.models.patch_network import PatchNetwork

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ResponseNorm:
    """FRN and TLU: max(scale * x / sqrt(mean of x^2 + eps) + bias, tau). The factors are float32 always."""

    scale: Float[Tensor, " c"]
    bias: Float[Tensor, " c"]
    tau: Float[Tensor, " c"]
    eps: float

    def __call__(self, maps: Float[Tensor, "b p c"]) -> Float[Tensor, "b p c"]:
        """maps: p positions of c channels, contiguous; overwritten and returned."""
        factor = self.scale * torch.rsqrt(_mean_square(maps) + self.eps)
        torch.addcmul(self.bias, maps, factor, out=maps)  # computed in float32 and rounded once, whatever maps holds
        return torch.maximum(maps, self.tau, out=maps)


def _mean_square(maps: Float[Tensor, "b p c"]) -> Float[Tensor, "b 1 c"]:
    """Mean over the positions, in float32."""
    if maps.device.type == "cpu":  # where reducing along a stride is slow, and adding whole rows is not
        x = maps.float()
        return torch.mul(x, x).sum(1, keepdim=True) / maps.shape[1]
    norm = torch.linalg.vector_norm(maps, dim=1, keepdim=True, dtype=torch.float32)
    return norm.square() / maps.shape[1]


@dataclass(frozen=True)
class Convolution:
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
    """What a PatchNetwork computes in eval mode, on one device, with a copy of its weights.

    precision: of the maps between the layers; a GPU computes float32 convolutions as torch is set up to (TF32).
    """

    def __init__(self, network: PatchNetwork, device: torch.device, precision: Precision = "fp32"):
        self.config, self.input_px, self.dimension = network.config, network.input_px, network.dimension
        self.is_binary = network.is_binary
        self.device, self.dtype = device, DTYPES[precision]
        self._transformer: nn.Module | None = None
        if network.transformer is not None:  # a hundredth of the arithmetic: kept as it is, in float32
            self._transformer = copy.deepcopy(network.transformer).to(device).eval()
        self._first: ResponseNorm | None = None
        with torch.no_grad():
            if isinstance(network.trunk, HyNet):
                self._first = self._response_norm(network.trunk.first)
                self._convolutions, last = self._hynet(network.trunk)
            else:
                self._convolutions, last = self._l2net(network.trunk)
            weight, bias = last
            # the maps lie as (height, width, channel)
            self._last = weight.permute(0, 2, 3, 1).flatten(1).to(device, self.dtype), bias.to(device, self.dtype)

    def __call__(self, patches: Float[Tensor, "b s s"]) -> Float[Tensor, "b d"]:
        """patches: in [0, 1], s = `input_px`. Unit rows; raw values of a binary descriptor (bit: above 0). float32."""
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

    def _l2net(self, trunk: L2Net) -> tuple[list[Convolution], tuple[Tensor, Tensor]]:
        convolutions = [layer for layer in trunk.features if isinstance(layer, nn.Conv2d)]
        norms = [layer for layer in trunk.features if isinstance(layer, nn.BatchNorm2d)]
        *parts, last = [
            (*folded(convolution, norm), convolution.stride[0])
            for convolution, norm in zip(convolutions, norms, strict=True)
        ]
        return [self._convolution(*part, None) for part in parts], last[:2]

    def _hynet(self, trunk: HyNet) -> tuple[list[Convolution], tuple[Tensor, Tensor]]:
        parts = []
        for convolution, activation in zip(trunk.convolutions, trunk.activations, strict=True):
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(activation, FrnTlu)
            assert convolution.bias is not None
            response_norm = self._response_norm(activation)
            parts.append(self._convolution(convolution.weight, convolution.bias, convolution.stride[0], response_norm))
        return parts, folded(trunk.last, trunk.norm)

    def _convolution(self, weight: Tensor, bias: Tensor, stride: int, activation: ResponseNorm | None) -> Convolution:
        copied = weight.to(self.device, self.dtype, copy=True, memory_format=torch.channels_last)
        return Convolution(copied, bias.to(self.device, self.dtype, copy=True), stride, activation)

    def _response_norm(self, layer: FrnTlu) -> ResponseNorm:
        scale, bias, tau = (p.to(self.device, torch.float32, copy=True) for p in (layer.scale, layer.bias, layer.tau))
        return ResponseNorm(scale, bias, tau, layer.eps)


def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Float[Tensor, "o i k k"], Float[Tensor, " o"]]:
    """Weight and bias that do what a convolution without bias and BatchNorm without affine do one after the other."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = torch.rsqrt(norm.running_var.double() + norm.eps)
    weight = convolution.weight.double() * factor[:, None, None, None]
    return weight.float(), (-norm.running_mean.double() * factor).float()
