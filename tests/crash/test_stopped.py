"""SIGTERM and Ctrl-C on every long command: one line, exit 143 or 130 in time, out of native code too."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from textures import textured_patches
from warped_sequences import write_sequence

from featkit.core.runtime import GRACE_S
from featkit.data.phototour import write_phototour

Command = Callable[..., Any]
PROMISED_S = 5.0
STOPPED = "featkit: stopped; run the same command again to go on"

# A function of featkit's is replaced by native code that neither ends nor looks at signals, and says when it is in it.
STUCK = """
import hashlib, importlib, sys
from featkit.core import runtime as stopping
from featkit.cli.main import main

where, grace = sys.argv.pop(1), float(sys.argv.pop(1))
module, _, path = where.partition(":")
owner = importlib.import_module(module)
*parents, name = path.split(".")
for parent in parents:
    owner = getattr(owner, parent)

def stuck(*args, **kwargs):
    print("in hand", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", (1 << 31) - 1)

setattr(owner, name, stuck)
stopping.GRACE_S = grace
main()
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended that a signal was sent to."""

    code: int
    seconds: float
    out: str
    err: str


def stop_inside(where: str, arguments: list[object], cwd: Path, *numbers: int, grace_s: float = 0.3) -> Ended:
    """Run featkit until it is in the function named, send the signals 0.6 s apart, and wait."""
    command = [sys.executable, "-c", STUCK, where, str(grace_s), *map(str, arguments)]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "in hand\n", process.communicate()
        started = time.monotonic()
        for count, number in enumerate(numbers):
            time.sleep(0.6 if count else 0.05)
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
        return Ended(process.returncode, time.monotonic() - started, out, err)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequences")
    write_sequence(folder, "stone", seed=1)
    return folder


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patches")
    write_phototour(folder, textured_patches(40, views=2))
    return folder


def unmapped(scene: Any) -> None:
    """Leave features, pairs and matches of a mapped scene."""
    for name in ("sparse.json", "database.db", "database.json", "metrics.json", "report.html"):
        (scene.output / name).unlink()
    shutil.rmtree(scene.output / "sparse")


VERBS = {
    "extract": ("featkit.features.stage:extract_one", signal.SIGTERM),
    "pairs": ("featkit.pairing.by_name:Exhaustive.pairs", signal.SIGINT),
    "match": ("featkit.matching.mutual:MutualMatcher.match", signal.SIGTERM),
    "verify": ("featkit.mapping.verify:verify_by_ransac", signal.SIGINT),
    "map": ("pycolmap:incremental_mapping", signal.SIGTERM),
    "localize": ("featkit.localization.stage:estimate_pose", signal.SIGINT),
    "eval": ("featkit.evaluation.benchmark:stages.match", signal.SIGTERM),
    "train": ("featkit.training.patch:PatchTask.step", signal.SIGINT),
}


@pytest.mark.parametrize("verb", VERBS)
def test_native_code_that_would_not_stop(
    verb: str, mapped_copy: Any, sequences: Path, patches: Path, featkit_command: Command, tmp_path: Path
) -> None:
    scene, out = mapped_copy, tmp_path / "out"
    mapping: list[object] = ["reconstruct", scene.folder, *scene.options]
    training = ["train", "patch", "--data", patches, "--out", out, "--steps", 2, "--batch-size", 4, "--device", "cpu"]
    arguments: dict[str, list[object]] = {
        "extract": ["extract", scene.folder / "images", "-o", out / "f.h5", "--workers", 1, "--max-keypoints", 100],
        "pairs": ["pairs", scene.folder / "images", "-o", out / "p.txt", "--method", "exhaustive"],
        "match": ["match", scene.output / "features.h5", scene.output / "pairs.txt", "-o", out / "m.h5"],
        "verify": mapping,
        "map": mapping,
        "localize": ["localize", scene.folder, "--queries", scene.folder / "queries", "-o", out],
        "eval": ["eval", "hpatches", "--root", sequences, "--out", out, "--workers", 1, "--max-keypoints", 100],
        "train": training,
    }
    if verb in ("verify", "map"):
        unmapped(scene)
    where, number = VERBS[verb]
    ended = stop_inside(where, [*arguments[verb], "-q"], tmp_path, number)
    assert ended.code == 128 + number, ended
    assert ended.err.splitlines()[-1] == STOPPED
    assert "Traceback" not in ended.err
    assert ended.seconds < PROMISED_S
    again = featkit_command(*arguments[verb], "-q")
    assert again.code == 0, again.err
    folder = scene.output if verb in ("verify", "map") else out
    assert [path.name for path in folder.rglob(".*")] == [], "leftovers of the run that was stopped"


def test_in_the_time_that_is_promised_and_as_json(mapped_scene: Any, tmp_path: Path) -> None:
    arguments: list[object] = ["pairs", mapped_scene.folder / "images", "-o", tmp_path / "p.txt", "--json", "-q"]
    ended = stop_inside(VERBS["pairs"][0], arguments, tmp_path, signal.SIGTERM, grace_s=GRACE_S)
    assert ended.code == 143
    assert GRACE_S - 0.5 < ended.seconds < PROMISED_S
    assert json.loads(ended.out) == {"error": STOPPED.removeprefix("featkit: "), "exit_code": 143}


def test_a_second_signal_does_not_wait(mapped_scene: Any, tmp_path: Path) -> None:
    arguments: list[object] = ["pairs", mapped_scene.folder / "images", "-o", tmp_path / "p.txt", "-q"]
    ended = stop_inside(VERBS["pairs"][0], arguments, tmp_path, signal.SIGINT, signal.SIGINT, grace_s=30)
    assert ended.code == 130
    assert ended.seconds < PROMISED_S
    assert ended.err.splitlines() == [STOPPED]


@pytest.mark.parametrize(
    ("number", "whole_group"), [(signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGTERM, False)]
)
def test_extraction_in_processes(
    number: int, whole_group: bool, mapped_scene: Any, featkit_command: Command, tmp_path: Path
) -> None:
    """A job system and a terminal send their signal to the workers too: these dying is no news then."""
    images, output = tmp_path / "images", tmp_path / "f.h5"
    images.mkdir()
    for count in range(40):
        shutil.copy(mapped_scene.folder / "images" / f"{count % 6:04d}.jpg", images / f"{count:02d}.jpg")
    arguments: list[object] = ["extract", images, "-o", output, "--workers", 2, "--max-keypoints", 500]
    command = [sys.executable, "-m", "featkit", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and (not output.exists() or output.stat().st_size < 20_000):
        time.sleep(0.005)
    started = time.monotonic()
    if whole_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - started < PROMISED_S
    assert process.returncode == 128 + number, err
    assert err.splitlines()[-1] == STOPPED
    assert "Traceback" not in err
    again = featkit_command(*arguments, "--json")
    assert again.json()["images"] == 40
    done = int(again.err.partition("extract: ")[2].split()[0])
    assert 0 < done < 40, "the rest was left for the second run"


@pytest.mark.parametrize("where", ["main", "thread"])
def test_pycolmap_does_not_keep_sigterm(where: str) -> None:
    """Its logging library takes the signal when it is loaded, prints a stack and dies."""
    script = f"""
import os, signal, sys, threading, time
from featkit.core import runtime as stopping

def load():
    import pycolmap

with stopping.stoppable(lambda request: None):
    try:
        assert "pycolmap" not in sys.modules
        if {where == "main"}:
            load()
        else:
            thread = threading.Thread(target=load)
            thread.start()
            thread.join()
        assert "pycolmap" in sys.modules
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
        sys.exit(1)
    except stopping.Interrupted:
        print("ours")
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "ours\n"), ran.stderr


def test_an_item_is_finished_first() -> None:
    """A signal inside of `finish_first` waits for its end, and is not lost."""
    script = """
import os, signal, time
from featkit.core import runtime as stopping
words = []
with stopping.stoppable(lambda request: None):
    try:
        with stopping.finish_first():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            with stopping.finish_first():
                words.append("inner")
            words.append("outer")
        words.append("behind")
    except stopping.Interrupted:
        words.append("raised")
assert words == ["inner", "outer", "raised"], words
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
time.sleep(stopping.GRACE_S + 0.5)  # answered: nobody ends the process
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
