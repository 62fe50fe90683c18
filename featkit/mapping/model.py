"""COLMAP models on disk: found, read with clear errors, written largest first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pycolmap

from featkit.errors import BadInputError, NotWritableError
from featkit.mapping.whole_model import check_count, check_whole
from featkit.store.artifact import making, write_text
from featkit.store.stamp import FOREIGN, refuse_foreign

Model = pycolmap.Reconstruction  # so that other rooms can name it without importing pycolmap
MODEL_FILES = ("cameras", "images", "points3D")
ALIGNED = ("alignment.json",)  # what `featkit align` adds to a model


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


def write_models(
    models: list[pycolmap.Reconstruction], folder: Path, named: Callable[[], object] | None = None
) -> Path:
    """Write models as folder/0, folder/1, ..., whole or not at all. named: see `artifact.making`.

    Raises BadInputError for a folder that holds anything but featkit's models, NotWritableError.
    """
    refuse_other_models(folder)
    with making(folder, named=named) as new:
        for number, model in enumerate(models):
            (new / str(number)).mkdir()
            _write_whole(model, new / str(number))
    return folder


def refuse_other_models(folder: Path) -> None:
    """Raise BadInputError where models are to be written and there is anything but models that featkit wrote."""
    refuse_foreign(folder)
    for one in folder.iterdir() if folder.is_dir() else ():
        if not (one.name.isdecimal() and one.is_dir() and not one.is_symlink() and replaceable(one, ALIGNED)):
            raise BadInputError(f"{one}: {FOREIGN}")


def replaceable(folder: Path, more: Collection[str] = ()) -> bool:
    """Whether a folder holds a COLMAP model and nothing else (besides files named `more`)."""
    known = {f"{name}{suffix}" for name in (*MODEL_FILES, "rigs", "frames") for suffix in (".bin", ".txt", ".ply")}
    known |= {"project.ini", *more}
    return is_model(folder) and all(path.is_file() and path.name in known for path in folder.iterdir())


def write_model(model: pycolmap.Reconstruction, folder: Path, beside: Mapping[str, str]) -> Path:
    """Write one model and small text files (by name) as a folder, whole or not at all; one of featkit's is replaced.

    Raises BadInputError for a folder that featkit did not make, NotWritableError.
    """
    with making(folder) as new:
        for name, text in beside.items():
            write_text(new / name, text)
        _write_whole(model, new)
    return folder


def _write_whole(model: pycolmap.Reconstruction, folder: Path) -> None:
    """Raises NotWritableError, also for a full disk: COLMAP does not look whether it took what was written."""
    try:
        model.write(str(folder))
        check_whole(folder)
    except BadInputError:
        raise NotWritableError(
            f"{folder}: cannot be written (no space left); free some and run the same command again"
        ) from None
    except Exception as error:  # pycolmap's own exception types differ from one version to the next
        raise NotWritableError(f"{folder}: cannot be written ({str(error).splitlines()[0]})") from None
