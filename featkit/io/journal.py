"""Crash-safe writes of HDF5 files with a rollback journal, and error messages for damaged files."""

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

from featkit.core.errors import BadInputError, FeatkitError, NotWritableError, message_of
from featkit.core.runtime import finish_first
from featkit.core.types import Pair
from featkit.io.artifact import no_links
from featkit.io.atomic import refused_by_disk

# ----------------------------------------------------------------------------------------------------------------------
# Files with atomic flushes: a rollback journal under HDF5, like SQLite's.
#
# HDF5 changes a file in many places, one after the other; a process killed in between leaves a broken group tree. Here
# content from before the last flush is copied to `.NAME.journal` before it is overwritten, and the next flush empties
# the journal. A journal that is not empty shows that its writer was killed (or the disk was full): the old content is
# restored, and the file is as it was at the last flush. Data appended to the file need no copy, so a journal is small.
# Nothing is synced to the disk: this protects against killed processes, not against power failure.


HEADER = struct.Struct("<16sQI")  # MAGIC, the file's size at the last flush, checksum of its beginning and end
RECORD = struct.Struct("<QQ")  # offset in the file and length of the bytes that follow
MAGIC = b"featkit journal2"
OURS = b"featkit journal"  # any version
END = 4096  # bytes at the beginning (superblock, root attributes) and end (last item) that identify a file
NO_JOURNAL = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def journal_of(path: Path) -> Path:
    """The path of a file's journal."""
    path = path.resolve()
    return path.with_name(f".{path.name}.journal")


