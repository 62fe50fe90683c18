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
    with disk:
        try:
            with explained(path):
                file = JournalledStore(path, disk)
            ended = False
            try:
                yield file
                ended = True
            finally:
                disk.gives_up = not ended or disk.refused is not None
                with finish_first(), contextlib.suppress(*(DAMAGE if disk.gives_up else ())):
                    file.close()
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
def spoiling(file: h5py.File) -> Iterator[None]:
    """What goes wrong in an item makes every later write fail: a flush would make count what there is of the item."""
    try:
        yield
    except BaseException as error:
        if isinstance(file, JournalledStore):
            file.disk.refused = file.disk.refused or error
        raise
