"""How many steps fit into a time: measured on the machine, before a training starts."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any

import torch

from featkit.errors import UsageError
from featkit.training.base_config import TrainingConfig
from featkit.training.optimiser import build_optimiser
from featkit.training.task import Task
from featkit.training.world import World

LOGGER = logging.getLogger(__name__)
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
TIMED_STEPS = 4
RESERVE = 0.97  # of the budget: start, checkpoints and the report take the rest


def seconds_of(budget: str) -> float:
    """Seconds of `90s`, `30min`, `2h`. Raises UsageError."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(s|min|h)", budget.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"--budget {budget!r}: write it as 90s, 30min or 2h")
    return float(match[1]) * UNITS[match[2]]


def steps_in(budget_s: float, task_class: Callable[..., Task], config: TrainingConfig, data: Any, world: World) -> int:
    """Steps that a training of `config` makes in that time, measurements on the held-out part included.

    Raises UsageError when it is too short for one.
    """
    task = task_class(config, str(world.device))
    task.prepare(data, world)
    optimiser = build_optimiser(config.optimiser, task.parameter_groups())
    task.step(0.0)  # what happens once: memory, threads, compilation
    optimiser.step()
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        optimiser.zero_grad(set_to_none=True)
        float(task.step(0.5).loss)
        optimiser.step()
    step_s = (time.perf_counter() - started) / TIMED_STEPS
    measure_s = 0.0
    if world.is_first:
        started = time.perf_counter()
        task.held_out()
        measure_s = time.perf_counter() - started
    task.close()
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    before_s = measure_s if task.starts_trained else 0.0
    steps = int(world.from_first(lambda: _steps_that_fit(RESERVE * budget_s - before_s, step_s, measure_s, config)))
    if steps < 1:
        least_s = (before_s + step_s + measure_s) / RESERVE
        raise UsageError(
            f"--budget: too short: {task.name} gets {budget_s:.3g} s of it, and {least_s:.3g} s are needed for one step"
            " and a look at what is held out; give a longer one, or --steps"
        )
    LOGGER.info("a step takes %.3g s: %d steps in %.0f s", step_s, steps, budget_s)
    return steps


def _steps_that_fit(room_s: float, step_s: float, measure_s: float, config: TrainingConfig) -> int:
    """A training shorter than its number of measurements is measured after every step; 0: not even one fits."""
    often = (room_s - measure_s / config.held_out.every) / step_s
    return max(0, int(often if often * config.held_out.every >= 1 else room_s / (step_s + measure_s)))
