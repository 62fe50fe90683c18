"""Convert the authors' files of a published network to one verified safetensors file in the cache.

A file comes from the disk if the user names it, from an installed package that contains it, or from the authors'
server (resumable download). Only tensors are read from it (`torch.load(weights_only=True)`), and they must fit the
network.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featkit.core.config import make
from featkit.core.errors import BadInputError, UsageError
from featkit.data.download import DownloadConfig, RemoteFile, download
from featkit.features.published_networks import load_network
from featkit.weights.catalogue import (
    FORMAT,
    AuthorsFile,
    PublishedNetwork,
    PublishedWeights,
    authors_tensors,
    cache_folder,
    cached_file,
    check_sha256,
    joined_sha256,
    load_published,
    packaged_files,
    published_network,
    tensors_sha256,
)
from featkit.weights.files import write_tensors
from featkit.weights.manifest import sha256_of

LOGGER = logging.getLogger(__name__)
DOWNLOADS = "downloads"
LARGEST = 4 << 30  # bytes of one weights file


@dataclass(frozen=True)
class CachedWeights:
    """A network's weights in the cache. sha256: of the authors' files, by file name. sources: paths or addresses."""

    path: Path
    sha256: dict[str, str]
    sources: dict[str, str]
    was_there: bool = False


def cache_weights(
    name: str,
    urls: Mapping[str, str] | None = None,
    archives: Sequence[Path] = (),
    sha256: Mapping[str, str] | None = None,
    overwrite: bool = False,
    config: DownloadConfig | None = None,
) -> CachedWeights:
    """Put the weights of a published network into the cache.

    urls: other addresses by file name. archives: local files. sha256: by file name, for files without a checksum in
    the catalogue, which are not downloaded otherwise. Raises UsageError for an unknown name or an unpinned file,
    EmptyResultError if the server cannot be reached, BadInputError for files that are not the authors' or not of this
    network, NotWritableError.
    """
    row, path = _row_with_checksums(name, sha256 or {}), cached_file(name)
    local_files = _user_files(row, archives)
    if unknown := [file for file in urls or {} if file not in {one.name for one in row.files}]:
        raise UsageError(f"--url {unknown[0]}: {name} has the files {', '.join(file.name for file in row.files)}")
    if path.is_file() and not overwrite and not archives and _is_usable(name):
        return CachedWeights(path, {}, {}, was_there=True)
    local_files = _files_in_packages(name, row) | local_files
    missing = [file for file in row.files if file.name not in local_files]
    _refuse_unpinned(name, missing)
    config = config or DownloadConfig(max_bytes=LARGEST)
    addresses = {file.name: (urls or {}).get(file.name, file.url) for file in missing}
    downloads = {file.name: _download_file(name, file, addresses[file.name], config) for file in missing}
    files = {file.name: (local_files | downloads)[file.name] for file in row.files}
    digests = _convert_to_safetensors(name, row, list(files.values()), path)
    for download_path in downloads.values():
        download_path.unlink(missing_ok=True)  # its tensors are in the cache
    sources = {file: addresses.get(file, str(location)) for file, location in files.items()}
    return CachedWeights(path, dict(zip(files, digests, strict=True)), sources)


def _user_files(row: PublishedNetwork, archives: Sequence[Path]) -> dict[str, Path]:
    """The user's files by the authors' file names. If the network has only one file, that may have any name."""
    if len(row.files) == 1 and len(archives) == 1:
        named = {row.files[0].name: archives[0]}
    else:
        named = {path.name: path for path in archives}
    wanted = {file.name for file in row.files}
    for name, path in named.items():
        if name not in wanted:
            raise UsageError(f"--archive {path}: not one of the files {', '.join(sorted(wanted))}")
        if not path.is_file():
            raise BadInputError(f"{path}: no such file")
    return named


def _files_in_packages(name: str, row: PublishedNetwork) -> dict[str, Path]:
    packaged = packaged_files(name)
    return {} if packaged is None else {file.name: path for file, path in zip(row.files, packaged, strict=True)}


def _is_usable(name: str) -> bool:
    try:
        load_published(name)
    except BadInputError as error:
        LOGGER.warning("%s; fetching it again", str(error).partition(";")[0])
        return False
    return True


def _row_with_checksums(name: str, sha256: Mapping[str, str]) -> PublishedNetwork:
    """The catalogue row, with the user's checksums for files that have none there."""
    row = published_network(name)
    known = {file.name: file for file in row.files}
    for file_name, digest in sha256.items():
        if file_name not in known:
            raise UsageError(f"--sha256 {file_name}: {name} has the files {', '.join(known)}")
        if known[file_name].sha256 not in (None, digest):
            raise UsageError(f"--sha256 {file_name}: the authors' file has {known[file_name].sha256}")
        values = {**known[file_name].model_dump(), "sha256": digest}
        known[file_name] = make(AuthorsFile, values, where=f"--sha256 {file_name}")
    return row.model_copy(update={"files": list(known.values())})


def _refuse_unpinned(name: str, files: list[AuthorsFile]) -> None:
    unpinned = [file.name for file in files if not file.is_pinned]
    if unpinned:
        raise UsageError(
            f"{name}: no checksum is known for {' and '.join(unpinned)}, so a download cannot be verified: give the"
            f" sha256 you expect (--sha256 {unpinned[0]}=HEX), or a file you have (--archive FILE)"
        )


def _download_file(name: str, file: AuthorsFile, url: str, config: DownloadConfig) -> Path:
    folder = cache_folder() / DOWNLOADS / name
    file_path = folder / file.name
    if file_path.is_file():  # a run was interrupted after the download
        try:
            check_sha256(file_path, file)
            return file_path
        except BadInputError:
            pass
        file_path.unlink()
    remote = RemoteFile(url, file.name, sha256=file.sha256, size=file.size)
    return download(remote, folder, config).path


def _convert_to_safetensors(name: str, row: PublishedNetwork, paths: list[Path], out: Path) -> list[str]:
    """Write the authors' tensors, which must be exactly the network's, as one file. Returns the files' sha256."""
    for path, file in zip(paths, row.files, strict=True):
        check_sha256(path, file)
    digests = [sha256_of(path) for path in paths]
    tensors = authors_tensors(row, paths)
    load_network(name, PublishedWeights(paths[0], tensors, joined_sha256(digests)))
    metadata = {
        "format": FORMAT,
        "name": name,
        "licence": row.licence,
        "page": row.page,
        "files": json.dumps({file.name: sha256 for file, sha256 in zip(row.files, digests, strict=True)}),
        "source_sha256": joined_sha256(digests),
        "tensors_sha256": tensors_sha256(tensors),
    }
    write_tensors(out, tensors, metadata)
    return digests
