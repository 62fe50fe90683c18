"""Training from data to weights in a run folder; can be interrupted and resumed at any time."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from featkit import __version__
from featkit.core.config import Config, differences
from featkit.core.errors import BadInputError, EmptyResultError, UsageError
from featkit.core.runtime import Stopped, StopRequest, stop_signals
from featkit.io.artifact import locked
from featkit.losses.base import LossResult
from featkit.training.config import TrainingConfig, build_optimiser, set_learning_rate
from featkit.training.distributed import World
from featkit.training.run_folder import Progress, Row, RunFolder, load_checkpoint, save_checkpoint
from featkit.training.task import TrainingTask, plan
from featkit.training.whole_batch import random_state, set_random_state
from featkit.weights.files import scenes_metadata

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """Result of a run: `summary` is RUN/summary.json."""

    folder: Path
    summary: dict[str, Any]
    is_first: bool = True  # the process that writes


def train(
    task_class: Callable[..., TrainingTask],
    config: TrainingConfig,
    data: Any,
    output: Path,
    world: World,
    *,
    name: str = "",
    overwrite: bool = False,
) -> Trained:
    """Train the network of a task. data: of the type that the task takes. name: of the recipe, for the records.

    world: the training processes, from `launch`; only the first one reads and writes `output`. Raises UsageError,
    BadInputError, NotWritableError, EmptyResultError (NaN or infinite loss), ProcessLostError and Stopped (after
    SIGTERM or SIGINT, with everything saved).
    """
    world.precision = "bf16" if config.precision == "bf16" else "fp32"  # with auto: fp32 until it is resolved
    folder = RunFolder(output)
    with locked(folder.checkpoint) if world.is_first else nullcontext():
        if world.is_first:
            folder.remove() if overwrite else folder.refuse_foreign()
        world.barrier()
        return _train_in_folder(folder, task_class, config, data, name, world)


def _train_in_folder(
    folder: RunFolder,
    task_class: Callable[..., TrainingTask],
    config: TrainingConfig,
    data: Any,
    name: str,
    world: World,
) -> Trained:
    config = planned(task_class, config, data, folder, world)
    assert config.precision != "auto"
    world.precision = config.precision
    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
        torch.manual_seed(config.seed)  # dropout uses torch's global generator: the same in all processes
        task = task_class(config, str(world.device))
        identity = task.identity_of(data)
        check_processes(config, identity, world)
        task.prepare(data, world)
        run = Run(task, folder, world, identity, {"recipe": name, "data": task.described(data)})
        try:
            return _train_and_export(run, task)
        finally:
            task.close()
            folder.close()


def check_processes(config: TrainingConfig, identity: str, world: World) -> None:
    """Raises UsageError in a process whose version, data or configuration differs from the first one's."""
    if world.size > 1:
        world.check_same("featkit", __version__)
        world.check_same("data", identity)
        world.check_same("configuration", config.canonical_json(), lambda first: differences(first, config))


def planned(
    task_class: Callable[..., TrainingTask], config: TrainingConfig, data: Any, folder: RunFolder, world: World
) -> TrainingConfig:
    """The configuration with precision and steps resolved, from the run in the folder or by timing.

    A resumed run keeps its original precision, even on other hardware, so that it continues as if never interrupted
    (bit for bit on the same kind of processor). An explicit precision (fp32 or bf16, not auto) overrides it from the
    next step on, unless the run is finished. The number of steps is kept if the budget is the same. Raises UsageError
    for a budget that is too short.
    """
    stored = world.from_first(lambda: _read_stored_run(folder))
    if stored is not None:
        if config.precision == "auto" or stored.is_finished:
            config = config.model_copy(update={"precision": stored.config.get("precision", "fp32")})
        if config.budget and stored.config.get("budget") == config.budget:
            return config.model_copy(update={"steps": int(stored.config["steps"])})
    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
        decided = plan(task_class, config, data, world)
    return config.model_copy(update={"precision": decided.precision, "steps": decided.steps})


@dataclass(frozen=True)
class _StoredRun:
    """Configuration and status of a run, from its checkpoint."""

    config: dict[str, Any]
    is_finished: bool


def _read_stored_run(folder: RunFolder) -> _StoredRun | None:
    state = load_checkpoint(folder.checkpoint)
    if state is None:
        return None
    config = json.loads(state["config"])
    return _StoredRun(config, state["progress"]["step"] >= config["steps"])


