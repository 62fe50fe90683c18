"""Console output: the one module that installs handlers. Everything here writes to stderr; stdout is for results."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from featkit.core.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console

LOGGER = logging.getLogger("featkit")
_CONSOLES: list[
    Console
] = []  # at most one: log lines and progress bars must share a console, or they overwrite each other
PLAIN_INTERVAL_S = 5.0  # without a terminal: seconds between two progress lines


def _console() -> Console:
    """The one rich console of this process, on the current stderr."""
    from rich.console import Console

    if not _CONSOLES:
        _CONSOLES.append(Console(stderr=True))
    return _CONSOLES[0]


def setup(verbosity: int = 0) -> None:
    """Install featkit's handler. verbosity: -1 warnings only, 0 what was done, 1 everything."""
    level = {-1: logging.WARNING, 0: logging.INFO}.get(max(-1, verbosity), logging.DEBUG)
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        handler = RichHandler(console=_console(), show_path=False, show_time=False, show_level=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(_force_one_line)
    for old in list(LOGGER.handlers):
        LOGGER.removeHandler(old)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(level)
    LOGGER.propagate = False
    # COLMAP logs through glog, which reads its level when pycolmap is first imported.
    glog_level = os.environ.setdefault("GLOG_minloglevel", "0" if level <= logging.DEBUG else "2")
    if "pycolmap" in sys.modules:
        sys.modules["pycolmap"].logging.minloglevel = int(glog_level)


def _force_one_line(record: logging.LogRecord) -> bool:
    """Keeps file names in messages from controlling or flooding the terminal."""
    record.msg, record.args = one_line(record.getMessage()), None
    return True


def only_errors() -> None:
    """Log only errors from now on: of several processes of one command, one reports."""
    LOGGER.setLevel(logging.ERROR)


Advance = Callable[[int], None]


@contextmanager
def progress(title: str, total: int, unit: str = "items") -> Iterator[Advance]:
    """Show the progress of a long task: a bar with rate and ETA, or plain lines without a terminal.

    Yields a function that takes the number of items just completed. Shown only if `setup` enables info messages.
    """
    if not LOGGER.isEnabledFor(logging.INFO) or not LOGGER.handlers or total == 0:
        yield lambda count: None
    elif sys.stderr.isatty():
        with _terminal_bar(title, total, unit) as advance:
            yield advance
    else:
        yield _plain_lines(title, total, unit)


@contextmanager
def _terminal_bar(title: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f} {unit}/s" if task.speed else f"- {unit}/s")

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    ]
    # stdout is for results, even while a bar is shown: rich would redirect them to stderr.
    with Progress(*columns, console=_console(), redirect_stdout=False) as bar:
        task = bar.add_task(title, total=total)
        remaining = total

        def advance(count: int) -> None:
            nonlocal remaining
            count = min(count, remaining)  # a bar beyond its end would show a negative time
            remaining -= count
            bar.advance(task, count)

        yield advance


def _plain_lines(title: str, total: int, unit: str) -> Advance:
    started = time.monotonic()
    state = {"done": 0, "shown": started}

    def advance(count: int) -> None:
        if state["done"] == total:  # more items than announced: the last line was printed already
            return
        state["done"] = min(state["done"] + count, total)
        now = time.monotonic()
        if state["done"] < total and now - state["shown"] < PLAIN_INTERVAL_S:
            return
        state["shown"] = now
        rate = state["done"] / max(now - started, 1e-9)
        left = (total - state["done"]) / max(rate, 1e-9)
        LOGGER.info("%s: %d/%d %s, %.1f/s, %.0f s left", title, state["done"], total, unit, rate, left)

    return advance


@contextmanager
def timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the block's wall time to `seconds[stage]`."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
