"""SIGKILL at any moment of a training: the same command goes on, with the losses of an undisturbed run, bit for bit."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textures import textured_patches

from featkit.data.phototour import write_phototour
from featkit.training.run_folder import load_checkpoint, save_checkpoint

STEPS = 62
KILLS = 3
TIMES = {"patches_per_s", "wait_share"}


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PhotoTour folder of synthetic textures."""
    return write_folder(tmp_path_factory.mktemp("patches"))


def write_folder(folder: Path) -> Path:
    write_phototour(folder, textured_patches(60, views=2))
    return folder


def arguments(patches: Path, run: Path) -> list[str]:
    settings = ("log_every=1", "save_every=5", "held_out.every=0.5", "held_out.pairs=10", "patches_on=host")
    command = ["train", "patch", "--config", "hynet", "--data", patches, "--out", run, "--steps", STEPS, "--device"]
    command += ["cpu", "--batch-size", 2, "-q", *(part for setting in settings for part in ("--set", setting))]
    return [sys.executable, "-m", "featkit", *map(str, command)]


def start(patches: Path, run: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments(patches, run), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def finish(patches: Path, run: Path) -> None:
    process = start(patches, run)
    _, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr.decode()


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv as text, without the columns that tell the time."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def steps_written(run: Path) -> int:
    try:
        return sum(line[:1].isdigit() for line in (run / "metrics.csv").read_text().splitlines())
    except FileNotFoundError:
        return 0


def wait_for(run: Path, steps: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and steps_written(run) < steps:
        time.sleep(0.005)


def test_a_killed_training_has_the_losses_of_an_undisturbed_one(patches: Path, tmp_path: Path) -> None:
    finish(patches, tmp_path / "whole")
    expected = rows(tmp_path / "whole")
    assert len(expected) == STEPS
    run, moments, killed = tmp_path / "killed", random.Random(7), 0
    for number in range(KILLS):
        process = start(patches, run)
        # after some steps of its own, in the midst of one, of a row or of a checkpoint
        wait_for(run, 3 + 9 * number, process)
        time.sleep(moments.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed == KILLS
    assert steps_written(run) < STEPS - 10
    finish(patches, run)
    assert rows(run) == expected
    left = [path.name for path in run.iterdir() if path.name.startswith(".")]
    assert left == [], "leftovers of killed runs"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_training_saves_and_says_how_to_go_on(number: int, code: int, patches: Path, tmp_path: Path) -> None:
    process = start(patches, tmp_path)
    wait_for(tmp_path, 3, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "run the same command again to go on" in stderr.decode()
    assert (tmp_path / "checkpoint.pt").exists()


MOMENTS = ("before fsync", "after fsync", "before replace", "after replace", "never")


def write_and_die(path: Path, fatal: str) -> int:
    """In a process of its own: a whole checkpoint, then a second one that is killed at that moment; how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    save_checkpoint(path, {"step": 1})
    for name in ("fsync", "replace"):

        def die(*arguments: Any, plain: Any = getattr(os, name), name: str = name) -> None:
            if fatal == f"before {name}":
                os.kill(os.getpid(), signal.SIGKILL)
            plain(*arguments)
            if fatal == f"after {name}":
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, name, die)
    save_checkpoint(path, {"step": 2})
    os._exit(0)


@pytest.mark.parametrize("fatal", MOMENTS)
def test_killed_while_the_checkpoint_is_written(fatal: str, tmp_path: Path) -> None:
    """The moments that a clock seldom meets: one whole checkpoint is there, the old or the new one."""
    path = tmp_path / "checkpoint.pt"
    assert write_and_die(path, fatal) == (0 if fatal == "never" else -signal.SIGKILL)
    state = load_checkpoint(path)
    assert state is not None
    assert state["step"] == (2 if fatal in ("after replace", "never") else 1)
    save_checkpoint(path, {"step": 3})
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_command_as_people_type_it(patches: Path, tmp_path: Path, featkit_command: Callable[..., Any]) -> None:
    """A finished run is not trained again."""
    short = [part for part in arguments(patches, tmp_path)[3:] if part != "-q"]
    short[short.index("--steps") + 1] = "2"
    assert featkit_command(*short).code == 0
    again = featkit_command(*short)
    assert again.code == 0
    assert "finished already" in again.err
