"""BatchNorm over the batch of all processes: the network is then that of one process with the whole batch.

torch's SyncBatchNorm has none for the CPU. In words, with sums over all rows and pixels of all processes, n of them:

    mean = sum x / n      variance = sum (x - mean)^2 / n      y = (x - mean) / sqrt(variance + eps)
    dL/dx = (dL/dy - sum dL/dy / n - y sum (y dL/dy) / n) / sqrt(variance + eps)

Ioffe and Szegedy: Batch Normalization, 2015, section 3. Shapes: x (b, c, h, w), everything else per channel.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featkit.losses.base import Total
from featkit.losses.distances import full_precision

AXES = (0, 2, 3)


class Normalised(torch.autograd.Function):
    """y above, in float32 at least, and mean, (biased) variance and n, which have no gradient."""

    @staticmethod
    def forward(ctx: Any, maps: Float[Tensor, "b c h w"], eps: float, total: Total) -> tuple[Tensor, ...]:
        values = full_precision(maps)
        number = values.new_tensor([values.numel() // values.shape[1]])
        sums = total(torch.cat([values.sum(AXES), number]))
        mean, number = sums[:-1] / sums[-1], sums[-1]
        centred = values - mean[:, None, None]
        variance = total(centred.square().sum(AXES)) / number
        scale = torch.rsqrt(variance + eps)
        found = centred * scale[:, None, None]
        ctx.save_for_backward(maps, mean, scale, number)  # not what comes out: a ReLU may work in its place
        ctx.total = total
        ctx.mark_non_differentiable(mean, variance, number)
        return found, mean, variance, number

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        maps, mean, scale, number = ctx.saved_tensors
        found = (full_precision(maps) - mean[:, None, None]) * scale[:, None, None]
        given = full_precision(gradients[0])
        sums = ctx.total(torch.stack([given.sum(AXES), (given * found).sum(AXES)])) / number
        own = given - sums[0, :, None, None] - found * sums[1, :, None, None]
        return (own * scale[:, None, None]).to(maps.dtype), None, None


class SharedBatchNorm(nn.BatchNorm2d):
    """A BatchNorm2d whose batch, in training, is that of all processes. Made by `share_batch_norms`."""

    total: Total

    @torch.compiler.disable
    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if not self.training:
            return super().forward(maps)
        found, mean, variance, number = Normalised.apply(maps, self.eps, self.total)
        if self.track_running_stats:
            assert self.momentum is not None
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * number / (number - 1), self.momentum)
        if self.affine:
            found = found * self.weight[:, None, None] + self.bias[:, None, None]
        return found.to(maps.dtype)


def share_batch_norms(network: nn.Module, total: Total) -> None:
    """From now on all BatchNorms in the network work on the batch of all processes; parameters and names stay."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm
            module.total = total
