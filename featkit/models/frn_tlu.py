"""Filter response normalisation with a thresholded linear unit (Singh and Krishnan 2020, section 3), in few passes.

Per map of h x w values and per channel:

    s = 1 / sqrt(mean of x^2 over the map + eps),   y = max(scale * s * x + bias, tau)

Written as one formula in PyTorch this takes more time in training than all convolutions of HyNet: a dozen passes over
maps that do not fit the cache, each into fresh memory. Here forward and backward run over parts of the batch that do
fit, and only x, y (which the next convolution keeps anyway) and s are saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PART_BYTES = 2**20
"""On the CPU: maps that are done at once. From 0.5 to 4 MiB it takes the same time."""


class FrnTlu(nn.Module):
    """One scale, bias and threshold per channel, starting at 1, 0 and `tau`."""

    def __init__(self, channels: int, eps: float, tau: float):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.tau = nn.Parameter(torch.full((channels,), tau))

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Computed in float32 also for half-precision maps: trained scale and bias nearly cancel. Same type out."""
        by_parts = not torch.compiler.is_compiling()  # a compiler fuses the formula by itself
        function = _FrnTlu.apply if by_parts else frn_tlu
        return function(maps, self.scale, self.bias, self.tau, self.eps)


def frn_tlu(
    maps: Float[Tensor, "b c h w"],
    scale: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    tau: Float[Tensor, " c"],
    eps: float,
) -> Float[Tensor, "b c h w"]:
    """The formula of this file as it stands."""
    x = maps.to(_precise(maps))
    s = torch.rsqrt(x.square().mean(dim=(2, 3), keepdim=True) + eps)
    return torch.maximum(_per_channel(scale) * s * x + _per_channel(bias), _per_channel(tau)).to(maps.dtype)


class _FrnTlu(torch.autograd.Function):
    """`frn_tlu` with the derivatives

    g = dL/dy where y > tau else 0,   dL/dx = scale * s * (g - x * s^2 * mean of g x over the map),
    dL/dscale = sum of g s x,   dL/dbias = sum of g,   dL/dtau = sum of dL/dy where y = tau.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, scale: Tensor, bias: Tensor, tau: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(maps)
        inverse = torch.empty((*maps.shape[:2], 1, 1), dtype=_precise(maps), device=maps.device)
        size = maps.shape[2] * maps.shape[3]
        for x, y, s in _parts(maps, out, inverse):
            x = x.to(s.dtype)
            mean_square = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True).square_().div_(size)
            torch.rsqrt(mean_square.add_(eps), out=s)
            if y.dtype == s.dtype:
                torch.addcmul(_per_channel(bias), x, _per_channel(scale) * s, out=y)
                torch.maximum(y, _per_channel(tau), out=y)
            else:
                y.copy_(torch.addcmul(_per_channel(bias), x, _per_channel(scale) * s).maximum(_per_channel(tau)))
        ctx.save_for_backward(maps, out, inverse, scale, tau)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        maps, out, inverse, scale, tau = ctx.saved_tensors
        grad_in = torch.empty_like(maps)
        grads = inverse.new_zeros((3, len(scale)))  # of scale, bias and tau
        size = maps.shape[2] * maps.shape[3]
        threshold = _per_channel(tau).to(out.dtype)  # as `out` was rounded
        for x, y, s, gy, gx in _parts(maps, out, inverse, grad_out, grad_in):
            x, gy = x.to(s.dtype), gy.to(s.dtype)
            g = gy * (y > threshold).to(s.dtype)
            along = (g * x).sum(dim=(2, 3), keepdim=True)
            grads[0] += (along * s).sum(dim=(0, 2, 3))
            grads[1] += g.sum(dim=(0, 2, 3))
            grads[2] += (gy - g).sum(dim=(0, 2, 3))  # exactly 0 where nothing is cut: Adam would enlarge any residue
            slope = _per_channel(scale) * s
            gx.copy_(g.mul_(slope).addcmul_(x, slope * s.square() * along, value=-1.0 / size))
        return grad_in, *grads.to(scale.dtype).unbind(), None


def _precise(maps: Tensor) -> torch.dtype:
    return torch.promote_types(maps.dtype, torch.float32)


def _per_channel(values: Float[Tensor, " c"]) -> Float[Tensor, "c 1 1"]:
    return values[:, None, None]


def _parts(maps: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same patches of all tensors, as many at once as stay in the cache; on a GPU all."""
    count = len(maps)
    if maps.device.type == "cpu" and count > 0:
        count = max(1, PART_BYTES // (maps[0].numel() * maps.element_size()))
    return zip(*(tensor.split(max(1, count)) for tensor in (maps, *others)), strict=True)
