"""COLMAP models on disk: find, check, read and write them; statistics."""

from __future__ import annotations

import hashlib
import math
import mmap
import re
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pycolmap
from jaxtyping import Float, Int

from featkit.core.errors import BadInputError, NotWritableError, blaming, refuse_pipe
from featkit.io.artifact import making, write_text
from featkit.io.atomic import FOREIGN, refuse_foreign

Model: TypeAlias = pycolmap.Reconstruction  # so that other packages need not import pycolmap for it
MODEL_FILES = ("cameras", "images", "points3D")
UNIT_TOLERANCE = 0.01  # largest deviation of a quaternion's length from 1
ALIGNED = ("alignment.json",)  # files that `featkit align` adds to a model


def is_model(folder: Path) -> bool:
    """Whether a folder holds a COLMAP model, binary or text."""
    return any(all((folder / f"{name}{suffix}").is_file() for name in MODEL_FILES) for suffix in (".bin", ".txt"))


def is_binary(folder: Path) -> bool:
    """Whether a folder holds a COLMAP model in binary files, which take precedence over text files."""
    return all((folder / f"{name}.bin").is_file() for name in MODEL_FILES)


def read_model(folder: Path) -> pycolmap.Reconstruction:
    """Read a COLMAP model. Raises BadInputError."""
    if not is_model(folder):
        raise BadInputError(f"{folder}: no COLMAP model here (cameras, images and points3D as .bin or .txt)")
    check_complete(folder)
    for path in folder.iterdir():
        if path.suffix in (".bin", ".txt"):
            with blaming(path, "a file of a COLMAP model", "make or copy the model again"):
                refuse_pipe(path)  # COLMAP would wait for it
    try:
        model = pycolmap.Reconstruction(str(folder))
    except Exception as error:  # pycolmap's exception types differ between versions
        raise BadInputError(f"{folder}: the model cannot be read ({str(error).splitlines()[0]})") from None
    if not (folder / "points3D.bin").is_file():
        check_count(folder / "points3D.txt", model.num_points3D())
    _check_names(model, folder)
    _check_values(model, folder)
    return model


def _check_names(model: pycolmap.Reconstruction, folder: Path) -> None:
    """Raise BadInputError for a name that is not UTF-8, as featkit's text files are UTF-8."""
    for number, image in model.images.items():
        try:
            _ = image.name
        except UnicodeDecodeError as error:
            raise BadInputError(not_utf8(folder, number, error.object)) from None


def not_utf8(path: Path, number: int, name: bytes) -> str:
    """Error message for an image name that is not UTF-8."""
    shown = name.decode("utf-8", "backslashreplace")
    return (
        f"{path}: the name of image {number}, '{shown}', is not UTF-8; rename the photograph and make the model again"
    )


def _check_values(model: pycolmap.Reconstruction, folder: Path) -> None:
    """Raise BadInputError for invalid cameras and poses, of which COLMAP checks only some."""
    for number, camera in model.cameras.items():
        focal = [camera.params[index] for index in camera.focal_length_idxs()]
        if not (np.isfinite(camera.params).all() and min(focal, default=1) > 0 < min(camera.width, camera.height)):
            raise BadInputError(
                f"{folder}: camera {number} has a size or focal length of 0, NaN or infinity; make the model again"
            )
    for number in model.reg_image_ids():
        pose = model.images[number].cam_from_world()
        length = float(np.linalg.norm(pose.rotation.quat))
        if not (abs(length - 1) < UNIT_TOLERANCE and np.isfinite(pose.translation).all()):
            raise BadInputError(
                f"{folder}: the pose of image {model.images[number].name!r} is invalid (quaternion of length"
                f" {length:.3g}, NaN or infinity); make the model again"
            )


def poses_digest(folder: Path) -> str:
    """Digest (16 hex digits) of a model's images and poses, to detect results that depend on an older model."""
    path = folder / ("images.bin" if is_binary(folder) else "images.txt")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def largest_first(models: list[pycolmap.Reconstruction]) -> list[pycolmap.Reconstruction]:
    """Most registered images first, then most points."""
    return sorted(models, key=lambda model: (-model.num_reg_images(), -model.num_points3D()))


def write_models(
    models: list[pycolmap.Reconstruction],
    folder: Path,
    named: Callable[[], object] | None = None,
    beside: Mapping[str, str] | None = None,
) -> Path:
    """Write models as folder/0, folder/1, ... in one atomic write. named: see `artifact.making`.

    beside: small text files, by name, that are added to the first model.
    Raises BadInputError for a folder that contains anything but featkit's models, NotWritableError.
    """
    refuse_other_models(folder)
    with making(folder, named=named) as new:
        for number, model in enumerate(models):
            (new / str(number)).mkdir()
            write_checked(model, new / str(number))
        for name, text in (beside or {}).items():
            write_text(new / "0" / name, text)
    return folder


