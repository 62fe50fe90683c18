"""Whether an object is freed with its last user, and not only when the garbage collector finds a cycle."""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any

PATIENCE_S = 5.0  # a thread may let go a moment later


def is_freed(only_user: list[Any]) -> bool:
    """only_user: a list that alone holds the object; it is emptied."""
    watched = weakref.ref(only_user[0])
    until = time.monotonic() + PATIENCE_S
    gc.disable()
    try:
        only_user.clear()
        while watched() is not None and time.monotonic() < until:
            time.sleep(0.02)
        return watched() is None
    finally:
        gc.enable()
