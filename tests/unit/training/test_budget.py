"""How many steps a time is enough for, in which precision, and what measuring may cost."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from featkit.core.errors import UsageError
from featkit.losses.base import LossResult
from featkit.training import task as budget
from featkit.training.config import Adam, Measured, TrainingConfig
from featkit.training.distributed import launch
from featkit.training.task import HOPELESS, LIMIT_S, MEASURED_FROM, RESERVE, SHARE, WORTH, plan, seconds_of

STEP_S, LOOK_S = 0.02, 0.5


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
    """A task that does nothing, in a known time: `step_s` by precision; the first step in each takes `first` times as
    long. A look at what is held out is timed by a tenth of it."""

    name = "sleeping"
    step_s: ClassVar = {"fp32": STEP_S, "bf16": 2 * STEP_S}
    first, look_s, prepare_s, starts_trained = 3.0, LOOK_S, 0.0, False
    taken: ClassVar[list[str]] = []

    def __init__(self, config: TrainingConfig, device: str):
        self.config, self.weight = config, torch.nn.Parameter(torch.zeros(1))
        type(self).taken = []

    def prepare(self, data: Any, world: Any) -> None:
        self.world = world
        CLOCK.sleep(self.prepare_s)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.weight], "lr": 1.0}]

    def step(self, share: float) -> LossResult:
        precision = self.world.precision
        CLOCK.sleep(self.step_s[precision] * (1 if precision in self.taken else self.first))
        self.taken.append(precision)
        return LossResult(torch.zeros(()), {})

    def held_out_s(self) -> float:
        CLOCK.sleep(self.look_s / 10)
        return self.look_s

    def close(self) -> None: ...


def task(**values: Any) -> type[Sleeping]:
    return type("Task", (Sleeping,), values)


def planned(kind: type[Sleeping] = Sleeping, **values: Any) -> Any:
    given: dict[str, Any] = {"steps": 1, "precision": "fp32", "held_out": Measured(every=0.1)}
    config = TrainingConfig(optimiser=Adam(learning_rate=1.0), batch_size=1, **(given | values))
    CLOCK.now = 0.0
    return plan(kind, config, None, launch("cpu"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1m", 60), ("1.5m", 90), ("30min", 1800), ("2h", 7200), (" .5 h ", 1800), ("5s", 5)],
)
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["soon", "90", "2d", "-5s", "1m30s", "s", "1 000s", "1e3s", "nans"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--budget .*: write it as 90s, 30min \(or 30m\) or 2h"):
        seconds_of(text)


@pytest.mark.parametrize("text", ["0s", "0h", "4.9s", "0.01m"])
def test_less_than_the_minimum_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="too short; 5 s at least"):
        seconds_of(text)


def test_an_impossible_budget_is_refused_before_anything_is_loaded() -> None:
    class Loading(Sleeping):
        def __init__(self, *_: Any):
            pytest.fail("the task was built")

    with pytest.raises(UsageError, match="5 s at least"):
        planned(Loading, budget="3s")


def test_steps_and_looks_fit_into_what_measuring_leaves() -> None:
    for budget_s in (20, 200):
        found = planned(budget=f"{budget_s}s")
        spent, looks = CLOCK.now, 10 * LOOK_S
        total = spent + looks + found.steps * STEP_S
        assert RESERVE * budget_s - 2 * STEP_S < total <= RESERVE * budget_s
    slow = planned(task(prepare_s=4.0), budget="200s")
    assert slow.steps == pytest.approx(found.steps - 8.0 / STEP_S, abs=1), "what is prepared is prepared twice"
    before = planned(task(starts_trained=True), budget="200s")
    assert before.steps == pytest.approx(found.steps - LOOK_S / STEP_S, abs=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
@pytest.mark.parametrize("step_s", [0.001, 0.02, 0.1, 0.24])
@pytest.mark.parametrize("budget_s", [10, 60, 600])
def test_measuring_takes_a_tenth_of_the_budget_at_most(budget_s: int, step_s: float, precision: str) -> None:
    kind = task(step_s={"fp32": step_s, "bf16": 0.7 * step_s}, look_s=0.1)
    planned(kind, budget=f"{budget_s}s", precision=precision)
    assert 0 < CLOCK.now <= SHARE * budget_s
    assert CLOCK.now >= min(0.2 * SHARE * budget_s, 5 * step_s), "it uses what it may, or has what it needs"


def test_a_short_training_is_measured_after_every_step() -> None:
    """Ten looks, as a long one has, would not fit."""
    found = planned(task(look_s=1.0), budget="6s")
    assert 1 <= found.steps <= 5


@pytest.mark.parametrize("trained", [False, True])
def test_too_short_a_budget_is_refused(trained: bool) -> None:
    """Least: what was measured, one step, one look, and one before where the network was trained."""
    kind = task(step_s={"fp32": 4.0}, look_s=4.0, first=1.0, starts_trained=trained)
    measured_s = 0.4 + 4.0
    least_s = (measured_s + 8.0 + 4.0 * trained) / RESERVE
    with pytest.raises(UsageError, match=r"--budget: too short: sleeping gets .* s of it, and .* for one step"):
        planned(kind, budget=f"{0.99 * least_s}s")
    assert CLOCK.now == pytest.approx(measured_s), "refused after one step and a tenth of a look"
    assert planned(kind, budget=f"{1.01 * least_s}s").steps == 1


@pytest.mark.parametrize(
    ("bf16", "precision"), [(0.5, "bf16"), (WORTH - 0.01, "bf16"), (WORTH + 0.01, "fp32"), (HOPELESS + 1, "fp32")]
)
@pytest.mark.parametrize("values", [{"budget": "20s"}, {"steps": 1000}])
def test_auto_takes_bf16_where_it_is_faster(bf16: float, precision: str, values: dict[str, Any]) -> None:
    kind = task(step_s={"fp32": STEP_S, "bf16": bf16 * STEP_S})
    found = planned(kind, precision="auto", **values)
    assert found.precision == precision
    if "budget" in values:
        step_s = kind.step_s[precision]
        assert found.steps == pytest.approx((RESERVE * 20 - CLOCK.now - 10 * LOOK_S) / step_s, abs=1)
    else:
        assert found.steps == 1000
        assert CLOCK.now <= min(LIMIT_S, SHARE * 1000 * STEP_S)
    if bf16 > HOPELESS:
        assert kind.taken.count("bf16") == 2, "one step in it is enough to see"
    else:
        assert kind.taken[-6:] == ["bf16", "fp32"] * 3, "in turn: a busy machine is busy for both"


def test_the_first_step_in_each_precision_does_not_count() -> None:
    kind = task(step_s={"fp32": STEP_S, "bf16": 0.8 * STEP_S}, first=30.0)
    assert planned(kind, precision="auto", steps=10_000).precision == "bf16"


def test_a_short_training_is_not_measured() -> None:
    assert planned(precision="auto", steps=MEASURED_FROM - 1) == budget.TrainingPlan("fp32", MEASURED_FROM - 1)
    assert CLOCK.now == 0
    planned(precision="auto", steps=MEASURED_FROM)
    assert CLOCK.now > 0
    for precision in ("fp32", "bf16"):
        assert planned(precision=precision, steps=10_000) == budget.TrainingPlan(precision, 10_000)
        assert CLOCK.now == 0


def test_no_step_in_bf16_where_there_is_no_time_for_it() -> None:
    """The first steps take the tenth of the budget by themselves."""
    kind = task(step_s={"fp32": 0.4, "bf16": 0.01}, look_s=0.0)
    assert planned(kind, precision="auto", budget="10s").precision == "fp32"
    assert kind.taken == ["fp32"]


def test_the_first_process_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one, much slower, takes the same steps and comes to the same plan."""
    config = TrainingConfig(optimiser=Adam(learning_rate=1.0), batch_size=1, steps=1, budget="20s", precision="auto")
    fast = task(step_s={"fp32": STEP_S, "bf16": 0.5 * STEP_S})
    slow = task(step_s={"fp32": 5 * STEP_S, "bf16": 9 * STEP_S})
    told: list[Any] = []
    first, second = launch("cpu"), launch("cpu")
    monkeypatch.setattr(first, "from_first", lambda make: told.append(make()) or told[-1])
    CLOCK.now = 0.0
    decided = plan(fast, config, None, first)
    answers = iter(told)
    monkeypatch.setattr(second, "from_first", lambda make: next(answers))
    monkeypatch.setattr(second, "rank", 1)
    assert plan(slow, config, None, second) == decided
    assert decided.precision == "bf16"
    assert slow.taken == fast.taken
    assert next(answers, None) is None
