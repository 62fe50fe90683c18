"""Uniform access to files in a folder or inside a zip, so that packed data need not be unpacked."""

from __future__ import annotations

import os
import zipfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from featkit.core.errors import BadInputError, message_of, open_input
from featkit.images.listing import SUFFIXES
from featkit.images.read import PLAIN_DECODING, DecodeConfig, decode_data
from featkit.io.artifact import inside

MAX_BYTES = 1 << 28  # limit of one zip member, so that a crafted file cannot exhaust the memory


@dataclass(frozen=True)
class FileTree:
    """A folder, or a folder inside a zip. Names are relative to it, with forward slashes. Thread-safe."""

    root: Path
    archive: zipfile.ZipFile | None = None
    prefix: str = ""
    decoding: DecodeConfig = PLAIN_DECODING
    """How `upright_pixels` decodes."""

    def where(self, name: str) -> str:
        """A file's full name, for messages."""
        return str(self.root / self.prefix / name)

    def names(self) -> list[str]:
        """All files, sorted, without hidden ones. Links to folders are followed, into each folder once."""
        if self.archive is not None:
            files = [n[len(self.prefix) :] for n in self.archive.namelist() if n.startswith(self.prefix)]
        else:
            files = list(_files_below(self.root))
        return sorted(n for n in files if n and not n.endswith("/") and not any(p[:1] == "." for p in n.split("/")))

    def read(self, name: str) -> bytes:
        """A file's content. Raises BadInputError."""
        try:
            if self.archive is None:
                with open_input(inside(self.root, name)) as file:
                    return file.read()
            if self.archive.getinfo(self.prefix + name).file_size > MAX_BYTES:
                raise BadInputError(f"{self.where(name)}: more than {MAX_BYTES >> 20} MiB; this is no pack")
            return self.archive.read(self.prefix + name)
        except (FileNotFoundError, KeyError):
            raise BadInputError(f"{self.where(name)}: no such file") from None
        except OSError as error:
            raise BadInputError(f"{self.where(name)}: cannot be read ({error.strerror or error})") from None
        except BadInputError:
            raise
        except Exception as error:  # zipfile and its decompressors raise various errors for a damaged member
            raise BadInputError(
                f"{self.where(name)}: cannot be read ({message_of(error)}); copy the zip again"
            ) from None

    def text(self, name: str) -> str:
        """A UTF-8 text file. Raises BadInputError."""
        try:
            return self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BadInputError(f"{self.where(name)}: not a UTF-8 text file") from None

    def stored_pixels(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        """An image as it is stored, ignoring its EXIF orientation: RGB. Raises BadInputError."""
        try:
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            pixels = cv2.imdecode(np.frombuffer(self.read(name), np.uint8), flags)
        except cv2.error:
            pixels = None
        if pixels is None:
            raise BadInputError(f"{self.where(name)}: cannot be decoded as an image; remove or replace it")
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)

    def upright_pixels(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        """An upright photograph: RGB. Raises BadInputError."""
        return decode_data(Path(self.where(name)), self.read(name), self.decoding, colour=True).pixels


def _files_below(root: Path) -> Iterator[str]:
    """Names of all files, relative to the root. A folder that can be reached in several ways is entered once, by its
    own name or the first of its links: no file is listed twice, and cyclic links end."""
    seen: set[tuple[int, int]] = set()
    waiting, links = [""], deque[str]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.popleft()
        place = root / folder
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                sorted_entries = sorted(entries, key=lambda entry: entry.name)
        except OSError:  # a broken link, or a folder without read permission: treated as empty
            continue
        for entry in sorted_entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if not _is_folder(entry):
                yield name
            elif entry.is_symlink():
                links.append(name)
            else:
                waiting.append(name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def open_tree(path: Path) -> FileTree:
    """A folder, a zip, or a folder inside of a zip (`pack.zip/photos`). Raises BadInputError."""
    if path.is_dir():
        return FileTree(path)
    inner: list[str] = []
    for file in (path, *path.parents):
        if file.is_file():
            return _open_zip(file, "".join(f"{part}/" for part in reversed(inner)))
        inner.append(file.name)
    raise BadInputError(f"{path}: no such folder or zip")


def _open_zip(file: Path, prefix: str) -> FileTree:
    try:
        tree = FileTree(file, zipfile.ZipFile(file), prefix)
    except OSError as error:
        raise BadInputError(f"{file}: cannot be read ({error.strerror or error})") from None
    except Exception:  # zipfile raises various errors for other files
        raise BadInputError(f"{file}: neither a folder nor a complete zip; copy it again") from None
    if not tree.names():
        raise BadInputError(f"{file}: there is nothing in {prefix or 'it'}")
    return tree


def is_image(name: str) -> bool:
    """Whether a file name has the extension of an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES
