"""How many steps a time is enough for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from featkit.errors import UsageError
from featkit.losses.base import LossResult
from featkit.training import budget
from featkit.training.base_config import Adam, Measured, TrainingConfig
from featkit.training.budget import RESERVE, steps_in
from featkit.training.launch import launch

STEP_S, MEASURE_S = 0.02, 0.1
CONFIG = TrainingConfig(optimiser=Adam(learning_rate=1.0), batch_size=1, steps=1, held_out=Measured(every=0.1))


class Clock:
    """Time that passes only where somebody sleeps: a busy machine changes nothing."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _known_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "time", CLOCK)


class Sleeping:
    """A task that does nothing, in a known time."""

    name = "sleeping"

    def __init__(self, config: TrainingConfig, device: str, starts_trained: bool = False):
        self.weight, self.starts_trained = torch.nn.Parameter(torch.zeros(1)), starts_trained

    def prepare(self, data: Any, world: Any) -> None: ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.weight], "lr": 1.0}]

    def step(self, share: float) -> LossResult:
        CLOCK.sleep(STEP_S)
        return LossResult(torch.zeros(()), {})

    def held_out(self) -> float:
        CLOCK.sleep(MEASURE_S)
        return 0.0

    def close(self) -> None: ...


def trained(config: TrainingConfig, device: str) -> Sleeping:
    return Sleeping(config, device, starts_trained=True)


def steps(budget_s: float, task: Any = Sleeping) -> int:
    return steps_in(budget_s / RESERVE, task, CONFIG, None, launch("cpu"))


def test_steps_and_measurements_fit() -> None:
    assert steps(10 * MEASURE_S + 500 * STEP_S) == pytest.approx(500, abs=1)


def test_a_short_training_is_measured_after_every_step() -> None:
    """Ten measurements, as a long one has, would not fit."""
    assert 1 <= steps(5.5 * (STEP_S + MEASURE_S)) <= 5


@pytest.mark.parametrize(("task", "least_s"), [(Sleeping, STEP_S + MEASURE_S), (trained, STEP_S + 2 * MEASURE_S)])
def test_too_short_a_budget_is_refused(task: Any, least_s: float) -> None:
    with pytest.raises(UsageError, match=r"--budget: too short: sleeping gets .* s of it, and .* for one step"):
        steps(0.9 * least_s, task)
