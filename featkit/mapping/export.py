"""A map in the formats of other programs: nerfstudio, a point cloud, COLMAP's text, what hloc takes beside a model."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from jaxtyping import Float, UInt8

from featkit.core.config import Config, Count, Side
from featkit.core.errors import BadInputError, EmptyResultError, FeatkitError, NotWritableError, UsageError
from featkit.io.artifact import inside, making, part_of, place_files, scratch, write_stamp, write_text
from featkit.io.atomic import is_stamped, read_stamp, refuse_foreign
from featkit.io.lists import format_pairs, write_ply, write_poses
from featkit.mapping.cameras import to_intrinsics, to_pose
from featkit.mapping.covisibility import CovisibleConfig, Tracks, covisible_pairs
from featkit.mapping.model import MODEL_FILES, read_model

LOGGER = logging.getLogger(__name__)
TRANSFORMS, POINTS = "transforms.json", "sparse_pc.ply"  # nerfstudio's names
SFM, INTRINSICS, POSES, PAIRS = "sfm", "queries_with_intrinsics.txt", "poses.txt", "pairs-covisible.txt"
NEAR = 4  # folders above a model that its photographs are looked for in: scene/featkit/sparse/0


@dataclass(frozen=True)
class Exported:
    """What was written. notes: what the reader of the files should know."""

    files: list[Path]
    images: int
    points: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """What is exported: a model, where it lies, and the folder of its photographs (None: not found)."""

    model: pycolmap.Reconstruction
    folder: Path
    images: Path | None
    pairs: CovisibleConfig

    @property
    def registered(self) -> list[pycolmap.Image]:
        """Images with a pose, by name."""
        return sorted((image for image in self.model.images.values() if image.has_pose), key=lambda image: image.name)


def export(
    form: str,
    folder: Path,
    output: Path,
    *,
    images: Path | None = None,
    pairs: CovisibleConfig | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the model in `folder` as one of FORMATS to `output`: a folder, or a file that ends in .ply.

    images: the photographs, for nerfstudio; by default those found near the model. pairs: how many, for hloc.
    Raises UsageError, BadInputError, EmptyResultError for a map without images or points, NotWritableError.
    """
    if form not in FORMATS:
        raise UsageError(f"--format {form}: there is {', '.join(FORMATS)}")
    if (form == "ply") != (output.suffix.lower() == ".ply"):
        is_what = "a file whose name ends in .ply" if form == "ply" else "a folder, not a .ply file"
        raise UsageError(f"--format {form} writes {is_what}; --out is {output}")
    model = read_model(folder)
    names = [image.name for image in model.images.values() if image.has_pose]
    if not names:
        raise EmptyResultError(f"{folder}: no image of this model has a pose")
    source = Source(model, folder, _photographs(folder, min(names), images), pairs or CovisibleConfig())
    if form == "ply":
        return _ply(source, output, overwrite)
    notes: list[str] = []
    if output.exists() and not output.is_dir():
        raise NotWritableError(f"{output}: is a file; choose a folder with --out")
    with scratch(part_of(output)) as part:
        notes += FOLDERS[form](source, part, output)
        written = place_files(part, output, overwrite=overwrite, kind="export", format=form)
    return Exported([output / name for name in written], len(names), model.num_points3D(), notes)


def _ply(source: Source, output: Path, overwrite: bool) -> Exported:
    refuse_foreign(output)
    points, colours = coloured_points(source.model)
    if len(points) == 0:
        raise EmptyResultError(f"{source.folder}: there is no point in this model")
    if output.exists() and not overwrite:
        raise BadInputError(f"{output}: exists already; --overwrite replaces it, or choose another --out")
    return Exported([write_ply(output, points, colours)], len(source.registered), len(points))


