"""COLMAP models on disk: found, read with clear errors, written largest first."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import pycolmap

from featkit.errors import BadInputError, NotWritableError
from featkit.mapping.whole_model import check_count, check_whole

Model = pycolmap.Reconstruction  # so that other rooms can name it without importing pycolmap
MODEL_FILES = ("cameras", "images", "points3D")


def is_model(folder: Path) -> bool:
    """Whether a folder holds a COLMAP model, binary or text."""
    return any(all((folder / f"{name}{suffix}").is_file() for name in MODEL_FILES) for suffix in (".bin", ".txt"))


def is_binary(folder: Path) -> bool:
    """Whether a folder holds a COLMAP model in binary files (which count before text beside them)."""
    return all((folder / f"{name}.bin").is_file() for name in MODEL_FILES)


def read_model(folder: Path) -> pycolmap.Reconstruction:
    """Read a COLMAP model. Raises BadInputError."""
    if not is_model(folder):
        raise BadInputError(f"{folder}: no COLMAP model here (cameras, images and points3D as .bin or .txt)")
    check_whole(folder)
    try:
        model = pycolmap.Reconstruction(str(folder))
    except Exception as error:  # pycolmap's own exception types differ from one version to the next
        raise BadInputError(f"{folder}: the model cannot be read ({str(error).splitlines()[0]})") from None
    if not (folder / "points3D.bin").is_file():
        check_count(folder / "points3D.txt", model.num_points3D())
    return model


def largest_first(models: list[pycolmap.Reconstruction]) -> list[pycolmap.Reconstruction]:
    """Most registered images first, then most points."""
    return sorted(models, key=lambda model: (-model.num_reg_images(), -model.num_points3D()))


def write_models(models: list[pycolmap.Reconstruction], folder: Path) -> Path:
    """Write models as folder/0, folder/1, ..., whole or not at all. Raises NotWritableError."""
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        for number, model in enumerate(models):
            (part / str(number)).mkdir(parents=True)
            _write_whole(model, part / str(number))
        _put_in_place(part, folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise NotWritableError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from None
    return folder


def replaceable(folder: Path, more: Collection[str] = ()) -> bool:
    """Whether a folder holds a COLMAP model and nothing else (besides files named `more`)."""
    known = {f"{name}{suffix}" for name in (*MODEL_FILES, "rigs", "frames") for suffix in (".bin", ".txt", ".ply")}
    known |= {"project.ini", *more}
    return is_model(folder) and all(path.is_file() and path.name in known for path in folder.iterdir())


def write_model(model: pycolmap.Reconstruction, folder: Path, beside: Mapping[str, str]) -> Path:
    """Write one model and small text files (by name) as a folder, whole or not at all; a folder there is replaced.

    Raises NotWritableError.
    """
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, text in beside.items():
            (part / name).write_text(text, encoding="utf-8")
        _write_whole(model, part)
        _put_in_place(part, folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise NotWritableError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from None
    return folder


def _put_in_place(part: Path, folder: Path) -> None:
    """Give a finished folder its name; what had it before goes last."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_whole(model: pycolmap.Reconstruction, folder: Path) -> None:
    """Raises OSError, also for a full disk: COLMAP does not look whether it took what was written."""
    try:
        model.write(str(folder))
        check_whole(folder)
    except BadInputError:
        raise OSError(errno.ENOSPC, "no space left; free some and run the same command again") from None
    except Exception as error:  # pycolmap's own exception types differ from one version to the next
        raise OSError(errno.EIO, str(error).splitlines()[0]) from None
