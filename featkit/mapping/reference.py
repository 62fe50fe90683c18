"""Known poses to triangulate with: a COLMAP model, or a poses.txt with the camera beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pycolmap

from featkit.errors import BadInputError
from featkit.mapping.cameras import CameraConfig, to_camera
from featkit.mapping.model import read_model
from featkit.mapping.verify import to_pose
from featkit.store.poses import Intrinsics, read_camera, read_poses
from featkit.types import Pose


@dataclass(frozen=True)
class Reference:
    """World-to-camera poses by image name; cameras by id, and each image's camera id (None: to be inferred)."""

    poses: dict[str, Pose]
    cameras: dict[int, pycolmap.Camera] | None
    camera_ids: dict[str, int] | None


def read_reference(path: Path, config: CameraConfig) -> Reference:
    """Read a COLMAP model folder, or a poses.txt whose camera is `config.params` or camera.txt beside it.

    Raises BadInputError.
    """
    if path.is_dir():
        model = read_model(path)
        images = [image for image in model.images.values() if image.has_pose]
        if not images:
            raise BadInputError(f"{path}: no image of this model has a pose")
        return Reference(
            poses={image.name: to_pose(image.cam_from_world()) for image in images},
            cameras=dict(model.cameras),
            camera_ids={image.name: image.camera_id for image in images},
        )
    poses = read_poses(path)
    beside = path.with_name("camera.txt")
    if config.params is None and beside.is_file():
        return _one_camera(poses, read_camera(beside))
    return Reference(poses, None, None)


def _one_camera(poses: dict[str, Pose], intrinsics: Intrinsics) -> Reference:
    return Reference(poses, {1: to_camera(intrinsics, 1)}, dict.fromkeys(poses, 1))
