"""The errors a user can cause, each with the exit code the command line ends with.

A message has one line and says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

LONGEST_LINE = 2000
"""Longest message shown, characters; the middle of a longer one (a file name, a value) is left out."""
UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode control characters, lone surrogates (bytes of a name that is not UTF-8) and line separators."""
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of text, with which one name can be made to look like another."""


class FeatkitError(Exception):
    """Base of every error that is reported as one line instead of a traceback; raised directly for the unexpected.

    reported: whether another process of the same command reports it; None: unknown.
    """

    exit_code = 1
    reported: bool | None = None


class UsageError(FeatkitError):
    """The command or a configuration asks for something that does not exist."""

    exit_code = 2


class BadInputError(FeatkitError):
    """A file or folder is missing, damaged, or not of the expected kind."""

    exit_code = 3


class EmptySceneError(BadInputError):
    """A scene with nothing to learn from; skipped when there are other scenes."""


class EmptyResultError(FeatkitError):
    """The command ran but produced no result: no model, no point, no pose."""

    exit_code = 4


class NotWritableError(FeatkitError):
    """The output cannot be written: no permission, no space, or locked by another process."""

    exit_code = 5


class WorkerDiedError(FeatkitError):
    """A worker process was killed, most often for lack of memory."""


class ProcessLostError(WorkerDiedError):
    """Another process of the same distributed run ended or stopped responding."""


# ----------------------------------------------------------------------------------------------------------------------
# Messages that contain untrusted names and values, and readers of untrusted files.


def printable(text: str, keep: str = "") -> str:
    """Text with control characters escaped (`\\n`, `\\x1b`), except those in `keep`."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character in keep or not (character in TURNING or unicodedata.category(character) in UNPRINTABLE)
        else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )


def one_line(text: str) -> str:
    """A message as it is shown: one line, no control characters, at most LONGEST_LINE characters."""
    half = LONGEST_LINE // 2
    if len(text) > LONGEST_LINE:
        text = f"{text[:half]} ... ({len(text) - 2 * half:,} characters) ... {text[-half:]}"
    return printable(text)


def message_of(error: BaseException) -> str:
    """An error's message on one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


DESCRIPTOR = re.compile(r"/dev/(?:fd/\d+|stdin)|/proc/(?:self|\d+)/fd/\d+")
"""Paths of what is open already: bash's `<(command)`, and the standard input."""
LONGEST_STREAM = 1 << 28  # bytes
NOT_WAITING = getattr(os, "O_NONBLOCK", 0)  # for a pipe that nobody writes to


def refuse_pipe(path: Path) -> None:
    """Raise BadInputError for a pipe or a device, which would be waited for or has no end; OSError for a missing file.

    For binary files, and what other libraries open; everything else is opened by `open_input`.
    """
    if not (path.is_dir() or stat.S_ISREG(path.stat().st_mode)):
        raise BadInputError(f"{path}: not a file but a pipe or a device; give the file itself")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add a file's name to the errors of code that is only given its content."""
    try:
        yield
    except BadInputError as error:
        if str(path) in str(error):
            raise
        raise BadInputError(f"{path}: {error}") from None


def open_input(path: Path) -> BinaryIO:
    """Open a user's file for reading, without waiting for a pipe.

    A pipe that is open already, such as bash's `<(command)`, is read once and kept, since several stages read a list.
    Raises BadInputError for other pipes, and devices; OSError if the file cannot be opened.
    """
    if DESCRIPTOR.fullmatch(str(path)) and stat.S_ISFIFO((status := path.stat()).st_mode):
        return BytesIO(_read_stream(str(path), (status.st_dev, status.st_ino)))
    refuse_pipe(path)
    file = open(os.open(path, os.O_RDONLY | NOT_WAITING), "rb")  # noqa: SIM115 the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # replaced since
        file.close()
        refuse_pipe(path)
    return file


@functools.cache
def _read_stream(path: str, pipe: tuple[int, int]) -> bytes:
    """What comes from a pipe until it ends; once for each pipe, by its device and number."""
    with open(path, "rb") as file:
        content = file.read(LONGEST_STREAM + 1)
    if len(content) > LONGEST_STREAM:
        raise BadInputError(f"{path}: more than {LONGEST_STREAM >> 20} MiB come from it; give a file")
    return content


@contextmanager
def blaming(path: Path | str, what: str, remedy: str) -> Iterator[None]:
    """Turn any error that reading a file raises inside the block into a BadInputError about that file.

    what: the kind of file expected. remedy: what the user can do. A missing or unreadable file is reported as such;
    featkit's own errors pass through. Put only code that reads inside the block.
    """
    try:
        yield
    except FeatkitError:
        raise
    except FileNotFoundError as error:
        raise BadInputError(f"{error.filename or path}: no such file") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # an OSError about the content: a seek before the start, from a truncated file
            raise BadInputError(f"{path}: not {what} (it is cut off or damaged); {remedy}") from error
        raise BadInputError(f"{path}: cannot be read ({error.strerror or message_of(error)})") from error
    except MemoryError as error:
        raise BadInputError(f"{path}: not {what}: it asks for more memory than there is; {remedy}") from error
    except Exception as error:
        raise BadInputError(f"{path}: not {what} ({message_of(error)[:200]}); {remedy}") from error
