"""The interface between training loop and tasks, and planning of steps and precision by timing."""

from __future__ import annotations

import logging
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from featkit.core.errors import UsageError
from featkit.losses.base import LossResult
from featkit.training.config import Precision, TrainingConfig, build_optimiser
from featkit.training.distributed import World

LOGGER = logging.getLogger(__name__)
# ----------------------------------------------------------------------------------------------------------------------
# The task: its interface to the training loop.


@dataclass(frozen=True)
class Score:
    """The validation metric. name: its column in metrics.csv. label: for display, as value * `factor` in `unit`."""

    name: str
    label: str
    factor: float
    unit: str

    def text(self, value: float) -> str:
        return f"{self.label} {self.factor * value:.2f} {self.unit}"


class TrainingTask(Protocol):
    """Interface of a training task. Built as `cls(config, device)`; then `prepare` takes data of the task's type."""

    config: Any
    network: Any
    name: str
    unit: str
    """Unit of the items in a batch: "patches", "pairs"."""
    score: Score
    also_measured: dict[str, float]
    """Further metrics of the last `held_out`, by column name."""

    @property
    def batch_items(self) -> int:
        """Items per step."""
        ...

    @classmethod
    def identity_of(cls, data: Any) -> str:
        """A string that identifies the data."""
        ...

    def described(self, data: Any) -> dict[str, Any]:
        """Description of the data for the summary, with at least `name`."""
        ...

    def prepare(self, data: Any, world: World) -> None: ...

    @property
    def starts_trained(self) -> bool:
        """Whether the network starts from trained weights; valid after `prepare`."""
        ...

    def modules(self) -> dict[str, nn.Module]: ...

    def parameter_groups(self) -> list[dict[str, Any]]: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...

    def step(self, share: float) -> LossResult: ...

    def held_out(self) -> float:
        """The score on the validation set: smaller is better."""
        ...

    def held_out_s(self) -> float:
        """Estimated duration of `held_out` in seconds, from a sample."""
        ...

    def batch_arrays(self) -> dict[str, Any]: ...

    def waited_s(self) -> float: ...

    def save_weights(self, path: Path, state: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        """Write a weights file of this task's network with the given state."""
        ...

    @property
    def picture_turns(self) -> int:
        """How many times during the training `pictures` are saved."""
        ...

    def pictures(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Visualisations of the current network, by name."""
        ...

    def close(self) -> None: ...


# ----------------------------------------------------------------------------------------------------------------------
# Timing of steps on this machine: how many fit into a budget, and which precision is faster.
#
# Before the training, the task's own steps are timed: one warm-up step (memory, threads, compilation), then alternating
# float32 and bf16 steps, of which the median counts. With a `--budget` this takes at most a tenth of it; otherwise at
# most ten seconds and a tenth of the training (the first step in each precision always completes). The time spent is
# deducted from the budget. With several processes the first one's clock decides for all.


UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
LEAST_S = 5.0  # shortest budget: less is used up before the first step
RESERVE = 0.97  # share of the budget for steps; start, checkpoints and the report take the rest
SHARE = 0.1  # maximum share of the budget, or of the training, spent on timing
LIMIT_S = 10.0  # maximum duration of timing the precisions
ROUNDS = 5  # timed steps in each precision
WORTH = 0.95  # bf16 is chosen if its step takes less than this share of float32's: its rounding must pay off
HOPELESS = 1.5  # bf16 timing stops if its step takes this many times as long as float32's
MEASURED_FROM = 200  # steps: timing does not pay off for shorter trainings


def seconds_of(budget: str) -> float:
    """Seconds of `90s`, `1m` or `30min`, `2h`. Raises UsageError, also for less than 5 s."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(s|m|min|h)", budget.strip())
    if match is None:
        raise UsageError(f"--budget {budget!r}: write it as 90s, 30min (or 30m) or 2h")
    seconds = float(match[1]) * UNITS[match[2]]
    if seconds < LEAST_S:
        raise UsageError(f"--budget {budget!r}: too short; {LEAST_S:g} s at least")
    return seconds


@dataclass(frozen=True)
class TrainingPlan:
    """Precision and number of steps of a training."""

    precision: Precision
    steps: int


def plan(task_class: Callable[..., TrainingTask], config: TrainingConfig, data: Any, world: World) -> TrainingPlan:
    """Precision and number of steps: as configured, or by timing if `precision` is auto or there is a `budget`.

    Raises UsageError if the budget is too short for one step and one validation.
    """
    budget_s = seconds_of(config.budget) if config.budget else 0.0
    if config.precision != "auto" and not config.budget:
        return TrainingPlan(config.precision, config.steps)
    if config.precision == "auto" and not config.budget and config.steps < MEASURED_FROM:
        return TrainingPlan("fp32", config.steps)
    started = time.perf_counter()
    initial: Precision = "bf16" if config.precision == "bf16" else "fp32"
    task = task_class(config.model_copy(update={"precision": initial}), str(world.device))
    task.prepare(data, world)
    prepare_s = time.perf_counter() - started
    world.precision = initial
    try:
        timer = _StepTimer(task, world, SHARE * budget_s if config.budget else LIMIT_S)
        validation_s = timer.time_validation() if config.budget and world.is_first else 0.0
        precision = timer.choose_precision(config)
        if not config.budget:
            return TrainingPlan(precision, config.steps)
        step_s, before_s = timer.step_s(precision), validation_s if task.starts_trained else 0.0
        spent_s = time.perf_counter() - started + prepare_s  # the task is prepared once more
    finally:
        task.close()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()

    def steps_that_fit() -> int:
        steps = _steps_that_fit(RESERVE * budget_s - spent_s - before_s, step_s, validation_s, config)
        if steps < 1:
            least_s = (spent_s + before_s + step_s + validation_s) / RESERVE
            raise UsageError(
                f"--budget: too short: {task.name} gets {budget_s:.3g} s of it, and {least_s:.3g} s are needed for one"
                " step and one validation; give a longer budget, or --steps"
            )
        LOGGER.info("a step takes %.3g s: %d steps in %.0f s", step_s, steps, budget_s)
        return steps

    return TrainingPlan(precision, int(world.from_first(steps_that_fit)))


def _steps_that_fit(room_s: float, step_s: float, validation_s: float, config: TrainingConfig) -> int:
    """Number of steps, with validation after every step if there are fewer steps than validations; 0: none fits."""
    steps = (room_s - validation_s / config.held_out.every) / step_s
    return max(0, int(steps if steps * config.held_out.every >= 1 else room_s / (step_s + validation_s)))


class _StepTimer:
    """Times steps of a prepared task."""

    def __init__(self, task: TrainingTask, world: World, limit_s: float):
        self._task, self._world, self._limit_s = task, world, limit_s
        self._optimiser = build_optimiser(task.config.optimiser, task.parameter_groups())
        self._step_times: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
        self._spent_s = 0.0

    def time_validation(self) -> float:
        """Estimated duration of one validation in seconds, from a sample."""
        started = time.perf_counter()
        validation_s = self._task.held_out_s()
        self._spent_s += time.perf_counter() - started
        return validation_s

    def choose_precision(self, config: TrainingConfig) -> Precision:
        """The faster precision if it is auto; steps are timed in any case."""
        initial: Precision = "bf16" if config.precision == "bf16" else "fp32"
        self._time_step(initial)
        self._step_if_time(initial)
        if config.precision != "auto":
            for _ in range(ROUNDS - 1):
                self._step_if_time(initial)
            return initial
        if not config.budget:
            training_s = config.steps * self.step_s("fp32")
            self._limit_s = min(self._limit_s, SHARE * training_s)
        if not self._has_time(2 * self.step_s("fp32")):
            LOGGER.info("precision: fp32; no time to measure another one")
            return "fp32"
        self._time_step("bf16")
        for _ in range(ROUNDS):
            if self._has_time(self.step_s("fp32") + self.step_s("bf16")):
                self._time_step("bf16")
                if self._decided_by_first(self.step_s("bf16") > HOPELESS * self.step_s("fp32")):
                    break
                self._time_step("fp32")
        fp32_s, bf16_s = (self.step_s(one) for one in ("fp32", "bf16"))
        chosen: Precision = "bf16" if self._decided_by_first(bf16_s < WORTH * fp32_s) else "fp32"
        LOGGER.info("precision: %s; a step takes %.3g s in float32 and %.3g s in bf16", chosen, fp32_s, bf16_s)
        return chosen

    def step_s(self, precision: Precision) -> float:
        """Median step time in seconds; the first step counts only if it is the only one."""
        times = self._step_times[precision]
        return statistics.median(times[1:] or times)

    def _decided_by_first(self, found: bool) -> bool:
        """The first process's value."""
        return self._world.from_first(lambda: found)

    def _has_time(self, expected_s: float) -> bool:
        return self._decided_by_first(self._spent_s + expected_s <= self._limit_s)

    def _step_if_time(self, precision: Precision) -> None:
        if self._has_time(self._step_times[precision][-1]):
            self._time_step(precision)

    def _time_step(self, precision: Precision) -> None:
        started = time.perf_counter()
        self._world.precision = precision
        self._optimiser.zero_grad(set_to_none=True)
        float(self._task.step(0.5).loss)
        self._optimiser.step()
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        self._step_times[precision].append(time.perf_counter() - started)
        self._spent_s += self._step_times[precision][-1]
