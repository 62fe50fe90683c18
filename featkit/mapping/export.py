"""Exports a map to other programs: Gaussian splatting, COLMAP's dense workspace, nerfstudio, hloc, text, points."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from jaxtyping import Float, UInt8

from featkit.core.config import Config, Count, Side
from featkit.core.errors import BadInputError, EmptyResultError, FeatkitError, NotWritableError, UsageError
from featkit.images.masks import find_masks
from featkit.io.artifact import explained, inside, making, part_of, place_files, scratch, write_stamp, write_text
from featkit.io.atomic import EXISTS, FOREIGN, STAMP, is_stamped, read_stamp, refuse_foreign, stamped_files
from featkit.io.lists import format_pairs, write_ply, write_poses
from featkit.mapping.cameras import is_spherical, to_intrinsics, to_pose
from featkit.mapping.covisibility import CovisibleConfig, Tracks, covisible_pairs
from featkit.mapping.model import MODEL_FILES, alignment_files, read_model, write_checked
from featkit.mapping.photographs import (
    PictureConfig,
    Pictures,
    Undistorted,
    check_photograph_sizes,
    check_projections,
    find_photographs,
    undistort,
    write_mask,
    write_pictures,
)

LOGGER = logging.getLogger(__name__)
TRANSFORMS, POINTS = "transforms.json", "sparse_pc.ply"  # nerfstudio's names
SFM, INTRINSICS, POSES, PAIRS = "sfm", "queries_with_intrinsics.txt", "poses.txt", "pairs-covisible.txt"
IMAGES, MASKS, SPARSE, STEREO = "images", "masks", "sparse", "stereo"  # COLMAP's names
STEREO_FOLDERS = ("depth_maps", "normal_maps", "consistency_graphs")


class ExportConfig(Config):
    """How a map is exported."""

    pairs: CovisibleConfig = CovisibleConfig()
    """Image pairs, for hloc."""
    undistort: bool = False
    """nerfstudio: write undistorted photographs and pinhole cameras instead of the original photographs."""
    pictures: PictureConfig = PictureConfig()
    """Undistorted photographs."""
    stereo_sources: Count = 20
    """dense: number of images that COLMAP's patch-match stereo compares with each image (COLMAP: 20)."""


@dataclass(frozen=True)
class Exported:
    """A finished export. notes: remarks for the user.

    residual_px: median reprojection error, px, read back from undistorted exports.
    """

    files: list[Path]
    images: int
    points: int
    notes: list[str] = field(default_factory=list)
    residual_px: float | None = None


@dataclass(frozen=True)
class ExportSource:
    """What to export: a model, its folder, and the files of its photographs and masks by name."""

    model: pycolmap.Reconstruction
    folder: Path
    config: ExportConfig
    files: dict[str, Path]
    masks: dict[str, Path]

    @property
    def registered(self) -> list[pycolmap.Image]:
        """Images with a pose, sorted by name."""
        return sorted((image for image in self.model.images.values() if image.has_pose), key=lambda image: image.name)


@dataclass
class WriterResult:
    """What a format's writer returns besides its files."""

    notes: list[str] = field(default_factory=list)
    residual_px: float | None = None
    empty_folders: list[str] = field(default_factory=list)


