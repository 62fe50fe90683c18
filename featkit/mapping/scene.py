"""Where things lie: photographs and outputs of a scene, and the parts of a map that was made before."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from featkit.core.errors import BadInputError, EmptyResultError, NotWritableError
from featkit.images.listing import SUFFIXES, list_images
from featkit.mapping.model import is_model

OUTPUT = "featkit"  # name of the folder that everything is written to


@dataclass(frozen=True)
class MapFiles:
    """A map: the folder it was written to, its largest model, and the features it was made from."""

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


def usable_images(images: Path, only: Collection[str] | None) -> list[str]:
    """Names of the images of a folder: all, or those that `only` has. Raises BadInputError when none is left."""
    names = list_images(images)
    if only is None:
        return names
    kept = [name for name in names if name in only]
    if not kept:
        raise BadInputError(f"{images}: the given list names none of its images; names are relative to it")
    return kept


def find_map(folder: Path, features: Path | None = None) -> MapFiles:
    """The parts of a map, given the scene, its featkit/ folder, sparse/ or sparse/0. Raises BadInputError."""
    if not folder.is_dir():
        raise BadInputError(f"{folder}: no such folder; give a scene that `featkit reconstruct` has mapped")
    models = _models(folder)
    for model in models:  # a scene may bring a model of its own, without features
        found = _with_features(model, features)
        if found is not None:
            return found
    if models:
        raise BadInputError(f"{models[0]}: the features.h5 it was made from is not beside it; name it with --features")
    if (folder / OUTPUT).is_dir() or (folder / "features.h5").is_file():
        raise EmptyResultError(f"{folder}: there is no finished map in it; run `featkit reconstruct` to its end")
    raise BadInputError(f"{folder}: no map here; run `featkit reconstruct {folder}` first")


def find_model(folder: Path) -> Path:
    """A COLMAP model's folder, given itself, sparse/, featkit/ or the scene. Raises BadInputError."""
    if not folder.is_dir():
        kind = "is a file; give the folder of the model" if folder.exists() else "no such folder"
        raise BadInputError(f"{folder}: {kind}")
    models = _models(folder)
    if not models:
        raise BadInputError(f"{folder}: no COLMAP model here (cameras, images and points3D as .bin or .txt)")
    return models[0]


def images_beside(model: Path) -> Path | None:
    """The folder images/ of the scene that a model lies in; None when there is none up to four folders above it."""
    above = [model.resolve(), *model.resolve().parents[:4]]
    return next((folder / "images" for folder in above if (folder / "images").is_dir()), None)


def _models(folder: Path) -> list[Path]:
    return [
        model
        for base in (folder / OUTPUT, folder)
        for model in (base, base / "0", base / "sparse" / "0", base / "sparse")
        if is_model(model)
    ]


def _with_features(model: Path, features: Path | None) -> MapFiles | None:
    if features is not None:
        if not features.is_file():
            raise BadInputError(f"{features}: no such features file")
        return MapFiles(model, model, features)
    folders = [model, *model.resolve().parents[:2]]
    return next((MapFiles(f, model, f / "features.h5") for f in folders if (f / "features.h5").is_file()), None)
