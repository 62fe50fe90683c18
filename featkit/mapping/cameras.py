"""Cameras of photographs: model, parameters, and which images share one; focal length from EXIF where it stands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pycolmap

from featkit.config import Config
from featkit.errors import BadInputError, UsageError
from featkit.store.poses import CAMERA_PARAMS, Intrinsics

CameraMode = Literal["single", "per-folder", "per-image"]


class CameraConfig(Config):
    """How photographs get their cameras."""

    model: str = "SIMPLE_RADIAL"
    """A COLMAP camera model."""
    params: tuple[float, ...] | None = None
    """Known parameters in the model's order (COLMAP pixels); None: from EXIF, else guessed."""
    mode: CameraMode = "per-image"
    """Which images share one camera."""
    default_focal_factor: float = 1.2
    """Without EXIF: focal length over the longer side (COLMAP's guess)."""
    refine: bool = True
    """Let the mapper refine focal length and distortion, also of known parameters."""


def check(config: CameraConfig) -> None:
    """Raise UsageError for an unknown model or a wrong number of parameters."""
    if config.model not in CAMERA_PARAMS:
        raise UsageError(f"--camera-model {config.model}: there is {', '.join(CAMERA_PARAMS)}")
    expected = CAMERA_PARAMS[config.model]
    if config.params is not None and len(config.params) != expected:
        raise UsageError(f"--camera-params: {config.model} takes {expected} numbers, {len(config.params)} are given")
    if config.params is not None and not (np.all(np.isfinite(config.params)) and config.params[0] > 0):
        raise UsageError("--camera-params: all must be finite, and the focal length (the first) positive")


def infer_camera(path: Path, config: CameraConfig) -> pycolmap.Camera:
    """Camera of one photograph, by its EXIF focal length (pycolmap's sensor table) or the default guess.

    `has_prior_focal_length` tells the two apart. Raises BadInputError.
    """
    options = pycolmap.ImageReaderOptions()
    options.camera_model = config.model
    options.default_focal_length_factor = config.default_focal_factor
    if config.params is not None:
        options.camera_params = ",".join(repr(value) for value in config.params)
    try:
        camera = pycolmap.infer_camera_from_image(str(path), options)
    except Exception as error:  # pycolmap raises RuntimeError, ValueError and InvalidArgument alike
        raise BadInputError(f"{path}: no camera can be made from it ({str(error).splitlines()[0]})") from None
    if config.params is not None:
        camera.params = list(config.params)
        camera.has_prior_focal_length = True
    return camera


def cameras_of_images(
    images: Path, names: Sequence[str], config: CameraConfig
) -> tuple[dict[int, pycolmap.Camera], dict[str, int]]:
    """Cameras by id (from 1), and the camera id of every image.

    Raises BadInputError when images that share a camera have different sizes.
    """
    check(config)
    groups = {name: _group(name, config.mode) for name in names}
    first: dict[str, str] = {}
    for name, group in groups.items():
        first.setdefault(group, name)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        inferred = list(pool.map(lambda name: infer_camera(images / name, config), first.values()))
    cameras: dict[int, pycolmap.Camera] = {}
    ids: dict[str, int] = {}
    for camera_id, (group, camera) in enumerate(zip(first, inferred, strict=True), start=1):
        camera.camera_id = camera_id
        cameras[camera_id], ids[group] = camera, camera_id
    return cameras, {name: ids[group] for name, group in groups.items()}


def _group(name: str, mode: CameraMode) -> str:
    if mode == "single":
        return "all"
    return name if mode == "per-image" else name.rpartition("/")[0]


def check_sizes(
    cameras: dict[int, pycolmap.Camera], camera_ids: dict[str, int], sizes: dict[str, tuple[int, int]]
) -> None:
    """Raise BadInputError when an image is not of its camera's size."""
    for name, size in sizes.items():
        camera = cameras[camera_ids[name]]
        if size != (0, 0) and size != (camera.width, camera.height):
            raise BadInputError(
                f"{name!r} is {size[0]} x {size[1]}, its camera {camera.width} x {camera.height};"
                " use --camera-mode per-image, or extract its features again if the image was replaced"
            )


def to_camera(intrinsics: Intrinsics, camera_id: int = 1) -> pycolmap.Camera:
    """A pycolmap camera of known intrinsics."""
    return pycolmap.Camera(
        camera_id=camera_id,
        model=intrinsics.model,
        width=intrinsics.width,
        height=intrinsics.height,
        params=list(intrinsics.params),
        has_prior_focal_length=True,
    )


def to_intrinsics(camera: Any) -> Intrinsics:
    """Intrinsics of a pycolmap camera."""
    return Intrinsics(camera.model_name, camera.width, camera.height, tuple(float(v) for v in camera.params))
