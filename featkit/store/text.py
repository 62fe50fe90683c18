"""Text files: read line by line with clear errors, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from featkit.errors import BadInputError, NotWritableError


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, stripped line) of all lines that are neither empty nor a comment. Raises BadInputError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise BadInputError(f"{path}: is a folder, not a text file") from None
    except UnicodeDecodeError:
        raise BadInputError(f"{path}: not a UTF-8 text file") from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped


def write_text(path: Path, text: str) -> Path:
    """Write a file beside its place and move it there, so that nobody sees half of it.

    Raises NotWritableError, or BadInputError for text that is no Unicode (a file name in another encoding).
    """
    part = path.with_name(f".{path.name}.part")
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        start = text.rfind("\n", 0, error.start) + 1
        line = text[start:].splitlines()[0]
        raise BadInputError(f"{path}: {line!r} has a name that is not UTF-8; rename the file") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise NotWritableError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    return path
