"""What h5py makes of files that are damaged, in use or out of reach, as featkit's own errors."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from featkit.errors import BadInputError, NotWritableError
from featkit.types import Pair

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
        except DAMAGE as error:
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


def said(error: BaseException) -> str:
    """An error in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
