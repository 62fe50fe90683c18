"""The errors a user can cause, each with the exit code the command line ends with.

A message has one line and says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import errno
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_LINE = 2000
"""Characters of a message; of a longer one (the name of a file, a value) the middle is left out."""
UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's control characters, halves of surrogate pairs (bytes of a name that is not UTF-8), and line separators."""
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of a text, so that a name reads as another one."""


class FeatkitError(Exception):
    """Base of every error that is reported as one line instead of a traceback; by itself, something unexpected.

    reported: whether another process of the same command reports it; None: not known.
    """

    exit_code = 1
    reported: bool | None = None


class UsageError(FeatkitError):
    """The command or a configuration asks for something that does not exist."""

    exit_code = 2


class BadInputError(FeatkitError):
    """A file or folder is missing, broken, or not what it was taken for."""

    exit_code = 3


class EmptySceneError(BadInputError):
    """A scene with nothing to learn from: among others it is passed over."""


class EmptyResultError(FeatkitError):
    """The work ran, but there is no result: no model, no point, no pose."""

    exit_code = 4


class NotWritableError(FeatkitError):
    """The output cannot be written: no permission, no space, or locked by another process."""

    exit_code = 5


class WorkerDiedError(FeatkitError):
    """A worker process was ended from outside, most often for memory."""


class ProcessLostError(WorkerDiedError):
    """Of several processes with the same work another one ended, or is silent."""


# ----------------------------------------------------------------------------------------------------------------------
# Messages that hold names and values of others, and readers of files that may hold anything.


def printable(text: str, keep: str = "") -> str:
    """A text without what a terminal obeys: control characters as `\\n`, `\\x1b`. keep: those that stay."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character in keep or not (character in TURNING or unicodedata.category(character) in UNPRINTABLE)
        else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )


def one_line(text: str) -> str:
    """A message as it is shown: on one line, without control characters, and not longer than LONGEST_LINE."""
    half = LONGEST_LINE // 2
    if len(text) > LONGEST_LINE:
        text = f"{text[:half]} ... ({len(text) - 2 * half:,} characters) ... {text[-half:]}"
    return printable(text)


def said(error: BaseException) -> str:
    """An error in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@contextmanager
def blaming(path: Path | str, what: str, remedy: str) -> Iterator[None]:
    """The boundary of a reader: whatever a file makes of the code inside is a BadInputError about that file.

    what: what the file should have been. remedy: what to do about it. A file that is missing or may not be read is
    reported as such, featkit's own errors pass. Only reading belongs inside.
    """
    try:
        yield
    except FeatkitError:
        raise
    except FileNotFoundError as error:
        raise BadInputError(f"{error.filename or path}: no such file") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # of the content: a place before its start, as a file that was cut off gives
            raise BadInputError(f"{path}: not {what} (it is cut off or damaged); {remedy}") from error
        raise BadInputError(f"{path}: cannot be read ({error.strerror or said(error)})") from error
    except MemoryError as error:
        raise BadInputError(f"{path}: not {what}: it asks for more memory than there is; {remedy}") from error
    except Exception as error:
        raise BadInputError(f"{path}: not {what} ({said(error)[:200]}); {remedy}") from error
