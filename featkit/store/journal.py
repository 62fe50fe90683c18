"""Files whose writes count all at once: a rollback journal under HDF5, as SQLite has one.

HDF5 changes a file in many places, one after the other; a process killed in between leaves a tree that leads nowhere.
Here whatever a flush has left in the file is copied to `.NAME.journal` before it is overwritten, and the next flush
empties the journal. When a journal is found that is not empty, its writer was killed (or the disk was full): the old
bytes are put back, and the file is what it was at the last flush. New bytes beyond its end need no copy, so a journal
is small. Nothing is synced to the disk: this is about processes that die, not about power.
"""

from __future__ import annotations

import contextlib
import struct
import time
import zlib
from collections.abc import Iterator
from io import SEEK_END, FileIO
from pathlib import Path
from typing import Self

HEADER = struct.Struct("<16sQI")  # MAGIC, the file's size at the last flush, checksum of its HEAD bytes then
RECORD = struct.Struct("<QQ")  # where the bytes that follow stood, and how many they are
MAGIC = b"featkit journal1"
TRIES, WAIT_S = 10, 0.05
HEAD = 4096  # bytes by which a file is known: HDF5's superblock, which says its size, and the root's attributes


def journal_of(path: Path) -> Path:
    """Where the journal of a file lies."""
    path = path.resolve()
    return path.with_name(f".{path.name}.journal")


def put_back(path: Path) -> None:
    """Undo what a killed writer began; does nothing where there is nothing to undo, or while somebody writes.

    Raises OSError where the file may not be written.
    """
    for _ in range(TRIES):
        try:
            if journal_of(path).stat().st_size > 0:
                JournalledFile(path).close()
            return
        except FileNotFoundError:
            return
        except BlockingIOError:  # another process writes, or puts back just now
            time.sleep(WAIT_S)


def forget(path: Path) -> None:
    """Remove the journal of a file that is going to be replaced."""
    journal_of(path).unlink(missing_ok=True)


class JournalledFile:
    """An existing binary file to read and write, as h5py's driver `fileobj` wants it, for one process at a time.

    Raises OSError; BlockingIOError when another process has it open, through HDF5 too.
    """

    def __init__(self, path: Path):
        self.refused: BaseException | None = None
        """Why a write failed, if one did: nothing counts any more then, and `close` puts back the last flush."""
        self._path = path
        self._has_begun = False
        with contextlib.ExitStack() as undo:
            self._file = undo.enter_context(FileIO(path, "r+"))
            _lock(self._file)
            self._journal = undo.enter_context(FileIO(journal_of(path), "a+"))
            _undo(self._file, self._journal)
            self._size = self._file.seek(0, SEEK_END)
            undo.pop_all()
        # FileIO's own methods: a signal's handler, which may raise, never runs inside them
        self.seek, self.tell, self.readinto = self._file.seek, self._file.tell, self._file.readinto

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: memoryview) -> int:
        where, view = self._file.tell(), memoryview(data).cast("B")
        with self._remembering_refusal():
            self._keep(where, where + len(view))
            self._file.seek(where)
            _write_all(self._file, view)
        return len(view)

    def truncate(self, size: int) -> int:
        with self._remembering_refusal():
            self._keep(size, self._size)
            self._file.truncate(size)
        return size

    def flush(self) -> None:
        """From here on what was written counts. HDF5 calls this when all that it holds has been written."""
        if self.refused is None:
            if self._has_begun:
                self._journal.truncate(0)
                self._has_begun = False
            self._size = self._file.seek(0, SEEK_END)

    def close(self) -> None:
        """What was written since the last flush does not count."""
        try:
            _undo(self._file, self._journal)
            self._file.truncate(min(self._size, self._file.seek(0, SEEK_END)))
            self._journal.close()
            journal_of(self._path).unlink(missing_ok=True)
        finally:
            self._journal.close()
            self._file.close()  # and with it the lock, last

    @contextlib.contextmanager
    def _remembering_refusal(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # Ctrl-C too: HDF5 cannot take back half a write
            self.refused = error
            raise

    def _keep(self, start: int, end: int) -> None:
        """Copy to the journal what the last flush left between two places."""
        end = min(end, self._size)
        if start >= end:
            return
        if not self._has_begun:
            head = _read(self._file, 0, min(HEAD, self._size))
            _write_all(self._journal, HEADER.pack(MAGIC, self._size, zlib.crc32(head)))
            self._has_begun = True
        _write_all(self._journal, RECORD.pack(start, end - start) + _read(self._file, start, end - start))


def _undo(file: FileIO, journal: FileIO) -> None:
    """Put back what the journal holds, unless it is another file's; the journal is empty then."""
    header = _read(journal, 0, HEADER.size)
    if len(header) == HEADER.size:
        magic, size, checksum = HEADER.unpack(header)
        records = list(_records(journal))
        if magic == MAGIC and zlib.crc32(_head_before(file, journal, records)[:size]) == checksum:
            for where, place, length in reversed(records):  # of bytes overwritten twice the first copy counts
                file.seek(where)
                _write_all(file, _read(journal, place, length))
            file.truncate(size)
    journal.truncate(0)


def _records(journal: FileIO) -> Iterator[tuple[int, int, int]]:
    """Where bytes stood in the file, where they are in the journal, and how many. One that was cut short is left out:
    what it was to save was not overwritten yet."""
    place, end = HEADER.size, journal.seek(0, SEEK_END)
    while place + RECORD.size <= end:
        where, length = RECORD.unpack(_read(journal, place, RECORD.size))
        place += RECORD.size
        if place + length > end:
            return
        yield where, place, length
        place += length


def _head_before(file: FileIO, journal: FileIO, records: list[tuple[int, int, int]]) -> bytes:
    """The file's first bytes as they would be with all put back."""
    head = bytearray(_read(file, 0, HEAD))
    for where, place, length in reversed(records):
        if where < HEAD:
            old = _read(journal, place, min(length, HEAD - where))
            head[where : where + len(old)] = old
    return bytes(head)


def _read(file: FileIO, where: int, size: int) -> bytes:
    file.seek(where)
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write_all(file: FileIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _lock(file: FileIO) -> None:
    """As HDF5 locks its files. Raises BlockingIOError; a file system that has no locks gives none."""
    try:
        import fcntl
    except ModuleNotFoundError:  # not on Windows
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return
