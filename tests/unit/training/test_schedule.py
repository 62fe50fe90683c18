"""Schedules keep the paper's shape whatever the length."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter

from featkit.training.config import (
    Adam,
    Constant,
    Cosine,
    Halve,
    Linear,
    Schedule,
    Sgd,
    Steps,
    build_optimiser,
    set_learning_rate,
)


@pytest.mark.parametrize("steps", [90, 900, 87_930])
def test_adasample_falls_at_epochs_30_60_and_80_of_90(steps: int) -> None:
    schedule = Steps()
    factors = [schedule.factor(step / steps) for step in range(steps)]
    for epoch, expected in [(0, 1), (29.9, 1), (30, 0.1), (59.9, 0.1), (60, 0.01), (79.9, 0.01), (80, 0.001)]:
        assert factors[int(epoch * steps / 90)] == pytest.approx(expected), epoch


@pytest.mark.parametrize("steps", [10, 200, 200_000])
def test_sdgmnet_halves_every_tenth(steps: int) -> None:
    schedule = Halve()
    for tenth in range(10):
        first, last = tenth * steps // 10, (tenth + 1) * steps // 10 - 1
        assert schedule.factor(first / steps) == 0.5**tenth
        assert schedule.factor(last / steps) == 0.5**tenth


def test_linear_reaches_zero_after_the_last_step_and_constant_stays() -> None:
    assert [Linear().factor(step / 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert Constant().factor(0.99) == 1.0


def test_cosine_rises_then_falls_to_its_end() -> None:
    schedule = Cosine(rise=0.1, end=0.02)
    assert [schedule.factor(share) for share in (0.0, 0.05, 0.1)] == pytest.approx([0.0, 0.5, 1.0])
    assert schedule.factor(0.55) == pytest.approx(0.51)  # half of the way down
    assert schedule.factor(1.0) == pytest.approx(0.02)
    assert Cosine(rise=0.0).factor(0.0) == 1.0


def test_a_schedule_is_chosen_by_its_kind() -> None:
    adapter: TypeAdapter = TypeAdapter(Schedule)
    assert adapter.validate_python({"kind": "halve", "every": 0.25}).factor(0.5) == 0.25


def test_groups_keep_the_ratio_of_their_rates() -> None:
    slow, fast = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    groups = [{"params": [fast], "lr": 2.0}, {"params": [slow], "lr": 0.02}]
    optimiser = build_optimiser(Sgd(learning_rate=2.0, dampening=0.9), groups)
    set_learning_rate(optimiser, 0.5)
    set_learning_rate(optimiser, 0.25)
    assert [group["lr"] for group in optimiser.param_groups] == [0.5, 0.005]
    assert optimiser.defaults["dampening"] == 0.9
    assert isinstance(build_optimiser(Adam(learning_rate=0.01), [{"params": [slow], "lr": 0.01}]), torch.optim.Adam)
