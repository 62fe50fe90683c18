"""The photographs of a map: find them, check them against its cameras, undistort them and their masks."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import cv2
import numpy as np
import pycolmap
from jaxtyping import Bool, Float, UInt8

from featkit.core.config import Config, Quality, Side
from featkit.core.errors import BadInputError
from featkit.core.log import progress
from featkit.core.runtime import usable_cores
from featkit.images.exif import some_names
from featkit.images.intensity import found_range
from featkit.images.masks import masked
from featkit.images.read import DecodeConfig, alpha_channel, as_stored, decode, stored_size
from featkit.io.artifact import inside, write_bytes
from featkit.mapping.cameras import is_spherical, squared_distances

NEAR = 4  # levels above a model that are searched for its photographs, as in scene/featkit/sparse/0
PINHOLES = ("SIMPLE_PINHOLE", "PINHOLE")
KEPT_SUFFIXES = (".jpg", ".jpeg", ".png")  # formats kept by undistortion; all others become .png
OPAQUE = 255
FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")  # Unicode, composed and decomposed
MAX_RESIDUAL_GROWTH, RESIDUAL_SLACK_PX = 2.0, 0.1
"""Largest median residual of an exported image: factor of the map's own, plus px, as undistortion stretches borders."""


class PictureConfig(Config):
    """Undistorted photographs."""

    resize_max: Side | None = None
    """Longer side of undistorted photographs, px; smaller ones keep their size. None: no resizing."""
    jpeg_quality: Quality = 95
    """JPEG quality of undistorted photographs, 1 to 100."""


def find_photographs(model_folder: Path, names: Sequence[str], folders: Sequence[Path] = ()) -> dict[str, Path]:
    """The file of every image. Names are relative to one of `folders`, or to a folder near the model.

    Raises BadInputError that lists images without a file.
    """
    found = existing_photographs(model_folder, names, folders)
    if not found and not folders:
        raise BadInputError(
            f"{model_folder}: its {len(names)} photographs, such as {names[0]!r}, were not found near it; give their"
            " folder with --images"
        )
    missing = [name for name in names if name not in found]
    if missing:
        where = ", ".join(map(str, folders)) or str(next(iter(found.values())).parent)
        raise BadInputError(
            f"{where}: {len(missing)} of the map's {len(names)} photographs are missing: {some_names(missing)}; put"
            " them back, or give their folder with --images"
        )
    return {name: found[name] for name in names}


def existing_photographs(model_folder: Path, names: Sequence[str], folders: Sequence[Path] = ()) -> dict[str, Path]:
    """Like `find_photographs`, without missing files.

    Raises BadInputError for a name that leaves the folder, and for a folder that does not exist.
    """
    found: dict[str, Path] = {}
    refuse_missing_folders(folders)
    if folders:
        for folder in reversed(folders):
            found |= _files_in_folder(folder, names)
        return found
    near = [model_folder.resolve(), *model_folder.resolve().parents[:NEAR]]
    return max((_files_in_folder(folder, names) for base in near for folder in (base / "images", base)), key=len)


def refuse_missing_folders(folders: Sequence[Path]) -> None:
    """Raise BadInputError for a given folder of photographs that does not exist."""
    for folder in folders:
        if not folder.is_dir():
            raise BadInputError(f"{folder}: no such folder; --images names one that holds the map's photographs")


