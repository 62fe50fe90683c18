"""Text files, read line by line with clear errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from featkit.errors import BadInputError


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
