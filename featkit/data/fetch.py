"""Fetch datasets of the catalogue: each file is downloaded, verified, unpacked, and recorded in `.fetched.json`.

An interrupted run resumes where it stopped. A file without a published checksum is compared with the checksum of its
first download.
"""

from __future__ import annotations

import datetime
import difflib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from featkit.core.config import Bytes, Config, make, read_yaml
from featkit.core.errors import BadInputError, EmptyResultError, FeatkitError, NotWritableError, UsageError
from featkit.data.download import DownloadConfig, Fetched, RemoteFile, check_file, digests, download
from featkit.data.unpack import UnpackConfig, unpack
from featkit.io.artifact import explained, write_text, writing
from featkit.io.atomic import FOREIGN, read_json, refuse_foreign

LOGGER = logging.getLogger(__name__)
# ----------------------------------------------------------------------------------------------------------------------
# The datasets that can be fetched: addresses, checksums, and where each file goes (catalogue.yaml).


CATALOGUE = Path(__file__).with_name("catalogue.yaml")


class Source(Config):
    """One address of a file, with its known checksums and size."""

    url: str
    """http or https."""
    md5: str | None = Field(None, pattern="^[0-9a-f]{32}$")
    """Hex digits; null: none is published."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Hex digits; null: none is published."""
    size: Bytes | None = None
    """Bytes; null: unknown."""


class CatalogueFile(Config):
    """One file of a dataset."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """File name on disk."""
    folder: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder into which the archive is unpacked; null: the file is kept as it is."""
    sources: list[Source] = Field(min_length=1)
    """Addresses, tried in order."""


class DataSet(Config):
    """A dataset: files that belong together."""

    summary: str
    """One line."""
    page: str
    """The authors' page."""
    terms: str
    """Terms of use."""
    files: list[CatalogueFile]
    """Files, fetched independently: a failure does not stop the others."""


def data_set(name: str, path: Path = CATALOGUE) -> DataSet:
    """The dataset of that name. Raises UsageError, which suggests the closest known name."""
    known = read_yaml(path)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        raise UsageError(f"no data set named {name!r}; {hint}")
    return make(DataSet, known[name], where=f"{path.name}: {name}")


def data_sets(path: Path = CATALOGUE) -> dict[str, DataSet]:
    """All datasets by name."""
    return {name: data_set(name, path) for name in read_yaml(path)}


# ----------------------------------------------------------------------------------------------------------------------
# Downloading and unpacking a dataset.


RECORD = ".fetched.json"


@dataclass(frozen=True)
class FetchedFile:
    """The result for one file. path: the folder it was unpacked into, or the file. source: address or path."""

    name: str
    path: Path
    source: str
    sha256: str
    size: int
    was_there: bool


