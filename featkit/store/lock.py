"""One writer at a time for what has no lock of its own, as HDF5 files have: a database, a map, a training's folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featkit.errors import NotWritableError


@contextmanager
def locked(output: Path, lock: Path | None = None) -> Iterator[None]:
    """Inside, no other process is in a block for the same output. A killed process leaves nothing locked.

    lock: the file that is locked, when it is not to be the output's usual one.

    Raises NotWritableError when another process is, or when the folder cannot be written to.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # not on Windows
        yield
        return
    lock = (lock or output.with_name(f".{output.name}.lock")).absolute()  # whatever folder is current at the end
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
        while True:
            _take(fcntl, file)
            if _is_still(lock, file):
                break
            os.close(file)  # its owner removed it meanwhile
            file = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
    except BlockingIOError:
        os.close(file)
        raise NotWritableError(f"{output}: in use by another process; wait for it or stop it") from None
    except OSError as error:
        raise NotWritableError(f"{output}: cannot be written ({error.strerror}); choose another --out") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)
        os.close(file)


def _take(fcntl: Any, file: int) -> None:
    """Raises BlockingIOError; a file system that has no locks gives none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return


def _is_still(path: Path, file: int) -> bool:
    """Whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False
