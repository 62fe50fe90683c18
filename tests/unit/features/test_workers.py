"""Worker processes: what they have of the process that starts them, and what they do with signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from featkit.core.registry import Method
from featkit.features.base import Extractor
from featkit.features.stage import ExtractConfig, extraction_method, prepare_workers, workers

STATUS = Path("/proc/self/status")
NAMES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


@pytest.fixture
def rootsift() -> Method[Extractor]:
    return extraction_method(ExtractConfig())


def test_the_environment_is_that_of_now(rootsift: Method[Extractor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the time when the process was started that they are forked from."""
    prepare_workers(rootsift)
    monkeypatch.setenv("FEATKIT_WEIGHTS", "set since")
    with workers(rootsift, 2, NAMES) as pool:
        assert pool._in_processes
        assert pool._pool.submit(os.getenv, "FEATKIT_WEIGHTS").result(60) == "set since"
        assert pool._pool.submit(os.getenv, "OMP_NUM_THREADS").result(60) == "1"
        assert pool._pool.submit(os.getcwd).result(60) == os.getcwd()


@pytest.mark.skipif(not STATUS.exists(), reason="Linux says which signals are caught, also by native code")
def test_signals(rootsift: Method[Extractor]) -> None:
    """SIGTERM ends a worker without a word, though pycolmap's import sets a handler; Ctrl-C is the parent's."""
    with workers(rootsift, 2, NAMES) as pool:
        assert pool._pool.submit(os.getpid).result(60) != os.getpid()
        lines = dict(line.split(":\t", 1) for line in pool._pool.submit(STATUS.read_text).result(60).splitlines())
    caught, ignored = (int(lines[key].split()[0], 16) for key in ("SigCgt", "SigIgn"))
    assert not caught >> (signal.SIGTERM - 1) & 1
    assert ignored >> (signal.SIGINT - 1) & 1


WORKERS_OF_A_KILLED_PARENT = """
import os, signal
from featkit.features.stage import ExtractConfig, extraction_method, workers
with workers(extraction_method(ExtractConfig()), 2, ["a", "b", "c", "d"]) as pool:
    print(pool._pool.submit(os.getpid).result(60), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    with (tmp_path / "pid").open("wb") as out:  # a pipe would be waited for until the worker ends
        killed = subprocess.run(
            [sys.executable, "-c", WORKERS_OF_A_KILLED_PARENT], stdout=out, timeout=120, check=False
        )
    assert killed.returncode == -signal.SIGKILL
    worker = int((tmp_path / "pid").read_text())
    for _ in range(300):
        if not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    psutil.Process(worker).kill()
    pytest.fail("the worker is still there")


def test_no_processes_where_threads_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network leaves Python's lock to others: no process is prepared for it."""
    prepared: list[object] = []
    monkeypatch.setattr("featkit.features.stage.worker_context", prepared.append)
    prepare_workers(extraction_method(ExtractConfig(features="scfeat")))
    assert prepared == []
    prepare_workers(extraction_method(ExtractConfig()))
    assert len(prepared) == 1
