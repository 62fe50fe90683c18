"""SIGTERM and Ctrl-C: what is in hand is finished or dropped, files are closed, and the process is gone in time.

The first signal raises `Interrupted` in the main thread, inside `finish_first` only when that block is done. A thread
watches the clock meanwhile: native code (COLMAP's mapper, a large network) cannot be interrupted, so after `GRACE_S`,
or at a second signal, the process ends at once. That loses no more than SIGKILL does, which every file here survives:
the item in hand, of a training what came after its last checkpoint.

pycolmap takes SIGTERM for itself when it is loaded (its logging library prints a stack and dies): it is taken back.
A native call that keeps Python's lock (COLMAP's SIFT in a process with one worker) lets the thread run when it returns.
"""

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
from contextlib import contextmanager
from types import FrameType
from typing import Any

from featkit.errors import FeatkitError

GRACE_S = 3.0  # for what is in hand; 5 s are promised, and a busy machine needs some of them to end a process
SAME_S = 0.5  # a second signal within this time is the first one again: terminals and job systems both send theirs
SIGNALS = (signal.SIGTERM, signal.SIGINT)
TAKES_SIGNALS = "pycolmap"
SIGACTION_BYTES = 1024  # more than any system's struct sigaction
SAYING = "stopped; run the same command again to go on"
_active: list[StopRequest] = []  # at most one: signals belong to the process


class Stopped(FeatkitError):
    """Work was asked to end before its time; everything is saved. Exit code 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGINT came; no `except Exception` stops it."""


class StopRequest:
    """Which signal asked to stop; 0: none. told: the user has been told."""

    def __init__(self) -> None:
        self.signal_number = 0
        self.told = False
        self._held = 0
        self._raised = False

    def __bool__(self) -> bool:
        return self.signal_number != 0

    @property
    def exit_code(self) -> int:
        return 128 + self.signal_number

    def note(self, number: int) -> None:
        """A signal came. Raises Interrupted, the first time and unless something is to be finished first."""
        self.signal_number = self.signal_number or number
        self._raise()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, signals are only noted; Interrupted is raised at the end."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if self:
            self._raise()

    def _raise(self) -> None:
        if self._held == 0 and not self._raised:
            self._raised = True
            raise Interrupted


@contextmanager
def stoppable(last_words: Callable[[StopRequest], None]) -> Iterator[StopRequest]:
    """Inside, SIGTERM and SIGINT raise Interrupted, and the process ends GRACE_S later in any case.

    last_words: called before the process is ended while it is at work. When Interrupted leaves the block the clock
    goes on, through the end of the interpreter. Signals that somebody else takes over meanwhile (a server) are theirs.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread() or _active:
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        request.note(number)

    before: dict[int, Any] = {each: signal.signal(each, note) for each in SIGNALS}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, note, request, last_words), name="stopping", daemon=True)
    watcher.start()
    keeper = _HandlersKept()
    sys.meta_path.insert(0, keeper)
    _active.append(request)
    try:
        yield request
    except BaseException:
        if request:  # what is left to do, also by the interpreter, is timed
            raise
        _end_watch(writer, watcher, reader)
        raise
    else:
        _end_watch(writer, watcher, reader)
    finally:
        _active.clear()
        if keeper in sys.meta_path:
            sys.meta_path.remove(keeper)
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)


class _HandlersKept:
    """An import hook: signals are handled after the import of pycolmap as before, in whatever thread it is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != TAKES_SIGNALS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            plain = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                with _kept():
                    plain(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextmanager
def _kept() -> Iterator[None]:
    """Python's own `signal` works in the main thread only; the C library's handlers are the process's."""
    library = ctypes.CDLL(None)
    actions = {each: ctypes.create_string_buffer(SIGACTION_BYTES) for each in SIGNALS}
    for each, action in actions.items():
        library.sigaction(int(each), None, action)
    try:
        yield
    finally:
        for each, action in actions.items():
            library.sigaction(int(each), action, None)


def _end_watch(writer: int, watcher: threading.Thread, reader: int) -> None:
    os.write(writer, b"\0")
    watcher.join()
    os.close(reader)
    os.close(writer)


def _watch(reader: int, handler: Any, request: StopRequest, last_words: Callable[[StopRequest], None]) -> None:
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
    _end_now(request, last_words)


def _end_now(request: StopRequest, last_words: Callable[[StopRequest], None]) -> None:
    multiprocessing = sys.modules.get("multiprocessing")
    for child in multiprocessing.active_children() if multiprocessing else ():
        child.kill()
    if not request.told:
        last_words(request)
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
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal_number = number

    for each in SIGNALS:
        before[each] = signal.signal(each, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