def export_model(
    form: str,
    folder: Path,
    output: Path,
    *,
    images: Sequence[Path] = (),
    masks: Path | None = None,
    config: ExportConfig | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the model in `folder` as one of FORMATS to `output`: a folder, or a file that ends in .ply.

    images: folders of the photographs, for formats that need them; by default one near the model. masks: folder of
    their masks. The map's coordinate frame is kept, and the alignment.json of an aligned map is copied. Raises
    UsageError; BadInputError (also for photographs that are missing or of another size); EmptyResultError for a map
    without images or points; NotWritableError.
    """
    if form not in FORMATS:
        raise UsageError(f"--format {form}: there is {', '.join(FORMATS)}")
    if (form == "ply") != (output.suffix.lower() == ".ply"):
        is_what = "a file whose name ends in .ply" if form == "ply" else "a folder, not a .ply file"
        raise UsageError(f"--format {form} writes {is_what}; --out is {output}")
    config = config or ExportConfig()
    model = read_model(folder)
    names = sorted(image.name for image in model.images.values() if image.has_pose)
    if not names:
        raise EmptyResultError(f"{folder}: no image of this model has a pose")
    files = find_photographs(folder, names, images) if form in WITH_PHOTOGRAPHS else {}
    check_photograph_sizes(model, files)
    hidden_by = {} if masks is None else find_masks(masks, files[names[0]].parent, names)
    source = ExportSource(model, folder, config, files, hidden_by)
    if form == "ply":
        return _write_ply(source, output, overwrite)
    if output.exists() and not output.is_dir():
        raise NotWritableError(f"{output}: is a file; choose a folder with --out")
    if form in WITH_PHOTOGRAPHS and not overwrite:
        pictures = [f"{IMAGES}/{name}" for name in names] if form in UNDISTORTED or config.undistort else []
        _refuse_existing(output, [WITH_PHOTOGRAPHS[form], *pictures])
    with scratch(part_of(output)) as part:
        result = FOLDERS[form](source, part, output)
        for name, text in alignment_files(folder).items():
            write_text(part / name, text)
        written = place_files(part, output, overwrite=overwrite, kind="export", format=form)
    with explained(output):
        for name in result.empty_folders:
            inside(output, name).mkdir(parents=True, exist_ok=True)
    return Exported(
        [output / name for name in written], len(names), model.num_points3D(), result.notes, result.residual_px
    )


def _refuse_existing(folder: Path, names: Sequence[str]) -> None:
    """Raise BadInputError for files that `place_files` would refuse without `overwrite`, before they are made."""
    existing = next((name for name in names if os.path.lexists(inside(folder, name))), None)
    if existing is not None and existing not in stamped_files(folder / STAMP):
        raise BadInputError(f"{folder / existing}: {FOREIGN}")
    if existing is not None:
        raise BadInputError(f"{folder / existing}: {EXISTS}")


def _write_ply(source: ExportSource, output: Path, overwrite: bool) -> Exported:
    refuse_foreign(output)
    points, colours = coloured_points(source.model)
    if len(points) == 0:
        raise EmptyResultError(f"{source.folder}: this model has no points")
    if output.exists() and not overwrite:
        raise BadInputError(f"{output}: {EXISTS}")
    return Exported([write_ply(output, points, colours)], len(source.registered), len(points))


def coloured_points(model: pycolmap.Reconstruction) -> tuple[Float[np.ndarray, "n 3"], UInt8[np.ndarray, "n 3"]]:
    """Points of a model in id order, and their RGB colours."""
    points = [model.points3D[point_id] for point_id in sorted(model.points3D)]
    xyz = np.array([point.xyz for point in points], dtype=np.float64).reshape(-1, 3)
    return xyz, np.array([point.color for point in points], dtype=np.uint8).reshape(-1, 3)


def _write_nerfstudio(source: ExportSource, part: Path, output: Path) -> WriterResult:
    """transforms.json and the points in its world frame, with undistorted photographs or paths of the originals."""
    points, colours = coloured_points(source.model)
    if source.config.undistort:
        made, result = _write_undistorted(source, part)
        model = made.model
        paths = {name: inside(Path(IMAGES), name).as_posix() for name in _posed_image_names(model)}
        result.residual_px = check_projections(source.model, model)
    else:
        model, result = source.model, WriterResult()
        paths = {
            name: Path(os.path.relpath(p.resolve(), output.resolve())).as_posix() for name, p in source.files.items()
        }
        for name, mask in source.masks.items():
            write_mask(source.files[name], mask, inside(part / MASKS, f"{name}.png"))
    masks = {
        name: f"{MASKS}/{name}.png"
        for name in _posed_image_names(model)
        if inside(part / MASKS, f"{name}.png").is_file()
    }
    ply_file = POINTS if len(points) else None
    content = transforms(model, paths, ply_file, masks)
    if ply_file is not None:
        write_ply(part / ply_file, to_nerfstudio_world(points), colours)
    write_text(part / TRANSFORMS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return result


def _posed_image_names(model: pycolmap.Reconstruction) -> list[str]:
    return sorted(image.name for image in model.images.values() if image.has_pose)


def _write_undistorted(
    source: ExportSource, part: Path, *, flat: bool = False, with_alpha: bool = False
) -> tuple[Undistorted, WriterResult]:
    """Write undistorted photographs to images/ (and masks/); returns the notes and the undistorted map."""
    made = undistort(source.model, source.config.pictures, flat=flat)
    pictures = Pictures(source.files, part / IMAGES, part / MASKS, source.masks, with_alpha)
    hidden = write_pictures(source.model, made, pictures, source.config.pictures)
    result = WriterResult()
    renamed = [name for name in _posed_image_names(made.model) if made.old_names[name] != name]
    if renamed:
        result.notes.append(
            f"{len(renamed)} photographs were renamed for this format, such as {made.old_names[renamed[0]]!r} to"
            f" {renamed[0]!r}"
        )
    if hidden:
        where = "transparent" if with_alpha else f"marked in {MASKS}/"
        result.notes.append(f"hidden pixels of {len(hidden)} photographs are {where}")
    return made, result


def _write_and_check_model(source: ExportSource, made: pycolmap.Reconstruction, folder: Path) -> float:
    """Write a model of pinhole cameras, read it back, and return its median reprojection error, px."""
    folder.mkdir(parents=True)
    write_checked(made, folder)
    return check_projections(source.model, read_model(folder))


def _write_gaussian_splatting(source: ExportSource, part: Path, output: Path) -> WriterResult:
    """images/ and sparse/0, as read by 3DGS, gsplat and OpenMVS. Names are flat, because 3DGS drops folders."""
    if source.model.num_points3D() == 0:
        raise EmptyResultError(f"{source.folder}: this model has no points, which Gaussian splatting starts from")
    made, result = _write_undistorted(source, part, flat=True, with_alpha=True)
    result.residual_px = _write_and_check_model(source, made.model, part / SPARSE / "0")
    return result


def _write_dense(source: ExportSource, part: Path, output: Path) -> WriterResult:
    """COLMAP's dense workspace: images/, sparse/, and stereo/ with the lists of source images and of fused images."""
    if source.model.num_points3D() == 0:
        raise EmptyResultError(f"{source.folder}: this model has no points, by which stereo pairs images")
    made, result = _write_undistorted(source, part)
    result.residual_px = _write_and_check_model(source, made.model, part / SPARSE)
    names = _posed_image_names(made.model)
    compared = f"__auto__, {source.config.stereo_sources}"
    write_text(part / STEREO / "patch-match.cfg", "".join(f"{name}\n{compared}\n" for name in names))
    write_text(part / STEREO / "fusion.cfg", "".join(f"{name}\n" for name in names))
    above = {Path(name).parent.as_posix() for name in names}
    result.empty_folders = [f"{STEREO}/{kind}/{folder}" for kind in STEREO_FOLDERS for folder in sorted(above)]
    result.notes.append(
        f"on a machine with CUDA: colmap patch_match_stereo --workspace_path {output}, then stereo_fusion"
    )
    return result


def _write_text_model(source: ExportSource, part: Path, output: Path) -> WriterResult:
    """COLMAP's text model."""
    if any((output / f"{name}.bin").exists() for name in MODEL_FILES):
        raise BadInputError(f"{output}: contains a binary model, which COLMAP would read instead; choose another --out")
    source.model.write_text(str(part))
    return WriterResult()


def _write_hloc(source: ExportSource, part: Path, output: Path) -> WriterResult:
    """The model, plus pairs by covisibility, the cameras as a query list, and the poses as results."""
    images = source.registered
    spaced = next((image.name for image in images if len(image.name.split()) != 1), None)
    if spaced is not None:
        raise BadInputError(f"{spaced!r}: hloc cannot read names with spaces; rename the photograph")
    (part / SFM).mkdir()
    write_checked(source.model, part / SFM)
    cameras = {image.name: to_intrinsics(source.model.cameras[image.camera_id]) for image in images}
    lines = [f"{name} {c.model} {c.width} {c.height} {' '.join(map(repr, c.params))}\n" for name, c in cameras.items()]
    write_text(part / INTRINSICS, "".join(lines))
    write_poses(part / POSES, {image.name: to_pose(image.cam_from_world()) for image in images})
    pairs = covisible_pairs(model_tracks(source.model), source.config.pairs.num_matched)
    if not pairs:
        return WriterResult([f"no {PAIRS}: no two images of this model see a point in common"])
    write_text(part / PAIRS, format_pairs(pairs))
    return WriterResult()


def model_tracks(model: pycolmap.Reconstruction) -> Tracks:
    """The images that see each point; images with a pose, by name."""
    images = sorted((image.name, image_id) for image_id, image in model.images.items() if image.has_pose)
    place = {image_id: index for index, (_, image_id) in enumerate(images)}
    seen = [
        [place[element.image_id] for element in model.points3D[point_id].track.elements if element.image_id in place]
        for point_id in sorted(model.points3D)
    ]
    starts = np.cumsum([0, *map(len, seen)])
    return Tracks(tuple(name for name, _ in images), starts, np.array([i for s in seen for i in s], dtype=np.int32))


Writer = Callable[[ExportSource, Path, Path], WriterResult]
FOLDERS: dict[str, Writer] = {
    "gaussian-splatting": _write_gaussian_splatting,
    "nerfstudio": _write_nerfstudio,
    "dense": _write_dense,
    "text": _write_text_model,
    "hloc": _write_hloc,
}
FORMATS = ("gaussian-splatting", "nerfstudio", "dense", "ply", "text", "hloc")
UNDISTORTED = ("gaussian-splatting", "dense")  # always
WITH_PHOTOGRAPHS = {  # and a file that each of them writes
    "gaussian-splatting": f"{SPARSE}/0/cameras.bin",
    "dense": f"{SPARSE}/cameras.bin",
    "nerfstudio": TRANSFORMS,
}


# ----------------------------------------------------------------------------------------------------------------------
# A map as nerfstudio's transforms.json, for NeRFs and Gaussian splats.
#
# A frame's transform_matrix is camera to world, with the camera in OpenGL axes: x right, y up, z backwards. The world
# is the map's after `applied_transform`, the one that nerfstudio's own conversion applies: (x, y, z) -> (x, z, -y), so
# that the y axis of an upright first camera maps to -z. Intrinsics are COLMAP's (origin at the image's corner).
# Source: nerfstudio's documentation, "Data conventions".


APPLIED_TRANSFORM = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]])
OPENGL_FROM_COLMAP = np.diag([1.0, -1.0, -1.0])  # camera axes
PERSPECTIVE, FISHEYE = "OPENCV", "OPENCV_FISHEYE"
FOCAL = "f"  # for both axes
# nerfstudio's names of the parameters of COLMAP's models, in COLMAP's order.
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
    model: pycolmap.Reconstruction,
    file_paths: Mapping[str, str],
    ply_file: str | None = None,
    mask_paths: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The content of transforms.json: a frame for every image with a pose, sorted by name.

    file_paths: path of each image, relative to the file. ply_file: path of the points in the transformed world.
    mask_paths: paths of the masks, for images that have one.
    Raises BadInputError for a lens that nerfstudio does not support, or a mix of fisheye and perspective lenses.
    """
    images = sorted((image for image in model.images.values() if image.has_pose), key=lambda image: image.name)
    used = {image.camera_id: image.name for image in reversed(images)}
    lenses = {camera_id: nerfstudio_camera(model.cameras[camera_id], name) for camera_id, name in used.items()}
    kinds = {fields["camera_model"]: used[camera_id] for camera_id, fields in lenses.items()}
    if len(kinds) > 1:
        raise BadInputError(
            f"{kinds[FISHEYE]!r} has a fisheye lens and {kinds[PERSPECTIVE]!r} has not: nerfstudio supports one kind of"
            " lens per scene; --undistort converts both to pinhole cameras"
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
        if image.name in (mask_paths or {}):
            frame["mask_path"] = (mask_paths or {})[image.name]
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


def to_nerfstudio_world(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Points of the map in nerfstudio's world frame, after `applied_transform`."""
    return points @ APPLIED_TRANSFORM[:, :3].T


