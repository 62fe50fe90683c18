"""Writes of HDF5 files that a crash cannot break, and how damage is told."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import SEEK_END, FileIO
from pathlib import Path
from typing import Any, Self, TypeVar

import h5py

from featkit.core.errors import BadInputError, FeatkitError, NotWritableError, said
from featkit.core.runtime import finish_first
from featkit.core.types import Pair
from featkit.io.artifact import no_links
from featkit.io.atomic import refused_by_disk

# ----------------------------------------------------------------------------------------------------------------------
# Files whose writes count all at once: a rollback journal under HDF5, as SQLite has one.
#
# HDF5 changes a file in many places, one after the other; a process killed in between leaves a tree that leads nowhere.
# Here whatever a flush has left in the file is copied to `.NAME.journal` before it is overwritten, and the next flush
# empties the journal. When a journal is found that is not empty, its writer was killed (or the disk was full): the old
# bytes are put back, and the file is what it was at the last flush. New bytes beyond its end need no copy, so a journal
# is small. Nothing is synced to the disk: this is about processes that die, not about power.


HEADER = struct.Struct("<16sQI")  # MAGIC, the file's size at the last flush, checksum of its ends
RECORD = struct.Struct("<QQ")  # where the bytes that follow stood, and how many they are
MAGIC = b"featkit journal2"
OURS = b"featkit journal"  # of any version
END = 4096  # bytes at either end by which a file is known: HDF5's superblock, the root's attributes; the last item
NO_JOURNAL = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def journal_of(path: Path) -> Path:
    """Where the journal of a file lies."""
    path = path.resolve()
    return path.with_name(f".{path.name}.journal")


def put_back(path: Path) -> None:
    """Undo what a killed writer began; does nothing where there is nothing to undo.

    Raises BlockingIOError while somebody writes or reads, OSError where the file may not be written.
    """
    try:
        if os.lstat(journal_of(path)).st_size == 0:
            return
        path.stat()
    except OSError as error:
        if error.errno in NO_JOURNAL:
            return
        raise
    JournalledFile(path, must_lock=True).close()


def forget(path: Path) -> None:
    """Remove the journal of a file that is going to be replaced."""
    journal = journal_of(path)
    try:
        _open_journal(journal, "r").close()
    except FileNotFoundError:
        return
    journal.unlink(missing_ok=True)


def _open_journal(path: Path, mode: str) -> FileIO:
    """A journal, never through a link. Raises BadInputError for a file that is none of featkit's, OSError."""
    try:
        file = FileIO(path, mode, opener=no_links)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.EISDIR):
            raise
        kind = "folder" if error.errno == errno.EISDIR else "symbolic link"
        raise BadInputError(f"{path}: is a {kind} where a journal of featkit belongs; remove it yourself") from None
    head = _read(file, 0, len(OURS)) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b"?"
    if not OURS.startswith(head):
        file.close()
        raise BadInputError(f"{path}: is where a journal of featkit belongs, and is none; remove it yourself")
    return file


class JournalledFile:
    """An existing binary file to read and write, as h5py's driver `fileobj` wants it, for one process at a time.

    must_lock: refuse a file system without locks, where nobody knows whether the last writer lives. Raises OSError;
    BlockingIOError when another process has it open, through HDF5 too.
    """

    def __init__(self, path: Path, must_lock: bool = False):
        self.refused: BaseException | None = None
        """What went wrong first, if anything did: from then on nothing is written, `close` puts back the last flush.

        HDF5 is not told: it cannot take back half a change, nor close its file after it. Whoever writes looks here."""
        self._journal_path = journal_of(path)
        self._has_begun = False
        with contextlib.ExitStack() as undo:
            self._file = undo.enter_context(FileIO(path, "r+"))
            if not _lock(self._file) and must_lock:
                raise BlockingIOError(errno.EAGAIN, "there are no locks on this file system")
            if not os.path.samestat(os.fstat(self._file.fileno()), os.stat(path)):
                raise BlockingIOError(errno.EAGAIN, "replaced meanwhile")
            self._journal = undo.enter_context(_open_journal(self._journal_path, "a+"))
            _undo(self._file, self._journal)
            self._size = self._kept_from = self._file.seek(0, SEEK_END)
            undo.pop_all()
        # FileIO's own methods: a signal's handler, which may raise, never runs inside them
        self.seek, self.tell, self.readinto = self._file.seek, self._file.tell, self._file.readinto

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: memoryview) -> int:
        view = memoryview(data).cast("B")
        self._unless_refused(self._write, view)
        return len(view)

    def truncate(self, size: int) -> int:
        self._unless_refused(self._truncate, size)
        return size

    def flush(self) -> None:
        """From here on what was written counts. HDF5 calls this when all that it holds has been written."""
        self._unless_refused(self._flush)

    def close(self) -> None:
        """What was written since the last flush does not count."""
        try:
            _undo(self._file, self._journal)
            self._file.truncate(min(self._size, self._file.seek(0, SEEK_END)))
            self._journal.close()
            with contextlib.suppress(OSError):  # another user's folder: it is empty
                self._journal_path.unlink()
        finally:
            self._journal.close()
            self._file.close()  # and with it the lock, last

    def _unless_refused(self, change: Callable[..., None], *arguments: Any) -> None:
        if self.refused is None:
            try:
                change(*arguments)
            except BaseException as error:  # Ctrl-C too
                self.refused = error

    def _write(self, view: memoryview) -> None:
        where = self._file.tell()
        self._keep(where, where + len(view))
        self._file.seek(where)
        _write_all(self._file, view)

    def _truncate(self, size: int) -> None:
        self._keep(size, self._kept_from)
        self._kept_from = min(self._kept_from, size)
        self._file.truncate(size)

    def _flush(self) -> None:
        self._journal.truncate(0)
        self._has_begun = False
        self._size = self._kept_from = self._file.seek(0, SEEK_END)

    def _keep(self, start: int, end: int) -> None:
        """Copy to the journal what the last flush left between two places."""
        end = min(end, self._kept_from)
        if start >= end:
            return
        if not self._has_begun:
            self._has_begun = True
            ends = _ends_before(self._file, self._journal, [], self._size)
            _write_all(self._journal, HEADER.pack(MAGIC, self._size, ends))
        old = _read(self._file, start, end - start)
        _write_all(self._journal, RECORD.pack(start, len(old)) + old)