def roll_back(path: Path) -> None:
    """Roll back the unfinished write of a killed process, if there is one.

    Raises BlockingIOError while another process writes or reads, OSError if the file is not writable.
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
    """Remove the journal of a file that will be replaced."""
    journal = journal_of(path)
    try:
        _open_journal(journal, "r").close()
    except FileNotFoundError:
        return
    journal.unlink(missing_ok=True)


def _open_journal(path: Path, mode: str) -> FileIO:
    """Open a journal, never through a link. Raises BadInputError for a file that is not a journal, OSError."""
    try:
        file = FileIO(path, mode, opener=no_links)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.EISDIR):
            raise
        kind = "folder" if error.errno == errno.EISDIR else "symbolic link"
        raise BadInputError(f"{path}: is a {kind} in the place of featkit's journal; remove it yourself") from None
    head = _read(file, 0, len(OURS)) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b"?"
    if not OURS.startswith(head):
        file.close()
        raise BadInputError(f"{path}: is in the place of featkit's journal, but is not one; remove it yourself")
    return file


class JournalledFile:
    """An existing binary file for reading and writing with h5py's driver `fileobj`, for one process at a time.

    must_lock: refuse a file system without locks, where it is unknown whether the last writer is alive. Raises OSError;
    BlockingIOError if another process has it open, also through HDF5.
    """

    def __init__(self, path: Path, must_lock: bool = False):
        self.refused: BaseException | None = None
        """The first error, if any: after it nothing is written, and `close` rolls back to the last flush.

        HDF5 is not informed, as it cannot undo a partial change or close its file after one. Writers check this."""
        self._journal_path = journal_of(path)
        self._has_header = False
        with contextlib.ExitStack() as undo:
            self._file = undo.enter_context(FileIO(path, "r+"))
            if not _lock(self._file) and must_lock:
                raise BlockingIOError(errno.EAGAIN, "there are no locks on this file system")
            if not os.path.samestat(os.fstat(self._file.fileno()), os.stat(path)):
                raise BlockingIOError(errno.EAGAIN, "replaced meanwhile")
            self._journal = undo.enter_context(_open_journal(self._journal_path, "a+"))
            _restore(self._file, self._journal)
            self._size = self._old_content_end = self._file.seek(0, SEEK_END)
            undo.pop_all()
        # FileIO's own methods: a signal handler, which may raise, never runs inside them
        self.seek, self.tell, self.readinto = self._file.seek, self._file.tell, self._file.readinto

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: memoryview) -> int:
        view = memoryview(data).cast("B")
        self._apply_unless_refused(self._write, view)
        return len(view)

    def truncate(self, size: int) -> int:
        self._apply_unless_refused(self._truncate, size)
        return size

    def flush(self) -> None:
        """Commit what was written. HDF5 calls this after writing all of its buffers."""
        self._apply_unless_refused(self._flush)

    def close(self) -> None:
        """Discard what was written since the last flush."""
        try:
            _restore(self._file, self._journal)
            self._file.truncate(min(self._size, self._file.seek(0, SEEK_END)))
            self._journal.close()
            with contextlib.suppress(OSError):  # another user's folder: it is empty
                self._journal_path.unlink()
        finally:
            self._journal.close()
            self._file.close()  # and with it the lock, last

    def _apply_unless_refused(self, change: Callable[..., None], *arguments: Any) -> None:
        if self.refused is None:
            try:
                change(*arguments)
            except BaseException as error:  # Ctrl-C too
                self.refused = error

    def _write(self, view: memoryview) -> None:
        where = self._file.tell()
        self._save_old_content(where, where + len(view))
        self._file.seek(where)
        _write_all(self._file, view)

    def _truncate(self, size: int) -> None:
        self._save_old_content(size, self._old_content_end)
        self._old_content_end = min(self._old_content_end, size)
        self._file.truncate(size)

    def _flush(self) -> None:
        self._journal.truncate(0)
        self._has_header = False
        self._size = self._old_content_end = self._file.seek(0, SEEK_END)

    def _save_old_content(self, start: int, end: int) -> None:
        """Copy the content between two offsets, as of the last flush, to the journal."""
        end = min(end, self._old_content_end)
        if start >= end:
            return
        if not self._has_header:
            self._has_header = True
            ends = _checksum_of_ends(self._file, self._journal, [], self._size)
            _write_all(self._journal, HEADER.pack(MAGIC, self._size, ends))
        old = _read(self._file, start, end - start)
        _write_all(self._journal, RECORD.pack(start, len(old)) + old)


def _restore(file: FileIO, journal: FileIO) -> None:
    """Restore the content in the journal, unless it belongs to another file; then empty the journal."""
    header = _read(journal, 0, HEADER.size)
    if len(header) == HEADER.size:
        magic, size, ends = HEADER.unpack(header)
        records = list(_read_records(journal))
        if magic == MAGIC and size < 1 << 63 and _checksum_of_ends(file, journal, records, size) == ends:
            for where, position, length in reversed(records):  # the first copy of bytes overwritten twice wins
                file.seek(where)
                _write_all(file, _read(journal, position, length))
            file.truncate(size)
    journal.truncate(0)


def _read_records(journal: FileIO) -> Iterator[tuple[int, int, int]]:
    """(offset in the file, offset in the journal, length) of every record. A truncated one is left out: what it would
    have saved has not been overwritten yet."""
    position, end = HEADER.size, journal.seek(0, SEEK_END)
    while position + RECORD.size <= end:
        where, length = RECORD.unpack(_read(journal, position, RECORD.size))
        position += RECORD.size
        if position + length > end:
            return
        yield where, position, length
        position += length


def _checksum_of_ends(file: FileIO, journal: FileIO, records: list[tuple[int, int, int]], size: int) -> int:
    """Checksum of the first and last bytes of a file of this size, as if all records were restored."""
    checksum = 0
    for start, end in ((0, min(END, size)), (max(0, size - END), size)):
        content = bytearray(_read(file, start, end - start).ljust(end - start, b"\0"))
        for where, position, length in reversed(records):
            first, last = max(start, where), min(end, where + length)
            if first < last:
                content[first - start : last - start] = _read(journal, position + first - where, last - first)
        checksum = zlib.crc32(content, checksum)
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
    """Lock as HDF5 does; False on a file system without locks. Raises BlockingIOError."""
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
# HDF5 stores with atomic items: h5py on a file with a journal.


class JournalledStore(h5py.File):
    """A store opened for writing through `disk`."""

    def __init__(self, path: Path, disk: JournalledFile):
        super().__init__(path, "r+", driver="fileobj", fileobj=disk)
        self.disk = disk


@contextmanager
def journalled(path: Path) -> Iterator[h5py.File]:
    """A store for writing. After an error, everything since the last flush is rolled back."""
    with explained_by_hdf5(path):
        disk = JournalledFile(path)
    try:
        with disk:
            with explained_by_hdf5(path):
                file = JournalledStore(path, disk)
            try:
                yield file
                handled = disk.refused  # already raised by `raising_refusal`, and handled
            except BaseException as error:
                disk.refused = disk.refused or error
                raise
            finally:
                with finish_first(), contextlib.suppress(*(DAMAGE if disk.refused is not None else ())):
                    file.close()
            if disk.refused is not None and disk.refused is not handled:
                raise disk.refused
    except Exception as error:
        _raise_refusal(path, disk.refused or error)
        raise


@contextmanager
def in_place(path: Path) -> Iterator[h5py.File]:
    """A store for writing without a journal: an index, whose links HDF5 would follow through the same driver."""
    try:
        with explained_by_hdf5(path):
            file = h5py.File(path, "r+")
        with file:
            yield file
    except (OSError, RuntimeError) as error:  # h5py: RuntimeError when it cannot close a file
        _raise_refusal(path, error)
        raise


def _raise_refusal(path: Path, error: BaseException) -> None:
    """Raise an error that h5py has replaced by another one: a full disk in words, Ctrl-C as it is."""
    if (reason := refused_by_disk(error)) is not None:
        raise NotWritableError(f"{path}: {reason}; free some and run the same command again") from None
    if not isinstance(error, Exception):
        raise error from None


@contextmanager
def raising_refusal(file: h5py.File) -> Iterator[None]:
    """Context for writing one item, including its flush. Raises the first error, of an earlier item, this item or the
    disk (of which HDF5 is not informed). After it nothing is written, as a flush would commit a partial item."""
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
# Errors of h5py for files that are damaged, in use or inaccessible, as featkit's own errors.


TORN = (RuntimeError, KeyError, OSError, ValueError)  # what h5py raises on damaged links and headers
# In addition, errors raised when values of unexpected types are used.
DAMAGE = (*TORN, TypeError, IndexError, AttributeError, ArithmeticError, MemoryError, SystemError)
ReadT = TypeVar("ReadT", bound=Callable[..., Any])


def is_in_use(error: OSError) -> bool:
    """Whether another process has locked the file."""
    return error.errno in (errno.EAGAIN, errno.EWOULDBLOCK) or "unable to lock" in str(error)


def explains_damage(method: ReadT) -> ReadT:
    """Decorator for reading methods of a store: errors due to a damaged file become BadInputError.

    The store must have the attributes `path` and `holds`.
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
                f"{self.path}: {self.holds} of {which} are damaged ({message_of(error)}); make them again (--overwrite)"
            ) from error

    return reading_method  # type: ignore[return-value]


@contextmanager
def explained_by_hdf5(path: Path) -> Iterator[None]:
    """Context for opening a store: errors become BadInputError or NotWritableError, with advice."""
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
            f"{path}: not a complete HDF5 file (truncated, or another format); move it away or use --overwrite"
        ) from None
    except DAMAGE as error:
        raise BadInputError(f"{path}: damaged ({message_of(error)}); move it away or use --overwrite") from error