def nerfstudio_camera(camera: pycolmap.Camera, image_name: str) -> dict[str, Any]:
    """A camera as fields of transforms.json. image_name: for errors. Raises BadInputError for an unsupported lens."""
    if camera.model_name not in LENSES:
        remedy = "" if is_spherical(camera) else "; --undistort converts it to a pinhole camera"
        supported = ", ".join(LENSES)
        raise BadInputError(
            f"{image_name!r} has a {camera.model_name} camera, which nerfstudio does not support ({supported}){remedy}"
        )
    kind, names = LENSES[camera.model_name]
    values = dict(zip(names, (float(value) for value in camera.params), strict=True))
    if FOCAL in values:
        values["fl_x"] = values["fl_y"] = values.pop(FOCAL)
    ordered = {name: values.get(name, 0.0) for name in ("fl_x", "fl_y", "cx", "cy", *DISTORTION[kind])}
    return {"camera_model": kind, "w": camera.width, "h": camera.height, **ordered}


# ----------------------------------------------------------------------------------------------------------------------
# Dense points of a map, as counted by the ETH benchmark: undistortion, patch-match stereo, fusion. Requires CUDA.


class DenseConfig(Config):
    """The ETH local-feature benchmark's settings."""

    max_image_size: Side = 1200
    """Longer side of the undistorted images, px."""
    geometric_consistency: bool = False
    """Run a second pass that checks depths for consistency between images."""
    min_fused_pixels: Count = 5
    """Minimum number of consistent pixels for a fused point."""