@dataclass(frozen=True)
class FetchOptions:
    """urls: other addresses by file name. archives: local files that are used instead of a download.

    only: names (with or without extension) of the files to fetch; empty: all.
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
    """Fetch the files of a dataset into a folder.

    Raises UsageError for the name of a file or an archive that the dataset does not have, BadInputError for an archive
    that is not there. A file that fails does not stop the others; at the end the first such error is raised, with the
    names of all missing files.
    """
    job = _FetchJob(wanted, out, options or FetchOptions({}), download_config or DownloadConfig(), unpack_config)
    files = _selected_files(job)
    done: list[FetchedFile] = []
    failed: dict[str, FeatkitError] = {}
    for file in files:
        try:
            done.append(_fetch_file(job, file))
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
class _FetchJob:
    wanted: DataSet
    out: Path
    options: FetchOptions
    download: DownloadConfig
    unpack: UnpackConfig | None


def _selected_files(job: _FetchJob) -> list[CatalogueFile]:
    files, only = job.wanted.files, job.options.only
    names = {name: file for file in files for name in (file.name, Path(file.name).stem, file.folder) if name}
    for name in [*only, *job.options.urls]:
        if name not in names:
            raise UsageError(
                f"{name}: not a file of this data set; there are: {', '.join(file.name for file in files)}"
            )
    selected = [file for file in files if not only or any(names[name] is file for name in only)]
    for path in job.options.archives:
        if not any(path.name in _archive_names(file) for file in selected):
            expected = ", ".join(sorted(set().union(*map(_archive_names, selected))))
            raise UsageError(f"--archive {path}: not a name of a file to fetch; expected {expected}")
        if not path.is_file():
            raise BadInputError(f"{path}: no such file")
    return selected


def _archive_names(file: CatalogueFile) -> set[str]:
    """Names by which a file that was downloaded already is recognised."""
    return {file.name} | {source.url.rpartition("/")[2] for source in file.sources}


def _fetch_file(job: _FetchJob, file: CatalogueFile) -> FetchedFile:
    target = job.out / (file.folder or file.name)
    note = _read_record(job.out).get(file.name, {})
    if note and target.exists() and not job.options.overwrite:
        return FetchedFile(file.name, target, note["source"], note["sha256"], note["size"], was_there=True)
    if file.folder is not None:
        _refuse_other_files(target, note)
    archive = next((path for path in job.options.archives if path.name in _archive_names(file)), None)
    if archive is not None:
        fetched, source = digests(archive), str(archive)
        _check_local_file(fetched, file)
        if file.folder is not None:
            _unpack_archive(job, file, fetched, source, note)
        else:
            _copy_local_file(job, file, fetched, note)
    else:
        fetched, source = _fetch_from_sources(job, file, note)
    return FetchedFile(file.name, target, source, fetched.sha256, fetched.size, was_there=False)


def _refuse_other_files(target: Path, note: dict[str, Any]) -> None:
    """Raise BadInputError for a folder that featkit did not unpack, or one with additional files."""
    if not note:
        refuse_foreign(target)
    elif target.is_symlink() or target.is_file():
        raise BadInputError(f"{target}: {FOREIGN}")
    elif "files" in note and target.is_dir():
        count = sum(path.is_symlink() or not path.is_dir() for path in target.rglob("*"))
        if count > note["files"]:
            raise BadInputError(
                f"{target}: holds {count - note['files']} files that were not fetched, so it is not replaced; take them"
                " out, or choose another --out"
            )


def _unpack_archive(job: _FetchJob, file: CatalogueFile, fetched: Fetched, source: str, note: dict[str, Any]) -> None:
    """Unpack an archive. The folder is recorded as featkit's before it gets its name."""
    assert file.folder is not None

    def record(count: int) -> None:
        _write_record(job.out, file.name, {**_record_entry(fetched, source), "files": count})

    unpack(fetched.path, job.out / file.folder, job.unpack, owned=bool(note), named=record)


def _record_entry(fetched: Fetched, source: str) -> dict[str, Any]:
    return {"source": source, "sha256": fetched.sha256, "md5": fetched.md5, "size": fetched.size}


def _fetch_from_sources(job: _FetchJob, file: CatalogueFile, note: dict[str, Any]) -> tuple[Fetched, str]:
    """Download and unpack from the first source that has the file. Raises the last source's error if none does."""
    urls = job.options.urls
    names = [file.name, Path(file.name).stem, file.folder or ""]
    user_url = next((urls[name] for name in names if name in urls), None)
    sources = [Source(url=user_url)] if user_url else file.sources
    for number, source in enumerate(sources):
        try:
            return _fetch_from_source(job, file, source, note), source.url
        except (EmptyResultError, BadInputError) as error:
            if number + 1 == len(sources):
                raise
            LOGGER.warning("%s; trying %s", error, sources[number + 1].url)
    raise AssertionError  # a file has at least one source


def _fetch_from_source(job: _FetchJob, file: CatalogueFile, source: Source, note: dict[str, Any]) -> Fetched:
    fetched = _download_archive(job, file, source, note)
    is_ours = _archive_key(file) in _read_record(job.out)
    try:
        _check_against_first_download(fetched, note, source.url)
        if file.folder is not None:
            _unpack_archive(job, file, fetched, source.url, note)
        else:
            user_file = {} if is_ours else {"found": True}
            _write_record(job.out, file.name, {**_record_entry(fetched, source.url), **user_file})
            _write_record(job.out, _archive_key(file), None)
    except BadInputError:
        if is_ours:  # otherwise every later run would take it for a complete archive
            _delete_archive(job, file)
        raise
    if file.folder is not None and not job.options.keep_archives and is_ours:
        _delete_archive(job, file)
    return fetched


