"""Room on the disk, asked for before a store is touched: HDF5 cannot take back half a write."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from featkit.errors import FeatkitError, NotWritableError

FULL = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "no space left in your quota",
    errno.EFBIG: "the file would be larger than allowed (ulimit -f)",
}
ALMOST_NOTHING = 1 << 16  # bytes
SQLITE_FULL = "database or disk is full"
ERRNO = re.compile(r"errno = (\d+)")  # HDF5 tells the system's error in words


def require_space(path: Path, size: int) -> None:
    """See that a file may grow by so many bytes. Raises NotWritableError, before anything is written."""
    with contextlib.suppress(OSError, AttributeError):  # a system that does not say: the write itself will
        disk = os.statvfs(path.parent)
        read_only = disk.f_flag & os.ST_RDONLY  # which the write itself will say
        if disk.f_blocks and not read_only and disk.f_bavail * disk.f_frsize < size:
            raise NotWritableError(f"{path}: {FULL[errno.ENOSPC]}; free some and run the same command again")
    limit = _file_limit()
    if limit is not None and (path.stat().st_size if path.exists() else 0) + size > limit:
        raise NotWritableError(f"{path}: {FULL[errno.EFBIG]}; raise it and run the same command again")


def _file_limit() -> int | None:
    try:
        import resource
    except ModuleNotFoundError:  # not on Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def probe(path: Path) -> None:
    """Write and lock a small file, as every store does. Raises what HDF5 raises where that cannot be done."""
    with h5py.File(path, "w") as file:
        file["probe"] = [1]


def refused_by_disk(error: BaseException) -> str | None:
    """Why the disk took no more, in words; None for another kind of error."""
    if SQLITE_FULL in str(error):
        return FULL[errno.ENOSPC]
    said = ERRNO.search(str(error))
    number = getattr(error, "errno", None) or (int(said[1]) if said else None)
    return FULL.get(number) if number is not None else None


@contextmanager
def explained_by_disk(output: Path) -> Iterator[None]:
    """What goes wrong inside because the disk took no more is a NotWritableError, whoever says so and how."""
    try:
        yield
    except FeatkitError:
        raise
    except Exception as error:
        reason = refused_by_disk(error)
        if reason is None:
            require_space(output, ALMOST_NOTHING)  # COLMAP does not always say why it failed
            raise
        raise NotWritableError(f"{output}: {reason}; free some and run the same command again") from None
