"""COLMAP's camera models as in the installed pycolmap, and validity checks of camera parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

SOME_SIZE = (1000, 500)  # px, of the example camera from which a model's parameters are read
FOCAL_OVER_SIDE = (0.05, 100.0)  # focal length over the longer side: fields of view of 170 and of half a degree
LARGEST_DISTORTION = 100.0  # lens coefficients are below 1, those of rational models below about 50


@dataclass(frozen=True)
class CameraModel:
    """params: parameter names in COLMAP's order. focal, centre, distortion: indices of these parameters."""

    name: str
    params: tuple[str, ...]
    focal: tuple[int, ...]
    centre: tuple[int, ...]
    distortion: tuple[int, ...]

    @property
    def is_fisheye(self) -> bool:
        """Whether the distance from the centre is proportional to the angle, not to its tangent."""
        return self.name.endswith("FISHEYE")

    @property
    def is_spherical(self) -> bool:
        """Whether the image is the full sphere; the parameters are then width and height."""
        return not self.focal


@functools.cache
def camera_models() -> dict[str, CameraModel]:
    """All models by name, in COLMAP's order."""
    import pycolmap  # not at the top, as training reads lists too and needs no pycolmap

    models = {}
    for name in pycolmap.CameraModelId.__members__:
        if name == "INVALID":
            continue
        camera = pycolmap.Camera.create_from_model_name(1, name, float(SOME_SIZE[0]), *SOME_SIZE)
        models[name] = CameraModel(
            name,
            tuple(part.strip() for part in camera.params_info.split(",")),
            tuple(camera.focal_length_idxs()),
            tuple(camera.principal_point_idxs()),
            tuple(camera.extra_params_idxs()),
        )
    return models


def camera_fault(model: CameraModel, size: tuple[int, int] | None, params: Sequence[float]) -> str | None:
    """Why camera parameters are invalid for an image of `size` (None: any); None if they are valid."""
    by_name = dict(zip(model.params, params, strict=True))
    if not all(math.isfinite(value) for value in params):
        return "a parameter is not finite"
    for index in model.focal:
        if params[index] <= 0:
            return f"the focal length {model.params[index]} = {params[index]:g} must be positive"
    for index in model.distortion:
        if abs(params[index]) > LARGEST_DISTORTION:
            return f"{model.params[index]} = {params[index]:g} is not a plausible distortion"
    if size is None:
        return None
    width, height = size
    image = f"an image of {width} x {height}"
    if model.is_spherical:
        return None if tuple(params) == (width, height) else f"w,h = {params[0]:g},{params[1]:g} for {image}"
    for index in model.focal:
        if not FOCAL_OVER_SIDE[0] <= params[index] / max(size) <= FOCAL_OVER_SIDE[1]:
            return f"the focal length {model.params[index]} = {params[index]:g} px is implausible for {image}"
    x, y = (params[index] for index in model.centre)
    if not (0 <= x <= width and 0 <= y <= height):
        return f"the principal point cx,cy = {by_name['cx']:g},{by_name['cy']:g} is outside {image}"
    return None
