"""The running process: shutdown on signals, other processes of the same launch, and the compute device."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from featkit.core.errors import FeatkitError, UsageError

if TYPE_CHECKING:
    import torch

# ----------------------------------------------------------------------------------------------------------------------
# SIGTERM and Ctrl-C: the current item is finished or dropped, files are closed, and the process exits in time.
#
# The first signal raises `Interrupted` in the main thread, delayed to the end of a `finish_first` block. Native code
# (COLMAP's mapper, a large network) cannot be interrupted, so a watchdog thread ends the process after `GRACE_S`, or at
# a second signal. That loses no more than SIGKILL, which every file here survives: the current item, or in training
# what came after the last checkpoint.
#
# pycolmap installs its own SIGTERM handler on import (its logging library prints a stack and dies); ours is restored.
# A native call that holds the GIL (COLMAP's SIFT in a process with one worker) blocks the thread until it returns.


GRACE_S = 3.0  # for the current item; 5 s are promised, and a busy machine needs some of them to end a process
SAME_S = 0.5  # a second signal within this time is a duplicate: terminals and job schedulers both send one
SIGNALS = (signal.SIGTERM, signal.SIGINT)
TAKES_SIGNALS = "pycolmap"
SIGACTION_BYTES = 1024  # larger than struct sigaction on any system
STOPPED = "stopped; run the same command again to go on"
_active: list[StopRequest] = []  # at most one: signals belong to the process


class Stopped(FeatkitError):
    """Stopped by a signal, with everything saved. Exit code: 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGINT came; no `except Exception` stops it."""


class StopRequest:
    """The signal received; 0: none. reported: the user has been informed."""

    def __init__(self) -> None:
        self.signal_number = 0
        self.reported = False
        self._num_deferring = 0
        self._has_raised = False

    def __bool__(self) -> bool:
        return self.signal_number != 0

    @property
    def exit_code(self) -> int:
        return 128 + self.signal_number

    def note(self, number: int) -> None:
        """Signal handler. Raises Interrupted the first time, unless inside `finish_first`."""
        self.signal_number = self.signal_number or number
        self._raise()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Defer signals inside the block; Interrupted is raised at its end."""
        self._num_deferring += 1
        try:
            yield
        finally:
            self._num_deferring -= 1
        if self:
            self._raise()

    def _raise(self) -> None:
        if self._num_deferring == 0 and not self._has_raised:
            self._has_raised = True
            raise Interrupted