def coloured_points(model: pycolmap.Reconstruction) -> tuple[Float[np.ndarray, "n 3"], UInt8[np.ndarray, "n 3"]]:
    """Points of a model in the order of their ids, and their RGB colours."""
    points = [model.points3D[point_id] for point_id in sorted(model.points3D)]
    xyz = np.array([point.xyz for point in points], dtype=np.float64).reshape(-1, 3)
    return xyz, np.array([point.color for point in points], dtype=np.uint8).reshape(-1, 3)


def _nerfstudio(source: Source, part: Path, output: Path) -> list[str]:
    """transforms.json, and the points in its world."""
    points, colours = coloured_points(source.model)
    paths = {image.name: _file_path(image.name, source.images, output) for image in source.registered}
    ply_file = POINTS if len(points) else None
    content = transforms(source.model, paths, ply_file)
    if ply_file is not None:
        write_ply(part / ply_file, in_saved_world(points), colours)
    write_text(part / TRANSFORMS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if source.images is not None:
        return []
    return [f"photographs were not found near the map: put them into {output / 'images'}, or name them with --images"]


def _file_path(name: str, images: Path | None, output: Path) -> str:
    if images is None:
        return inside(Path("images"), name).as_posix()
    return Path(os.path.relpath(inside(images, name).resolve(), output.resolve())).as_posix()


def _text(source: Source, part: Path, output: Path) -> list[str]:
    """COLMAP's text model."""
    if any((output / f"{name}.bin").exists() for name in MODEL_FILES):
        raise BadInputError(f"{output}: holds a binary model, which COLMAP would read instead; choose another --out")
    source.model.write_text(str(part))
    return []


def _hloc(source: Source, part: Path, output: Path) -> list[str]:
    """The model, and beside it: pairs by covisibility, the cameras as a list of queries, the poses as results."""
    images = source.registered
    spaced = next((image.name for image in images if len(image.name.split()) != 1), None)
    if spaced is not None:
        raise BadInputError(f"{spaced!r}: hloc parts names at spaces and cannot read this one; rename the photograph")
    (part / SFM).mkdir()
    source.model.write(str(part / SFM))
    cameras = {image.name: to_intrinsics(source.model.cameras[image.camera_id]) for image in images}
    lines = [f"{name} {c.model} {c.width} {c.height} {' '.join(map(repr, c.params))}\n" for name, c in cameras.items()]
    write_text(part / INTRINSICS, "".join(lines))
    write_poses(part / POSES, {image.name: to_pose(image.cam_from_world()) for image in images})
    pairs = covisible_pairs(tracks_of(source.model), source.pairs.num_matched)
    if not pairs:
        return [f"no {PAIRS}: no two images of this model see a point in common"]
    write_text(part / PAIRS, format_pairs(pairs))
    return []


def tracks_of(model: pycolmap.Reconstruction) -> Tracks:
    """Who sees which point; images with a pose, by name."""
    images = sorted((image.name, image_id) for image_id, image in model.images.items() if image.has_pose)
    place = {image_id: index for index, (_, image_id) in enumerate(images)}
    seen = [
        [place[element.image_id] for element in model.points3D[point_id].track.elements if element.image_id in place]
        for point_id in sorted(model.points3D)
    ]
    starts = np.cumsum([0, *map(len, seen)])
    return Tracks(tuple(name for name, _ in images), starts, np.array([i for s in seen for i in s], dtype=np.int32))


Writer = Callable[[Source, Path, Path], list[str]]
FOLDERS: dict[str, Writer] = {"nerfstudio": _nerfstudio, "text": _text, "hloc": _hloc}
FORMATS = ("nerfstudio", "ply", "text", "hloc")


def _photographs(folder: Path, name: str, given: Path | None) -> Path | None:
    """The folder that an image's name is relative to. Raises BadInputError when the given one does not have it."""
    if given is not None:
        if not inside(given, name).is_file():
            raise BadInputError(f"{given}: no {name!r} in it, an image of the map; names are relative to --images")
        return given
    for base in (folder.resolve(), *folder.resolve().parents[:NEAR]):
        for candidate in (base / "images", base):
            if inside(candidate, name).is_file():
                return candidate
    return None


# ----------------------------------------------------------------------------------------------------------------------
# A map as nerfstudio's transforms.json, for NeRFs and Gaussian splats.
#
# A frame's transform_matrix is camera to world, of a camera in OpenGL's axes: x right, y up, z backwards. The world is
# the map's after `applied_transform`, which is the one that nerfstudio's own conversion applies: (x, y, z) -> (x, z,
# -y), so that the y of a first camera held upright points to -z. Intrinsics are COLMAP's (the image's corner is the
# origin). Source: nerfstudio's documentation, "Data conventions".


APPLIED_TRANSFORM = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]])
OPENGL_FROM_COLMAP = np.diag([1.0, -1.0, -1.0])  # axes of the camera
PERSPECTIVE, FISHEYE = "OPENCV", "OPENCV_FISHEYE"
FOCAL = "f"  # of both axes
# What nerfstudio calls the parameters of COLMAP's models, in COLMAP's order.
LENSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "SIMPLE_PINHOLE": (PERSPECTIVE, (FOCAL, "cx", "cy")),
    "PINHOLE": (PERSPECTIVE, ("fl_x", "fl_y", "cx", "cy")),
    "SIMPLE_RADIAL": (PERSPECTIVE, (FOCAL, "cx", "cy", "k1")),
    "RADIAL": (PERSPECTIVE, (FOCAL, "cx", "cy", "k1", "k2")),
    "OPENCV": (PERSPECTIVE, ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2")),
    "SIMPLE_RADIAL_FISHEYE": (FISHEYE, (FOCAL, "cx", "cy", "k1")),
    "RADIAL_FISHEYE": (FISHEYE, (FOCAL, "cx", "cy", "k1", "k2")),
    "OPENCV_FISHEYE": (FISHEYE, ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "k3", "k4")),
}
DISTORTION = {PERSPECTIVE: ("k1", "k2", "p1", "p2"), FISHEYE: ("k1", "k2", "k3", "k4")}


