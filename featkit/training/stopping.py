"""SIGTERM and SIGINT ask a training to end after its step; it saves and says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from featkit.errors import FeatkitError


class Stopped(FeatkitError):
    """A training was asked to end before its time; everything is saved. Exit code 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequest:
    """Which signal asked to stop; 0: none."""

    def __init__(self) -> None:
        self.signal_number = 0

    def __bool__(self) -> bool:
        return self.signal_number != 0


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Inside, SIGTERM and the first SIGINT are noted instead of ending the process; a second SIGINT ends it."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # Python takes signals in the main thread only
        yield request
        return
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal_number = number

    for each in (signal.SIGTERM, signal.SIGINT):
        before[each] = signal.signal(each, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