@contextmanager
def stoppable(before_the_end: Callable[[StopRequest], None]) -> Iterator[StopRequest]:
    """SIGTERM and SIGINT raise Interrupted inside the block, and the process ends GRACE_S later in any case.

    before_the_end: called before a busy process is ended. The timer keeps running after Interrupted leaves the block,
    until the interpreter exits. Handlers installed by others meanwhile (a server) are left in place.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread() or _active:
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        request.note(number)

    previous_handlers: dict[int, Any] = {stop_signal: signal.signal(stop_signal, note) for stop_signal in SIGNALS}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(
        target=_watch_signals, args=(reader, note, request, before_the_end), name="stopping", daemon=True
    )
    watcher.start()
    keeper = _KeepHandlersOnImport()
    sys.meta_path.insert(0, keeper)
    _active.append(request)
    try:
        yield request
    except BaseException:
        if request:  # the remaining work, including interpreter shutdown, is timed
            raise
        _stop_watcher(writer, watcher, reader)
        raise
    else:
        _stop_watcher(writer, watcher, reader)
    finally:
        _active.clear()
        if keeper in sys.meta_path:
            sys.meta_path.remove(keeper)
        signal.set_wakeup_fd(previous_fd)
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


class _KeepHandlersOnImport:
    """An import hook that keeps our signal handlers after pycolmap is imported, in any thread."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != TAKES_SIGNALS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            plain = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                with _signal_handlers_kept():
                    plain(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Python's own `signal` works in the main thread only; the C library's handlers are the process's."""
    library = ctypes.CDLL(None)
    actions = {signal_number: ctypes.create_string_buffer(SIGACTION_BYTES) for signal_number in SIGNALS}
    for signal_number, action in actions.items():
        library.sigaction(int(signal_number), None, action)
    try:
        yield
    finally:
        for signal_number, action in actions.items():
            library.sigaction(int(signal_number), action, None)


def _stop_watcher(writer: int, watcher: threading.Thread, reader: int) -> None:
    os.write(writer, b"\0")
    watcher.join()
    os.close(reader)
    os.close(writer)


def _watch_signals(
    reader: int, handler: Any, request: StopRequest, before_the_end: Callable[[StopRequest], None]
) -> None:
    """Python writes the number of every signal that it takes into a pipe, also while the main thread is busy."""
    first: float | None = None
    end: float | None = None
    while end is None or (left := end - time.monotonic()) > 0:
        if not select.select([reader], [], [], None if end is None else left)[0]:
            break
        for number in os.read(reader, 16):
            if number == 0:
                return
            if number not in SIGNALS or signal.getsignal(number) is not handler:
                continue
            now = time.monotonic()
            if first is None:
                request.signal_number = request.signal_number or number
                first, end = now, now + GRACE_S
            elif now - first > SAME_S:
                end = now
    _exit_now(request, before_the_end)


def _exit_now(request: StopRequest, before_the_end: Callable[[StopRequest], None]) -> None:
    multiprocessing = sys.modules.get("multiprocessing")
    for child in multiprocessing.active_children() if multiprocessing else ():
        child.kill()
    if not request.reported:
        before_the_end(request)
    os._exit(request.exit_code)


@contextmanager
def finish_first() -> Iterator[StopRequest]:
    """Inside `stoppable`, a signal waits for the end of this block; elsewhere nothing changes."""
    if not _active or threading.current_thread() is not threading.main_thread():
        yield StopRequest()
        return
    with _active[0].held():
        yield _active[0]


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """As `finish_first`, and without `stoppable` around it signals are noted too; a second SIGINT ends the process.

    For work that looks at the request itself, after each step.
    """
    if _active or threading.current_thread() is not threading.main_thread():  # Python's signals: main thread only
        with finish_first() as request:
            yield request
        return
    request = StopRequest()
    previous_handlers: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal_number = number

    for stop_signal in SIGNALS:
        previous_handlers[stop_signal] = signal.signal(stop_signal, note)
    try:
        yield request
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


# ----------------------------------------------------------------------------------------------------------------------
# Whether something else (torchrun, a job system) has started this process as one of several: from the environment.


NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets. Lightning's own processes have no RANK; a container that only knows its number no LOCAL_RANK."""


@dataclass(frozen=True)
class Launched:
    """Which of `size` processes this is; on this node, which of `local_size`."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @property
    def nodes(self) -> int:
        return self.size // self.local_size


def launched() -> Launched | None:
    """What the environment says; None when nothing did. Raises UsageError for values that cannot be."""
    if not all(name in os.environ for name in NEEDED):
        return None
    rank, size, local_rank = (_environment_number(name) for name in NEEDED[:3])
    local_size = _environment_number("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else size
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise UsageError(
            f"RANK={rank}, WORLD_SIZE={size}, LOCAL_RANK={local_rank} of {local_size}: these processes cannot be;"
            " start them by torchrun, or unset RANK"
        )
    if size % local_size:
        raise UsageError(
            f"torchrun: {size} processes, {local_size} of them on this node; start as many on every node"
            " (the same --nproc-per-node)"
        )
    return Launched(rank, size, local_rank, local_size)


def is_reporter() -> bool:
    """Whether this process tells what it cannot start with; of several on a node, the first one."""
    return os.environ.get("LOCAL_RANK", "0") == "0" or not {"WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ)


def _environment_number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise UsageError(f"{name}={os.environ[name]!r}: not a number; start by torchrun, or unset {name}") from None


# ----------------------------------------------------------------------------------------------------------------------
# `--device auto|cpu|cuda` as a torch device.


def torch_device(name: str) -> torch.device:
    """The device of that name ("cuda:1" is the second GPU); "auto" is the GPU when there is one.

    Raises UsageError for any other name, and for a GPU that is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda"}:
        raise UsageError(f"--device {name}: choose auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch sees no CUDA device here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices, counted from 0")
    return device


# torch's number of cores is one for the whole process, and the default of threads that start: while pools divide it, it
# is a share, so what it was before the first of them is kept here until the last is closed.
_CORES_LOCK = threading.Lock()
_undivided: list[int] = []  # torch's cores before the first open pool, once for each open pool


def torch_cores() -> int:
    """Cores that torch uses for one operation, also while `threads_on_cores` divides them."""
    import torch

    with _CORES_LOCK:
        return _undivided[0] if _undivided else torch.get_num_threads()


@contextmanager
def threads_on_cores(name: str, most: int, cores_each: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """A pool of at most `most` threads between which torch's cores are divided. Several may be open at once.

    Faster than all cores on one batch after another: threads of one operation wait for each other. cores_each: None for
    an equal share.
    """
    import torch

    with _CORES_LOCK:
        cores = _undivided[0] if _undivided else torch.get_num_threads()
        _undivided.append(cores)
    threads = max(1, min(cores, most))
    share = cores_each or max(1, cores // threads)
    torch.set_num_threads(share)
    try:
        with ThreadPoolExecutor(threads, name, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            yield pool
    finally:
        with _CORES_LOCK:
            _undivided.pop()
            torch.set_num_threads(cores)


def capped(asked: int) -> int:
    """How many workers or threads run at the same time: as many as asked, 0: one per core, never more than cores."""
    return min(asked or usable_cores(), usable_cores())


def usable_cores() -> int:
    """Cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
