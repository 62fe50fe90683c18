"""Where a training runs: one process or several, each with one device, under Lightning Fabric.

Every process draws the same batch and describes its part of it; descriptors are gathered, so that the loss is that of
the whole batch in every process, and parameter gradients are summed.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from featkit.device import torch_device
from featkit.errors import UsageError


class World:
    """The processes of a training, as the code of one of them sees them."""

    def __init__(self, fabric: Any):
        self._fabric = fabric
        self.device: torch.device = fabric.device
        self.rank: int = fabric.global_rank
        self.size: int = fabric.world_size

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside of it the network computes in the training's precision."""
        return self._fabric.autocast()

    def part(self, count: int) -> slice:
        """The rows of a batch of `count` that this process describes."""
        per_process = -(-count // self.size)
        return slice(min(self.rank * per_process, count), min((self.rank + 1) * per_process, count))

    def gather(self, rows: Float[Tensor, "p d"], count: int) -> Float[Tensor, "m d"]:
        """The rows of all processes, in the order of the batch, without gradient. count: rows of the whole batch."""
        rows = rows.detach()
        if self.size == 1:
            return rows
        per_process = -(-count // self.size)
        padded = torch.zeros((per_process, *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
        padded[: len(rows)] = rows
        return self._fabric.all_gather(padded).flatten(0, 1)[:count]

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add the gradients of all processes up, in place."""
        if self.size == 1:
            return
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:  # this process had no patch of the batch
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        total = self._fabric.all_reduce(torch.cat([g.flatten() for g in gradients]), reduce_op="sum")
        for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Whether it is true in one of the processes."""
        if self.size == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        return bool(self._fabric.all_reduce(value, reduce_op="sum").item() > 0)

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            self._fabric.barrier()

    def first_says(self, value: Any) -> Any:
        """The value that the first process has."""
        return value if self.size == 1 else self._fabric.broadcast(value)


def launch(device: str = "auto", devices: int = 1, precision: str = "fp32") -> World:
    """Start the processes of a training: one per device. Raises UsageError for devices that are not there."""
    chosen = torch_device(device)
    if chosen.type == "cuda" and devices > torch.cuda.device_count():
        raise UsageError(f"--devices {devices}: torch sees {torch.cuda.device_count()} CUDA devices")
    if devices < 1:
        raise UsageError(f"--devices {devices}: at least one")
    which: Any = devices
    if chosen.type == "cuda" and devices == 1:
        which = [chosen.index or 0]
    fabric = _fabric_class()(
        accelerator=chosen.type,
        devices=which,
        strategy="ddp" if devices > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    fabric.launch()
    return World(fabric)


def _fabric_class() -> Any:
    try:
        from lightning.fabric import Fabric
    except ModuleNotFoundError:
        try:
            from lightning_fabric import Fabric
        except ModuleNotFoundError:
            raise UsageError("training needs Lightning Fabric: pip install 'lightning>=2.4,<3'") from None
    return Fabric
