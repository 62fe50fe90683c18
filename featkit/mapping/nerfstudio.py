"""A map as nerfstudio's transforms.json, for NeRFs and Gaussian splats.

A frame's transform_matrix is camera to world, of a camera in OpenGL's axes: x right, y up, z backwards. The world is
the map's after `applied_transform`, which is the one that nerfstudio's own conversion applies: (x, y, z) -> (x, z, -y),
so that the y of a first camera held upright points to -z. Intrinsics are COLMAP's (the image's corner is the origin).
Source: nerfstudio's documentation, "Data conventions".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pycolmap
from jaxtyping import Float

from featkit.errors import BadInputError

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
