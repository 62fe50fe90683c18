"""Convolutions as they run: with BatchNorm folded in, and by the way of computing that is fastest for their size."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from featkit.features.dense.winograd import WinogradConv, is_faster


class Convolution(Protocol):
    """Maps of one image, channels last -> such maps."""

    def __call__(self, *maps: Float[Tensor, "1 i h w"], margin: bool = False) -> Float[Tensor, "1 o h2 w2"]:
        """maps: their channels side by side are the input. Padded with zeros: the same size, or 1 / stride of it.

        margin: the first and the last row are only there to be looked at, and the result has two rows less.
        """
        ...


def convolution(weight: Float[Tensor, "o i k k"], bias: Float[Tensor, " o"], stride: int = 1) -> Convolution:
    """The convolution of these weights."""
    if weight.device.type == "cpu" and is_faster(weight, stride):
        return WinogradConv(weight, bias)
    if weight.shape[2:] == (1, 1) and stride == 1:
        return PointwiseConv(weight, bias)
    return PlainConv(weight, bias, stride)


class PlainConv:
    """As torch computes it."""

    def __init__(self, weight: Float[Tensor, "o i k k"], bias: Float[Tensor, " o"], stride: int):
        self._weight = weight.contiguous(memory_format=torch.channels_last)
        self._bias, self._stride, self._padding = bias, stride, weight.shape[2] // 2

    def __call__(self, *maps: Float[Tensor, "1 i h w"], margin: bool = False) -> Float[Tensor, "1 o h2 w2"]:
        given = maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
        padding = (self._padding - int(margin), self._padding)
        return F.conv2d(given, self._weight, self._bias, self._stride, padding)


class PointwiseConv:
    """1x1: a product of matrices, since a pixel's channels lie side by side."""

    def __init__(self, weight: Float[Tensor, "o i 1 1"], bias: Float[Tensor, " o"]):
        self._weight, self._bias = weight.flatten(1).t().contiguous(), bias

    def __call__(self, *maps: Float[Tensor, "1 i h w"], margin: bool = False) -> Float[Tensor, "1 o h w"]:
        if margin:
            maps = tuple(values[:, :, 1:-1] for values in maps)
        parts = self._weight.split([values.shape[1] for values in maps])
        found: Tensor | None = None
        for values, weight in zip(maps, parts, strict=True):
            rows = values.permute(0, 2, 3, 1).flatten(0, 2)
            found = torch.addmm(self._bias, rows, weight) if found is None else found.addmm_(rows, weight)
        assert found is not None
        return found.view(1, *maps[0].shape[2:], -1).permute(0, 3, 1, 2)


def folded(conv: nn.Conv2d, norm: nn.Module) -> Convolution:
    """A convolution without bias and the BatchNorm behind it, in eval mode, as one convolution."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.detach().double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    weight = conv.weight.detach().double() * factor[:, None, None, None]
    bias = norm.bias.detach().double() - norm.running_mean.double() * factor
    return convolution(weight.float(), bias.float(), conv.stride[0])


def copied(conv: nn.Conv2d) -> Convolution:
    """A convolution with a bias."""
    assert conv.bias is not None
    return convolution(conv.weight.detach().clone(), conv.bias.detach().clone(), conv.stride[0])