def alignment_files(folder: Path) -> dict[str, str]:
    """Contents of the files that `featkit align` added to a model, by file name."""
    return {name: (folder / name).read_text(encoding="utf-8") for name in ALIGNED if (folder / name).is_file()}


def refuse_other_models(folder: Path) -> None:
    """Raise BadInputError if a folder contains anything but models written by featkit."""
    refuse_foreign(folder)
    for one in folder.iterdir() if folder.is_dir() else ():
        if not (one.name.isdecimal() and one.is_dir() and not one.is_symlink() and is_replaceable_model(one, ALIGNED)):
            raise BadInputError(f"{one}: {FOREIGN}")


def is_replaceable_model(folder: Path, more: Collection[str] = ()) -> bool:
    """Whether a folder contains a COLMAP model and nothing else, except files named in `more`."""
    known = {f"{name}{suffix}" for name in (*MODEL_FILES, "rigs", "frames") for suffix in (".bin", ".txt", ".ply")}
    known |= {"project.ini", *more}
    return is_model(folder) and all(path.is_file() and path.name in known for path in folder.iterdir())


def write_model(model: pycolmap.Reconstruction, folder: Path, beside: Mapping[str, str]) -> Path:
    """Write one model and small text files (by name) to a folder atomically; replaces a model made by featkit.

    Raises BadInputError for a folder that was not made by featkit, NotWritableError.
    """
    with making(folder) as new:
        for name, text in beside.items():
            write_text(new / name, text)
        write_checked(model, new)
    return folder


def write_checked(model: pycolmap.Reconstruction, folder: Path) -> None:
    """Write a model to an existing folder and check it. Raises NotWritableError, also for a full disk, which COLMAP
    ignores.
    """
    try:
        model.write(str(folder))
        check_complete(folder)
    except BadInputError:
        raise NotWritableError(
            f"{folder}: cannot be written (no space left); free some and run the same command again"
        ) from None
    except Exception as error:  # pycolmap's exception types differ between versions
        raise NotWritableError(f"{folder}: cannot be written ({str(error).splitlines()[0]})") from None


# ----------------------------------------------------------------------------------------------------------------------
# Completeness of a COLMAP model's files: pycolmap crashes or hangs on truncated .bin files.
#
# Counts and lengths are followed from the first byte to the last; nothing else is read. Text files announce their
# number of lines in a comment, which pycolmap ignores. The layout is COLMAP's (its documentation, "Output Format",
# binary; rigs and frames since 3.12).


COUNT = struct.Struct("<Q")
SHORT_COUNT = struct.Struct("<I")
CAMERA = struct.Struct("<IiQQ")  # id, model, width, height; then the model's parameters, 8 bytes each
IMAGE_BYTES = 64  # id, quaternion, translation, camera id; then the name, a zero byte, and the keypoints
KEYPOINT_BYTES = 24
POINT_BYTES = 43  # id, xyz, colour, error; then the length of the track
POINT = struct.Struct("<Q3d3Bd")
KEYPOINT = np.dtype([("xy", "<f8", 2), ("point", "<u8")])
SEEN_BYTES = 8
SENSOR_BYTES = 8  # type, id
POSE_BYTES = 56
FRAME_BYTES = 64  # id, rig id, pose; then the number of images
DATA_BYTES = 16
ANNOUNCED = re.compile(r"#\s*Number of \w+: (\d+)")  # in a text file


class _TruncatedError(Exception):
    """The file is shorter than it announces."""


class _NotFiniteError(Exception):
    """A value is NaN or infinity."""


def check_complete(folder: Path) -> None:
    """Check that a model's .bin files are complete. Raises BadInputError for a truncated or invalid file."""
    for name, length_of in ITEMS.items():
        path = folder / f"{name}.bin"
        if path.is_file():
            try:
                _check_file_length(path, length_of)
            except OSError as error:
                raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
            except _NotFiniteError as error:
                raise BadInputError(f"{path}: {error}: NaN or infinity; make or copy the model again") from None
            except (_TruncatedError, struct.error, ValueError, IndexError):
                raise BadInputError(
                    f"{path}: cut off, or not a file of a COLMAP model; make or copy the model again"
                ) from None


