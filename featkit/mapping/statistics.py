"""What a map holds, in numbers: the columns of the ETH local-feature benchmark, and one row per image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pycolmap
from jaxtyping import Float, Int


@dataclass(frozen=True)
class MapStatistics:
    """track_length: observations per point. reprojection_px: mean error over all points, px."""

    images: int
    registered: int
    points: int
    observations: int
    track_length: float
    observations_per_image: float
    reprojection_px: float


@dataclass(frozen=True)
class ImageStatistics:
    """One registered image: keypoints, how many see a point of the map, and the mean error of those points, px."""

    name: str
    camera_id: int
    focal_px: float
    keypoints: int
    observations: int
    error_px: float


def map_statistics(model: pycolmap.Reconstruction, images: int) -> MapStatistics:
    """Statistics of a model of a scene with that many images."""
    return MapStatistics(
        images=images,
        registered=model.num_reg_images(),
        points=model.num_points3D(),
        observations=model.compute_num_observations(),
        track_length=model.compute_mean_track_length(),
        observations_per_image=model.compute_mean_observations_per_reg_image(),
        reprojection_px=model.compute_mean_reprojection_error(),
    )


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
    """For every keypoint of an image the id of the map's point it sees, or -1."""
    return np.array([p.point3D_id if p.has_point3D() else -1 for p in image.points2D], dtype=np.int64)


def tracks_and_errors(
    model: pycolmap.Reconstruction,
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Track length and reprojection error (px) of every point."""
    points = list(model.points3D.values())
    lengths = np.array([point.track.length() for point in points], dtype=np.int64)
    return lengths, np.array([point.error for point in points], dtype=np.float64)
