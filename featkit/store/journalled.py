"""HDF5 stores to write to, whose items count all at once: h5py over a file with a journal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from featkit.errors import NotWritableError
from featkit.stopping import finish_first
from featkit.store.damage import DAMAGE, explained
from featkit.store.disk import refused_by_disk
from featkit.store.journal import JournalledFile


class JournalledStore(h5py.File):
    """A store that is written to, through its `disk`."""

    def __init__(self, path: Path, disk: JournalledFile):
        super().__init__(path, "r+", driver="fileobj", fileobj=disk)
        self.disk = disk


@contextmanager
def journalled(path: Path) -> Iterator[h5py.File]:
    """A store to write to. When something goes wrong, what was not flushed before does not count."""
    with explained(path):
        disk = JournalledFile(path)
    try:
        with disk:
            with explained(path):
                file = JournalledStore(path, disk)
            try:
                yield file
                told = disk.refused  # by `counted`, and somebody has taken it in hand
            except BaseException as error:
                disk.refused = disk.refused or error
                raise
            finally:
                with finish_first(), contextlib.suppress(*(DAMAGE if disk.refused is not None else ())):
                    file.close()
            if disk.refused is not None and disk.refused is not told:
                raise disk.refused
    except Exception as error:
        _raise_refusal(path, disk.refused or error)
        raise


@contextmanager
def in_place(path: Path) -> Iterator[h5py.File]:
    """A store to write to without a journal: an index, whose links HDF5 would follow through the same driver."""
    try:
        with explained(path):
            file = h5py.File(path, "r+")
        with file:
            yield file
    except (OSError, RuntimeError) as error:  # h5py: RuntimeError when it cannot close a file
        _raise_refusal(path, error)
        raise


def _raise_refusal(path: Path, error: BaseException) -> None:
    """Raise what h5py has made something else of: a full disk in words, and what is no error (Ctrl-C) as it is."""
    if (reason := refused_by_disk(error)) is not None:
        raise NotWritableError(f"{path}: {reason}; free some and run the same command again") from None
    if not isinstance(error, Exception):
        raise error from None


@contextmanager
def counted(file: h5py.File) -> Iterator[None]:
    """An item is written inside, up to its flush. Raises what went wrong first: in an item before it, in it, or on the
    disk, which HDF5 is not told; then nothing is written any more, as a flush would make count what there is of it."""
    if not isinstance(file, JournalledStore):
        yield
        return
    disk = file.disk
    if disk.refused is not None:
        raise disk.refused
    try:
        yield
    except BaseException as error:
        disk.refused = disk.refused or error
        raise disk.refused from None
    if disk.refused is not None:
        raise disk.refused