def _train_and_export(run: Run, task: TrainingTask) -> Trained:
    folder, config = run.folder, run.config
    resumed = run.resume()
    run.world.barrier()  # no process writes a checkpoint before all have looked for one
    if resumed and run.finished:
        LOGGER.info(
            "%s: finished already (%d steps); --overwrite trains again from the start", folder.path, run.done.step
        )
    else:
        if resumed:
            LOGGER.info("%s: resumes after step %d of %d", folder.path, run.done.step, config.steps)
        if run.world.is_first:
            folder.start(config, task.name, run.done.history)
        if not resumed:
            run.save()
        _train_until_stopped(run)
    summary = summarise(run, task)
    if run.world.is_first:
        folder.write_summary(summary)
        write_weights(run, task, summary)
    run.world.barrier()  # what comes next may start from the weights
    return Trained(folder.path, summary, run.world.is_first)


def _train_until_stopped(run: Run) -> None:
    """Train; on a stop only the first process raises, since a failure of another one would kill it."""
    try:
        run.train()
    except Stopped:
        if run.world.is_first:
            raise
        raise SystemExit(0) from None


def summarise(run: Run, task: TrainingTask) -> dict[str, Any]:
    """Contents of summary.json: last and best network, data, configuration and duration."""
    done = run.done
    return {
        "recipe": run.origin["recipe"],
        "task": task.name,
        "steps": done.step,
        "unit": task.unit,
        task.unit: done.step * task.batch_items,
        "seconds": round(done.seconds, 1),
        "score": dataclasses.asdict(task.score),
        "last": {"step": done.step, task.score.name: done.last_score},
        "best": {"step": done.best_step, task.score.name: done.best_score},
        "data": {**run.origin["data"], "identity": run.identity},
        "device": str(run.world.device),
        "devices": run.world.size,
        "versions": {"featkit": __version__, "torch": str(torch.__version__), "numpy": np.__version__},
        "config": run.config.result_fields(),
    }


def write_weights(run: Run, task: TrainingTask, summary: dict[str, Any]) -> None:
    """Write last.safetensors and best.safetensors, the weights for feature extraction."""
    metadata = {"recipe": summary["recipe"], "data": summary["data"]["name"], "featkit_version": __version__}
    metadata |= scenes_metadata(summary["data"].get("scenes", ()))
    for which in ("best", "last"):
        state = run.done.best_network if which == "best" else run.network_state()
        step = str(summary[which]["step"])
        task.save_weights(run.folder.path / f"{which}.safetensors", state, {**metadata, "step": step})


# ----------------------------------------------------------------------------------------------------------------------
# The training loop: steps, schedule, checkpoints and signals. The task defines what a step does.
#
# The checkpoint holds everything that the next steps depend on, so that a killed run resumes as if it had not been
# interrupted: on the CPU with the same losses, bit for bit.


@dataclass
class TrainState:
    """Progress of a run, saved in the checkpoint."""

    step: int = 0
    seconds: float = 0.0
    history: list[Row] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)  # losses since the last row
    best_score: float = math.inf
    best_step: int = 0
    best_network: dict[str, torch.Tensor] = field(default_factory=dict)
    last_score: float = math.nan