def _delete_archive(job: _FetchJob, file: CatalogueFile) -> None:
    path = job.out / file.name
    with explained(path):
        path.unlink(missing_ok=True)
    _write_record(job.out, _archive_key(file), None)


def _is_own_file(note: dict[str, Any]) -> bool:
    """Whether featkit wrote the file, by its record; a file that existed before it was requested is the user's."""
    return bool(note) and not note.get("found")


def _archive_key(file: CatalogueFile) -> str:
    """Record key of a downloaded file that is not unpacked yet, or is kept: featkit may delete such a file."""
    return f"archive {file.name}"


def _download_archive(job: _FetchJob, file: CatalogueFile, source: Source, note: dict[str, Any]) -> Fetched:
    remote = _remote_file(file, source)
    path = job.out / file.name
    is_ours = _archive_key(file) in _read_record(job.out) or (_is_own_file(note) and file.folder is None)
    if path.is_file():  # complete, from a run that was interrupted before unpacking
        fetched = digests(path)
        try:
            check_file(fetched, remote)
            return fetched
        except BadInputError:
            if not is_ours:
                raise BadInputError(f"{path}: not the file of {source.url}, and it {FOREIGN}") from None
            LOGGER.warning("%s: not the file of %s; fetched again", path, source.url)

    def record(fetched: Fetched) -> None:
        _write_record(job.out, _archive_key(file), _record_entry(fetched, source.url))

    return download(remote, job.out, job.download, owned=is_ours, named=record)


def _remote_file(file: CatalogueFile, source: Source) -> RemoteFile:
    return RemoteFile(source.url, file.name, source.md5, source.sha256, source.size)


def _check_local_file(fetched: Fetched, file: CatalogueFile) -> None:
    """A local file must match one of the sources; a source without a checksum accepts any file."""
    errors = []
    for source in file.sources:
        try:
            check_file(fetched, _remote_file(file, source))
            return
        except BadInputError as error:
            errors.append(error)
    raise errors[0]


def _check_against_first_download(fetched: Fetched, note: dict[str, Any], source: str) -> None:
    if note and note.get("source") == source and note.get("sha256") != fetched.sha256:
        raise BadInputError(
            f"{fetched.path}: sha256 is {fetched.sha256}, at the first download it was {note['sha256']};"
            f" remove its entry from {RECORD} if you trust the new file"
        )


def _copy_local_file(job: _FetchJob, file: CatalogueFile, fetched: Fetched, note: dict[str, Any]) -> None:
    source, target = fetched.path, job.out / file.name
    entry = _record_entry(fetched, str(source))
    if source.resolve() == target.resolve() or (target.is_file() and digests(target).sha256 == fetched.sha256):
        _write_record(job.out, file.name, {**entry, "found": True})
        return
    with writing(target, owned=_is_own_file(note)) as part, source.open("rb") as content:
        shutil.copyfileobj(content, part)
        _write_record(job.out, file.name, entry)  # recorded as featkit's before it gets its name


def _read_record(out: Path) -> dict[str, dict[str, Any]]:
    if not (out / RECORD).exists():
        return {}
    record = read_json(out / RECORD, "a record of fetched files", "remove it to fetch everything again")
    fields = {"source", "sha256", "size"}
    if not isinstance(record, dict) or not all(isinstance(n, dict) and fields <= n.keys() for n in record.values()):
        raise BadInputError(f"{out / RECORD}: not a record of fetched files; remove it to fetch everything again")
    return record


def _write_record(out: Path, name: str, note: dict[str, Any] | None) -> None:
    """Write an entry of the record; None removes it."""
    record = _read_record(out)
    record.pop(name, None)
    if note is not None:
        record[name] = {**note, "date": datetime.date.today().isoformat()}
    write_text(out / RECORD, json.dumps(record, indent=1) + "\n", owned=True)  # reading it showed that it is a record
