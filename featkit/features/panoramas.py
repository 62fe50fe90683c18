"""Features of panoramas of 360 by 180 degrees (equirectangular), extracted from pinhole views if so configured.


An equirectangular picture stretches everything away from its middle row, by 1 / cos(latitude), and cuts what lies on
its edge; no local feature expects either. A view shows its part as a camera would. Every direction belongs to the view
whose axis is nearest, so that nothing is found twice; views reach a little further, so that nothing is cut.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from featkit.core.registry import Method
from featkit.core.types import Features
from featkit.features.base import Extractor
from featkit.images.exif import is_whole_sphere, taken_with
from featkit.images.read import DecodedImage

AXES = ((0, 8), (45, 6), (-45, 6), (90, 1), (-90, 1))
"""Rings of views: their latitude (degrees, up) and how many are evenly spaced on it."""
HALF_VIEW_DEG = 36.0
"""Half of the field of view of a view: 30 degrees to the farthest corner of its part, and a margin of 6 degrees."""
STEP = 1e-3  # of a view's pixel, over which the turn of an orientation is measured


def extract_decoded(method: Method[Extractor], image: DecodedImage, of_sphere: bool) -> Features:
    """Features of a decoded image, in its pixels; a panorama is cut into views if so configured.

    of_sphere: whether the image is a panorama.
    """
    if not (of_sphere and is_cut_into_views(method, image)):
        return method.built.extract(image.pixels)
    return merge_view_features(
        method, image, [method.built.extract(v.cut(image.pixels)) for v in views_of(*image.size)]
    )


def is_cut_into_views(method: Method[Extractor], image: DecodedImage) -> bool:
    """Whether a panorama is cut into views."""
    return bool(method.config.panoramas == "views") and is_whole_sphere(image.size)


def is_panorama(method: Method[Extractor], path: Path) -> bool:
    """Whether a photograph is a panorama, by the configuration or by its metadata."""
    if method.config.panoramas == "whole" or method.config.all_panoramas:
        return bool(method.config.all_panoramas)
    taken = taken_with(path)
    return taken is not None and taken.is_panorama and not taken.is_part


def merge_view_features(method: Method[Extractor], image: DecodedImage, found: Sequence[Features]) -> Features:
    """Merge the features of a panorama's views, limited to the extractor's maximum per image."""
    limit = method.own.result_fields().get("max_keypoints")
    return in_panorama(found, *image.size, limit if isinstance(limit, int) and limit > 0 else None)


# ----------------------------------------------------------------------------------------------------------------------
# The views, and features of the views mapped back to the panorama.


@dataclass(frozen=True)
class View:
    """A square pinhole view of a sphere. rotation: sphere to view (x right, y down, z ahead).

    focal_px: its principal point is the middle. at: for each of its pixels the panorama's x and y.
    """

    rotation: Float[np.ndarray, "3 3"]
    focal_px: float
    side: int
    at: tuple[Float32[np.ndarray, "s s"], Float32[np.ndarray, "s s"]]

    def rays(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
        """Directions in the sphere's axes, not normalised."""
        middle = (self.side - 1) / 2
        return np.column_stack([(points - middle) / self.focal_px, np.ones(len(points))]) @ self.rotation

    def cut(self, pixels: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "s s *c"]:
        """This view of a panorama."""
        wrapped = np.concatenate([pixels[:, -1:], pixels, pixels[:, :1]], axis=1)  # so that the seam is interpolated
        return cv2.remap(wrapped, self.at[0] + 1, self.at[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@functools.lru_cache(maxsize=4)
def views_of(width: int, height: int) -> tuple[View, ...]:
    """The views of a panorama of this size. In their middle they have its resolution at the equator."""
    focal = width / (2 * np.pi)
    side = int(np.ceil(2 * focal * np.tan(np.radians(HALF_VIEW_DEG))))
    views = []
    for latitude, count in AXES:
        for number in range(count):
            rotation = _view_rotation(np.radians(360 * number / count), np.radians(latitude))
            grid = np.mgrid[0:side, 0:side][::-1].reshape(2, -1).T.astype(np.float64)
            view = View(rotation, focal, side, (np.zeros((0, 0), np.float32),) * 2)
            x, y = on_sphere(view.rays(grid), width, height).T.reshape(2, side, side).astype(np.float32)
            views.append(replace(view, at=(x, y)))
    return tuple(views)


def _view_rotation(longitude: float, latitude: float) -> Float[np.ndarray, "3 3"]:
    """Sphere to view: a view that looks at this longitude (right of the middle) and latitude (up), upright."""
    turn = cv2.Rodrigues(np.array([0.0, -longitude, 0.0]))[0]
    return np.asarray(cv2.Rodrigues(np.array([-latitude, 0.0, 0.0]))[0] @ turn)


def on_sphere(rays: Float[np.ndarray, "n 3"], width: int, height: int) -> Float[np.ndarray, "n 2"]:
    """Pixels of a panorama (featkit's: centres are whole numbers) that directions are seen at. COLMAP's convention."""
    x, y, z = rays.T
    longitude, latitude = np.arctan2(x, z), np.arctan2(y, np.hypot(x, z))
    return np.stack([(longitude / (2 * np.pi) + 0.5) * width - 0.5, (latitude / np.pi + 0.5) * height - 0.5], axis=1)


def in_panorama(found: Sequence[Features], width: int, height: int, max_keypoints: int | None) -> Features:
    """Features of the views in `views_of`'s order, as features of the panorama; at most so many, by score."""
    views = views_of(width, height)
    axes = np.stack([view.rotation[2] for view in views])
    parts = []
    for number, (view, features) in enumerate(zip(views, found, strict=True)):
        rays = view.rays(features.keypoints.astype(np.float64))
        nearest_here = np.flatnonzero((rays @ axes.T).argmax(axis=1) == number)
        parts.append(_map_to_panorama(features.select(nearest_here), view, width, height))
    joined = replace(
        parts[0],
        keypoints=np.concatenate([part.keypoints for part in parts]),
        descriptors=np.concatenate([part.descriptors for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        scales=_concatenate([part.scales for part in parts]),
        oris=_concatenate([part.oris for part in parts]),
    )
    if max_keypoints is None or len(joined) <= max_keypoints:
        return joined
    return joined.select(np.sort(np.argsort(-joined.scores, kind="stable")[:max_keypoints]))


def _concatenate(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    return None if any(part is None for part in parts) else np.concatenate([p for p in parts if p is not None])


def _map_to_panorama(features: Features, view: View, width: int, height: int) -> Features:
    """Features of one view on the panorama: sizes by the ratio of the pixels' solid angles, orientations by a step."""
    keypoints = features.keypoints.astype(np.float64)
    rays = view.rays(keypoints)
    positions = on_sphere(rays, width, height)
    length = np.linalg.norm(rays, axis=1)
    cosine = np.hypot(rays[:, 0], rays[:, 2]) / np.maximum(length, 1e-12)
    size_ratio = np.sqrt(1 / length**3 / np.maximum(cosine, 1e-3))
    oris = None
    if features.oris is not None:
        step = STEP * np.stack([np.cos(features.oris), np.sin(features.oris)], axis=1)
        moved = on_sphere(view.rays(keypoints + step), width, height) - positions
        moved[:, 0] = (moved[:, 0] + width / 2) % width - width / 2
        oris = np.arctan2(moved[:, 1], moved[:, 0]).astype(np.float32)
    return replace(
        features,
        keypoints=positions.astype(np.float32),
        image_size=(width, height),
        scales=None if features.scales is None else (features.scales * size_ratio).astype(np.float32),
        oris=oris,
    )
