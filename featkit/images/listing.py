"""Which files of a folder are photographs, under the names they keep everywhere else."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from featkit.core.errors import BadInputError
from featkit.images.exif import some_names
from featkit.images.read import HEIF_SUFFIXES, reads_heif

LOGGER = logging.getLogger(__name__)
SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".avif"),
        *(".jp2", ".j2k", ".ppm", ".pgm", ".pnm", ".pbm"),
        *HEIF_SUFFIXES,
    }
)
"""Names of photographs. HEIC takes the extra `heic`."""
NOT_READ = {
    "a camera's raw file": {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw"},
    "a video": {".mp4", ".mov", ".avi", ".mkv", ".m4v", ".webm", ".3gp", ".insv"},
    "not a photograph that is read": {".psd", ".svg", ".eps", ".exr", ".hdr", ".jxl", ".jxr", ".insp", ".xcf", ".fits"},
}
"""What people keep in such folders and might expect to be used."""


def list_images(folder: Path) -> list[str]:
    """Names of all images below `folder`: relative, with forward slashes, sorted. Hidden files are passed over.

    Raises BadInputError when the folder is missing, holds no image, or one whose name is not UTF-8.
    """
    if not folder.is_dir():
        kind = "is a file, not a folder of images" if folder.exists() else "no such folder"
        raise BadInputError(f"{folder}: {kind}")
    names, passed_over = _photographs(folder)
    for why, others in passed_over.items():
        LOGGER.warning("%s: %d passed over (%s): %s", folder, len(others), why, some_names(sorted(others)))
    if not names:
        raise BadInputError(f"{folder}: no images in it (looked for {', '.join(sorted(SUFFIXES))})")
    for name in names:
        if not name.isascii() and _not_utf8(name):
            raise BadInputError(f"{folder}: the file name {name!r} is not UTF-8; rename it")
    return names


def _photographs(folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the photographs, and of what is passed over by why. Linked folders are followed, each folder once."""
    names: list[str] = []
    passed_over: dict[str, list[str]] = {}
    unread = {suffix: why for why, suffixes in NOT_READ.items() for suffix in suffixes}
    heif = None
    seen = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in files:
            path = Path(where, file)
            suffix, name = path.suffix.lower(), path.relative_to(folder).as_posix()
            why = unread.get(suffix)
            if file.startswith(".") or (suffix not in SUFFIXES and why is None):
                continue
            if suffix in HEIF_SUFFIXES:
                heif = reads_heif() if heif is None else heif
                why = None if heif else "HEIC; pip install 'featkit[heic]'"
            if not path.is_file():
                why = "a link to nothing" if path.is_symlink() and not path.exists() else "not a file"
            if why is None:
                names.append(name)
            else:
                passed_over.setdefault(why, []).append(name)
    return sorted(names), passed_over


def _not_utf8(name: str) -> bool:
    """Whether a name holds bytes that Python could only keep as surrogates: no text file could hold it."""
    return any("\ud800" <= letter <= "\udfff" for letter in name)