def _files_in_folder(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The files of the names that are there, also under the other Unicode form of a name (macOS decomposes letters)."""
    found = {}
    for name in names:
        spellings = [name] if name.isascii() else [name, *(unicodedata.normalize(form, name) for form in FORMS)]
        path = next((path for one in spellings if (path := inside(folder, one)).is_file()), None)
        if path is not None:
            found[name] = path
    return found


def names_by_folder(files: Mapping[str, Path]) -> dict[Path, list[str]]:
    """Sorted image names, grouped by the folder they are relative to."""
    found: dict[Path, list[str]] = {}
    for name, path in sorted(files.items()):
        found.setdefault(path.parents[name.count("/")], []).append(name)
    return found


def check_photograph_sizes(model: pycolmap.Reconstruction, files: Mapping[str, Path]) -> None:
    """Raise BadInputError for a photograph that is damaged or does not have its camera's size."""
    for image in model.images.values():
        if image.name in files:
            size, camera = stored_size(files[image.name]), model.cameras[image.camera_id]
            if size != (camera.width, camera.height):
                raise BadInputError(
                    f"{files[image.name]}: is {size[0]} x {size[1]}, but {camera.width} x {camera.height} in the map;"
                    " put the original back, or give the right folder with --images"
                )


# ----------------------------------------------------------------------------------------------------------------------
# A model with pinhole cameras, and the photographs undistorted for them (COLMAP's undistortion, by pycolmap).


@dataclass(frozen=True)
class Undistorted:
    """A map with pinhole cameras in the same coordinate frame. old_names: by the new image names."""

    model: pycolmap.Reconstruction
    old_names: dict[str, str]


def undistort_options(config: PictureConfig) -> pycolmap.UndistortCameraOptions:
    """pycolmap's options, by which undistorted images have no blank pixels."""
    options = pycolmap.UndistortCameraOptions()
    options.max_image_size = -1 if config.resize_max is None else config.resize_max
    return options


def undistort(model: pycolmap.Reconstruction, config: PictureConfig, *, flat: bool = False) -> Undistorted:
    """The map with pinhole cameras and undistorted keypoints; poses, points and ids are unchanged.

    flat: names without folders, `a/b.jpg` becomes `a_b.jpg`. Only images with a pose are in the result. Raises
    BadInputError if two images would get the same name, for panoramas, or for a distortion that cannot be inverted.
    """
    for image in model.images.values():
        if image.has_pose and is_spherical(model.cameras[image.camera_id]):
            raise BadInputError(
                f"{image.name!r} is a panorama, which no pinhole camera can show; export it as text, ply or hloc"
            )
    made = pycolmap.Reconstruction(model)
    options = undistort_options(config)
    for camera_id, camera in model.cameras.items():
        if not _is_unchanged(camera, config):
            _replace_camera(made.cameras[camera_id], pycolmap.undistort_camera(options, camera))
    old_names: dict[str, str] = {}
    for image_id in sorted(made.images):
        image, old = made.images[image_id], model.images[image_id]
        if not image.has_pose:
            continue
        image.name = _exported_name(old.name, flat)
        if image.name in old_names:
            raise BadInputError(
                f"{old_names[image.name]!r} and {old.name!r} would both be written as {image.name!r}; rename one"
            )
        old_names[image.name] = old.name
        _move_keypoints(image, model.cameras[old.camera_id], made.cameras[image.camera_id])
    return Undistorted(made, old_names)


def _is_unchanged(camera: pycolmap.Camera, config: PictureConfig) -> bool:
    fits = config.resize_max is None or max(camera.width, camera.height) <= config.resize_max
    return fits and camera.model_name in PINHOLES


def _replace_camera(camera: pycolmap.Camera, new: pycolmap.Camera) -> None:
    camera.model, camera.params, camera.width, camera.height = new.model, new.params, new.width, new.height


def _exported_name(name: str, flat: bool) -> str:
    path = PurePosixPath(name.replace("/", "_") if flat else name)
    return str(path if path.suffix.lower() in KEPT_SUFFIXES else path.with_suffix(".png"))


def _move_keypoints(image: pycolmap.Image, old: pycolmap.Camera, new: pycolmap.Camera) -> None:
    if not len(image.points2D) or (old.model == new.model and np.array_equal(old.params, new.params)):
        return
    xy = np.array([point.xy for point in image.points2D]).reshape(-1, 2)
    rays = np.column_stack([np.asarray(old.cam_from_img(xy)), np.ones(len(xy))])
    moved = np.asarray(new.img_from_cam(rays))
    for point, there in zip(image.points2D, moved, strict=True):
        if np.isfinite(there).all():
            point.xy = there


def reprojection_errors(model: pycolmap.Reconstruction, image: pycolmap.Image) -> Float[np.ndarray, " n"]:
    """Distances between the keypoints of an image and the projections of their points, px."""
    seen = [point for point in image.points2D if point.has_point3D()]
    if not seen:
        return np.zeros(0)
    xyz = np.array([model.points3D[point.point3D_id].xyz for point in seen])
    in_camera = np.asarray(image.cam_from_world() * xyz)
    camera = model.cameras[image.camera_id]
    return np.sqrt(squared_distances(camera, camera.img_from_cam(in_camera), np.array([point.xy for point in seen])))


def check_projections(model: pycolmap.Reconstruction, exported: pycolmap.Reconstruction) -> float:
    """Median residual of an exported map, px. Raises BadInputError if an image's points miss its keypoints.

    Both models have the same image ids.
    """
    every = []
    for image_id, image in exported.images.items():
        own = reprojection_errors(model, model.images[image_id])
        new = reprojection_errors(exported, image)
        every.append(new)
        if len(new) and not np.median(new) <= MAX_RESIDUAL_GROWTH * np.median(own) + RESIDUAL_SLACK_PX:
            camera = model.cameras[model.images[image_id].camera_id]
            raise BadInputError(
                f"{image.name!r}: after undistortion its points are {np.median(new):.2f} px from its keypoints"
                f" (before: {np.median(own):.2f}); the distortion ({camera.model_name}) of this map is implausible: map"
                " again with another --camera-model"
            )
    joined = np.concatenate(every) if every else np.zeros(0)
    return float(np.median(joined)) if len(joined) else 0.0


# ----------------------------------------------------------------------------------------------------------------------
# Files of undistorted photographs.


@dataclass(frozen=True)
class Pictures:
    """Input and output files of undistortion. files, masks: photographs and their masks, by the old names.

    with_alpha: hidden pixels become transparent in the picture itself (a .png); otherwise a mask that is zero in hidden
    pixels is written to `mask_folder`, as `a/b.jpg.png` for `a/b.jpg`.
    """

    files: Mapping[str, Path]
    folder: Path
    mask_folder: Path
    masks: Mapping[str, Path]
    with_alpha: bool = False


def write_pictures(
    model: pycolmap.Reconstruction, undistorted: Undistorted, pictures: Pictures, config: PictureConfig
) -> list[str]:
    """Write undistorted photographs and their masks; returns the names of photographs with hidden pixels.

    A file that needs no change is copied; others are written with 8 bits, with one black and white for all files that
    have more. with_alpha renames images of `undistorted` that become .png. Raises
    BadInputError for a photograph or a mask that cannot be read, NotWritableError.
    """
    images = sorted((image for image in undistorted.model.images.values() if image.has_pose), key=lambda i: i.name)
    paths = [pictures.files[undistorted.old_names[image.name]] for image in images]
    decoding = DecodeConfig(min_alpha=0, intensity_range=found_range(paths))

    def write(image: pycolmap.Image) -> tuple[pycolmap.Image, str, bool]:
        camera = model.cameras[model.images[image.image_id].camera_id]
        return image, *_write_picture(image.name, undistorted.old_names[image.name], camera, pictures, config, decoding)

    hidden = []
    with (
        progress("photographs", len(images), "images") as advance,
        ThreadPoolExecutor(usable_cores(), thread_name_prefix="undistort") as pool,
    ):
        for image, name, is_hidden in pool.map(write, images):
            image.name = name
            hidden += [name] if is_hidden else []
            advance(1)
    if len({image.name for image in images}) < len(images):
        raise BadInputError("the names of two masked photographs differ only in their suffix; rename one")
    return hidden


def _write_picture(
    name: str,
    old_name: str,
    camera: pycolmap.Camera,
    pictures: Pictures,
    config: PictureConfig,
    decoding: DecodeConfig,
) -> tuple[str, bool]:
    """Write one photograph; returns its final name, and whether pixels are hidden."""
    path = pictures.files[old_name]
    opacity = read_opacity(path, pictures.masks.get(old_name))
    is_hidden = opacity is not None
    if opacity is not None and not pictures.with_alpha:
        hidden_in = _undistort_pixels(opacity, camera, config)
        write_bytes(inside(pictures.mask_folder, f"{name}.png"), _encode_picture(hidden_in, ".png", config, path))
    if (
        _is_unchanged(camera, config)
        and path.suffix.lower() in KEPT_SUFFIXES
        and not (is_hidden and pictures.with_alpha)
    ):
        image = decode(path, decoding)
        if image.orientation in (0, 1):
            write_bytes(inside(pictures.folder, name), path.read_bytes())
            return name, is_hidden
    image = decode(path, decoding, colour=True)
    pixels = _undistort_pixels(as_stored(image.pixels, image.orientation), camera, config)[..., ::-1]
    if opacity is not None and pictures.with_alpha:
        name = str(PurePosixPath(name).with_suffix(".png"))
        pixels = np.dstack([pixels, _undistort_pixels(opacity, camera, config)])
    data = _encode_picture(np.ascontiguousarray(pixels), PurePosixPath(name).suffix, config, path)
    write_bytes(inside(pictures.folder, name), data)
    return name, is_hidden


def read_opacity(path: Path, mask: Path | None) -> UInt8[np.ndarray, "h w"] | None:
    """Opacity of each pixel of a photograph's file, 0 where masked; None if all pixels are opaque.

    Raises BadInputError.
    """
    opacity = alpha_channel(path)
    if mask is not None:
        kept = _read_mask(path, mask)
        opacity = np.where(kept, OPAQUE if opacity is None else opacity, 0).astype(np.uint8)
    return None if opacity is None or (opacity == OPAQUE).all() else opacity


def write_mask(path: Path, mask: Path, output: Path) -> None:
    """Write a photograph's mask in the pixels of its file: 255, and 0 where hidden."""
    write_bytes(
        output, _encode_picture(_read_mask(path, mask).astype(np.uint8) * OPAQUE, ".png", PictureConfig(), mask)
    )


def _read_mask(path: Path, mask: Path) -> Bool[np.ndarray, "h w"]:
    config = DecodeConfig(min_alpha=0)
    kept = masked(decode(path, config), mask, config).usable
    assert kept is not None
    return kept


def _undistort_pixels(
    pixels: UInt8[np.ndarray, "h w *c"], camera: pycolmap.Camera, config: PictureConfig
) -> np.ndarray:
    """Undistort an image; unchanged if its camera is a pinhole camera already."""
    if _is_unchanged(camera, config):
        return pixels
    bitmap = pycolmap.Bitmap.from_array(np.ascontiguousarray(pixels))
    return pycolmap.undistort_image(undistort_options(config), bitmap, camera)[0].to_array()


def _encode_picture(pixels: np.ndarray, suffix: str, config: PictureConfig, path: Path) -> bytes:
    """Encode an image. pixels: grey, BGR or BGRA."""
    more = [] if suffix.lower() == ".png" else [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality]
    done, data = cv2.imencode(suffix.lower(), pixels, more)
    if not done:
        raise BadInputError(f"{path}: its undistorted picture cannot be written as {suffix}; rename it to .png")
    return bytes(data)
