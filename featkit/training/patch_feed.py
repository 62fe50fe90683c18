"""Prefetching of patches to the device: batches are drawn and gathered ahead, so that the network does not wait.

The contents of a batch are decided before any patch is read (`BatchPlan`, transforms), by generators whose state is
stored with the batch: prefetching changes no result, and a resumed training sees the same batches.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from featkit.core.types import PatchArray
from featkit.data.augment import AugmentConfig, Degradations, draw_degradations, draw_transforms
from featkit.data.samplers import BatchPlan, Sampler

MEMORY_SHARE = 0.4  # maximum share of the free memory for patches, with patches_on: auto
AHEAD = 3  # batches drawn ahead
READ_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Batch:
    """One batch. pixels: of this process's part, on the device; the others: of the complete batch."""

    plan: BatchPlan
    transforms: Float[np.ndarray, "m 2 3"]
    degradations: Degradations | None
    pixels: UInt8[Tensor, "p s s"]


class Draw:
    """Draws batch plans, their transforms and degradations, with a common state."""

    def __init__(
        self,
        sampler: Sampler,
        augmentation: AugmentConfig,
        generator: np.random.Generator,
        filled_rotation_deg: float = 0.0,
    ):
        self._sampler, self._augmentation, self._generator = sampler, augmentation, generator
        self._filled_rotation_deg = filled_rotation_deg

    def __call__(self) -> tuple[BatchPlan, Float[np.ndarray, "m 2 3"], Degradations | None]:
        plan = self._sampler.draw()
        transforms = draw_transforms(
            self._augmentation, plan.labels, self._generator, plan.filled, self._filled_rotation_deg
        )
        return plan, transforms, draw_degradations(self._augmentation, len(plan.labels), self._generator)

    def state(self) -> dict[str, Any]:
        return {"sampler": self._sampler.state(), "augmentation": json.dumps(self._generator.bit_generator.state)}

    def restore(self, state: dict[str, Any]) -> None:
        self._sampler.restore(state["sampler"])
        self._generator.bit_generator.state = json.loads(state["augmentation"])


class PatchFeed:
    """Endless batches on a device; `part` gives the rows of a batch that belong to this process."""

    def __init__(
        self,
        patches: PatchArray,
        draw: Draw,
        device: torch.device,
        part: Callable[[BatchPlan], slice],
        where: str = "auto",
    ):
        self._draw, self._device, self._own_rows = draw, device, part
        self._state = draw.state()
        self.on_device = where == "device" or (where == "auto" and fits(patches, device))
        self._patches: Any = on_device(patches, device) if self.on_device else patches
        self._threaded = device.type == "cuda" or not self.on_device
        self._queue: queue.Queue[Any] = queue.Queue(AHEAD)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.waited_s = 0.0

    def next(self) -> Batch:
        """The next batch; the waiting time is added to `waited_s`."""
        started = time.perf_counter()
        if self._threaded and self._thread is None:
            self._thread = threading.Thread(target=self._prefetch, daemon=True)
            self._thread.start()
        drawn = self._queue.get() if self._threaded else self._draw_batch()
        if isinstance(drawn, BaseException):
            raise drawn
        plan, transforms, degradations, pixels, self._state = drawn
        if self.on_device:
            pixels = self._patches[torch.from_numpy(plan.patches[self._own_rows(plan)]).to(self._device)]
        else:
            pixels = pixels.to(self._device, non_blocking=True)
        self.waited_s += time.perf_counter() - started
        return Batch(plan, transforms, degradations, pixels)

    def state(self) -> dict[str, Any]:
        """The state after the last batch that was returned."""
        return self._state

    def restore(self, state: dict[str, Any]) -> None:
        """Continue after the batch of `state`. Only before the first `next`."""
        assert self._thread is None
        self._draw.restore(state)
        self._state = state

    def close(self) -> None:
        """Stop prefetching."""
        self._stop.set()
        while self._thread is not None and self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def _draw_batch(self) -> tuple[BatchPlan, np.ndarray, Degradations | None, Any, dict[str, Any]]:
        plan, transforms, degradations = self._draw()
        pixels = None
        if not self.on_device:
            pixels = torch.from_numpy(self._patches[plan.patches[self._own_rows(plan)]])
            pixels = pixels.pin_memory() if self._device.type == "cuda" else pixels
        return plan, transforms, degradations, pixels, self._draw.state()

    def _prefetch(self) -> None:
        drawn: Any
        while not self._stop.is_set():
            try:
                drawn = self._draw_batch()
            except BaseException as error:  # raised again in `next`
                drawn = error
            while not self._stop.is_set():
                try:
                    self._queue.put(drawn, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(drawn, BaseException):
                return


def fits(patches: PatchArray, device: torch.device) -> bool:
    """Whether all patches fit into `MEMORY_SHARE` of the device's free memory."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):  # not available on macOS
            free = 4 << 30
    return int(np.prod(patches.shape)) <= MEMORY_SHARE * free


def on_device(patches: PatchArray, device: torch.device) -> UInt8[Tensor, "n s s"]:
    """All patches as one tensor."""
    tensor = torch.empty(tuple(patches.shape), dtype=torch.uint8, device=device)
    for start in range(0, len(patches), READ_AT_ONCE):
        index = np.arange(start, min(start + READ_AT_ONCE, len(patches)))
        tensor[start : start + len(index)] = torch.from_numpy(np.ascontiguousarray(patches[index])).to(device)
    return tensor
