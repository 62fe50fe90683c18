"""Distributed training: one process or several, each with one device, under Lightning Fabric.

Every process draws the same batch and describes its own part; descriptors are gathered, so that every process computes
the loss of the complete batch, and gradients are summed. SCFeat's losses are sums over image pairs, of which each
process computes its part. Only the first process reads and writes the run's folder; it broadcasts the initial state.
"""

from __future__ import annotations

import atexit
import importlib
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed import distributed_c10d

from featkit.core import log
from featkit.core.errors import FeatkitError, ProcessLostError, UsageError
from featkit.core.runtime import Launched, launched, torch_device
from featkit.training.config import Precision

T = TypeVar("T")
STORE_S = 5.0  # timeout of the shared store after a failure
FAILED = "featkit/failed"


class World:
    """The processes of a training, as seen from one of them."""

    def __init__(self, fabric: Any, timeout_s: float = 0.0, precision: Precision = "fp32"):
        """timeout_s: how long processes wait for each other. precision: of the networks, until it is set."""
        self._fabric = fabric
        self._timeout_s = timeout_s
        self.device: torch.device = fabric.device
        self.rank: int = fabric.global_rank
        self.size: int = fabric.world_size
        self.precision: Precision = precision

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which the network computes in the training's precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def part(self, count: int) -> slice:
        """The rows of a batch of `count` rows that this process describes."""
        per_process = -(-count // self.size)
        return slice(min(self.rank * per_process, count), min((self.rank + 1) * per_process, count))

    def check_batch(self, count: int, unit: str) -> None:
        """Raises UsageError for a batch that cannot be split equally among the processes."""
        if count % self.size:
            raise UsageError(
                f"batch_size: {count} {unit} cannot be split equally among {self.size} processes; "
                f"take {max(1, round(count / self.size)) * self.size}, or another number of processes"
            )

    def gather(self, rows: Float[Tensor, "p d"], count: int) -> Float[Tensor, "m d"]:
        """The rows of all processes, in batch order, without gradient. count: rows of the complete batch."""
        rows = rows.detach()
        if self.size == 1:
            return rows
        per_process = -(-count // self.size)
        padded = torch.zeros((per_process, *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with self._collective():
            torch.distributed.all_gather(parts, padded)
        return torch.cat(parts)[:count]

    def total(self, values: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The sum of the values over all processes, without gradient."""
        if self.size == 1:
            return values.detach()
        with self._collective():
            return self._fabric.all_reduce(values.detach().clone(), reduce_op="sum")

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum the gradients over all processes, in place."""
        if self.size == 1:
            return
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:  # this process had no rows of the batch
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        total = self.total(torch.cat([g.flatten() for g in gradients]))
        for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        return bool(self.total(torch.tensor(float(flag), device=self.device)).item() > 0)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            with self._collective():
                self._fabric.barrier()

    def from_first(self, make: Callable[[], T]) -> T:
        """The result of `make` in the first process, broadcast to all; a FeatkitError is raised in all."""
        if self.size == 1:
            return make()
        outcome: tuple[T | None, FeatkitError | None] = (None, None)
        if self.is_first:
            try:
                outcome = make(), None
            except FeatkitError as error:
                outcome = None, error
        with self._collective():
            value, failure = self._fabric.broadcast(outcome)
        if failure is not None:
            raise failure
        return cast(T, value)

    def check_same(self, what: str, value: str, compared: Callable[[str], str] = "not {}".format) -> None:
        """Raises UsageError in a process whose value differs from the first one's.

        what, compared: for the message, the name of the value and a description of the difference.
        """
        first = self.from_first(lambda: value)
        if value != first:
            import socket

            raise UsageError(
                f"process {self.rank} on {socket.gethostname()} has another {what} than the first ({compared(first)});"
                " start all of them with the same command, data and version"
            )

    @contextmanager
    def _collective(self) -> Iterator[None]:
        """A collective operation. Raises ProcessLostError when another process does not take part."""
        try:
            yield
        except RuntimeError as error:  # raised by torch.distributed for closed connections and timeouts
            reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
            raise ProcessLostError(
                f"another of the {self.size} processes ended, or was silent for {self._timeout_s:g} s ({reason}); "
                "run the same command again to go on from the last checkpoint"
            ) from None

    @contextmanager
    def reported_once(self) -> Iterator[None]:
        """Make exactly one of the processes that fail in this block report its error."""
        try:
            yield
        except Exception as error:
            alone = self.is_first or (isinstance(error, ProcessLostError) and launched() is not None)
            is_reporter = self.size == 1 or _is_first_to_fail(alone)
            if isinstance(error, FeatkitError):
                error.reported = not is_reporter
            raise


def _is_first_to_fail(alone: bool) -> bool:
    """Ask the shared store. alone: the answer if the store is gone, together with the process that held it."""

    try:
        store = distributed_c10d._get_default_store()
        store.set_timeout(timedelta(seconds=STORE_S))
        return bool(store.add(FAILED, 1) == 1)
    except (RuntimeError, ValueError):
        return alone


# ----------------------------------------------------------------------------------------------------------------------
# The processes of a training, started here (one per device) or by torchrun (on one node or several).


TIMEOUT_S = 600.0


def launch(
    device: str = "auto", devices: int | None = None, precision: str = "fp32", timeout_s: float = TIMEOUT_S
) -> World:
    """Join the processes that torchrun has started, or start them: one per device.

    devices: on this node; None: as many as torchrun started, or one. precision: of the networks; auto is float32 until
    it is decided (`World.precision`). timeout_s: how long a process waits for the others. Raises UsageError for devices
    that are not there or not those of torchrun, ProcessLostError when the others do not come.
    """
    launcher = launched()
    chosen = torch_device(device)
    count = check_devices(launcher, device, chosen, devices)
    device_ids: Any = count
    if chosen.type == "cuda" and count == 1 and launcher is None:
        device_ids = [chosen.index or 0]
    fabric = _import_fabric("")
    environments = _import_fabric(".plugins.environments")
    several = launcher is not None or count > 1
    options: dict[str, Any] = {"strategy": "auto"}
    if several:
        options["strategy"] = _import_fabric(".strategies").DDPStrategy(timeout=timedelta(seconds=timeout_s))
        # without it Lightning would ask SLURM's variables, which may be those of the job that torchrun runs in
        options["plugins"] = [
            environments.LightningEnvironment() if launcher is None else environments.TorchElasticEnvironment()
        ]
        options["num_nodes"] = 1 if launcher is None else launcher.nodes
    for name in ("lightning.fabric", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # it announces every process
    fabric_instance = fabric.Fabric(accelerator=chosen.type, devices=device_ids, **options)
    try:
        fabric_instance.launch()
    except RuntimeError as error:
        if not several:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise ProcessLostError(
            f"the processes did not find each other within {timeout_s:g} s ({reason}); is the same command running on"
            " all nodes, with the same --rdzv-endpoint?"
        ) from None
    if several:
        atexit.register(_leave)
    world = World(fabric_instance, timeout_s, "bf16" if precision == "bf16" else "fp32")
    if not world.is_first:
        log.only_errors()
    return world


def _leave() -> None:
    """End the connections while Python still runs: their threads may abort a process that ends around them."""
    if torch.distributed.is_initialized():
        with suppress(RuntimeError):
            torch.distributed.destroy_process_group()


def check_devices(launcher: Launched | None, name: str, device: torch.device, devices: int | None) -> int:
    """The number of processes on this node. Raises UsageError."""
    if devices is not None and devices < 1:
        raise UsageError(f"--devices {devices}: at least one")
    count = devices or 1
    if launcher is not None:
        if devices is not None and devices != launcher.local_size:
            raise UsageError(
                f"--devices {devices}: torchrun has started {launcher.local_size} process(es) on this node; leave"
                " --devices out, --nproc-per-node sets it"
            )
        count = launcher.local_size
    if device.type == "cuda" and count > torch.cuda.device_count():
        option = f"--devices {count}" if launcher is None else f"torchrun --nproc-per-node {count}"
        raise UsageError(f"{option}: torch sees {torch.cuda.device_count()} CUDA devices")
    if device.index is not None and device.type == "cuda" and count > 1:
        raise UsageError(f"--device {name}: {count} processes take a device each; write --device cuda")
    return count


def _import_fabric(part: str) -> ModuleType:
    for name in ("lightning.fabric", "lightning_fabric"):
        try:
            return importlib.import_module(name + part)
        except ModuleNotFoundError:
            continue
    raise UsageError("training needs Lightning Fabric: pip install 'lightning>=2.4,<3'")