def dense_is_possible() -> bool:
    """Whether this pycolmap was built with CUDA."""
    return bool(pycolmap.has_cuda)


def count_dense_points(config: DenseConfig, images: Path, model: Path, output: Path, inputs: str) -> int:
    """Number of fused points of a model; computed once per configuration and `inputs` (a digest of the model).

    The points are kept in output/fused.ply. Raises FeatkitError when COLMAP fails.
    """
    stamp = output / "dense.json"
    if is_stamped(stamp, config, inputs):
        return int((read_stamp(stamp) or {}).get("points", 0))
    for image in read_model(model).images.values():
        inside(output, image.name)  # COLMAP writes the undistorted photographs under these names
    with making(output) as new:
        points = _fuse_points(config, images, model, new)
        write_stamp(new / stamp.name, config, inputs, kind="dense", points=points)
    return points


def _fuse_points(config: DenseConfig, images: Path, model: Path, output: Path) -> int:
    undistorted = pycolmap.UndistortCameraOptions()
    undistorted.max_image_size = config.max_image_size
    stereo = pycolmap.PatchMatchOptions()
    stereo.geom_consistency = config.geometric_consistency
    fusion = pycolmap.StereoFusionOptions()
    fusion.min_num_pixels = config.min_fused_pixels
    try:
        LOGGER.info("dense: running stereo; this takes minutes to hours")
        pycolmap.undistort_images(str(output), str(model), str(images), undistort_options=undistorted)
        pycolmap.patch_match_stereo(str(output), options=stereo)
        kind = "geometric" if config.geometric_consistency else "photometric"
        fused = pycolmap.stereo_fusion(
            str(output / "fused.ply"), str(output), input_type=kind, options=fusion, output_type="PLY"
        )
    except Exception as error:  # pycolmap's exception types differ between versions
        raise FeatkitError(f"{model}: no dense points ({str(error).splitlines()[0]}); --set dense=null skips") from None
    for folder in ("images", "stereo", "sparse"):  # many times the size of the map
        shutil.rmtree(output / folder, ignore_errors=True)
    return int(fused.num_points3D())
