"""Processes that decode and extract. pycolmap's SIFT holds Python's lock, so threads would take turns.

An extractor of two steps (`base.TwoSteps`) is begun by the workers and finished by this process, which alone uses the
GPU. Processes are spawned, not forked: a fork would copy locks of threads (OpenMP, HDF5) that no longer run. A program
that extracts at its top level therefore needs `if __name__ == "__main__":`, as with every spawning library.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from featkit.errors import WorkerDiedError
from featkit.features.base import in_two_steps
from featkit.types import Features

if TYPE_CHECKING:
    from featkit.features.extract import BegunImage, ExtractConfig, ExtractJob

PARENT_CHECK_S = 0.5  # how soon a worker ends when its parent was killed
_job: ExtractJob | None = None  # in a worker process: what it was started for
_only_begin = False  # in a worker process: whether its parent finishes the images


class Workers:
    """Runs `extract_one` on images, in order of submission, in processes or threads."""

    def __init__(self, pool: Executor, job: ExtractJob, in_processes: bool):
        self._pool, self._job, self._in_processes = pool, job, in_processes

    def submit(self, path: Path, mask: Path | None = None) -> Future[Features | BegunImage]:
        """Start on one photograph; mask: the file of its mask."""
        from featkit.features.extract import extract_one

        if self._in_processes:
            return self._pool.submit(_work, path, mask)
        return self._pool.submit(extract_one, self._job, path, mask)

    def result(self, future: Future[Features | BegunImage], name: str) -> Features:
        """Wait for one photograph. Raises what `extract_one` raises, WorkerDiedError when its process died."""
        from featkit.features.extract import finish_one

        try:
            done = future.result()
            return done if isinstance(done, Features) else finish_one(self._job, done)
        except BrokenProcessPool:
            raise WorkerDiedError(
                f"{name}: a worker process died on it or near it, most likely for memory;"
                " run the same command again with fewer workers (--workers), or with --resize-max"
            ) from None


def usable_cores() -> int:
    """Cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


@contextmanager
def workers(job: ExtractJob, count: int, images: Sequence[str]) -> Iterator[Workers]:
    """`count` workers at most, fewer for a few images. Whatever has not begun is dropped at the end."""
    count = max(1, min(count, (len(images) + 1) // 2))
    in_processes = job.extractor.holds_gil and count > 1
    pool: Executor
    if in_processes:
        context = multiprocessing.get_context("spawn")
        arguments = (job.config, job.device, os.getpid(), in_two_steps(job.extractor))
        pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=arguments)
    else:
        pool = ThreadPoolExecutor(count, thread_name_prefix="extract")
    try:
        yield Workers(pool, job, in_processes)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(config: ExtractConfig, device: str, parent: int, only_begin: bool) -> None:
    """Begin a worker process: leave Ctrl-C to the parent, and end when the parent is gone. It computes on one core."""
    global _job, _only_begin
    from featkit.features.extract import ExtractJob

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    import cv2

    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # what torch takes when it is imported
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    _only_begin = only_begin
    _job = ExtractJob.resolve(config, device=device)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)


def _work(path: Path, mask: Path | None) -> Features | BegunImage:
    from featkit.features.extract import begin_one, extract_one

    assert _job is not None
    return begin_one(_job, path, mask) if _only_begin else extract_one(_job, path, mask)
