"""The command `featkit train patch`: from a folder of patches to usable weights, and usage errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textures import textured_patches

from featkit.data.phototour import write_phototour

Command = Callable[..., Any]
SHORT = ("--device", "cpu", "--batch-size", 8, "--set", "held_out.every=0.5", "--set", "held_out.pairs=10")


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patches")
    write_phototour(folder, textured_patches(60, views=2))
    return folder


def test_weights_from_patches(patches: Path, tmp_path: Path, featkit_command: Command) -> None:
    from featkit.weights.files import load_patch_network

    run = tmp_path / "run"
    done = featkit_command(
        "train", "patch", "--config", "hynet", "--data", patches, "--out", run, "--steps", 4, *SHORT, "--json"
    )
    assert done.code == 0, done.err
    assert done.json()["steps"] == 4
    names = {path.name for path in run.iterdir()}
    assert names >= {"best.safetensors", "last.safetensors", "metrics.csv", "report.html", "config.yaml"}
    assert "held-out matching error (1 - mAP)" in done.err
    assert "patches/s" in done.err
    network, _ = load_patch_network(run / "best.safetensors", "cpu")
    assert network.dimension == 128


def test_a_budget_sets_the_steps_and_a_second_run_resumes(
    patches: Path, tmp_path: Path, featkit_command: Command
) -> None:
    run = tmp_path / "run"
    command = ("train", "patch", "--config", "hardnet", "--data", patches, "--out", run, "--budget", "6s", *SHORT)
    done = featkit_command(*command, "--json")
    assert done.code == 0, done.err
    assert 1 <= done.json()["steps"] < 4000
    again = featkit_command(*command, "--json")
    assert again.json()["steps"] == done.json()["steps"]
    assert "finished already" in again.err
    other = featkit_command(*command[: -len(SHORT) - 1], "9min", *SHORT)
    assert other.code == 2
    assert "budget: 6s -> 9min" in other.err


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--set", "batch_sise=4"), 2, "did you mean 'batch_size'?"),
        (("--set", "loss.margn=4"), 2, "did you mean 'margin'?"),
        (("--config", "sdgmnet", "--set", "loss.hard_margn=0.5"), 2, "did you mean 'hard_margin'?"),
        (("--config", "doap", "--set", "sampler.max_per_grup=5"), 2, "did you mean 'max_per_group'?"),
        (("--steps", 3, "--budget", "3s"), 2, "give one of them"),
        (("--budget", "soon"), 2, "write it as 90s, 30min (or 30m) or 2h"),
        (("--budget", "0.01m"), 2, "too short; 5 s at least"),
        (("--precision", "fp16"), 2, "'auto', 'fp32' or 'bf16'"),
        (("--batch-size", 600), 2, "use at most"),
        (("--config", "sift"), 2, "is not a task"),
        (("--config", "hardnett"), 2, "did you mean 'hardnet'"),
    ],
    ids=str,
)
def test_usage_errors(
    options: tuple, code: int, says: str, patches: Path, tmp_path: Path, featkit_here: Command
) -> None:
    done = featkit_here("train", "patch", "--data", patches, "--out", tmp_path / "run", *SHORT, *options)
    assert done.code == code, done.err
    assert says in done.err
    assert "Traceback" not in done.err


def test_an_impossible_budget_is_refused_before_anything_is_read(tmp_path: Path, featkit_here: Command) -> None:
    gone = ("--data", tmp_path / "gone", "--out", tmp_path / "run")
    done = featkit_here("train", "patch", *gone, "--budget", "3s")
    assert (done.code, "too short; 5 s at least" in done.err) == (2, True), done.err
    done = featkit_here("train", "scfeat", *gone, "--budget", "20s")
    assert (done.code, "description gets 3 s of it; 5 s at least, so 33 s for all stages" in done.err) == (2, True), (
        done.err
    )
    done = featkit_here("train", "scfeat", *gone, "--budget", "1m")
    assert (done.code, "no such folder" in done.err) == (3, True), done.err
