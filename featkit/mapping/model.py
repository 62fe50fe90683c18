"""COLMAP models on disk: found, read with clear errors, written largest first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pycolmap

from featkit.errors import BadInputError, NotWritableError
from featkit.mapping.whole_model import check_count, check_whole

Model = pycolmap.Reconstruction  # so that other rooms can name it without importing pycolmap
MODEL_FILES = ("cameras", "images", "points3D")


def is_model(folder: Path) -> bool:
    """Whether a folder holds a COLMAP model, binary or text."""
    return any(all((folder / f"{name}{suffix}").is_file() for name in MODEL_FILES) for suffix in (".bin", ".txt"))


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
            model.write(str(part / str(number)))
            _check_written(part / str(number), folder)
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    except OSError as error:
        raise NotWritableError(f"{folder}: cannot be written ({error.strerror})") from None
    return folder


def _check_written(part: Path, folder: Path) -> None:
    """COLMAP does not look whether the disk took what it wrote."""
    try:
        check_whole(part)
    except BadInputError:
        shutil.rmtree(part.parent, ignore_errors=True)
        raise NotWritableError(f"{folder}: no space left; free some and run the same command again") from None
