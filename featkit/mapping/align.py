"""A map against true cameras: similarity alignment of the centres, then errors of centres and rotations."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pycolmap
from jaxtyping import Float

from featkit.errors import BadInputError
from featkit.geometry.poses import camera_centre, quaternion, rotation_angle_deg, rotation_matrix
from featkit.mapping.verify import to_pose
from featkit.types import Pose

LOGGER = logging.getLogger(__name__)
MIN_COMMON = 3  # a similarity takes three centres that are not on one line


@dataclass(frozen=True)
class PoseErrors:
    """Errors per image after alignment: centres in the unit of the truth, rotations in degrees."""

    names: list[str]
    centre: Float[np.ndarray, " n"]
    rotation_deg: Float[np.ndarray, " n"]
    truth_from_map: Float[np.ndarray, "3 4"]
    """Similarity that was applied: s R | t."""


def compare_with_truth(model: pycolmap.Reconstruction, truth: dict[str, Pose], align: bool = True) -> PoseErrors:
    """Camera errors of a model. Rotations are compared after the same similarity.

    align: False when the model is in the frame of the truth already. Raises BadInputError when fewer than three
    registered images have a true pose.
    """
    images = sorted((i for i in model.images.values() if i.has_pose and i.name in truth), key=lambda i: i.name)
    if len(images) < MIN_COMMON:
        raise BadInputError(f"only {len(images)} images of the map have a true pose; {MIN_COMMON} are needed")
    poses = [to_pose(image.cam_from_world()) for image in images]
    true_centres = np.array([camera_centre(truth[image.name]) for image in images])
    similarity = truth_from_map(model, truth) if align else np.eye(4)[:3]
    scale = float(np.cbrt(np.linalg.det(similarity[:, :3])))
    rotation = similarity[:, :3] / scale
    centres = np.array([camera_centre(pose) for pose in poses]) @ similarity[:, :3].T + similarity[:, 3]
    angles = [
        rotation_angle_deg(rotation_matrix(truth[image.name].qvec), rotation_matrix(pose.qvec) @ rotation.T)
        for image, pose in zip(images, poses, strict=True)
    ]
    errors = np.linalg.norm(centres - true_centres, axis=1)
    return PoseErrors([image.name for image in images], errors, np.array(angles), similarity)


def similarity_to_truth(model: pycolmap.Reconstruction, truth: dict[str, Pose]) -> Float[np.ndarray, "3 4"]:
    """`truth_from_map` when enough images of the map have a true pose, else the identity (and a warning)."""
    common = sum(image.has_pose and image.name in truth for image in model.images.values())
    if common >= MIN_COMMON:
        return truth_from_map(model, truth)
    LOGGER.warning("the truth names %d images of the map: its frame and scale are taken to be the truth's", common)
    return np.eye(3, 4)


def truth_from_map(model: pycolmap.Reconstruction, truth: dict[str, Pose]) -> Float[np.ndarray, "3 4"]:
    """Least-squares similarity (Umeyama 1991, by pycolmap) that takes the map's camera centres to the true ones."""
    images = [i for i in model.images.values() if i.has_pose and i.name in truth]
    source = np.array([camera_centre(to_pose(i.cam_from_world())) for i in images])
    target = np.array([camera_centre(truth[i.name]) for i in images])
    similarity = pycolmap.estimate_sim3d(source, target)
    if similarity is None:
        raise BadInputError("the map's cameras and the true ones cannot be aligned: their centres are on one line")
    return np.asarray(similarity.matrix())


def transform_pose(pose: Pose, similarity: Float[np.ndarray, "3 4"]) -> Pose:
    """A world-to-camera pose after the world was moved by `similarity` (s R | t)."""
    scale = float(np.cbrt(np.linalg.det(similarity[:, :3])))
    rotation = rotation_matrix(pose.qvec) @ (similarity[:, :3] / scale).T
    centre = similarity[:, :3] @ camera_centre(pose) + similarity[:, 3]
    return Pose(quaternion(rotation), -rotation @ centre)
