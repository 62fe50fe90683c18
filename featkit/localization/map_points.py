"""The map as a localizer needs it: for every keypoint of every map image, the 3D point it belongs to."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
import pycolmap
from jaxtyping import Float, Int

from featkit.errors import BadInputError
from featkit.geometry.pixels import to_colmap
from featkit.mapping.statistics import point_ids
from featkit.store.features import FeatureStore
from featkit.types import Matches, Pair

CACHED_IMAGES = 512
MAX_KEYPOINT_SHIFT_PX = 0.1


class MatchSource(Protocol):
    """Where matches of pairs come from: a MatchStore, or memory."""

    def read(self, pair: Pair) -> Matches: ...


class MapPoints:
    """A model with the features it was made from."""

    def __init__(self, model: pycolmap.Reconstruction, features: FeatureStore):
        self.model = model
        self._images = {image.name: image for image in model.images.values() if image.has_pose}
        if not self._images:
            raise BadInputError("no image of the map has a pose; nothing can be localized in it")
        self._points_of = lru_cache(CACHED_IMAGES)(self._read_points)
        self._check_same_keypoints(features)

    def names(self) -> list[str]:
        """Registered images, sorted."""
        return sorted(self._images)

    def point_ids(self, name: str) -> Int[np.ndarray, " n"]:
        """For every keypoint of a registered image the id of its 3D point, or -1."""
        return self._points_of(name)

    def _read_points(self, name: str) -> Int[np.ndarray, " n"]:
        return point_ids(self._images[name])

    def _check_same_keypoints(self, features: FeatureStore) -> None:
        """Matches name keypoints by their number, so model and features must agree on them."""
        for name in self.names():
            image, stored = self._images[name], features.keypoints(name)
            if len(stored) != image.num_points2D():
                raise BadInputError(
                    f"{features.path}: {name!r} has {len(stored)} keypoints, the map's image has"
                    f" {image.num_points2D()}; localize with the features that the map was made from"
                )
            if len(stored) and np.abs(to_colmap(stored)[0] - image.points2D[0].xy).max() > MAX_KEYPOINT_SHIFT_PX:
                raise BadInputError(f"{features.path}: {name!r} has other keypoints than the map; see --features")

    def correspondences(
        self, query: str, keypoints: Float[np.ndarray, "n 2"], partners: list[str], matches: MatchSource
    ) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
        """2D-3D matches of a query through its matches with map images: keypoint index and point id, each pair once."""
        found = [np.zeros((0, 2), np.int64)]
        for name in partners:
            pairs = matches.read(Pair(query, name)).as_index_pairs().astype(np.int64)
            ids = self._points_of(name)[pairs[:, 1]]
            seen = ids >= 0
            found.append(np.stack([pairs[seen, 0], ids[seen]], axis=1))
        unique = np.unique(np.concatenate(found), axis=0)
        return unique[:, 0], unique[:, 1]

    def xyz(self, ids: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m 3"]:
        """Coordinates of points, in map units."""
        points = self.model.points3D
        return np.array([points[int(i)].xyz for i in ids], dtype=np.float64).reshape(-1, 3)
