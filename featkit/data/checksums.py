"""Which bytes a file has, and whether they are the ones expected."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from featkit.errors import BadInputError

CHUNK = 1 << 20  # bytes per read


@dataclass(frozen=True)
class RemoteFile:
    """A file and what is known of it. md5, sha256: hex digits; size: bytes; None: not published."""

    url: str
    name: str
    md5: str | None = None
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Fetched:
    """A whole file on disk."""

    path: Path
    size: int
    md5: str
    sha256: str


def digests(path: Path) -> Fetched:
    """Size and checksums of a file on disk."""
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            md5.update(block)
            sha256.update(block)
            size += len(block)
    return Fetched(path, size, md5.hexdigest(), sha256.hexdigest())


def check(fetched: Fetched, remote: RemoteFile) -> None:
    """Raises BadInputError when a file is not the one that was expected."""
    for kind, expected in (("sha256", remote.sha256), ("md5", remote.md5)):
        found = getattr(fetched, kind)
        if expected is not None and found != expected:
            raise BadInputError(f"{fetched.path}: {kind} is {found}, not the published {expected}; it is another file")
    if remote.size is not None and fetched.size != remote.size:
        raise BadInputError(f"{fetched.path}: {fetched.size:,} bytes, not the published {remote.size:,}")
