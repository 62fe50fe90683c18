"""Function calls in worker processes that can be killed while busy.

Native code (SIFT, a network on a large image) cannot be interrupted, and some of it holds the GIL: in a thread it would
block everything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any, Generic, TypeVar

from featkit.core.errors import FeatkitError, WorkerDiedError

ENDED_S = 5.0  # time for a killed process to exit
ArgumentT = TypeVar("ArgumentT")
ResultT = TypeVar("ResultT")


class Endable(Generic[ArgumentT, ResultT]):
    """Pool of `count` processes, started at once, that run one function; thread-safe.

    function: pickled, as are its arguments and result. threads: used by torch and OpenCV in each process.
    Processes are spawned.
    """

    def __init__(self, function: Callable[[ArgumentT], ResultT], count: int, threads: int = 1):
        self._arguments = (pickle.dumps(function), threads)
        self._closed = False
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._children: set[_Child] = set()
        for _ in range(count):
            self._idle.put(self._start_child())

    def call(self, argument: ArgumentT, until: float) -> ResultT:
        """Call the function. until: deadline on `time.monotonic()`, at which the process is killed.

        Raises TimeoutError, WorkerDiedError when the process died, the function's own FeatkitError, and RuntimeError
        with the traceback for any other.
        """
        try:
            child = self._idle.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise TimeoutError from None
        try:
            child.wait_until_ready(until)
            result, error = child.ask(argument, until)
        except BaseException as problem:
            if child.is_ready or not isinstance(problem, TimeoutError):
                self._kill_child(child)
                child = child if self._closed else self._start_child()
            if isinstance(problem, EOFError | OSError) and not isinstance(problem, TimeoutError):
                raise WorkerDiedError("the process died, most likely for memory; take a smaller image") from None
            raise
        finally:
            self._idle.put(child)
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Kill all processes, busy ones included."""
        self._closed = True
        for child in list(self._children):
            self._kill_child(child)

    def _start_child(self) -> _Child:
        child = _Child(*self._arguments)
        self._children.add(child)
        return child

    def _kill_child(self, child: _Child) -> None:
        self._children.discard(child)
        child.process.kill()
        child.process.join(ENDED_S)
        child.connection.close()


class _Child:
    """A worker process and the pipe to it."""

    def __init__(self, pickled: bytes, threads: int):
        context = multiprocessing.get_context("spawn")
        self.connection, worker_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(worker_end, pickled, threads), daemon=True)
        self.process.start()
        worker_end.close()
        self.is_ready = False

    def wait_until_ready(self, until: float) -> None:
        """Wait until its imports are done. Raises TimeoutError, or EOFError if it died."""
        if not self.is_ready:
            self._receive(until)
            self.is_ready = True

    def ask(self, argument: Any, until: float) -> tuple[Any, Exception | None]:
        self.connection.send(argument)
        return self._receive(until)

    def _receive(self, until: float) -> Any:
        if not self.connection.poll(max(0.0, until - time.monotonic())):
            raise TimeoutError
        return self.connection.recv()


def _serve(connection: Connection, pickled: bytes, threads: int) -> None:
    """Main loop of a worker process: serve calls until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent
    end_with_parent()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads this when it is imported
    function = pickle.loads(pickled)
    for module, name in (("cv2", "setNumThreads"), ("torch", "set_num_threads")):
        if module in sys.modules:
            getattr(sys.modules[module], name)(threads)
    connection.send(None)
    with contextlib.suppress(EOFError):
        while True:
            connection.send(_call_function(function, connection.recv()))


def _call_function(function: Callable[[Any], Any], argument: Any) -> tuple[Any, Exception | None]:
    try:
        return function(argument), None
    except FeatkitError as error:
        return None, error
    except Exception:  # its type may not be picklable
        return None, RuntimeError(traceback.format_exc())


def end_with_parent() -> None:
    """End this worker process as soon as its parent is gone, even by SIGKILL. Returns at once: a thread waits."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def worker_context(modules: Sequence[str]) -> BaseContext:
    """How worker processes start: as forks of a clean process that has imported `modules` once, and has no threads.

    A fork of this process itself would copy locks of threads (OpenMP, HDF5) that no longer run. Without fork servers
    (Windows), workers are spawned. The first call begins the imports, in the environment of that time, and returns.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    forkserver.ensure_running()
    return context


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
MOST_KEPT = 1 << 30  # bytes


def keep_freed_memory() -> None:
    """Let glibc reuse the freed buffers of one image for the next one, instead of asking the system for new pages.

    Scale spaces are tens of megabytes, whose pages would be mapped and cleared for every image.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