def _undo(file: FileIO, journal: FileIO) -> None:
    """Put back what the journal holds, unless it is another file's; the journal is empty then."""
    header = _read(journal, 0, HEADER.size)
    if len(header) == HEADER.size:
        magic, size, ends = HEADER.unpack(header)
        records = list(_records(journal))
        if magic == MAGIC and size < 1 << 63 and _ends_before(file, journal, records, size) == ends:
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


def _ends_before(file: FileIO, journal: FileIO, records: list[tuple[int, int, int]], size: int) -> int:
    """Checksum of the first and last bytes below a size, as they would be with all put back."""
    checksum = 0
    for start, end in ((0, min(END, size)), (max(0, size - END), size)):
        before = bytearray(_read(file, start, end - start).ljust(end - start, b"\0"))
        for where, place, length in reversed(records):
            first, last = max(start, where), min(end, where + length)
            if first < last:
                before[first - start : last - start] = _read(journal, place + first - where, last - first)
        checksum = zlib.crc32(before, checksum)
    return checksum


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


def _lock(file: FileIO) -> bool:
    """Lock as HDF5 locks its files; False on a file system that has no locks. Raises BlockingIOError."""
    try:
        import fcntl
    except ModuleNotFoundError:  # not on Windows
        return False
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


# ----------------------------------------------------------------------------------------------------------------------
# HDF5 stores to write to, whose items count all at once: h5py over a file with a journal.


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


# ----------------------------------------------------------------------------------------------------------------------
# What h5py makes of files that are damaged, in use or out of reach, as featkit's own errors.


TORN = (RuntimeError, KeyError, OSError, ValueError)  # what h5py raises on damaged links and headers
# Beside these, what numbers and texts of other kinds than were written raise where they are used.
DAMAGE = (*TORN, TypeError, IndexError, AttributeError, ArithmeticError, MemoryError, SystemError)
ReadT = TypeVar("ReadT", bound=Callable[..., Any])


def is_in_use(error: OSError) -> bool:
    """Whether somebody else has the file locked."""
    return error.errno in (errno.EAGAIN, errno.EWOULDBLOCK) or "unable to lock" in str(error)


def explains_damage(method: ReadT) -> ReadT:
    """A store's method that reads: whatever a damaged file makes of it is a BadInputError.

    The store says its `path`, and what it `holds`.
    """

    @functools.wraps(method)
    def reading_method(self: Any, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except FeatkitError:
            raise
        except Exception as error:
            what = arguments[0] if arguments else "all items"
            which = f"{what.name0!r} and {what.name1!r}" if isinstance(what, Pair) else repr(what)
            raise BadInputError(
                f"{self.path}: {self.holds} of {which} are damaged ({said(error)}); make them again (--overwrite)"
            ) from error

    return reading_method  # type: ignore[return-value]


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Opening a store inside: what goes wrong is BadInputError or NotWritableError, with what to do."""
    try:
        yield
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise BadInputError(f"{path}: is a folder, not an HDF5 file") from None
    except OSError as error:
        if path.is_dir():
            raise BadInputError(f"{path}: is a folder, not an HDF5 file") from None
        if is_in_use(error):
            raise NotWritableError(f"{path}: in use by another process; wait for it or stop it") from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC):
            raise NotWritableError(f"{path}: {error.strerror}; choose another place with --out") from None
        raise BadInputError(
            f"{path}: not a whole HDF5 file (truncated, or of another kind); move it away or use --overwrite"
        ) from None
    except DAMAGE as error:
        raise BadInputError(f"{path}: damaged ({said(error)}); move it away or use --overwrite") from error