class Average:
    """Exponential moving average of a network's state, including BatchNorm statistics but no integers.

    After k steps the decay is min(decay, k / (k + 10)), so that early averages forget the random initialisation.
    """

    def __init__(self, network: nn.Module, decay: float):
        self._network, self._decay = network, decay
        self.values = {n: v.detach().clone() for n, v in network.state_dict().items() if v.is_floating_point()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Include the network's current values. step: steps done so far."""
        decay = min(self._decay, step / (step + 10))
        current = self._network.state_dict()
        torch._foreach_lerp_(list(self.values.values()), [current[name] for name in self.values], 1 - decay)


class Run:
    """One training in one folder."""

    def __init__(self, task: TrainingTask, folder: RunFolder, world: World, identity: str, origin: dict[str, Any]):
        """identity: identifies the data. origin: recipe and data, for weights exported before the end."""
        self.origin = origin
        self.task, self.folder, self.world, self.identity = task, folder, world, identity
        self.config = task.config
        self.optimiser = build_optimiser(self.config.optimiser, task.parameter_groups())
        self.done = TrainState()
        self.average = Average(task.network, self.config.average) if self.config.average else None
        self._saved_at = time.monotonic()

    def resume(self) -> bool:
        """Resume from the folder's checkpoint; False if there is none. Raises UsageError, BadInputError."""
        state = self.world.from_first(lambda: load_checkpoint(self.folder.checkpoint))
        if state is None:
            return False
        check_checkpoint(state, self.config, self.identity, self.folder.path)
        for name, module in self.task.modules().items():
            try:
                module.load_state_dict(state["modules"][name])
            except (RuntimeError, KeyError) as error:
                what = str(error).splitlines()[0]
                raise BadInputError(
                    f"{self.folder.checkpoint}: of another {name} ({what}); use --overwrite to discard it"
                ) from None
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.values = {name: value.to(self.world.device) for name, value in state["average"].items()}
        self.task.restore(state["task"])
        set_random_state(state["random"], self.world.device)  # the same in all processes
        self.done = TrainState(**state["progress"])
        return True

    def save(self) -> None:
        """Write the checkpoint (first process only). Raises EmptyResultError for NaN or infinity in the network."""
        self._saved_at = time.monotonic()
        self._check_network()
        if not self.world.is_first:
            return
        state = {
            "featkit_version": __version__,
            "config": self.config.canonical_json(),
            "data": self.identity,
            "origin": self.origin,
            "modules": {name: module.state_dict() for name, module in self.task.modules().items()},
            "optimiser": self.optimiser.state_dict(),
            "average": {} if self.average is None else self.average.values,
            "task": self.task.state(),
            "random": random_state(self.world.device),
            "progress": dict(vars(self.done)),
        }
        save_checkpoint(self.folder.checkpoint, state)

    @property
    def finished(self) -> bool:
        return self.done.step >= self.config.steps

    def train(self) -> None:
        """Run all remaining steps. Raises Stopped after a signal, EmptyResultError for a NaN or infinite loss."""
        every = self.config.log_every or max(1, self.config.steps // 1000)
        progress = Progress(
            self.config.steps, self.done.step, self.task.batch_items, self.task.unit, quiet=not self.world.is_first
        )
        with stop_signals() as request, progress:
            if self.done.step == 0 and self.task.starts_trained and self.world.is_first:
                self._add_row({"step": 0, self.task.score.name: self._measure(progress)})
            while not self.finished:
                loss, norm, result = self._step()
                self.done.pending.append(loss)
                score = self._measure_if_due(progress)
                if self.done.step % every == 0 or self.finished or score is not None:
                    self._write_row(norm, result, score, progress)
                progress.stepped(loss, "" if score is None else self.task.score.text(score))
                self._save_snapshot_if_due()
                self._save_pictures_if_due()
                self._save_or_stop(request)
        if self.world.is_first:
            self.folder.write_metrics(self.done.history)

    def _step(self) -> tuple[float, float, LossResult]:
        share = self.done.step / self.config.steps
        set_learning_rate(self.optimiser, self.config.schedule.factor(share))
        self.optimiser.zero_grad(set_to_none=True)
        started = time.perf_counter()
        result = self.task.step(share)
        parameters = [p for group in self.optimiser.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.max_gradient or math.inf)
        loss, length = torch.stack([result.loss.float(), norm.float()]).tolist()
        if not (math.isfinite(loss) and math.isfinite(length)):
            what = f"the loss became {loss}" if not math.isfinite(loss) else f"the gradient's norm became {length}"
            self._raise_diverged(what, self.done.step + 1)
        self.optimiser.step()
        self.done.step += 1
        if self.average is not None:
            self.average.update(self.done.step)
        self.done.seconds += time.perf_counter() - started
        return loss, length, result

    def _raise_diverged(self, what: str, step: int) -> NoReturn:
        if self.world.is_first:
            self.folder.save_bad_batch(step, self.task.batch_arrays())
        raise EmptyResultError(
            f"step {step}: {what}; its batch is in {self.folder.bad_batch}, the last good state in "
            f"{self.folder.checkpoint}; lower optimiser.learning_rate or set max_gradient"
        )

    def _measure_if_due(self, progress: Progress) -> float | None:
        """The validation score, if an evaluation is due."""
        if not (self._completes_interval(self.config.held_out.every) or self.finished):
            return None
        self._check_network()
        return self._measure(progress) if self.world.is_first else None

    def _measure(self, progress: Progress) -> float:
        """The validation score; keeps the best network, the latest one of equal scores."""
        started = time.perf_counter()
        try:
            with self.averaged():
                score = self.task.held_out()
        except BadInputError as error:  # finite weights, but NaN descriptors
            self._raise_diverged(str(error), self.done.step)
        self.done.last_score = score
        if score <= self.done.best_score:
            self.done.best_score, self.done.best_step = score, self.done.step
            self.done.best_network = {name: value.cpu().clone() for name, value in self.network_state().items()}
        took = time.perf_counter() - started
        self.done.seconds += took
        progress.paused(took)
        return score

    def network_state(self) -> dict[str, torch.Tensor]:
        """What is measured and exported: the network's values, or their average. Not copies."""
        state = {name: value.detach() for name, value in self.task.network.state_dict().items()}
        return state if self.average is None else {**state, **self.average.values}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the network has its averaged values, if averaging is enabled."""
        if self.average is None:
            yield
            return
        current = {name: value.clone() for name, value in self.task.network.state_dict().items()}
        self.task.network.load_state_dict(self.network_state())
        try:
            yield
        finally:
            self.task.network.load_state_dict(current)

    def _check_network(self) -> None:
        tensors = [value for module in self.task.modules().values() for value in module.state_dict().values()]
        if not all(bool(torch.isfinite(value).all()) for value in tensors):
            self._raise_diverged("the update left values in the network that are no numbers", self.done.step)

    def _completes_interval(self, every: float) -> bool:
        """Whether this step completes a multiple of the share `every` of the training."""
        step, steps = self.done.step, self.config.steps
        return int(step / steps / every + 1e-9) > int((step - 1) / steps / every + 1e-9)

    def _save_snapshot_if_due(self) -> None:
        if self.config.snapshots and self.world.is_first and self._completes_interval(1 / self.config.snapshots):
            path = self.folder.snapshots / f"step_{self.done.step:07d}.safetensors"
            path.parent.mkdir(exist_ok=True)
            with torch.random.fork_rng(devices=[]):  # building a network draws
                self.task.save_weights(path, self.network_state(), {"step": str(self.done.step)})

    def _save_pictures_if_due(self) -> None:
        times = self.task.picture_turns
        if times and self.world.is_first and self._completes_interval(1 / times):
            with self.averaged():
                pictures = self.task.pictures()
            self.folder.add_pictures(self.done.step, pictures)

    def _write_row(self, norm: float, result: LossResult, score: float | None, progress: Progress) -> None:
        pending, self.done.pending = self.done.pending, []
        row: Row = {
            "step": self.done.step,
            "loss": pending[0] if len(pending) == 1 else sum(pending) / len(pending),
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            "gradient_norm": norm,
            **progress.speed(self.task.waited_s()),
        }
        if score is not None:
            row |= {self.task.score.name: score, **self.task.also_measured}
        self._add_row(row | {name: float(value) for name, value in result.statistics.items()})

    def _add_row(self, row: Row) -> None:
        self.done.history.append(row)
        if self.world.is_first:
            self.folder.add(row, self.done.history)

    def _save_or_stop(self, request: StopRequest) -> None:
        stop = self.world.any(bool(request))
        due = time.monotonic() - self._saved_at >= self.config.save_every_s
        due = due or bool(self.config.save_every and self.done.step % self.config.save_every == 0)
        if stop or due or self.finished:
            self.save()
        if stop and not self.finished:
            number = request.signal_number or 15
            raise Stopped(
                f"stopped at step {self.done.step} of {self.config.steps}, all is saved in {self.folder.path}; "
                "run the same command again to go on",
                number,
            )


def check_checkpoint(state: dict[str, Any], config: Config, identity: str, path: Path) -> None:
    """Raises UsageError if a checkpoint has another configuration, BadInputError if it has other data.

    The precision may differ, see `planned`.
    """
    stored, requested = json.loads(state["config"]), json.loads(config.canonical_json())
    if "precision" in stored and stored["precision"] != requested["precision"]:
        LOGGER.warning("%s: continues in %s, was started in %s", path, requested["precision"], stored["precision"])
        stored["precision"] = requested["precision"]
    if stored != requested:
        raise UsageError(
            f"{path}: was trained with another configuration ({differences(json.dumps(stored), config)}); "
            "choose another folder, or use --overwrite to discard it"
        )
    if state["data"] != identity:
        raise BadInputError(
            f"{path}: was trained on other data ({state['data']}, now {identity}); "
            "choose another folder, or use --overwrite to discard it"
        )
