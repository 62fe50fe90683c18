"""Gradients of a loss over the complete batch, when patches are described in parts (chunks or processes).

The network is split in two: the trunk processes every patch independently, the head (last BatchNorm) all features
together. Features are computed in parts, head and loss once for the complete batch, and the gradient with respect to
the features is backpropagated through the trunk part by part. With several chunks the trunk runs twice, first without
graph; the generators are reset in between, so that dropout is the same both times.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from featkit.losses.base import LossResult, Total, full_precision
from featkit.models.patch import HyNet, PatchDescription, PatchNetwork
from featkit.training.distributed import World

Trunk = Callable[[Tensor], Tensor]


class PartOfDropout(nn.Module):
    """Dropout for part of a batch: every process draws the same mask for the complete batch and uses its own rows.

    The part's features come in consecutive pieces; `start` is called before the first.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability
        self._rows, self._count, self._next_row = slice(0), 0, 0
        self._factor: Tensor | None = None

    def start(self, rows: slice, count: int) -> None:
        """Begin a new batch of `count` rows, of which this part has `rows`. Resets the mask."""
        self._rows, self._count = rows, count
        self._factor = None
        self.again()

    def again(self) -> None:
        """Start over with the same rows and the same mask."""
        self._next_row = 0

    def forward(self, maps: Float[Tensor, "p c h w"]) -> Float[Tensor, "p c h w"]:
        if self._factor is None:
            ones = torch.ones((self._count, *maps.shape[1:]), dtype=maps.dtype, device=maps.device)
            ones = ones.contiguous(memory_format=torch.channels_last)
            self._factor = nn.functional.dropout(ones, self.probability)[self._rows].clone()
        own_rows = self._factor[self._next_row : self._next_row + len(maps)]
        self._next_row += len(maps)
        return maps * own_rows


def compiled(function: Callable[..., Any], network: nn.Module) -> Any:
    """torch.compile of a function of `network`; what is shared between parts or processes stays as it is."""
    for module in network.modules():
        if isinstance(module, PartOfDropout | SharedBatchNorm):
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
    return torch.compile(function)


def split_trunk_head(
    network: PatchNetwork, several: bool = False
) -> tuple[nn.Module, Callable[[Float[Tensor, "m f"]], PatchDescription]]:
    """The network up to its last BatchNorm, and the rest: `head(trunk(patches))` equals `network(patches)`.

    Both share the network's layers and parameters. several: replace dropout by PartOfDropout, for several processes.
    """
    body = copy.copy(network.trunk)
    body._modules = dict(body._modules)  # the copy's own table: the network keeps its last layer
    if isinstance(body, HyNet):
        norm: nn.Module = body.norm
        body.norm = nn.Identity()
        if several:
            body.dropout = PartOfDropout(body.dropout.p)
    else:
        norm = body.features[-1]
        body.features = body.features[:-1]
        if several:
            layers = (PartOfDropout(layer.p) if isinstance(layer, nn.Dropout) else layer for layer in body.features)
            body.features = nn.Sequential(*layers)

    def head(features: Float[Tensor, "m f"]) -> PatchDescription:
        return network.described(norm(features[:, :, None, None]).flatten(1))

    return (body if network.transformer is None else nn.Sequential(network.transformer, body)), head


def backward(
    trunk: Trunk,
    network: nn.Module,
    patches: Float[Tensor, "p 1 s s"],
    count: int,
    loss_of: Callable[[Float[Tensor, "m f"]], LossResult],
    world: World,
    chunk: int = 0,
) -> LossResult:
    """Add the gradient of the loss to the network's parameters.

    patches: this process's part of the batch. count: patches in the complete batch. loss_of: loss of all features.
    """
    parts = _split_into_chunks(patches, count, chunk, world)
    dropouts = [module for module in getattr(trunk, "modules", tuple)() if isinstance(module, PartOfDropout)]
    for dropout in dropouts:
        dropout.start(world.part(count), count)
    if len(parts) == 1:
        features = _trunk_features(trunk, patches, world)
        return _backward_through_features(features, count, loss_of, world, features.backward, network)
    states = []
    chunk_features = []
    with torch.no_grad():
        for part in parts:
            states.append(random_state(world.device))
            chunk_features.append(_trunk_features(trunk, part, world))
    after = random_state(world.device)

    def backward_by_chunk(gradient: Tensor) -> None:
        for dropout in dropouts:
            dropout.again()
        with batch_statistics_kept(network):
            for part, state, chunk_gradient in zip(
                parts, states, gradient.split([len(part) for part in parts]), strict=True
            ):
                set_random_state(state, world.device)
                _trunk_features(trunk, part, world).backward(chunk_gradient)
        set_random_state(after, world.device)

    return _backward_through_features(torch.cat(chunk_features), count, loss_of, world, backward_by_chunk, network)


