"""Several processes with torchrun: same losses and weights as one process, resuming with any number, no hangs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import several_processes as work
import torch
from posed_scenes import make_scene
from textures import textured_patches

from featkit.data.phototour import read_phototour, write_phototour
from featkit.training.run_folder import load_checkpoint, read_metrics

SAME_LOSS = 1e-5
FIRST = 10  # steps: rounding has hardly grown yet
DRIFT = 2e-4  # of the last of 20 steps, where two ways of adding up alternate: 7e-5 seen, by processor
SAME_WEIGHTS = 3e-3  # of how far training has moved them: sums of two halves are rounded otherwise than one sum
IN_FLOAT64 = 1e-9  # the same, of SCFeat
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
END_S = 60.0
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one/ and two/: the same trainings in one process (this one) and in two; and runs resumed with another number."""
    folder = tmp_path_factory.mktemp("processes")
    make_scene(folder / "posed", images=5)
    write_phototour(folder / "patches", textured_patches(60, views=2))
    data = read_phototour(folder / "patches")
    work.train_and_stop("hynet", data, folder / "one-then-two")
    script = str(Path(work.__file__))
    ran = subprocess.run(
        [*TORCHRUN, free_port(), script, str(folder)], capture_output=True, text=True, timeout=400, env=environment(),
        check=False,
    )  # fmt: skip
    if ran.returncode:
        pytest.fail(ran.stderr[:2000])
    work.train("hynet", data, folder / "one" / "hynet")
    work.train("hardnet", data, folder / "one" / "hardnet")
    work.train_scfeat(folder / "posed", folder / "one" / "scfeat")
    work.train("hynet", data, folder / "two-then-one")
    return folder


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "TERM": "dumb", **more}


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.csv") if "loss" in row]


def state_of(run: Path) -> dict[str, Any]:
    state = load_checkpoint(run / "checkpoint.pt")
    assert state is not None
    return state


def moved(run: Path) -> torch.Tensor:
    """All parameters of the network as one vector."""
    return in_a_row(state_of(run)["modules"]["network"])


