"""Which files of a folder are photographs, under the names they keep everywhere else."""

from __future__ import annotations

from pathlib import Path

from featkit.errors import BadInputError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm"})


def list_images(folder: Path) -> list[str]:
    """Names of all images below `folder`: relative, with forward slashes, sorted. Hidden files are passed over.

    Raises BadInputError when the folder is missing, holds no image, or one whose name is not UTF-8.
    """
    if not folder.is_dir():
        kind = "is a file, not a folder of images" if folder.exists() else "no such folder"
        raise BadInputError(f"{folder}: {kind}")
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not _hidden(path.relative_to(folder))
    )
    if not names:
        raise BadInputError(f"{folder}: no images in it (looked for {', '.join(sorted(SUFFIXES))})")
    for name in names:
        if not name.isascii() and _not_utf8(name):
            raise BadInputError(f"{folder}: the file name {name!r} is not UTF-8; rename it")
    return names


def _not_utf8(name: str) -> bool:
    """Whether a name holds bytes that Python could only keep as surrogates: no text file could hold it."""
    return any("\ud800" <= letter <= "\udfff" for letter in name)


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)
