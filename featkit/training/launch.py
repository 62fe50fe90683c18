"""The processes of a training, started here (one per device) or by torchrun (on one node or several)."""

from __future__ import annotations

import importlib
import logging
from datetime import timedelta
from types import ModuleType
from typing import Any

import torch

from featkit import log
from featkit.device import torch_device
from featkit.errors import ProcessLostError, UsageError
from featkit.launched import Launched, launched
from featkit.training.world import World

TIMEOUT_S = 600.0


def launch(
    device: str = "auto", devices: int | None = None, precision: str = "fp32", timeout_s: float = TIMEOUT_S
) -> World:
    """Join the processes that torchrun has started, or start them: one per device.

    devices: on this node; None: as many as torchrun started, or one. precision: of the networks; auto is float32 until
    it is decided (`World.precision`). timeout_s: how long a process waits for the others. Raises UsageError for devices
    that are not there or not those of torchrun, ProcessLostError when the others do not come.
    """
    by = launched()
    chosen = torch_device(device)
    count = check_devices(by, device, chosen, devices)
    which: Any = count
    if chosen.type == "cuda" and count == 1 and by is None:
        which = [chosen.index or 0]
    fabric = _library("")
    environments = _library(".plugins.environments")
    several = by is not None or count > 1
    options: dict[str, Any] = {"strategy": "auto"}
    if several:
        options["strategy"] = _library(".strategies").DDPStrategy(timeout=timedelta(seconds=timeout_s))
        # without it Lightning would ask SLURM's variables, which may be those of the job that torchrun runs in
        options["plugins"] = [
            environments.LightningEnvironment() if by is None else environments.TorchElasticEnvironment()
        ]
        options["num_nodes"] = 1 if by is None else by.nodes
    for name in ("lightning.fabric", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # it announces every process
    made = fabric.Fabric(accelerator=chosen.type, devices=which, **options)
    try:
        made.launch()
    except RuntimeError as error:
        if not several:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise ProcessLostError(
            f"the processes did not find each other within {timeout_s:g} s ({reason}); is the same command running on"
            " all nodes, with the same --rdzv-endpoint?"
        ) from None
    world = World(made, timeout_s, "bf16" if precision == "bf16" else "fp32")
    if not world.is_first:
        log.only_errors()
    return world


def check_devices(by: Launched | None, name: str, device: torch.device, devices: int | None) -> int:
    """How many processes there are on this node. Raises UsageError."""
    if devices is not None and devices < 1:
        raise UsageError(f"--devices {devices}: at least one")
    count = devices or 1
    if by is not None:
        if devices is not None and devices != by.local_size:
            raise UsageError(
                f"--devices {devices}: torchrun has started {by.local_size} process(es) on this node; leave --devices"
                " out, --nproc-per-node says it"
            )
        count = by.local_size
    if device.type == "cuda" and count > torch.cuda.device_count():
        said = f"--devices {count}" if by is None else f"torchrun --nproc-per-node {count}"
        raise UsageError(f"{said}: torch sees {torch.cuda.device_count()} CUDA devices")
    if device.index is not None and device.type == "cuda" and count > 1:
        raise UsageError(f"--device {name}: {count} processes take a device each; write --device cuda")
    return count


def _library(part: str) -> ModuleType:
    for name in ("lightning.fabric", "lightning_fabric"):
        try:
            return importlib.import_module(name + part)
        except ModuleNotFoundError:
            continue
    raise UsageError("training needs Lightning Fabric: pip install 'lightning>=2.4,<3'")
