"""How a training tells how far it is: lines with loss, speed, time left and held-out score, a bar on a terminal."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from featkit.log import progress

LOGGER = logging.getLogger(__name__)
LINE_EVERY_S = 15.0
RECENT = 0.9  # weight of the past in the loss that is shown


class Progress:
    """Counts steps; `speed` gives what they took since it was last asked."""

    def __init__(self, steps: int, done: int, items_per_step: int, unit: str, quiet: bool = False):
        """unit: what a step's items are, in the plural."""
        self._steps, self._first, self._step = steps, done, done
        self._items, self._unit, self._quiet = items_per_step, unit, quiet
        self._bar = progress("train", steps - done, "steps") if sys.stderr.isatty() and not quiet else None
        self._loss: float | None = None
        self._started = self._said = self._asked = time.monotonic()
        self._asked_step, self._asked_wait = done, 0.0

    def __enter__(self) -> Progress:
        self._advance = self._bar.__enter__() if self._bar is not None else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)

    def stepped(self, loss: float, score: str) -> None:
        """One step is done. score: on the held-out part, in words, when it was measured after this step."""
        self._step += 1
        self._loss = loss if self._loss is None else RECENT * self._loss + (1 - RECENT) * loss
        if self._advance is not None:
            self._advance(1)
        now = time.monotonic()
        if self._quiet or (not score and now - self._said < LINE_EVERY_S):
            return
        self._said = now
        rate = (self._step - self._first) / max(now - self._started, 1e-9)
        text = f"step {self._step}/{self._steps}: loss {self._loss:.4f}, {number(rate * self._items)} {self._unit}/s"
        if self._step < self._steps:
            text += f", {duration((self._steps - self._step) / rate)} left"
        LOGGER.info("%s", f"{text}, {score}" if score else text)

    def paused(self, seconds: float) -> None:
        """So long no step was made: it does not count in the speed."""
        self._asked += seconds

    def speed(self, waited_s: float) -> dict[str, float]:
        """<unit>_per_s and wait_share since the last call. waited_s: seconds waited for data so far, in all."""
        now = time.monotonic()
        span = max(now - self._asked, 1e-9)
        steps = self._step + 1 - self._asked_step  # the step of this row is counted after it
        row = {
            f"{self._unit}_per_s": steps * self._items / span,
            "wait_share": (waited_s - self._asked_wait) / span,
        }
        self._asked, self._asked_step, self._asked_wait = now, self._step + 1, waited_s
        return row


def number(value: float) -> str:
    """Three digits at least: `286`, `4.31`."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