def in_a_row(network: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([v.double().flatten() for key, v in network.items() if not key.endswith(STATISTICS)])


@pytest.mark.parametrize(
    "run", ["hynet", "hardnet", "scfeat/warm-up", "scfeat/description", "scfeat/detection"]
)  # fmt: skip
def test_two_processes_equal_one_with_the_complete_batch(run: str, done: Path) -> None:
    one, two = done / "one" / run, done / "two" / run
    assert len(losses(one)) == {"scfeat/warm-up": 6, "scfeat/detection": 10}.get(run, work.STEPS)
    assert losses(two)[:FIRST] == pytest.approx(losses(one)[:FIRST], abs=SAME_LOSS)
    assert losses(two) == pytest.approx(losses(one), abs=DRIFT)
    change = (moved(one) - start_of(run, done)).norm()
    assert change > 0
    assert (moved(two) - moved(one)).norm() <= (IN_FLOAT64 if run.startswith("scfeat") else SAME_WEIGHTS) * change
    first, second = (state_of(each)["modules"]["network"] for each in (one, two))
    for key in first:
        if key.endswith(STATISTICS):
            assert torch.allclose(second[key].float(), first[key].float(), rtol=1e-3, atol=5e-4), (
                key
            )  # they drift with the losses


def start_of(run: str, done: Path) -> torch.Tensor:
    """The parameters before the first step."""
    from featkit.core.config import make
    from featkit.training.patch import PatchTask
    from featkit.training.scfeat import TASKS, ScfeatStages
    from featkit.training.scfeat_task import ScfeatTraining

    if run.startswith("scfeat/"):
        stage = run.removeprefix("scfeat/")
        stages = ScfeatStages(make(ScfeatTraining, work.SCFEAT), "cpu")
        network: Any = TASKS[stage](stages.configured()[stage], "cpu").network.double()
        before = {"description": "warm-up", "detection": "description"}.get(stage)
        if before is not None:
            network.load_state_dict(stages.start_from(done / "one" / "scfeat" / before).values, strict=False)
    else:
        network = PatchTask(work.patch_recipe(run), "cpu").network
    return in_a_row(network.state_dict())


def test_statistics_of_the_complete_batch(done: Path) -> None:
    for stage in ("warm-up", "description", "detection"):
        one, two = (read_metrics(done / kind / "scfeat" / stage / "metrics.csv")[1] for kind in ("one", "two"))
        times = {"pairs_per_s", "photographs_per_s", "wait_share"}
        assert {k: v for k, v in two.items() if k not in times} == pytest.approx(
            {k: v for k, v in one.items() if k not in times}, rel=1e-4, abs=1e-6
        )


@pytest.mark.parametrize("run", ["one-then-two", "two-then-one"])
def test_resuming_with_another_number_of_processes(run: str, done: Path) -> None:
    assert losses(done / run)[:FIRST] == pytest.approx(losses(done / "one" / "hynet")[:FIRST], abs=SAME_LOSS)
    assert losses(done / run) == pytest.approx(losses(done / "one" / "hynet"), abs=DRIFT)
    assert state_of(done / run)["progress"]["step"] == work.STEPS


def test_connections_end_before_python(done: Path) -> None:
    assert [(done / f"connected-{rank}").read_text() for rank in (0, 1)] == ["False", "False"]


def command(done: Path, run: Path, *options: str) -> list[str]:
    """The command line equivalent to `work.train("hynet", ...)`."""
    plain = [f"optimiser.{key}={'null' if value is None else value}" for key, value in work.PLAIN.items()]
    settings = ["log_every=1", "held_out.every=0.5", "held_out.pairs=10", "save_every=1", *plain]
    data = ["--config", "hynet", "--data", str(done / "patches"), "--out", str(run), "--device", "cpu"]
    lengths = ["--steps", str(work.STEPS), "--batch-size", str(work.PATCH["batch_size"]), "-q"]
    return ["featkit", "train", "patch", *data, *lengths, *(p for one in settings for p in ("--set", one)), *options]


def steps_saved(run: Path) -> int:
    path = run / "checkpoint.pt"
    return state_of(run)["progress"]["step"] if path.exists() else 0


def wait_until(true: Callable[[], bool], *processes: subprocess.Popen[str], seconds: float = 200.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


@contextmanager
def two_by_hand(arguments: list[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Two unsupervised processes, as on two nodes."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**place, RANK=str(rank), LOCAL_RANK="0"),
        )
        for rank in (0, 1)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_lost_process_ends_the_other_and_the_run_resumes(done: Path, tmp_path: Path) -> None:
    for number, step in ((signal.SIGKILL, 3), (signal.SIGSTOP, 7)):
        with two_by_hand(command(done, tmp_path, "--set", "timeout_s=5")) as processes:
            wait_until(lambda step=step: steps_saved(tmp_path) >= step, *processes)
            processes[1].send_signal(number)
            _, message = processes[0].communicate(timeout=END_S)
            assert processes[0].returncode == 1, message
            assert len(message.strip().splitlines()) == 1, message
            assert "another of the 2 processes ended, or was silent for 5 s" in message
            assert "run the same command again to go on" in message
    assert 7 <= steps_saved(tmp_path) < work.STEPS
    work.train("hynet", read_phototour(done / "patches"), tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(done / "one" / "hynet"), abs=DRIFT)


def featkit_lines(stderr: str) -> list[str]:
    """Lines written by featkit; torchrun adds a long report to errors."""
    return [line for line in stderr.splitlines() if line.startswith("featkit: ")]


def test_an_error_in_all_processes_is_reported_once(done: Path, tmp_path: Path) -> None:
    with two_by_hand(command(done, tmp_path / "run", "--batch-size", "7")) as processes:
        ended = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    (message,) = [line for stderr in ended for line in stderr.splitlines()]
    assert "batch_size: 7 pairs cannot be split equally among 2 processes; take 8" in message


def test_sigterm_to_torchrun_leaves_a_complete_checkpoint(done: Path, tmp_path: Path) -> None:
    arguments = [*TORCHRUN, free_port(), "-m", *command(done, tmp_path, "--set", "save_every=3")]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        wait_until(lambda: steps_saved(tmp_path) >= 3, process)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=END_S)
    (message,) = featkit_lines(stderr)
    at = steps_saved(tmp_path)
    assert f"stopped at step {at} of {work.STEPS}, all is saved" in message
    assert losses(tmp_path)[:at] == pytest.approx(losses(done / "one" / "hynet")[:at], abs=SAME_LOSS)