def check_count(path: Path, found: int) -> None:
    """Compare the count announced in a model's text file with the number found. Raises BadInputError."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.startswith("#"):
                return
            announced = ANNOUNCED.match(line)
            if announced and int(announced[1]) != found:
                raise BadInputError(
                    f"{path}: cut off: {found:,} of the {int(announced[1]):,} it announces; copy the model again"
                )


def _check_file_length(path: Path, length_of: Callable[[mmap.mmap, int], int]) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position, size = COUNT.size, len(data)
        for _ in range(COUNT.unpack_from(data)[0]):
            position += length_of(data, position)
            if position > size:
                raise _TruncatedError


def _camera_length(data: mmap.mmap, start: int) -> int:
    model = pycolmap.CameraModelId(CAMERA.unpack_from(data, start)[1])  # ValueError for an unknown model
    return CAMERA.size + 8 * len(pycolmap.Camera.create_from_model_id(1, model, 1.0, 1, 1).params)


def _image_length(data: mmap.mmap, start: int) -> int:
    end = data.find(b"\0", start + IMAGE_BYTES)
    if end < 0:
        raise _TruncatedError
    (keypoints,) = COUNT.unpack_from(data, end + 1)
    first = end + 1 + COUNT.size
    if first + keypoints * KEYPOINT_BYTES > len(data):
        raise _TruncatedError
    if not np.isfinite(np.frombuffer(data[first : first + keypoints * KEYPOINT_BYTES], KEYPOINT)["xy"]).all():
        raise _NotFiniteError(f"the keypoints of image {data[start + IMAGE_BYTES : end]!r}")
    return int(first + keypoints * KEYPOINT_BYTES - start)


def _point_length(data: mmap.mmap, start: int) -> int:
    number, x, y, z, *_, error = POINT.unpack_from(data, start)
    (seen,) = COUNT.unpack_from(data, start + POINT_BYTES)
    if start + POINT_BYTES + COUNT.size + seen * SEEN_BYTES > len(data):
        raise _TruncatedError
    if not math.isfinite(x + y + z + error):
        raise _NotFiniteError(f"point {number}")
    return int(POINT_BYTES + COUNT.size + seen * SEEN_BYTES)


def _rig_length(data: mmap.mmap, start: int) -> int:
    (sensors,) = SHORT_COUNT.unpack_from(data, start + 4)
    length = 8 + (SENSOR_BYTES if sensors else 0)
    for _ in range(1, sensors):
        length += SENSOR_BYTES + 1
        length += POSE_BYTES if data[start + length - 1] else 0
    return length


def _frame_length(data: mmap.mmap, start: int) -> int:
    (images,) = SHORT_COUNT.unpack_from(data, start + FRAME_BYTES)
    return int(FRAME_BYTES + SHORT_COUNT.size + images * DATA_BYTES)


ITEMS = {
    "cameras": _camera_length,
    "images": _image_length,
    "points3D": _point_length,
    "rigs": _rig_length,
    "frames": _frame_length,
}


# ----------------------------------------------------------------------------------------------------------------------
# Statistics of a map: the columns of the ETH local-feature benchmark, and one row per image.


@dataclass(frozen=True)
class MapStatistics:
    """Statistics of a model. track_length: observations per point. reprojection_px: mean error over all points, px."""

    images: int
    registered: int
    points: int
    observations: int
    track_length: float
    observations_per_image: float
    reprojection_px: float


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of a registered image. observations: keypoints that see a point. error_px: mean error of these
    points.
    """

    name: str
    camera_id: int
    focal_px: float
    keypoints: int
    observations: int
    error_px: float


def map_statistics(model: pycolmap.Reconstruction, images: int) -> MapStatistics:
    """Statistics of a model. images: number of images of the scene."""
    return MapStatistics(
        images=images,
        registered=model.num_reg_images(),
        points=model.num_points3D(),
        observations=model.compute_num_observations(),
        track_length=model.compute_mean_track_length(),
        observations_per_image=model.compute_mean_observations_per_reg_image(),
        reprojection_px=model.compute_mean_reprojection_error(),
    )


def registered_names(model: pycolmap.Reconstruction) -> set[str]:
    """Names of the images of a model that have a pose."""
    return {model.images[image_id].name for image_id in model.reg_image_ids()}


def image_statistics(model: pycolmap.Reconstruction) -> list[ImageStatistics]:
    """One row per registered image, by name."""
    errors = {point_id: point.error for point_id, point in model.points3D.items()}
    rows = []
    for image in sorted((i for i in model.images.values() if i.has_pose), key=lambda i: i.name):
        points = image.points2D
        seen = [errors[points[i].point3D_id] for i in image.get_observation_point2D_idxs()]
        error = float(np.mean(seen)) if seen else float("nan")
        focal = model.cameras[image.camera_id].mean_focal_length()
        rows.append(ImageStatistics(image.name, image.camera_id, focal, image.num_points2D(), len(seen), error))
    return rows


def point_ids(image: pycolmap.Image) -> Int[np.ndarray, " n"]:
    """For every keypoint of an image, the id of the 3D point it sees, or -1."""
    return np.array([p.point3D_id if p.has_point3D() else -1 for p in image.points2D], dtype=np.int64)


def tracks_and_errors(
    model: pycolmap.Reconstruction,
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Track length and reprojection error (px) of every point."""
    points = list(model.points3D.values())
    lengths = np.array([point.track.length() for point in points], dtype=np.int64)
    return lengths, np.array([point.error for point in points], dtype=np.float64)
