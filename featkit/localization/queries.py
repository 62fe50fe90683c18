"""Intrinsics of query photographs: from a list, from the map, from EXIF, or guessed. Where they came from is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pycolmap

from featkit.errors import BadInputError
from featkit.images.decode import stored_size
from featkit.mapping.cameras import CameraConfig, infer_camera, to_camera
from featkit.store.poses import Intrinsics

Source = Literal["list", "params", "map", "exif", "guess"]


@dataclass(frozen=True)
class QueryCamera:
    """A query's camera. `source` "guess" means that nothing is known: its focal length is estimated with the pose."""

    camera: pycolmap.Camera
    source: Source


def query_camera(
    name: str,
    images: Path,
    config: CameraConfig,
    listed: dict[str, Intrinsics] | None,
    model: pycolmap.Reconstruction,
) -> QueryCamera:
    """Camera of one query. Raises BadInputError when a list is given and does not have it, or has another size."""
    if listed is not None:
        if name not in listed:
            raise BadInputError(f"{name!r} is not in the list of intrinsics; add `{name} MODEL width height params...`")
        return QueryCamera(_of_size(name, to_camera(listed[name]), images / name), "list")
    if config.params is not None:
        return QueryCamera(infer_camera(images / name, config), "params")
    return _of_map(infer_camera(images / name, config), model)


def camera_of_pixels(
    name: str,
    size: tuple[int, int],
    config: CameraConfig,
    intrinsics: Intrinsics | None,
    model: pycolmap.Reconstruction,
) -> QueryCamera:
    """Camera of a photograph in memory: as `query_camera`, without a file there is no EXIF. size: width, height, px.

    Raises BadInputError for intrinsics of another size.
    """
    if intrinsics is not None:
        return QueryCamera(_checked(name, to_camera(intrinsics), size), "list")
    if config.params is not None:
        return QueryCamera(to_camera(Intrinsics(config.model, *size, config.params)), "params")
    focal = config.default_focal_factor * max(size)
    return _of_map(pycolmap.Camera.create_from_model_name(1, config.model, focal, *size), model)


def _of_map(camera: pycolmap.Camera, model: pycolmap.Reconstruction) -> QueryCamera:
    """The one camera of the map when it has that size, else the one that was inferred."""
    same = [c for c in model.cameras.values() if (c.width, c.height) == (camera.width, camera.height)]
    if len(model.cameras) == 1 and same:  # refined by the map, so better than EXIF
        return QueryCamera(same[0], "map")
    return QueryCamera(camera, "exif" if camera.has_prior_focal_length else "guess")


def _of_size(name: str, camera: pycolmap.Camera, path: Path) -> pycolmap.Camera:
    return _checked(name, camera, stored_size(path))


def _checked(name: str, camera: pycolmap.Camera, size: tuple[int, int]) -> pycolmap.Camera:
    if size != (camera.width, camera.height):
        raise BadInputError(
            f"{name!r} is {size[0]} x {size[1]}, its intrinsics are for {camera.width} x {camera.height}; correct them"
        )
    return camera