def _split_into_chunks(patches: Tensor, count: int, chunk: int, world: World) -> tuple[Tensor, ...]:
    """Pieces of at most `chunk` patches, equally many in every process, since BatchNorm synchronises them."""
    if not chunk:
        return (patches,)
    if world.size == 1:
        return patches.split(chunk)
    per_process = -(-count // world.size)
    return patches.tensor_split(-(-per_process // chunk))


def _trunk_features(trunk: Trunk, patches: Tensor, world: World) -> Float[Tensor, "p f"]:
    with world.autocast():
        return trunk(patches).float()


def _backward_through_features(
    features: Tensor,
    count: int,
    loss_of: Callable[[Tensor], LossResult],
    world: World,
    backward_features: Callable[[Tensor], Any],
    network: nn.Module,
) -> LossResult:
    all_features = world.gather(features, count).detach().requires_grad_()
    result = loss_of(all_features)
    result.loss.backward()
    assert all_features.grad is not None
    if len(features) or world.size > 1:
        backward_features(all_features.grad[world.part(count)])
    world.sum_gradients(network.parameters())
    return result


@contextmanager
def batch_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Context in which BatchNorm normalises by the batch as in training, but keeps its running statistics."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators that dropout draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore a state of `random_state`; a CUDA state is ignored on other devices."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


# ----------------------------------------------------------------------------------------------------------------------
# BatchNorm over the batch of all processes, equivalent to one process with the complete batch.
#
# torch's SyncBatchNorm does not support the CPU. With sums over all n rows and pixels of all processes:
#
#     mean = sum x / n      variance = sum (x - mean)^2 / n      y = (x - mean) / sqrt(variance + eps)
#     dL/dx = (dL/dy - sum dL/dy / n - y sum (y dL/dy) / n) / sqrt(variance + eps)
#
# Ioffe and Szegedy: Batch Normalization, 2015, section 3. Shapes: x (b, c, h, w), everything else per channel.


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
        normalised = centred * scale[:, None, None]
        ctx.save_for_backward(maps, mean, scale, number)  # not the output, which a ReLU may overwrite in place
        ctx.total = total
        ctx.mark_non_differentiable(mean, variance, number)
        return normalised, mean, variance, number

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        maps, mean, scale, number = ctx.saved_tensors
        normalised = (full_precision(maps) - mean[:, None, None]) * scale[:, None, None]
        gradient = full_precision(gradients[0])
        sums = ctx.total(torch.stack([gradient.sum(AXES), (gradient * normalised).sum(AXES)])) / number
        maps_gradient = gradient - sums[0, :, None, None] - normalised * sums[1, :, None, None]
        return (maps_gradient * scale[:, None, None]).to(maps.dtype), None, None


class SharedBatchNorm(nn.BatchNorm2d):
    """A BatchNorm2d whose batch, in training, is that of all processes. Made by `share_batch_norms`."""

    total: Total

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if not self.training:
            return super().forward(maps)
        normalised, mean, variance, number = Normalised.apply(maps, self.eps, self.total)
        if self.track_running_stats:
            assert self.momentum is not None
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * number / (number - 1), self.momentum)
        if self.affine:
            normalised = normalised * self.weight[:, None, None] + self.bias[:, None, None]
        return normalised.to(maps.dtype)


def share_batch_norms(network: nn.Module, total: Total) -> None:
    """Make all BatchNorm layers of the network use the batch of all processes; parameters and names are kept."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm
            module.total = total
