"""Worker processes: what they have of the process that starts them, and what they do with signals."""

from __future__ import annotations

import os
import signal

import pytest

from featkit.core.registry import Method
from featkit.features.base import Extractor
from featkit.features.stage import ExtractConfig, extraction_method, prepare_workers, workers

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


def test_signals(rootsift: Method[Extractor]) -> None:
    """SIGTERM ends a worker without a word, though pycolmap's import sets a handler; Ctrl-C is the parent's."""
    with workers(rootsift, 2, NAMES) as pool:
        pids = {pool._pool.submit(os.getpid).result(60) for _ in range(4)}
        assert os.getpid() not in pids
        assert pool._pool.submit(signal.getsignal, signal.SIGTERM).result(60) == signal.SIG_DFL
        assert pool._pool.submit(signal.getsignal, signal.SIGINT).result(60) == signal.SIG_IGN


def test_no_processes_where_threads_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network leaves Python's lock to others: no process is prepared for it."""
    prepared: list[object] = []
    monkeypatch.setattr("featkit.features.stage.worker_context", prepared.append)
    prepare_workers(extraction_method(ExtractConfig(features="scfeat")))
    assert prepared == []
    prepare_workers(extraction_method(ExtractConfig()))
    assert len(prepared) == 1