def transforms(
    model: pycolmap.Reconstruction, file_paths: Mapping[str, str], ply_file: str | None = None
) -> dict[str, Any]:
    """The content of transforms.json: a frame for every image with a pose, by name.

    file_paths: where each image lies, relative to the file. ply_file: likewise, points in the transformed world.
    Raises BadInputError for a lens that nerfstudio has not, and for one of each kind.
    """
    images = sorted((image for image in model.images.values() if image.has_pose), key=lambda image: image.name)
    used = {image.camera_id: image.name for image in reversed(images)}
    lenses = {camera_id: lens(model.cameras[camera_id], name) for camera_id, name in used.items()}
    kinds = {fields["camera_model"]: used[camera_id] for camera_id, fields in lenses.items()}
    if len(kinds) > 1:
        raise BadInputError(
            f"{kinds[FISHEYE]!r} is of a fisheye lens and {kinds[PERSPECTIVE]!r} is not: nerfstudio takes one kind of"
            " lens in a scene; undistort the model first (`colmap image_undistorter`), or map them apart"
        )
    shared = len(lenses) == 1
    top = next(iter(lenses.values())) if shared else {"camera_model": next(iter(kinds))}
    frames = []
    for image in images:
        frame: dict[str, Any] = {
            "file_path": file_paths[image.name],
            "transform_matrix": world_from_camera(np.asarray(image.cam_from_world().matrix())).tolist(),
            "colmap_im_id": image.image_id,
        }
        if not shared:
            frame |= {name: value for name, value in lenses[image.camera_id].items() if name != "camera_model"}
        frames.append(frame)
    points = {} if ply_file is None else {"ply_file_path": ply_file}
    return {**top, "frames": frames, "applied_transform": APPLIED_TRANSFORM.tolist(), **points}


