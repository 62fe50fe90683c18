"""Cameras of photographs: model, parameters, which images share one, and focal lengths from EXIF where available."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pycolmap
from jaxtyping import Float
from pydantic import Field

from featkit.core.config import Config, Factor, Number
from featkit.core.errors import BadInputError, UsageError
from featkit.core.runtime import usable_cores
from featkit.core.types import Pose
from featkit.geometry.poses import quaternion
from featkit.images.exif import Lens, Taken, focal_length_px, is_whole_sphere, some_names, taken_with
from featkit.images.read import stored_size
from featkit.io.camera_models import CameraModel, camera_fault, camera_models
from featkit.io.lists import Intrinsics, read_intrinsics_list, respelled

LOGGER = logging.getLogger(__name__)
CameraMode = Literal["auto", "single", "per-folder", "per-image"]
CameraKey = tuple[Any, Intrinsics | None]  # identifies the images that share a camera
DEFAULT_MODEL, FOUR_NUMBERS, SPHERE = "SIMPLE_RADIAL", "PINHOLE", "EQUIRECTANGULAR"


class CameraConfig(Config):
    """How cameras are assigned to photographs."""

    model: str | None = None
    """COLMAP camera model, any that pycolmap supports. None: SIMPLE_RADIAL, or PINHOLE with four given parameters.
    Without a given model, photographs marked as 360-degree panoramas by their metadata (GPano) are EQUIRECTANGULAR.
    """
    params: tuple[Number, ...] | None = None
    """Known parameters in the model's order, COLMAP pixels; four without a model are fx,fy,cx,cy. None: from EXIF,
    else a guess.
    """
    mode: CameraMode = "per-image"
    """Which images share a camera: auto (same size, EXIF camera, lens, focal length and folder), single (all images),
    per-folder or per-image. Auto has fewer unknowns and is the better choice for a camera that was not zoomed or
    refocused. It is not the default because it assigns all photographs of one size without EXIF to one camera, which is
    wrong for photographs from the web.
    """
    default_focal_factor: float = Field(1.2, ge=0.01, le=100)
    """Guessed focal length without EXIF, as a multiple of the longer side (COLMAP's guess)."""
    fisheye_focal_factor: float = Field(1 / math.pi, ge=0.01, le=100)
    """Guessed focal length of fisheye models without EXIF, as a multiple of the longer side. 1 / pi is an equidistant
    lens with a 180-degree view along the longer side.
    """
    sensor_width_mm: Factor | None = None
    """Longer side of the sensor, mm, for photographs whose EXIF gives a focal length in mm but no sensor size."""
    refine: bool = True
    """Let the mapper refine focal length and distortion, including given parameters."""

    @property
    def given_model(self) -> str:
        """The model of photographs that are not marked as panoramas."""
        return self.model or (FOUR_NUMBERS if self.params is not None and len(self.params) == 4 else DEFAULT_MODEL)

    def result_fields(self) -> dict[str, Any]:
        """See `Config.result_fields`; with the model's name, and the fisheye guess only where it applies."""
        fields = super().result_fields() | {"model": self.given_model}
        if not self.given_model.endswith("FISHEYE"):
            del fields["fisheye_focal_factor"]
        return fields


def check_camera_config(config: CameraConfig) -> None:
    """Raise UsageError for an unknown model or parameters that do not fit it."""
    models, params = camera_models(), config.params
    if config.given_model not in models:
        newer = "; pip install 'pycolmap>=4.2' for it" if config.given_model == SPHERE else ""
        raise UsageError(f"--camera-model {config.given_model}: there is {', '.join(models)}{newer}")
    if params is None:
        return
    if config.model is None and (len(params) != 4 or abs(params[3]) < 1):
        fitting = [name for name, model in models.items() if len(model.params) == len(params)]
        raise UsageError(
            f"--camera-params: without --camera-model only fx,fy,cx,cy are accepted, not {_format_params(params)};"
            f" give the model ({', '.join(fitting) or f'none takes {len(params)}'})"
        )
    model = models[config.given_model]
    if len(params) != len(model.params):
        raise UsageError(
            f"--camera-params: {model.name} takes {len(model.params)} numbers ({','.join(model.params)}),"
            f" {len(params)} are given"
        )
    if fault := camera_fault(model, None, params):
        raise UsageError(f"--camera-params: {fault}; {model.name} takes {','.join(model.params)}")


def _format_params(params: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in params)


def check_photographs(
    config: CameraConfig,
    images: Path,
    names: Sequence[str],
    listed: Mapping[str, Intrinsics] | None = None,
    sharing: Mapping[str, str] | None = None,
) -> None:
    """Check from the photographs' headers, before any work, whether the cameras fit them.

    Warns of different lenses under one camera, and of parameters for several sizes; reports panoramas. Unreadable files
    are skipped here. sharing: see `cameras_of_images`. Raises UsageError for parameters impossible for an image of that
    size; BadInputError for images of different sizes that are to share a camera, for a listed camera of another size,
    and for panoramas that cannot be mapped.
    """
    check_camera_config(config)
    known = listed or {}
    with ThreadPoolExecutor(usable_cores()) as pool:
        headers = zip(names, pool.map(lambda name: taken_with(images / name), names), strict=True)
        taken = {name: found for name, found in headers if found is not None}
    for name, intrinsics in known.items():
        if name in taken:
            _check_listed(taken[name].size, name, intrinsics)
    inferred = {name: found for name, found in taken.items() if name not in known}
    model = camera_models()[config.given_model]
    if config.params is not None:
        _check_params(config.params, model, inferred)
    _check_panoramas(config, model, inferred)
    groups: dict[CameraKey, list[str]] = {}
    for name, found in taken.items():
        groups.setdefault((_camera_key(name, config.mode, found, sharing), known.get(name)), []).append(name)
    for (_, given), one_camera in groups.items():
        if given is None:
            on_rig = sharing is not None and one_camera[0] in sharing
            why = "one camera of a rig" if on_rig else f"--camera-mode {config.mode}"
            _check_shared_camera(why, {name: taken[name] for name in one_camera})


def _check_params(params: Sequence[float], model: CameraModel, taken: Mapping[str, Taken]) -> None:
    sizes: dict[tuple[int, int], str] = {}
    for name, found in taken.items():
        if fault := camera_fault(model, found.size, params):
            raise UsageError(f"--camera-params: {fault}, as {name!r} is; {model.name} takes {','.join(model.params)}")
        sizes.setdefault(found.size, name)
    if len(sizes) > 1:
        named = ", ".join(f"{width} x {height}: {name!r}" for (width, height), name in list(sizes.items())[:4])
        LOGGER.warning(
            "--camera-params %s are pixels of one size, but the photographs have %d (%s); all get these numbers: map"
            " one size at a time, or give each photograph its camera (--intrinsics FILE)",
            *(_format_params(params), len(sizes), named),
        )


def _check_panoramas(config: CameraConfig, model: CameraModel, taken: Mapping[str, Taken]) -> None:
    panoramas = [name for name, found in taken.items() if found.is_panorama]
    if model.is_spherical:
        for name, found in taken.items():
            if not is_whole_sphere(found.size):
                width, height = found.size
                raise BadInputError(
                    f"{name!r} is {width} x {height}; {model.name} takes panoramas of 360 by 180 degrees, twice as wide"
                    " as high: leave it out, or choose another --camera-model"
                )
    elif panoramas and (config.model is not None or config.params is not None):
        LOGGER.warning(
            "%d photographs are 360-degree panoramas according to their metadata, which %s cannot describe: %s",
            *(len(panoramas), model.name, some_names(panoramas)),
        )
    elif panoramas:
        if SPHERE not in camera_models():
            raise BadInputError(
                f"{panoramas[0]!r} is a 360-degree panorama, which this pycolmap cannot map; pip install"
                " 'pycolmap>=4.2', or cut it into perspective images"
            )
        for name in panoramas:
            width, height = taken[name].size
            if taken[name].is_part or not is_whole_sphere((width, height)):
                raise BadInputError(
                    f"{name!r} is a partial panorama ({width} x {height}); only complete ones of 360 by 180 degrees can"
                    " be mapped: leave it out, or give a --camera-model"
                )
        LOGGER.info("cameras: %d of %d photographs are panoramas (GPano): %s", len(panoramas), len(taken), SPHERE)


def _check_shared_camera(why: str, sharing: Mapping[str, Taken]) -> None:
    """Photographs that share a camera must have one size (BadInputError) and should have one lens (else a warning)."""
    first = next(iter(sharing))
    width, height = sharing[first].size
    lenses: dict[Lens, list[str]] = {}
    for name, found in sharing.items():
        if found.size != (width, height):
            raise BadInputError(
                f"{name!r} is {found.size[0]} x {found.size[1]}, {first!r} {width} x {height}: they cannot share a"
                f" camera ({why})" + ("; use auto or per-image" if why.startswith("--") else "; correct the rig")
            )
        lenses.setdefault(found.lens, []).append(name)
    if len(lenses) > 1:
        named = "; ".join(f"{lens}: {names[0]} and {len(names) - 1} more" for lens, names in list(lenses.items())[:4])
        LOGGER.warning(
            "%s: photographs with %d different cameras, lenses or focal lengths share one camera (%s)"
            + ("; use auto" if why.startswith("--") else ""),
            *(why, len(lenses), named),
        )


def infer_camera(path: Path, config: CameraConfig) -> pycolmap.Camera:
    """Camera of one photograph, with the EXIF focal length (pycolmap's, else `images.exif`'s) or the default guess.

    `has_prior_focal_length` tells which; it is set for panoramas. Raises BadInputError.
    """
    model = camera_models()[config.given_model]
    options = pycolmap.ImageReaderOptions()
    options.camera_model = DEFAULT_MODEL if model.is_spherical else model.name
    options.default_focal_length_factor = _focal_factor(config, model)
    try:
        camera = pycolmap.infer_camera_from_image(str(path), options)
    except Exception as error:  # pycolmap raises any of RuntimeError, ValueError and InvalidArgument
        camera = _guess_without_colmap(path, config, model, error)
    size = (camera.width, camera.height)
    if config.params is not None:
        if fault := camera_fault(model, size, config.params):
            raise BadInputError(f"{path}: the given camera does not fit: {fault}")
        return to_camera(Intrinsics(model.name, *size, config.params))
    if model.is_spherical or (config.model is None and _is_panorama(path, size)):
        return to_camera(Intrinsics(SPHERE, *size, tuple(map(float, size))))
    if not camera.has_prior_focal_length:
        focal = focal_length_px(path, size, config.sensor_width_mm)
        if focal is not None:
            camera = pycolmap.Camera.create_from_model_name(camera.camera_id, model.name, focal, *size)
            camera.has_prior_focal_length = True
    return camera


def _guess_without_colmap(path: Path, config: CameraConfig, model: CameraModel, error: Exception) -> pycolmap.Camera:
    """The guessed camera of a photograph in a format that COLMAP cannot read (HEIC, AVIF, GIF, JPEG 2000)."""
    try:
        size = stored_size(path)
    except BadInputError:
        raise BadInputError(f"{path}: its camera cannot be read ({str(error).splitlines()[0]})") from None
    return guessed_camera(config, size)


def guessed_camera(config: CameraConfig, size: tuple[int, int]) -> pycolmap.Camera:
    """Guessed camera of an image of this size (width, height), without other information."""
    model = camera_models()[config.given_model]
    camera = pycolmap.Camera.create_from_model_name(1, model.name, _focal_factor(config, model) * max(size), *size)
    camera.has_prior_focal_length = model.is_spherical
    return camera


def _focal_factor(config: CameraConfig, model: CameraModel) -> float:
    return config.fisheye_focal_factor if model.is_fisheye else config.default_focal_factor


def _is_panorama(path: Path, size: tuple[int, int]) -> bool:
    if SPHERE not in camera_models() or not is_whole_sphere(size):
        return False
    found = taken_with(path)
    return found is not None and found.is_panorama and not found.is_part


def listed_intrinsics(path: Path, names: Sequence[str]) -> dict[str, Intrinsics]:
    """Intrinsics of the images that are in a list. Raises BadInputError if none of them is."""
    listed = respelled(read_intrinsics_list(path), lambda: names)
    found = {name: listed[name] for name in names if name in listed}
    if not found:
        raise BadInputError(
            f"{path}: lists none of the images, such as {names[0]!r}; names are relative to their folder"
        )
    if len(found) < len(names):
        missing = len(names) - len(found)
        LOGGER.info("intrinsics: %d of %d images are not in the list; theirs are inferred", missing, len(names))
    return found


def cameras_of_images(
    images: Path,
    names: Sequence[str],
    config: CameraConfig,
    listed: Mapping[str, Intrinsics] | None = None,
    *,
    guess_fisheye: bool = True,
    sharing: Mapping[str, str] | None = None,
) -> tuple[dict[int, pycolmap.Camera], dict[str, int]]:
    """Cameras by id (from 1), and the camera id of every image.

    listed: known intrinsics; images that would share a camera do so only if their listed intrinsics are equal.
    guess_fisheye: treat guessed focal lengths of fisheye models as known (`has_prior_focal_length`): otherwise COLMAP
    verifies their pairs in pixels, as if from pinhole cameras, and hardly any passes.
    sharing: by image name, the key of its camera, regardless of the mode; other images are not in it.
    Raises BadInputError when known intrinsics do not match the image's size.
    """
    check_camera_config(config)
    known = listed or {}
    taken = {name: taken_with(images / name) for name in names} if config.mode == "auto" else {}
    groups = {name: (_camera_key(name, config.mode, taken.get(name), sharing), known.get(name)) for name in names}
    first: dict[CameraKey, str] = {}
    for name, group in groups.items():
        first.setdefault(group, name)

    def camera_of(name: str) -> pycolmap.Camera:
        return to_camera(known[name]) if name in known else infer_camera(images / name, config)

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(lambda name: _check_listed(stored_size(images / name), name, known[name]), known))
        inferred = list(pool.map(camera_of, first.values()))
    cameras: dict[int, pycolmap.Camera] = {}
    ids: dict[CameraKey, int] = {}
    for camera_id, (group, camera) in enumerate(zip(first, inferred, strict=True), start=1):
        camera.camera_id = camera_id
        if guess_fisheye and not camera.has_prior_focal_length and camera_models()[camera.model_name].is_fisheye:
            camera.has_prior_focal_length = True
        cameras[camera_id], ids[group] = camera, camera_id
    return cameras, {name: ids[group] for name, group in groups.items()}


