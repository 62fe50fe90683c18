"""Where things lie: photographs and outputs of a scene, and the parts of a map that was made before."""

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
OUTPUT = "featkit"  # name of the folder that everything is written to


@dataclass(frozen=True)
class MapFiles:
    """A map: the folder it was written to, one of its models (the largest), and the features it was made from."""

    folder: Path
    model: Path
    features: Path


def image_folder(scene: Path) -> Path:
    """scene/images when it is there, else the scene itself. Raises BadInputError when it is no folder."""
    if not scene.is_dir():
        kind = "is a file; give the folder of the photographs" if scene.exists() else "no such folder"
        raise BadInputError(f"{scene}: {kind}")
    return scene / "images" if (scene / "images").is_dir() else scene


def output_folder(scene: Path, output: Path | None) -> Path:
    """Where a scene's results go. Raises NotWritableError when it cannot be made."""
    folder = output or scene / OUTPUT
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(path.suffix.lower() in SUFFIXES for path in folder.iterdir()):
            raise BadInputError(f"{folder}: holds images; choose another --out")
    except OSError as error:
        raise NotWritableError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from None
    return folder


def usable_images(images: Path, only: Collection[str] | None) -> tuple[list[str], list[str]]:
    """Names of the images of a folder: all, or those that `only` has; and the others.

    Raises BadInputError when none is left.
    """
    names = list_images(images)
    if only is None:
        return names, []
    only = {*map(Spelling(lambda: names), only)}
    kept = [name for name in names if name in only]
    if not kept:
        raise BadInputError(f"{images}: the given list names none of its images; names are relative to it")
    return kept, [name for name in names if name not in only]


def find_map(folder: Path, features: Path | None = None, number: int | None = None) -> MapFiles:
    """The parts of a map, given the scene, its featkit/ folder, sparse/ or sparse/0. Raises BadInputError.

    number: of the model, where there are several; None: the largest, and a line says so.
    """
    if not folder.is_dir():
        raise BadInputError(f"{folder}: no such folder; give a scene that `featkit reconstruct` has mapped")
    models = models_in(folder)
    for model in models:  # a scene may bring a model of its own, without features
        found = _with_features(model, features)
        if found is not None:
            return replace(found, model=_numbered(found.model, number))
    if models:
        raise BadInputError(f"{models[0]}: the features.h5 it was made from is not beside it; name it with --features")
    if (folder / OUTPUT).is_dir() or (folder / "features.h5").is_file():
        raise EmptyResultError(f"{folder}: there is no finished map in it; run `featkit reconstruct` to its end")
    raise BadInputError(f"{folder}: no map here; run `featkit reconstruct {folder}` first")


def find_model(folder: Path, number: int | None = None) -> Path:
    """A COLMAP model's folder, given itself, sparse/, featkit/ or the scene. Raises BadInputError.

    number: as of `find_map`. What `featkit reconstruct` made counts before a model that the scene brings along.
    """
    if not folder.is_dir():
        kind = "is a file; give the folder of the model" if folder.exists() else "no such folder"
        raise BadInputError(f"{folder}: {kind}")
    models = models_in(folder)
    if len({*models} - {folder}) > 1 and number is None:
        LOGGER.info("%s: the model %s is used, not %s", folder, models[0], models[1])
    if not models:
        raise BadInputError(f"{folder}: no COLMAP model here (cameras, images and points3D as .bin or .txt)")
    return models[0] if folder == models[0] and number is None else _numbered(models[0], number)


def numbered_models(model: Path) -> dict[int, Path]:
    """The models beside a model that are named by numbers, as mappers leave them in sparse/; itself among them."""
    return {int(path.name): path for path in model.parent.iterdir() if path.name.isdigit() and is_model(path)}


def _numbered(model: Path, number: int | None) -> Path:
    """Of the models in a sparse/ folder the one of that number."""
    found = numbered_models(model)
    if number is None:
        if len(found) > 1 and model.name == "0":
            others = ", ".join(str(key) for key in sorted(found) if key)
            LOGGER.warning("%s: the largest of %d models; take another by --model (%s)", model, len(found), others)
        return model
    if model.name.isdigit() and number in found:
        return found[number]
    if number == 0 and not model.name.isdigit():
        return model
    there = f"its models are {', '.join(map(str, sorted(found)))}" if found else "there is one model"
    raise BadInputError(f"{model.parent}: no model {number} here; {there}")


def images_beside(model: Path) -> Path | None:
    """The folder images/ of the scene that a model lies in; None when there is none up to four folders above it."""
    above = [model.resolve(), *model.resolve().parents[:4]]
    return next((folder / "images" for folder in above if (folder / "images").is_dir()), None)


def models_in(folder: Path) -> list[Path]:
    """COLMAP models of a scene, the one to take first: what `featkit reconstruct` made, then what it brings along."""
    return [
        model
        for base in (folder / OUTPUT, folder)
        for model in (base, base / "0", base / "sparse" / "0", base / "sparse")
        if is_model(model)
    ]


def find_features(model: Path) -> Path | None:
    """The features.h5 that a model was made from: in its folder, or up to two above it; None when it is not there."""
    found = _with_features(model, None)
    return None if found is None else found.features


def _with_features(model: Path, features: Path | None) -> MapFiles | None:
    if features is not None:
        if not features.is_file():
            raise BadInputError(f"{features}: no such features file")
        return MapFiles(model, model, features)
    folders = [model, *model.resolve().parents[:2]]
    return next((MapFiles(f, model, f / "features.h5") for f in folders if (f / "features.h5").is_file()), None)
