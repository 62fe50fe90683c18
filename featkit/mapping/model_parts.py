"""Poses, or who sees which point, of a COLMAP model; one in binary files is read without its keypoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featkit.mapping.cameras import CameraConfig
from featkit.mapping.covisibility import Tracks
from featkit.mapping.light_model import read_light_reference, read_light_tracks
from featkit.mapping.model import is_binary, read_model
from featkit.mapping.reference import read_reference
from featkit.types import Pose


def poses_of_model(folder: Path) -> dict[str, Pose]:
    """World-to-camera poses by image name. Raises BadInputError."""
    reference = read_light_reference(folder) if is_binary(folder) else read_reference(folder, CameraConfig())
    return reference.poses


def tracks_of_model(folder: Path) -> Tracks:
    """Who sees which point; names in their order. Raises BadInputError."""
    if is_binary(folder):
        return read_light_tracks(folder)
    model = read_model(folder)
    names = sorted(image.name for image in model.images.values() if image.has_pose)
    place = {name: index for index, name in enumerate(names)}
    by_id = {image.image_id: place[image.name] for image in model.images.values() if image.has_pose}
    seen = [
        [by_id[element.image_id] for element in point.track.elements if element.image_id in by_id]
        for _, point in sorted(model.points3D.items())
    ]
    starts = np.cumsum([0, *map(len, seen)])
    return Tracks(tuple(names), starts, np.array([image for track in seen for image in track], np.int32))
