"""What the loop asks of a task, and how many steps of it fit into a time."""

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
# The task: what the loop asks of it.


@dataclass(frozen=True)
class Score:
    """What a network is measured by. name: its column. label: for people. Shown times `factor`, in `unit`."""

    name: str
    label: str
    factor: float
    unit: str

    def text(self, value: float) -> str:
        return f"{self.label} {self.factor * value:.2f} {self.unit}"


class Task(Protocol):
    """What training asks of a task. Built as `cls(config, device)`; then `prepare` takes the data, of its own type."""

    config: Any
    network: Any
    name: str
    unit: str
    """What a batch is counted in: "patches", "pairs"."""
    score: Score
    also_measured: dict[str, float]
    """Further numbers of the last `held_out`, by the name of their column."""

    @property
    def batch_items(self) -> int:
        """How many of them a step learns from."""
        ...

    @classmethod
    def identity_of(cls, data: Any) -> str:
        """Tells the data from other data."""
        ...

    @classmethod
    def described(cls, data: Any) -> dict[str, Any]:
        """The data in the summary: `name` and what else."""
        ...

    def prepare(self, data: Any, world: World) -> None: ...

    @property
    def starts_trained(self) -> bool:
        """Whether the network has values that training might spoil; asked after `prepare`."""
        ...

    def modules(self) -> dict[str, nn.Module]: ...

    def parameter_groups(self) -> list[dict[str, Any]]: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...

    def step(self, share: float) -> LossResult: ...

    def held_out(self) -> float:
        """The score on what was held out: smaller is better."""
        ...

    def held_out_s(self) -> float:
        """Seconds that `held_out` takes, by a sample of it."""
        ...

    def batch_arrays(self) -> dict[str, Any]: ...

    def waited_s(self) -> float: ...

    def save_weights(self, path: Path, state: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        """Write a network of this task with these values as a weight."""
        ...

    @property
    def picture_turns(self) -> int:
        """How often along the training `pictures` are wanted."""
        ...

    def pictures(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """What the network does now, in pictures by name."""
        ...

    def close(self) -> None: ...


# ----------------------------------------------------------------------------------------------------------------------
# How long a step takes on this machine: how many fit into a time, and in which precision they are faster.
#
# Measured by steps of the task itself, before its training: one for what happens once (memory, threads, compilation),
# then some in turn, float32 and bf16, of which the median counts. With a `--budget` this takes no more than a tenth of
# it; else no more than ten seconds, nor a tenth of the training (the first step in each precision cannot be cut short).
# Time that was spent is taken off the budget. Of several processes the first one's clock decides for all.


UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
LEAST_S = 5.0  # of a budget: less is gone before the first step
RESERVE = 0.97  # of the budget: start, checkpoints and the report take the rest
SHARE = 0.1  # of the budget, or of the training, that measuring may take
LIMIT_S = 10.0  # of measuring the precision
ROUNDS = 5  # steps in each precision
WORTH = 0.95  # bf16 is taken when its step takes less than this share of float32's: rounding must pay
HOPELESS = 1.5  # a step in bf16 that takes so much longer than float32's is not repeated
MEASURED_FROM = 200  # steps: a shorter training is over before a measurement has paid


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
class Plan:
    """What was measured comes to."""

    precision: Precision
    steps: int


def plan(task_class: Callable[..., Task], config: TrainingConfig, data: Any, world: World) -> Plan:
    """The precision of a training and its number of steps: as configured, or by measuring where `precision` is auto or
    there is a `budget`.

    Raises UsageError when the budget is too short for one step and a look at what is held out.
    """
    budget_s = seconds_of(config.budget) if config.budget else 0.0
    if config.precision != "auto" and not config.budget:
        return Plan(config.precision, config.steps)
    if config.precision == "auto" and not config.budget and config.steps < MEASURED_FROM:
        return Plan("fp32", config.steps)
    started = time.perf_counter()
    known: Precision = "bf16" if config.precision == "bf16" else "fp32"
    task = task_class(config.model_copy(update={"precision": known}), str(world.device))
    task.prepare(data, world)
    prepare_s = time.perf_counter() - started
    world.precision = known
    try:
        timer = _Timer(task, world, SHARE * budget_s if config.budget else LIMIT_S)
        look_s = timer.look() if config.budget and world.is_first else 0.0
        precision = timer.choose(config)
        if not config.budget:
            return Plan(precision, config.steps)
        step_s, before_s = timer.step_s(precision), look_s if task.starts_trained else 0.0
        spent_s = time.perf_counter() - started + prepare_s  # it will be prepared once more
    finally:
        task.close()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()

    def steps_that_fit() -> int:
        steps = _steps_that_fit(RESERVE * budget_s - spent_s - before_s, step_s, look_s, config)
        if steps < 1:
            least_s = (spent_s + before_s + step_s + look_s) / RESERVE
            raise UsageError(
                f"--budget: too short: {task.name} gets {budget_s:.3g} s of it, and {least_s:.3g} s are needed for one"
                " step and a look at what is held out; give a longer one, or --steps"
            )
        LOGGER.info("a step takes %.3g s: %d steps in %.0f s", step_s, steps, budget_s)
        return steps

    return Plan(precision, int(world.from_first(steps_that_fit)))


def _steps_that_fit(room_s: float, step_s: float, look_s: float, config: TrainingConfig) -> int:
    """A training shorter than its number of measurements is measured after every step; 0: not even one fits."""
    often = (room_s - look_s / config.held_out.every) / step_s
    return max(0, int(often if often * config.held_out.every >= 1 else room_s / (step_s + look_s)))


class _Timer:
    """Steps of a prepared task, timed."""

    def __init__(self, task: Task, world: World, limit_s: float):
        self._task, self._world, self._limit_s = task, world, limit_s
        self._optimiser = build_optimiser(task.config.optimiser, task.parameter_groups())
        self._taken: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
        self._spent_s = 0.0

    def look(self) -> float:
        """Seconds of a look at what is held out, by a sample of it."""
        started = time.perf_counter()
        look_s = self._task.held_out_s()
        self._spent_s += time.perf_counter() - started
        return look_s

    def choose(self, config: TrainingConfig) -> Precision:
        """The faster precision where it is auto; its steps are timed in any case."""
        known: Precision = "bf16" if config.precision == "bf16" else "fp32"
        self._step(known)
        self._step_while_there_is_time(known)
        if config.precision != "auto":
            for _ in range(ROUNDS - 1):
                self._step_while_there_is_time(known)
            return known
        if not config.budget:
            training_s = config.steps * self.step_s("fp32")
            self._limit_s = min(self._limit_s, SHARE * training_s)
        if not self._there_is_time(2 * self.step_s("fp32")):
            LOGGER.info("precision: fp32; no time to measure another one")
            return "fp32"
        self._step("bf16")
        for _ in range(ROUNDS):
            if self._there_is_time(self.step_s("fp32") + self.step_s("bf16")):
                self._step("bf16")
                if self._first(self.step_s("bf16") > HOPELESS * self.step_s("fp32")):
                    break
                self._step("fp32")
        fp32_s, bf16_s = (self.step_s(one) for one in ("fp32", "bf16"))
        chosen: Precision = "bf16" if self._first(bf16_s < WORTH * fp32_s) else "fp32"
        LOGGER.info("precision: %s; a step takes %.3g s in float32 and %.3g s in bf16", chosen, fp32_s, bf16_s)
        return chosen

    def step_s(self, precision: Precision) -> float:
        """Median; the first step counts only where it is the only one."""
        taken = self._taken[precision]
        return statistics.median(taken[1:] or taken)

    def _first(self, found: bool) -> bool:
        """What the first process found."""
        return self._world.from_first(lambda: found)

    def _there_is_time(self, expected_s: float) -> bool:
        return self._first(self._spent_s + expected_s <= self._limit_s)

    def _step_while_there_is_time(self, precision: Precision) -> None:
        if self._there_is_time(self._taken[precision][-1]):
            self._step(precision)

    def _step(self, precision: Precision) -> None:
        started = time.perf_counter()
        self._world.precision = precision
        self._optimiser.zero_grad(set_to_none=True)
        float(self._task.step(0.5).loss)
        self._optimiser.step()
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        self._taken[precision].append(time.perf_counter() - started)
        self._spent_s += self._taken[precision][-1]
