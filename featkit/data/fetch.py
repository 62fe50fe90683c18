"""A data set from the catalogue onto the disk: each file downloaded, checked, unpacked, and noted in `.fetched.json`.

Stopped at any moment it goes on where it was. A file whose checksum nobody publishes is held against the one of its
first download.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featkit.data.catalogue import CatalogueFile, DataSet, Source
from featkit.data.checksums import Fetched, RemoteFile, check, digests
from featkit.data.download import DownloadConfig, download
from featkit.data.unpack import UnpackConfig, unpack
from featkit.errors import BadInputError, FeatkitError, NothingCameOutError, NotWritableError, UsageError

LOGGER = logging.getLogger(__name__)
RECORD = ".fetched.json"


@dataclass(frozen=True)
class FetchedFile:
    """What became of one file. path: the folder it was unpacked into, or the file. source: address or path."""

    name: str
    path: Path
    source: str
    sha256: str
    size: int
    was_there: bool


@dataclass(frozen=True)
class FetchOptions:
    """urls: other addresses by file name. archives: files that are already on the disk, taken instead of a download.

    only: names (with or without ending) of the files wanted; empty: all.
    """

    urls: Mapping[str, str]
    archives: Sequence[Path] = ()
    only: Sequence[str] = ()
    keep_archives: bool = False
    overwrite: bool = False


def fetch(
    wanted: DataSet,
    out: Path,
    options: FetchOptions | None = None,
    download_config: DownloadConfig | None = None,
    unpack_config: UnpackConfig | None = None,
) -> list[FetchedFile]:
    """Get the files of a data set into a folder.

    Raises UsageError for a name that the data set does not have. A file that cannot be had does not stop the others;
    afterwards the first such error is raised, with the names of all files that are missing.
    """
    job = _Job(wanted, out, options or FetchOptions({}), download_config or DownloadConfig(), unpack_config)
    files = _chosen(job)
    done: list[FetchedFile] = []
    failed: dict[str, FeatkitError] = {}
    for file in files:
        try:
            done.append(_fetch_one(job, file))
        except NotWritableError:
            raise
        except FeatkitError as error:
            LOGGER.warning("%s", error)
            failed[file.name] = error
    if failed:
        first = next(iter(failed.values()))
        raise type(first)(f"missing: {', '.join(failed)} ({len(done)} of {len(files)} files are there); {first}")
    return done


@dataclass(frozen=True)
class _Job:
    wanted: DataSet
    out: Path
    options: FetchOptions
    download: DownloadConfig
    unpack: UnpackConfig | None


def _chosen(job: _Job) -> list[CatalogueFile]:
    files, only = job.wanted.files, job.options.only
    names = {name: file for file in files for name in (file.name, Path(file.name).stem, file.folder) if name}
    for name in [*only, *job.options.urls]:
        if name not in names:
            raise UsageError(
                f"{name}: not a file of this data set; there are: {', '.join(file.name for file in files)}"
            )
    return [file for file in files if not only or any(names[name] is file for name in only)]


def _fetch_one(job: _Job, file: CatalogueFile) -> FetchedFile:
    target = job.out / (file.folder or file.name)
    note = _read_record(job.out).get(file.name, {})
    if note and target.exists() and not job.options.overwrite:
        return FetchedFile(file.name, target, note["source"], note["sha256"], note["size"], was_there=True)
    given = _given_archive(file, job.options.archives)
    if given is not None:
        fetched, source = digests(given), str(given)
        _check_given(fetched, file)
        if file.folder is not None:
            unpack(given, target, job.unpack)
        else:
            _copy(given, target)
    else:
        fetched, source = _from_any_source(job, file, note)
    found = {"sha256": fetched.sha256, "md5": fetched.md5, "size": fetched.size}
    _write_record(job.out, file.name, {"source": source, **found})
    return FetchedFile(file.name, target, source, fetched.sha256, fetched.size, was_there=False)


def _from_any_source(job: _Job, file: CatalogueFile, note: dict[str, Any]) -> tuple[Fetched, str]:
    """Download and unpack from the first source that has the file. Raises the last source's error when none has."""
    urls = job.options.urls
    names = [file.name, Path(file.name).stem, file.folder or ""]
    own = next((urls[name] for name in names if name in urls), None)
    sources = [Source(url=own)] if own else file.sources
    for number, source in enumerate(sources):
        try:
            return _from_source(job, file, source, note), source.url
        except (NothingCameOutError, BadInputError) as error:
            if number + 1 == len(sources):
                raise
            LOGGER.warning("%s; trying %s", error, sources[number + 1].url)
    raise AssertionError  # a file has at least one source


