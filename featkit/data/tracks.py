"""A reconstruction as numpy arrays: cameras, points, and observations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from jaxtyping import Float, Int

from featkit.core.errors import EmptySceneError
from featkit.images.read import PLAIN_DECODING, DecodeConfig

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
NO_LICENCE = "not stated: ask whoever took the photographs"

JACOBIAN_STEP = 1e-4  # fraction of the depth: small for any lens model, large compared with float64 rounding


class Projector(Protocol):
    """A camera with lens distortion, in featkit pixels of its file."""

    def project(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
        """Points in the camera frame -> pixels, NaN where the camera cannot see."""
        ...

    def rays(self, pixels: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
        """Pixels -> points in the camera frame at depth 1."""
        ...


@dataclass(frozen=True)
class ImagePoints:
    """Points as seen by one image.

    xy: pixels, NaN where it cannot see. depth: along the optical axis, world units.
    jacobian: pixels per world unit, along the three world axes. magnification: pixels per world unit for a small plane
    at the point, parallel to the image. directions: unit vectors from the points to the camera centre.
    """

    xy: Float[np.ndarray, "n 2"]
    depth: Float[np.ndarray, " n"]
    jacobian: Float[np.ndarray, "n 2 3"]
    magnification: Float[np.ndarray, " n"]
    directions: Float[np.ndarray, "n 3"]


@dataclass(frozen=True)
class SceneTracks:
    """Images with world-to-camera poses, points, and observations sorted by point.

    image_sizes: width, height. observed_points and observed_images index `points` and `image_names`.
    """

    name: str
    image_names: tuple[str, ...]
    image_sizes: Int[np.ndarray, "m 2"]
    rotations: Float[np.ndarray, "m 3 3"]
    translations: Float[np.ndarray, "m 3"]
    projectors: tuple[Projector, ...]
    points: Float[np.ndarray, "p 3"]
    observed_points: Int[np.ndarray, " o"]
    observed_images: Int[np.ndarray, " o"]
    observed_xy: Float[np.ndarray, "o 2"]

    def views(self, image: int, index: Int[np.ndarray, " n"]) -> ImagePoints:
        """The points at `index` as `image` sees them."""
        return self.views_of(image, self.points[index])

    def views_of(self, image: int, points: Float[np.ndarray, "n 3"]) -> ImagePoints:
        """World points as `image` sees them."""
        rotation = self.rotations[image]
        local = points @ rotation.T + self.translations[image]
        in_camera = self._camera_jacobian(image, local)
        toward = -rotation.T @ self.translations[image] - points
        return ImagePoints(
            xy=self.projectors[image].project(local),
            depth=local[:, 2],
            jacobian=in_camera @ rotation,
            magnification=np.sqrt(
                np.abs(in_camera[:, 0, 0] * in_camera[:, 1, 1] - in_camera[:, 0, 1] * in_camera[:, 1, 0])
            ),
            directions=toward / np.linalg.norm(toward, axis=1, keepdims=True),
        )

    def _camera_jacobian(self, image: int, local: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2 3"]:
        """Pixels per world unit along the camera axes, by central differences, which work for any lens model."""
        project = self.projectors[image].project
        step = JACOBIAN_STEP * np.abs(local[:, 2:])
        columns = []
        for axis in np.eye(3):
            ahead, behind = project(local + step * axis), project(local - step * axis)
            columns.append((ahead - behind) / (2 * step))
        return np.stack(columns, axis=2)

    def back_projected(
        self, image: int, pixels: Float[np.ndarray, "n 2"], depths: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n 3"]:
        """World points that an image sees at these pixels and depths."""
        local = self.projectors[image].rays(pixels) * depths[:, None]
        return (local - self.translations[image]) @ self.rotations[image]

    def in_plane(self, image: int, views: ImagePoints, angles: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
        """World directions, parallel to the image plane, that point to `angles` (radians) in the image."""
        rotation = self.rotations[image]
        in_image = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        flat = np.linalg.solve(views.jacobian @ rotation.T[:, :2], in_image[:, :, None])[:, :, 0]
        directions = flat @ rotation[:2]
        return directions / np.linalg.norm(directions, axis=1, keepdims=True)


@dataclass(frozen=True)
class Scene:
    """A reconstruction from which patches are made, the folder of its photographs, and their licence.

    keypoints: a features.h5 whose keypoints replace those of the detector. decoding: of all its photographs.
    """

    tracks: SceneTracks
    images: Path
    licence: str = NO_LICENCE
    keypoints: Path | None = None
    decoding: DecodeConfig = PLAIN_DECODING


@dataclass(frozen=True)
class PhotographFolder:
    """Single photographs in a folder, their licence, and how they are decoded."""

    name: str
    folder: Path
    names: tuple[str, ...]
    licence: str
    decoding: DecodeConfig = PLAIN_DECODING


def skip_empty_scenes(items: Sequence[T], work: Callable[[T], object]) -> list[T]:
    """Call `work` for all items; returns those without an EmptySceneError. The others are skipped with a warning.

    Raises the first EmptySceneError if no item is left.
    """
    kept, empty = [], []
    for item in items:
        try:
            work(item)
            kept.append(item)
        except EmptySceneError as error:
            empty.append(error)
    if not kept and empty:
        raise empty[0]
    for reason in empty:
        LOGGER.warning("passed over: %s", reason)
    return kept
