"""Which files of a folder are photographs, under the names they keep everywhere else."""

from __future__ import annotations

from pathlib import Path

from featkit.errors import BadInputError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm"})


def list_images(folder: Path) -> list[str]:
    """Names of all images below `folder`: relative, with forward slashes, sorted. Hidden files are passed over.

    Raises BadInputError when the folder is missing or holds no image.
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
    return names


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)
