"""Folder layout: photographs and outputs of a scene, and the files of an existing map."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from featkit.core.errors import BadInputError, EmptyResultError, NotWritableError
from featkit.images.listing import SUFFIXES, list_images
from featkit.io.lists import Spelling
from featkit.mapping.model import is_model

LOGGER = logging.getLogger(__name__)
OUTPUT = "featkit"  # name of a scene's output folder


@dataclass(frozen=True)
class MapFiles:
    """A map: its output folder, one of its models, and the features it was made from."""

    folder: Path
    model: Path
    features: Path


def image_folder(scene: Path) -> Path:
    """scene/images if it exists, else the scene itself. Raises BadInputError if the scene is not a folder."""
    if not scene.is_dir():
        kind = "is a file; give the folder of the photographs" if scene.exists() else "no such folder"
        raise BadInputError(f"{scene}: {kind}")
    return scene / "images" if (scene / "images").is_dir() else scene


def output_folder(scene: Path, output: Path | None) -> Path:
    """Create and return the folder for a scene's results. Raises NotWritableError."""
    folder = output or scene / OUTPUT
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(path.suffix.lower() in SUFFIXES for path in folder.iterdir()):
            raise BadInputError(f"{folder}: holds images; choose another --out")
    except OSError as error:
        raise NotWritableError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from None
    return folder


def usable_images(images: Path, only: Collection[str] | None) -> tuple[list[str], list[str]]:
    """Names of the images in a folder, split into those in `only` (None: all) and the others.

    Raises BadInputError if none is in `only`.
    """
    names = list_images(images)
    if only is None:
        return names, []
    only = {*map(Spelling(lambda: names), only)}
    kept = [name for name in names if name in only]
    if not kept:
        raise BadInputError(f"{images}: the given list contains none of its images; names are relative to this folder")
    return kept, [name for name in names if name not in only]


def find_map(folder: Path, features: Path | None = None, number: int | None = None) -> MapFiles:
    """The files of a map, given the scene, its featkit/ folder, sparse/ or sparse/0. Raises BadInputError.

    number: which of several models; None: the largest, with a log message.
    """
    if not folder.is_dir():
        raise BadInputError(f"{folder}: no such folder; give a scene that `featkit reconstruct` has mapped")
    models = models_in(folder)
    for model in models:  # a scene may contain a foreign model, without features
        found = _map_with_features(model, features)
        if found is not None:
            return replace(found, model=_select_model(found.model, number))
    if models:
        raise BadInputError(f"{models[0]}: no features.h5 of this model found near it; give it with --features")
    if (folder / OUTPUT).is_dir() or (folder / "features.h5").is_file():
        raise EmptyResultError(f"{folder}: its map is not finished; run `featkit reconstruct` again")
    raise BadInputError(f"{folder}: no map here; run `featkit reconstruct {folder}` first")


def find_model(folder: Path, number: int | None = None) -> Path:
    """A COLMAP model's folder, given that folder, sparse/, featkit/ or the scene. Raises BadInputError.

    number: see `find_map`. Models made by `featkit reconstruct` take precedence over others in the scene.
    """
    if not folder.is_dir():
        kind = "is a file; give the folder of the model" if folder.exists() else "no such folder"
        raise BadInputError(f"{folder}: {kind}")
    models = models_in(folder)
    if len({*models} - {folder}) > 1 and number is None:
        LOGGER.info("%s: using the model %s, not %s", folder, models[0], models[1])
    if not models:
        raise BadInputError(f"{folder}: no COLMAP model here (cameras, images and points3D as .bin or .txt)")
    return models[0] if folder == models[0] and number is None else _select_model(models[0], number)


def numbered_models(model: Path) -> dict[int, Path]:
    """The numbered models in a model's parent folder (sparse/0, sparse/1, ...), including the model itself."""
    return {int(path.name): path for path in model.parent.iterdir() if path.name.isdigit() and is_model(path)}


def _select_model(model: Path, number: int | None) -> Path:
    """The model with this number in a sparse/ folder; None: the given one."""
    found = numbered_models(model)
    if number is None:
        if len(found) > 1 and model.name == "0":
            others = ", ".join(str(key) for key in sorted(found) if key)
            LOGGER.warning("%s: the largest of %d models; choose another with --model (%s)", model, len(found), others)
        return model
    if model.name.isdigit() and number in found:
        return found[number]
    if number == 0 and not model.name.isdigit():
        return model
    there = f"its models are {', '.join(map(str, sorted(found)))}" if found else "there is only one model"
    raise BadInputError(f"{model.parent}: no model {number} here; {there}")


def find_image_folder(model: Path) -> Path | None:
    """The images/ folder of a model's scene, up to four levels above the model; None if there is none."""
    above = [model.resolve(), *model.resolve().parents[:4]]
    return next((folder / "images" for folder in above if (folder / "images").is_dir()), None)


def models_in(folder: Path) -> list[Path]:
    """COLMAP models of a scene in order of precedence: those made by `featkit reconstruct`, then others."""
    return [
        model
        for base in (folder / OUTPUT, folder)
        for model in (base, base / "0", base / "sparse" / "0", base / "sparse")
        if is_model(model)
    ]


def find_features(model: Path) -> Path | None:
    """The features.h5 of a model: in its folder or up to two levels above it; None if there is none."""
    found = _map_with_features(model, None)
    return None if found is None else found.features


def _map_with_features(model: Path, features: Path | None) -> MapFiles | None:
    if features is not None:
        if not features.is_file():
            raise BadInputError(f"{features}: no such features file")
        return MapFiles(model, model, features)
    folders = [model, *model.resolve().parents[:2]]
    return next((MapFiles(f, model, f / "features.h5") for f in folders if (f / "features.h5").is_file()), None)