def _check_listed(size: tuple[int, int], name: str, intrinsics: Intrinsics) -> None:
    if size != (intrinsics.width, intrinsics.height):
        raise BadInputError(
            f"{name!r} is {size[0]} x {size[1]} as stored,"
            f" but its intrinsics are for {intrinsics.width} x {intrinsics.height}; correct the list"
        )


def _camera_key(name: str, mode: CameraMode, taken: Taken | None, sharing: Mapping[str, str] | None = None) -> Any:
    """Key of the photographs that share a camera. taken: from the header; None for an unreadable file."""
    if sharing is not None and name in sharing:
        return "rig", sharing[name]
    folder = name.rpartition("/")[0]
    if mode == "auto":
        return name if taken is None else (folder, taken.size, taken.lens)
    return {"single": "all", "per-folder": folder, "per-image": name}[mode]


def check_sizes(
    cameras: dict[int, pycolmap.Camera], camera_ids: dict[str, int], sizes: dict[str, tuple[int, int]]
) -> None:
    """Raise BadInputError when an image's size differs from its camera's."""
    for name, size in sizes.items():
        camera = cameras[camera_ids[name]]
        if size != (0, 0) and size != (camera.width, camera.height):
            raise BadInputError(
                f"{name!r} is {size[0]} x {size[1]}, but its camera {camera.width} x {camera.height};"
                " use --camera-mode auto or per-image, or extract its features again if the image was replaced"
            )


