"""Download of one file over HTTP: resumable, verified against its checksum, and named only once complete.

Received bytes go to `NAME.*.part`; a json next to it records the version of the remote file (ETag or date, size), so
that the download restarts if the remote file has changed, instead of joining two versions.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import logging
import math
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from featkit.core.config import Bytes, Config, Runtime, Seconds
from featkit.core.errors import BadInputError, EmptyResultError, NotWritableError, UsageError
from featkit.core.log import progress
from featkit.io.artifact import discard, is_left, no_links, write_text
from featkit.io.atomic import FOREIGN

LOGGER = logging.getLogger(__name__)
MB = 10**6
AGENT = "featkit"
PART = re.compile(r"\.[0-9a-f]{8}\.part(\.json)?")


class DownloadConfig(Config):
    """How a download handles an unreliable connection."""

    timeout_s: Runtime[Seconds] = 30.0
    """A connection that receives nothing for this long is dropped, s."""
    attempts: Runtime[int] = Field(5, ge=1, le=1000)
    """Consecutive attempts without any data before giving up; an attempt that receives bytes resets the count."""
    wait_s: Runtime[float] = Field(1.0, ge=0, le=3600)
    """Pause before the second attempt, s; doubled for each further attempt."""
    max_bytes: Runtime[Bytes] = 16 << 30
    """Largest file accepted, bytes."""


class _IncompleteDownload(Exception):
    """An attempt ended before the file was complete; another attempt may resume."""


class _ServerChangedFile(Exception):
    """The part file is not the beginning of the file that the server has now."""


def download(
    remote: RemoteFile,
    folder: Path,
    config: DownloadConfig | None = None,
    *,
    owned: bool = False,
    named: Callable[[Fetched], object] | None = None,
) -> Fetched:
    """Download a file into a folder, resuming a partial download.

    owned: an existing file of that name is featkit's and is replaced. named: called before the file gets its name.
    Raises UsageError for an address that is not http or https, EmptyResultError if the server cannot be reached or
    stops (received data is kept), BadInputError if the file is not the one expected (it is removed), and
    NotWritableError without permission or space.
    """
    config = config or DownloadConfig()
    _check_address(remote.url)
    path = folder / remote.name
    if os.path.lexists(path) and (not owned or path.is_symlink() or path.is_dir()):
        raise BadInputError(f"{path}: {FOREIGN}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetched, part = _download_to_part(remote, folder, config)
        if named is not None:
            named(fetched)
        os.replace(part, path)
        for leftover in folder.glob(f"{remote.name}.*.part*"):  # of this address and of others that failed
            if PART.fullmatch(leftover.name.removeprefix(remote.name)):
                discard(leftover)
        return fetched
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST):
            raise NotWritableError(f"{folder}: {error.strerror}; choose another --out, or free some space") from None
        raise


def _check_address(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise UsageError(f"{url}: not an http or https address")


def _download_to_part(remote: RemoteFile, folder: Path, config: DownloadConfig) -> tuple[Fetched, Path]:
    """The verified download and its part file."""
    part = folder / f"{remote.name}.{hashlib.sha256(remote.url.encode()).hexdigest()[:8]}.part"  # one per address
    _retry_until_complete(remote, part, config)
    fetched = digests(part)
    try:
        check_file(fetched, remote)
    except BadInputError as error:
        _discard_part(part)
        raise BadInputError(f"{error}; the download was deleted. Run again, or name a mirror with --url") from None
    return Fetched(folder / remote.name, fetched.size, fetched.md5, fetched.sha256), part


def _retry_until_complete(remote: RemoteFile, part: Path, config: DownloadConfig) -> None:
    """Fill the part file, attempt after attempt."""
    fruitless = 0
    while True:
        before = _part_size(part)
        try:
            _request_rest(remote, part, config)
            return
        except _ServerChangedFile:
            LOGGER.warning("%s: the file has changed on the server; downloading it again", remote.url)
            _discard_part(part)
            reason = "the server's file changes at every attempt"
        except (
            _IncompleteDownload,
            urllib.error.URLError,
            http.client.HTTPException,
            TimeoutError,
            ConnectionError,
        ) as error:
            _raise_if_hopeless(error, remote)
            reason = _error_reason(error)
        fruitless = 0 if _part_size(part) > before else fruitless + 1
        if fruitless >= config.attempts:
            raise EmptyResultError(
                f"{remote.url}: {_received_bytes_message(part, remote)} ({reason}); run the same command again to go on"
            )
        time.sleep(config.wait_s * 2 ** max(0, fruitless - 1))


def _request_rest(remote: RemoteFile, part: Path, config: DownloadConfig) -> None:
    """One request for everything after the end of the part file."""
    state = _read_state(part)
    offset = _part_size(part) if state else 0
    request = urllib.request.Request(remote.url, headers={"User-Agent": AGENT, "Accept-Encoding": "identity"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        if state.get("version"):
            request.add_header("If-Range", state["version"])
    try:
        response = _build_opener().open(request, timeout=config.timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            if _total_of_range(error.headers.get("Content-Range", "")) == offset:
                return  # it was complete already
            raise _ServerChangedFile from None
        raise
    with response:
        start, total = _body_range(response, offset, state.get("total"))
        if total is not None and total > config.max_bytes:
            raise BadInputError(f"{remote.url}: {total:,} bytes, more than the {config.max_bytes:,} allowed")
        if start == 0:
            _write_state(part, {"version": _file_version(response), "total": total})
        _append_body(response, part, start, total, remote, config)


def _append_body(
    response: Any, part: Path, start: int, total: int | None, remote: RemoteFile, config: DownloadConfig
) -> None:
    """Append the body to the part file; a body shorter than announced raises _IncompleteDownload."""
    size = start
    is_left(part)  # raises if something else is in its place
    mode = "ab" if start else "wb"
    with open(part, mode, opener=no_links) as file, _progress_in_mb(remote.name, total, start) as advance:
        while block := _read_block(response):
            size += len(block)
            if size > config.max_bytes:
                raise BadInputError(f"{remote.url}: more than the {config.max_bytes:,} bytes allowed")
            file.write(block)
            advance(len(block))
    if total is not None and size < total:
        raise _IncompleteDownload(f"cut after {size:,} of {total:,} bytes")
    if total is None and remote.size is not None and size < remote.size:
        raise _IncompleteDownload(f"cut after {size:,} of {remote.size:,} bytes")


def _read_block(response: Any) -> bytes:
    """The next bytes. Raises _IncompleteDownload for network errors, which are thus kept apart from disk errors."""
    try:
        return bytes(response.read1(CHUNK))
    except (OSError, http.client.HTTPException) as error:
        raise _IncompleteDownload(str(error) or type(error).__name__) from None


def _body_range(response: Any, offset: int, known_total: int | None) -> tuple[int, int | None]:
    """The offset at which the body starts, and the size of the file if the server reports it.

    Raises _ServerChangedFile for a range that was not requested, or one from a file of another size.
    """
    length = response.headers.get("Content-Length", "")
    if response.status != http.client.PARTIAL_CONTENT:  # the whole file: the server does not support ranges
        return 0, int(length) if length.isdigit() else None
    content_range = response.headers.get("Content-Range", "")
    first = content_range.removeprefix("bytes ").partition("-")[0].strip()
    total = _total_of_range(content_range)
    if not offset or first != str(offset) or (known_total is not None and total not in (None, known_total)):
        raise _ServerChangedFile
    return offset, total if total is not None else (offset + int(length) if length.isdigit() else None)


def _total_of_range(content_range: str) -> int | None:
    total = content_range.rpartition("/")[2].strip()
    return int(total) if total.isdigit() else None


def _file_version(response: Any) -> str | None:
    """An identifier of the file's version; a weak ETag does not promise equal bytes."""
    tag = response.headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        return str(tag)
    modified = response.headers.get("Last-Modified")
    return str(modified) if modified else None


