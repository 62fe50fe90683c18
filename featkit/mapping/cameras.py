"""Cameras of photographs: model, parameters, and which images share one; focal length from EXIF where it stands."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pycolmap
from pydantic import Field

from featkit.core.config import Config, Factor, Number
from featkit.core.errors import BadInputError, UsageError
from featkit.core.types import Pose
from featkit.geometry.poses import quaternion
from featkit.images.exif import focal_length_px
from featkit.images.read import stored_size
from featkit.io.lists import CAMERA_PARAMS, Intrinsics, read_intrinsics_list

LOGGER = logging.getLogger(__name__)
CameraMode = Literal["single", "per-folder", "per-image"]
Group = tuple[str, Intrinsics | None]  # what images that share a camera have in common


class CameraConfig(Config):
    """How photographs get their cameras."""

    model: str = "SIMPLE_RADIAL"
    """COLMAP camera model."""
    params: tuple[Number, ...] | None = None
    """Known parameters in the model's order, COLMAP pixels. None: EXIF, else a guess."""
    mode: CameraMode = "per-image"
    """Which images share one camera: single (all of them), per-folder or per-image."""
    default_focal_factor: float = Field(1.2, ge=0.01, le=100)
    """Without EXIF: focal length over the longer side (COLMAP's guess)."""
    sensor_width_mm: Factor | None = None
    """Longer side of the sensor, mm, for photographs whose EXIF has a focal length in mm but no sensor."""
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
    """Camera of one photograph, by its EXIF focal length (pycolmap's, else `images.exif`'s) or the default guess.

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
    elif not camera.has_prior_focal_length:
        size = (camera.width, camera.height)
        focal = focal_length_px(path, size, config.sensor_width_mm)
        if focal is not None:
            camera = pycolmap.Camera.create_from_model_name(camera.camera_id, config.model, focal, *size)
            camera.has_prior_focal_length = True
    return camera


def listed_intrinsics(path: Path, names: Sequence[str]) -> dict[str, Intrinsics]:
    """Intrinsics of those of the images that a list has. Raises BadInputError when it has none of them."""
    listed = read_intrinsics_list(path)
    found = {name: listed[name] for name in names if name in listed}
    if not found:
        raise BadInputError(
            f"{path}: names none of the images, such as {names[0]!r}; names are relative to their folder"
        )
    if len(found) < len(names):
        missing = len(names) - len(found)
        LOGGER.info("intrinsics: %d of %d images are not in the list; theirs are inferred", missing, len(names))
    return found


def cameras_of_images(
    images: Path, names: Sequence[str], config: CameraConfig, listed: Mapping[str, Intrinsics] | None = None
) -> tuple[dict[int, pycolmap.Camera], dict[str, int]]:
    """Cameras by id (from 1), and the camera id of every image.

    listed: known intrinsics; images that would share a camera do so when theirs are the same.
    Raises BadInputError when known intrinsics are not of the image's size.
    """
    check(config)
    known = listed or {}
    groups = {name: (_group(name, config.mode), known.get(name)) for name in names}
    first: dict[Group, str] = {}
    for name, group in groups.items():
        first.setdefault(group, name)

    def camera_of(name: str) -> pycolmap.Camera:
        return to_camera(known[name]) if name in known else infer_camera(images / name, config)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(lambda name: _check_listed(images / name, name, known[name]), known))
        inferred = list(pool.map(camera_of, first.values()))
    cameras: dict[int, pycolmap.Camera] = {}
    ids: dict[Group, int] = {}
    for camera_id, (group, camera) in enumerate(zip(first, inferred, strict=True), start=1):
        camera.camera_id = camera_id
        cameras[camera_id], ids[group] = camera, camera_id
    return cameras, {name: ids[group] for name, group in groups.items()}


def _check_listed(path: Path, name: str, intrinsics: Intrinsics) -> None:
    width, height = stored_size(path)
    if (width, height) != (intrinsics.width, intrinsics.height):
        raise BadInputError(
            f"{name!r} is {width} x {height} as stored,"
            f" its intrinsics are for {intrinsics.width} x {intrinsics.height}; correct the list"
        )


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


def to_pose(rigid: pycolmap.Rigid3d) -> Pose:
    """pycolmap's pose as featkit's."""
    return Pose(quaternion(rigid.rotation.matrix()), np.array(rigid.translation))