def to_camera(intrinsics: Intrinsics, camera_id: int = 1) -> pycolmap.Camera:
    """A pycolmap camera with known intrinsics."""
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


def to_rigid(pose: Pose) -> pycolmap.Rigid3d:
    """A featkit pose as pycolmap's (whose quaternions are x, y, z, w)."""
    w, x, y, z = pose.qvec
    return pycolmap.Rigid3d(pycolmap.Rotation3d([x, y, z, w]), pose.tvec)


def to_pose(rigid: pycolmap.Rigid3d) -> Pose:
    """A pycolmap pose as featkit's."""
    return Pose(quaternion(rigid.rotation.matrix()), np.array(rigid.translation))


def is_spherical(camera: pycolmap.Camera) -> bool:
    """Whether a camera sees all directions: points on the plane at depth 1 are then only half of them."""
    return camera_models()[camera.model_name].is_spherical


def is_wide(camera: pycolmap.Camera) -> bool:
    """Whether a camera sees far to the side or all round: on the plane at depth 1, a pixel has no common size."""
    return is_spherical(camera) or "FISHEYE" in camera.model_name or camera.model_name in {"FOV", "EUCM"}


def squared_distances(
    camera: pycolmap.Camera, first: Float[np.ndarray, "n 2"], second: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, " n"]:
    """Squared distances of pixels of an image, px^2; the left and right edges of a panorama are next to each other."""
    x, y = (np.asarray(first) - np.asarray(second)).reshape(-1, 2).T
    if is_spherical(camera):
        x = x - camera.width * np.round(x / camera.width)
    return np.asarray(x**2 + y**2)


def rays_of(camera: pycolmap.Camera, pixels: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
    """Unit directions, in the camera's axes, of COLMAP pixels; of a camera of any model."""
    if is_spherical(camera):
        return np.asarray(camera.cam_ray_from_img(pixels)).reshape(-1, 3)
    plane = np.asarray(camera.cam_from_img(pixels)).reshape(-1, 2)
    rays = np.column_stack([plane, np.ones(len(plane))])
    return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True))
