"""Listing the photographs in a folder, with the names that are used everywhere else."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zlib
from collections.abc import Collection
from pathlib import Path

from featkit.core.errors import BadInputError, open_input
from featkit.images.exif import some_names
from featkit.images.read import HEIF_SUFFIXES, reads_heif
from featkit.io.atomic import STAMP, STAMPS, is_own_json, read_stamp, stamped_files

LOGGER = logging.getLogger(__name__)
DIGITS = re.compile(r"([0-9]+)")  # not \d: int() of some other digits would order them with these
SAMPLE_BYTES = 1 << 16  # read at each end of a photograph to identify it
SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".avif"),
        *(".jp2", ".j2k", ".ppm", ".pgm", ".pnm", ".pbm"),
        *HEIF_SUFFIXES,
    }
)
"""File extensions of photographs. HEIC needs the extra `heic`."""
NOT_READ = {
    "a camera's raw file": {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw"},
    "a video; `featkit frames` takes photographs out of it": {
        ".mp4",
        ".mov",
        ".avi",
        ".mkv",
        ".m4v",
        ".webm",
        ".3gp",
        ".insv",
    },
    "not a photograph that is read": {".psd", ".svg", ".eps", ".exr", ".hdr", ".jxl", ".jxr", ".insp", ".xcf", ".fits"},
}
"""Files that users keep in such folders and might expect to be used."""
UNREAD = {suffix: why for why, suffixes in NOT_READ.items() for suffix in suffixes}
OWN = "written by featkit"
PICTURE_MARK = b"featkit picture"  # comment in images that featkit draws
MARKED_BYTES = 128  # bytes at the beginning of a file that contain the mark
DRAWN = re.compile(r"\w+_\d{7}\.jpg")  # names of such images, with the step of a training
NO_MEDIA = ".nomedia"  # Android: a folder with this file is hidden from galleries
DENSE_WORKSPACE = {"images", "sparse", "stereo"}  # folders of COLMAP's dense workspace


def list_images(folder: Path) -> list[str]:
    """Names of all images in `folder` and its subfolders: relative, with forward slashes, sorted, without hidden files.

    Also skipped, with a warning, are files that featkit wrote (exports, datasets, rendered scenes, training images),
    COLMAP's dense workspaces, masks of the photographs, and folders with a file named `.nomedia`.
    Raises BadInputError if the folder is missing or has no images, or if a name is not UTF-8.
    """
    if not folder.is_dir():
        kind = "is a file, not a folder of images" if folder.exists() else "no such folder"
        raise BadInputError(f"{folder}: {kind}")
    names, passed_over = _list_photographs(folder)
    for why, others in passed_over.items():
        LOGGER.warning("%s: %d passed over (%s): %s", folder, len(others), why, some_names(sorted(others)))
    if not names:
        raise BadInputError(f"{folder}: no images in it (looked for {', '.join(sorted(SUFFIXES))})")
    for name in names:
        if not name.isascii() and _not_utf8(name):
            raise BadInputError(f"{folder}: the file name {name!r} is not UTF-8; rename it")
    return names


def _list_photographs(folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the photographs, and of skipped files by reason. Linked folders are followed, each folder once."""
    names: list[str] = []
    passed_over: dict[str, list[str]] = {}
    exported: set[Path] = set()
    seen = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        folder_path, status = Path(where), os.stat(where)
        why = None if folder_path == folder else _reason_folder_skipped(folder_path, folders, files)
        if why is not None and _contains_images(folder_path):
            passed_over.setdefault(why, []).append(f"{folder_path.relative_to(folder).as_posix()}/")
        if why is not None or (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        exported |= _exported_files(folder_path) if STAMP in files else set()
        for file in files:
            suffix, path = Path(file).suffix.lower(), folder_path / file
            if file.startswith(".") or suffix not in SUFFIXES | UNREAD.keys():
                continue
            why = (
                OWN
                if path in exported or (DRAWN.fullmatch(file) and _is_drawn_by_featkit(path))
                else _reason_unread(path, suffix)
            )
            name = path.relative_to(folder).as_posix()
            (names if why is None else passed_over.setdefault(why, [])).append(name)
    masks = _find_mask_names(names)
    if masks:
        passed_over["masks of photographs"] = sorted(masks)
    return sorted(set(names) - masks), passed_over


def _reason_unread(path: Path, suffix: str) -> str | None:
    """Why a file with an image extension is not read; None if it is read."""
    if not path.is_file():
        return "a link to nothing" if path.is_symlink() and not path.exists() else "not a file"
    if suffix in HEIF_SUFFIXES and not reads_heif():
        return "HEIC; pip install 'featkit[heic]'"
    return UNREAD.get(suffix)


def _contains_images(folder: Path) -> bool:
    return any(Path(file).suffix.lower() in SUFFIXES for _, _, files in os.walk(folder) for file in files)


def _reason_folder_skipped(where: Path, folders: Collection[str], files: Collection[str]) -> str | None:
    """Why a folder contains no photographs; None if it may contain some."""
    if NO_MEDIA in files:
        return f"a folder with {NO_MEDIA}"
    if any(name in files and is_own_json(where / name) for name in (*STAMPS[1:], "sparse.json")):
        return OWN
    if "truth" in folders and "renderer" in (read_stamp(where / "truth" / "scene.json") or {}):
        return "a scene that featkit rendered"
    return "a dense workspace of COLMAP's" if set(folders) >= DENSE_WORKSPACE else None


def _exported_files(folder: Path) -> set[Path]:
    """Files that featkit exported for another program into a folder that may contain other files."""
    return {folder / name for name in stamped_files(folder / STAMP)}


def _is_drawn_by_featkit(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return PICTURE_MARK in file.read(MARKED_BYTES)
    except OSError:
        return False


def marked(encoded: bytes, mark: bytes = PICTURE_MARK) -> bytes:
    """A JPEG or PNG file with a comment in its header that marks it as made by featkit. The pixels are unchanged."""
    if encoded.startswith(b"\xff\xd8"):
        return encoded[:2] + b"\xff\xfe" + (len(mark) + 2).to_bytes(2, "big") + mark + encoded[2:]
    chunk = b"tEXtSoftware\0" + mark
    length, crc = (value.to_bytes(4, "big") for value in (len(chunk) - 4, zlib.crc32(chunk)))
    return encoded[:33] + length + chunk + crc + encoded[33:]


def _find_mask_names(names: Collection[str]) -> set[str]:
    """Names of masks: `a/b.jpg.png` or `masks/a/b.jpg.png`, if there is a photograph `a/b.jpg`."""
    all_names, masks = set(names), set()
    for name in names:
        masked = name.removesuffix(".png")
        if masked == name or Path(masked).suffix.lower() not in SUFFIXES:
            continue
        parts = masked.split("/")
        if any("/".join(parts[first:]) in all_names for first in range(len(parts))):
            masks.add(name)
    return masks


def _not_utf8(name: str) -> bool:
    """Whether a name contains bytes that Python represents as surrogates, which cannot be written to a text file."""
    return any("\ud800" <= letter <= "\udfff" for letter in name)


def natural_key(name: str) -> tuple[list[tuple[str, int]], str]:
    """Sorts numbers in a name by value; equal ones (img02, img2) by the name itself."""
    parts = DIGITS.split(name)  # text and digits in turn, text first
    numbers = [int(digits) for digits in parts[1::2]] + [-1]
    return list(zip(parts[0::2], numbers, strict=True)), name


def file_digest(path: Path) -> str:
    """Digest (16 hex digits) of an image file: of its size, its first and its last 64 KiB.

    "" if there is no such file. Hashing complete files would make every resumed run read every image. (A PNG's last
    bytes are a checksum of all its pixels.) Raises BadInputError for a pipe or a device.
    """
    try:
        with open_input(path) as file:
            head = file.read(SAMPLE_BYTES)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - SAMPLE_BYTES))
            return hashlib.sha256(size.to_bytes(8, "little") + head + file.read()).hexdigest()[:16]
    except OSError:
        return ""