def _from_source(job: _Job, file: CatalogueFile, source: Source, note: dict[str, Any]) -> Fetched:
    fetched = _download(file, source, job.out, job.download)
    try:
        _check_first_time(fetched, note, source.url)
        if file.folder is not None:
            unpack(fetched.path, job.out / file.folder, job.unpack)
    except BadInputError:
        fetched.path.unlink()  # or every further run would take it for a whole archive
        raise
    if file.folder is not None and not job.options.keep_archives:
        fetched.path.unlink()
    return fetched


def _download(file: CatalogueFile, source: Source, out: Path, config: DownloadConfig) -> Fetched:
    remote = _remote(file, source)
    path = out / file.name
    if path.is_file():  # whole, from a run that was stopped before it was unpacked
        fetched = digests(path)
        try:
            check(fetched, remote)
            return fetched
        except BadInputError:
            LOGGER.warning("%s: not the file of %s; fetched anew", path, source.url)
    return download(remote, out, config)


def _remote(file: CatalogueFile, source: Source) -> RemoteFile:
    return RemoteFile(source.url, file.name, source.md5, source.sha256, source.size)


def _given_archive(file: CatalogueFile, archives: Sequence[Path]) -> Path | None:
    names = {file.name} | {source.url.rpartition("/")[2] for source in file.sources}
    for path in archives:
        if path.name in names:
            if not path.is_file():
                raise BadInputError(f"{path}: no such file")
            return path
    return None


def _check_given(fetched: Fetched, file: CatalogueFile) -> None:
    """A file from elsewhere must be that of one of the sources; where one has no checksum, any file may be its."""
    errors = []
    for source in file.sources:
        try:
            check(fetched, _remote(file, source))
            return
        except BadInputError as error:
            errors.append(error)
    raise errors[0]


def _check_first_time(fetched: Fetched, note: dict[str, Any], source: str) -> None:
    if note and note.get("source") == source and note.get("sha256") != fetched.sha256:
        raise BadInputError(
            f"{fetched.path}: sha256 is {fetched.sha256}, at the first download it was {note['sha256']};"
            f" remove its entry from {RECORD} if the change is known"
        )


def _copy(given: Path, target: Path) -> None:
    if given.resolve() == target.resolve():
        return
    part = target.with_name(f".{target.name}.copying")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(given, part)
        os.replace(part, target)
    except OSError as error:
        raise NotWritableError(f"{target}: {error.strerror or error}; choose another --out") from None


def _read_record(out: Path) -> dict[str, dict[str, Any]]:
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadInputError(f"{out / RECORD}: cannot be read ({error}); remove it to fetch everything anew") from None
    fields = {"source", "sha256", "size"}
    if not isinstance(record, dict) or not all(isinstance(n, dict) and fields <= n.keys() for n in record.values()):
        raise BadInputError(f"{out / RECORD}: not a record of fetched files; remove it to fetch everything anew")
    return record


def _write_record(out: Path, name: str, note: dict[str, Any]) -> None:
    record = _read_record(out)
    record[name] = {**note, "date": datetime.date.today().isoformat()}
    part = out / f"{RECORD}.part"
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(part, out / RECORD)
