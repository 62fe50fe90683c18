"""Safe unpacking of untrusted archives: nothing outside the folder, no links, no devices, no decompression bombs.

Everything is unpacked into a temporary folder next to the target, which is renamed when it is complete.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from featkit.core.config import Bytes, Config, Count, Factor, Runtime
from featkit.core.errors import BadInputError, FeatkitError, message_of, refuse_pipe
from featkit.io.artifact import explained, inside, making

CHUNK = 1 << 20
LARGEST_READ = 8 << 20  # bytes of one read; a header is only a name and some numbers
PACKED: dict[bytes, Callable[[IO[bytes]], Any]] = {  # by a file's first bytes
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"\x5d\0\0": lzma.LZMAFile,
}


class UnpackConfig(Config):
    """Limits for archives."""

    max_bytes: Runtime[Bytes] = 32 << 30
    """Maximum unpacked size, bytes; the largest dataset in the catalogue has 11 GB."""
    max_files: Runtime[Count] = 200_000
    """Maximum number of files; the largest dataset in the catalogue has about 3,000."""
    max_ratio: Runtime[Factor] = 200.0
    """Maximum ratio of unpacked to packed size; photographs and patches are below 20, bombs above 1,000."""
    ratio_floor_bytes: Runtime[Bytes] = 64 << 20
    """Unpacked size below which the ratio is not checked, bytes: a small file of zeros is not a bomb."""


class _Budget:
    """Counts unpacked bytes and files against the limits."""

    def __init__(self, archive: Path, config: UnpackConfig):
        self.archive, self.config = archive, config
        self.files = self.bytes = 0
        packed = archive.stat().st_size
        self.limit = min(config.max_bytes, max(config.ratio_floor_bytes, int(config.max_ratio * packed)))

    def file(self) -> None:
        self.files += 1
        if self.files > self.config.max_files:
            raise BadInputError(f"{self.archive}: more than {self.config.max_files:,} files; not unpacked")

    def take(self, count: int) -> None:
        self.bytes += count
        if self.bytes > self.limit:
            raise BadInputError(
                f"{self.archive}: unpacks to more than {self.limit:,} bytes, far beyond its size; not unpacked"
            )


def unpack(
    archive: Path,
    folder: Path,
    config: UnpackConfig | None = None,
    *,
    owned: bool = False,
    named: Callable[[int], object] | None = None,
) -> int:
    """Unpack a zip or tar archive (also .gz, .bz2, .xz) into a new folder; returns the number of files.

    A single top-level folder is removed: `liberty/info.txt` becomes `info.txt`. owned: an existing folder is featkit's
    and is replaced. named: called with the number of files before the folder gets its name.
    Raises BadInputError for an archive that is broken, has paths outside of the folder, contains links or devices, or
    is too large, and for a folder that is not featkit's; NotWritableError without permission or space. After an error
    the folder is as it was before.
    """
    budget = _Budget(archive, config or UnpackConfig())
    with making(folder, owned=owned, named=None if named is None else lambda: named(budget.files)) as new:
        with _explain_damage(archive):
            refuse_pipe(archive)
            if zipfile.is_zipfile(archive):
                _unpack_zip(archive, new, budget)
            else:
                _unpack_tar(archive, new, budget)
        if not budget.files:
            raise BadInputError(f"{archive}: an empty archive")
        with explained(folder):
            _strip_top_folder(new)
    return budget.files


@contextmanager
def _explain_damage(archive: Path) -> Iterator[None]:
    try:
        yield
    except FeatkitError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # a disk error; those of gzip and bz2 have no errno
            raise
        raise BadInputError(
            f"{archive}: not a complete zip or tar archive ({message_of(error)}); fetch it again"
        ) from None


class _BoundedReader(io.RawIOBase):
    """The decompressed content of a tar archive, with a limit on the size of one read.

    tarfile reads the header of an entry in one piece, no matter how long it claims to be.
    """

    def __init__(self, archive: Path, content: IO[bytes]):
        self._archive, self._content = archive, content

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_READ:
            raise BadInputError(f"{self._archive}: a header of {size:,} bytes; not unpacked")
        return self._content.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._content.seek(offset, whence)

    def tell(self) -> int:
        return self._content.tell()

    def seekable(self) -> bool:
        return True


def _unpack_zip(archive: Path, work: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(archive) as file:
        for entry in file.infolist():
            mode = entry.external_attr >> 16
            if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0):
                raise BadInputError(f"{archive}: {entry.filename!r} is a link or a device; not unpacked")
            path = _entry_path(archive, work, entry.filename)
            if entry.is_dir():
                _make_folder(archive, path)
                continue
            with file.open(entry) as source:
                _write_entry(archive, source, path, budget)


def _unpack_tar(archive: Path, work: Path, budget: _Budget) -> None:
    with archive.open("rb") as packed:
        head = packed.read(max(map(len, PACKED)))
        packed.seek(0)
        opened = next((opener for magic, opener in PACKED.items() if head.startswith(magic)), None)
        content: IO[bytes] = packed if opened is None else opened(packed)
        with content, tarfile.open(fileobj=_BoundedReader(archive, content), mode="r:") as file:
            _unpack_entries(archive, work, budget, file)
            while rest := content.read(CHUNK):  # gzip's checksum comes after the last entry
                budget.take(len(rest))


def _unpack_entries(archive: Path, work: Path, budget: _Budget, file: tarfile.TarFile) -> None:
    for entry in file:
        path = _entry_path(archive, work, entry.name)
        if entry.isdir():
            _make_folder(archive, path)
            continue
        source = file.extractfile(entry) if entry.isreg() else None
        if source is None:
            raise BadInputError(f"{archive}: {entry.name!r} is a link or a device; not unpacked")
        with source:
            _write_entry(archive, source, path, budget)


def _entry_path(archive: Path, work: Path, name: str) -> Path:
    """The target path of an entry. Raises BadInputError for a name that leads outside the folder on any system."""
    plain = name.replace("\\", "/")
    try:
        return inside(work, plain)
    except BadInputError:
        raise BadInputError(f"{archive}: {name!r} leads outside the folder; not unpacked") from None


def _make_folder(archive: Path, path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise BadInputError(f"{archive}: {path.name!r} is a file and a folder at once; not unpacked") from None


def _write_entry(archive: Path, source: IO[bytes], path: Path, budget: _Budget) -> None:
    budget.file()
    _make_folder(archive, path.parent)
    try:
        target = path.open("xb")
    except (FileExistsError, IsADirectoryError):
        raise BadInputError(f"{archive}: contains {path.name!r} twice; not unpacked") from None
    with target:
        while block := source.read(CHUNK):
            budget.take(len(block))
            target.write(block)


def _strip_top_folder(work: Path) -> None:
    """Remove a top-level folder that contains everything else."""
    inner = [path for path in work.iterdir() if path.name != "__MACOSX"]
    if len(inner) == 1 and inner[0].is_dir():
        os.rename(work, work.with_name("shell"))
        os.rename(work.with_name("shell") / inner[0].name, work)