class _HttpRedirectsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _build_opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _HttpRedirectsOnly(),
    ):
        opener.add_handler(handler)
    return opener


@contextlib.contextmanager
def _progress_in_mb(name: str, total: int | None, start: int) -> Iterator[Callable[[int], None]]:
    """A progress bar in MB; its function takes bytes."""
    remainder = 0

    def add(count: int) -> None:
        nonlocal remainder
        done, remainder = divmod(remainder + count, MB)
        advance(done)

    with progress(name, math.ceil((total - start) / MB) if total else 0, "MB") as advance:
        yield add


def _raise_if_hopeless(error: Exception, remote: RemoteFile) -> None:
    """Raise EmptyResultError for errors that another attempt cannot fix, such as a missing or forbidden file."""
    if isinstance(error, urllib.error.HTTPError) and 300 <= error.code < 500 and error.code not in (408, 425, 429):
        raise EmptyResultError(
            f"{remote.url}: the server says {error.code} {error.reason}; name a mirror with --url, or fetch"
            f" {remote.name} by hand and give it with --archive"
        ) from None


def _error_reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server says {error.code} {error.reason}"
    inner = getattr(error, "reason", None) or error
    return str(inner) or type(error).__name__


def _received_bytes_message(part: Path, remote: RemoteFile) -> str:
    size = _part_size(part)
    if not size:
        return "nothing arrived"
    of = f" of {remote.size:,}" if remote.size else ""
    return f"{size:,}{of} bytes arrived and are kept"


def _part_size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


def _state_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_state(part: Path) -> dict[str, Any]:
    try:
        state = json.loads(_state_path(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _write_state(part: Path, state: dict[str, Any]) -> None:
    discard(part)  # before its new description is written: old bytes must never be taken for the new version
    write_text(_state_path(part), json.dumps(state), owned=True)


def _discard_part(part: Path) -> None:
    discard(part)
    discard(_state_path(part))


# ----------------------------------------------------------------------------------------------------------------------
# Sizes and checksums of files, and comparison with the expected ones.


CHUNK = 1 << 20  # bytes per read


@dataclass(frozen=True)
class RemoteFile:
    """A remote file and its known properties. md5, sha256: hex digits; size: bytes; None: not published."""

    url: str
    name: str
    md5: str | None = None
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Fetched:
    """A complete file on disk."""

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


def check_file(fetched: Fetched, remote: RemoteFile) -> None:
    """Raise BadInputError if a file is not the one that was expected."""
    for kind, expected in (("sha256", remote.sha256), ("md5", remote.md5)):
        actual = getattr(fetched, kind)
        if expected is not None and actual != expected:
            raise BadInputError(f"{fetched.path}: {kind} is {actual}, not the published {expected}; it is another file")
    if remote.size is not None and fetched.size != remote.size:
        raise BadInputError(f"{fetched.path}: {fetched.size:,} bytes, not the published {remote.size:,}")