def world_from_camera(cam_from_world: Float[np.ndarray, "3 4"]) -> Float[np.ndarray, "4 4"]:
    """nerfstudio's transform_matrix of a COLMAP pose."""
    rotation, translation = cam_from_world[:, :3], cam_from_world[:, 3]
    turn = APPLIED_TRANSFORM[:, :3]
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ rotation.T @ OPENGL_FROM_COLMAP
    matrix[:3, 3] = turn @ (-rotation.T @ translation)
    return matrix


def in_saved_world(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Points of the map after `applied_transform`."""
    return points @ APPLIED_TRANSFORM[:, :3].T


def lens(camera: pycolmap.Camera, image_name: str) -> dict[str, Any]:
    """nerfstudio's fields of a camera. image_name: for the error. Raises BadInputError for a lens that it has not."""
    if camera.model_name not in LENSES:
        raise BadInputError(
            f"{image_name!r} has a {camera.model_name} camera, which nerfstudio cannot hold ({', '.join(LENSES)});"
            " undistort the model first (`colmap image_undistorter`), or map with --camera-model OPENCV"
        )
    kind, names = LENSES[camera.model_name]
    values = dict(zip(names, (float(value) for value in camera.params), strict=True))
    if FOCAL in values:
        values["fl_x"] = values["fl_y"] = values.pop(FOCAL)
    ordered = {name: values.get(name, 0.0) for name in ("fl_x", "fl_y", "cx", "cy", *DISTORTION[kind])}
    return {"camera_model": kind, "w": camera.width, "h": camera.height, **ordered}


# ----------------------------------------------------------------------------------------------------------------------
# Dense points of a map, as the ETH benchmark counts them: undistorted, patch-match stereo, fused. Takes CUDA.


class DenseConfig(Config):
    """The ETH local-feature benchmark's settings."""

    max_image_size: Side = 1200
    """Longer side of the undistorted images, px."""
    geometric_consistency: bool = False
    """A second pass that compares depths between images."""
    min_fused_pixels: Count = 5
    """Pixels that must agree on a point."""


def dense_is_possible() -> bool:
    """Whether this pycolmap was built with CUDA."""
    return bool(pycolmap.has_cuda)


def count_dense_points(config: DenseConfig, images: Path, model: Path, output: Path, inputs: str) -> int:
    """Number of fused points of a model; done once per configuration and `inputs` (a digest of the model).

    The points stay in output/fused.ply. Raises FeatkitError when COLMAP fails.
    """
    stamp = output / "dense.json"
    if is_stamped(stamp, config, inputs):
        return int((read_stamp(stamp) or {}).get("points", 0))
    for image in read_model(model).images.values():
        inside(output, image.name)  # COLMAP writes the undistorted photographs by these names
    with making(output) as new:
        points = _fused(config, images, model, new)
        write_stamp(new / stamp.name, config, inputs, kind="dense", points=points)
    return points


def _fused(config: DenseConfig, images: Path, model: Path, output: Path) -> int:
    undistorted = pycolmap.UndistortCameraOptions()
    undistorted.max_image_size = config.max_image_size
    stereo = pycolmap.PatchMatchOptions()
    stereo.geom_consistency = config.geometric_consistency
    fusion = pycolmap.StereoFusionOptions()
    fusion.min_num_pixels = config.min_fused_pixels
    try:
        LOGGER.info("dense: stereo at work, minutes to hours")
        pycolmap.undistort_images(str(output), str(model), str(images), undistort_options=undistorted)
        pycolmap.patch_match_stereo(str(output), options=stereo)
        kind = "geometric" if config.geometric_consistency else "photometric"
        fused = pycolmap.stereo_fusion(
            str(output / "fused.ply"), str(output), input_type=kind, options=fusion, output_type="PLY"
        )
    except Exception as error:  # pycolmap's own exception types differ from one version to the next
        raise FeatkitError(f"{model}: no dense points ({str(error).splitlines()[0]}); --set dense=null skips") from None
    for folder in ("images", "stereo", "sparse"):  # many times the size of the map
        shutil.rmtree(output / folder, ignore_errors=True)
    return int(fused.num_points3D())
