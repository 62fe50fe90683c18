"""A training from its data to weights, in a folder that can be stopped and gone on with at any moment."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featkit import __version__
from featkit.config import differences
from featkit.stopping import Stopped
from featkit.store.artifact import locked
from featkit.training.base_config import TrainingConfig
from featkit.training.budget import plan
from featkit.training.checkpoint import load_checkpoint
from featkit.training.launch import launch
from featkit.training.loop import Run
from featkit.training.run_folder import RunFolder
from featkit.training.task import Task
from featkit.training.world import World

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What a run came to: `summary` is RUN/summary.json."""

    folder: Path
    summary: dict[str, Any]
    is_first: bool = True  # of several processes, the one that writes


def train(
    task_class: Callable[..., Task],
    config: TrainingConfig,
    data: Any,
    output: Path,
    *,
    name: str = "",
    device: str = "auto",
    devices: int | None = None,
    overwrite: bool = False,
) -> Trained:
    """Train a network by a task. data: of the type that the task takes. name: of the recipe, for the records.

    devices: processes on this machine; None: one, or as many as torchrun started. `output` is read and written by the
    first process only. Raises UsageError, BadInputError, NotWritableError, NothingCameOutError (a loss that is no
    number), ProcessLostError and Stopped (after SIGTERM or SIGINT, everything saved).
    """
    world = launch(device, devices, config.precision, config.timeout_s)
    folder = RunFolder(output)
    with locked(folder.checkpoint) if world.is_first else nullcontext():
        if world.is_first:
            folder.remove() if overwrite else folder.refuse_foreign()
        world.barrier()
        return _in_folder(folder, task_class, config, data, name, world)


def _in_folder(
    folder: RunFolder, task_class: Callable[..., Task], config: TrainingConfig, data: Any, name: str, world: World
) -> Trained:
    config = planned(task_class, config, data, folder, world)
    assert config.precision != "auto"
    world.precision = config.precision
    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
        torch.manual_seed(config.seed)  # dropout draws from torch's own generator: alike in all processes
        task = task_class(config, str(world.device))
        identity = task.identity_of(data)
        check_same(config, identity, world)
        task.prepare(data, world)
        run = Run(task, folder, world, identity)
        try:
            return _train(run, task, name, data)
        finally:
            task.close()
            folder.close()


def check_same(config: TrainingConfig, identity: str, world: World) -> None:
    """Raises UsageError in a process that was started with something else than the first."""
    if world.size > 1:
        world.check_same("featkit", __version__)
        world.check_same("data", identity)
        world.check_same("configuration", config.canonical_json(), lambda first: differences(first, config))


def planned(
    task_class: Callable[..., Task], config: TrainingConfig, data: Any, folder: RunFolder, world: World
) -> TrainingConfig:
    """The configuration with its precision and its steps decided: by the run in the folder, or by measuring.

    A run that goes on keeps the precision it was begun with, on another processor too: what is left of it is then
    computed as it would have been, on the same kind of processor bit for bit. A precision that is given again (fp32 or
    bf16, not auto) counts instead, from the next step on; of a run that is finished it changes nothing. The steps are
    the run's own where it has the same budget. Raises UsageError for a budget that is too short.
    """
    stored = world.from_first(lambda: _stored(folder))
    if stored is not None:
        if config.precision == "auto" or stored.is_finished:
            config = config.model_copy(update={"precision": stored.config.get("precision", "fp32")})
        if config.budget and stored.config.get("budget") == config.budget:
            return config.model_copy(update={"steps": int(stored.config["steps"])})
    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
        decided = plan(task_class, config, data, world)
    return config.model_copy(update={"precision": decided.precision, "steps": decided.steps})


@dataclass(frozen=True)
class _Stored:
    """What the checkpoint of a run says of it."""

    config: dict[str, Any]
    is_finished: bool


def _stored(folder: RunFolder) -> _Stored | None:
    state = load_checkpoint(folder.checkpoint)
    if state is None:
        return None
    config = json.loads(state["config"])
    return _Stored(config, state["progress"]["step"] >= config["steps"])


def _train(run: Run, task: Task, name: str, data: Any) -> Trained:
    folder, config = run.folder, run.config
    resumed = run.resume()
    run.world.barrier()  # nobody writes a checkpoint before all have looked for one
    if resumed and run.finished:
        LOGGER.info("%s: finished already (%d steps); --overwrite trains anew", folder.path, run.done.step)
    else:
        if resumed:
            LOGGER.info("%s: goes on after step %d of %d", folder.path, run.done.step, config.steps)
        if run.world.is_first:
            folder.start(config, task.name, run.done.history)
        if not resumed:
            run.save()
        _until_stopped(run)
    summary = summarise(run, task, name, data)
    if run.world.is_first:
        folder.write_summary(summary)
        export(run, task, summary)
    run.world.barrier()  # what comes next may start from the weights
    return Trained(folder.path, summary, run.world.is_first)


def _until_stopped(run: Run) -> None:
    """Train; when stopped, only the first process says so: a failure of another one would end it."""
    try:
        run.train()
    except Stopped:
        if run.world.is_first:
            raise
        raise SystemExit(0) from None


def summarise(run: Run, task: Task, name: str, data: Any) -> dict[str, Any]:
    """summary.json: last and best network, what they were trained with and for how long."""
    done = run.done
    return {
        "recipe": name,
        "task": task.name,
        "steps": done.step,
        "unit": task.unit,
        task.unit: done.step * task.batch_items,
        "seconds": round(done.seconds, 1),
        "score": dataclasses.asdict(task.score),
        "last": {"step": done.step, task.score.name: done.last_score},
        "best": {"step": done.best_step, task.score.name: done.best_score},
        "data": {**task.described(data), "identity": run.identity},
        "device": str(run.world.device),
        "devices": run.world.size,
        "versions": {"featkit": __version__, "torch": str(torch.__version__), "numpy": np.__version__},
        "config": run.config.result_fields(),
    }


def export(run: Run, task: Task, summary: dict[str, Any]) -> None:
    """last.safetensors and best.safetensors: what extracts features."""
    metadata = {"recipe": summary["recipe"], "data": summary["data"]["name"], "featkit_version": __version__}
    for which in ("best", "last"):
        state = run.done.best_network if which == "best" else run.network_state()
        step = str(summary[which]["step"])
        task.save_weights(run.folder.path / f"{which}.safetensors", state, {**metadata, "step": step})
