"""Teacher features of photographs: a features.h5 per folder of photographs, as `featkit extract` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32

from featkit.core.errors import BadInputError
from featkit.geometry.pixels import as_homography, resize_affine
from featkit.io.features import FeatureStore, open_features


@dataclass(frozen=True)
class TaughtPoints:
    """A teacher's keypoints on a canvas; rows that are not `shown` are padding at the end. Descriptors: unit rows."""

    points: Float32[np.ndarray, "n 2"]
    descriptors: Float32[np.ndarray, "n d"]
    scores: Float32[np.ndarray, " n"]
    shown: Bool[np.ndarray, " n"]


class Teacher:
    """Features of photographs by folder and name.

    Raises BadInputError for invalid feature files, or if their descriptors differ in dimension.
    """

    def __init__(self, folders: Sequence[Path], files: Sequence[Path]):
        """files: the features of each folder's photographs, with names relative to the folder."""
        if len(folders) != len(files):
            raise BadInputError(
                f"{len(files)} teacher file(s) for {len(folders)} folder(s) of photographs: give one for each, in order"
            )
        self._open_files = ExitStack()
        self._stores: dict[str, FeatureStore] = {}
        lengths = {}
        for folder, file in zip(folders, files, strict=True):
            store = self._open_files.enter_context(open_features(file))
            names = store.names()
            if not names:
                raise BadInputError(f"{file}: no features in it; extract the photographs of {folder} first")
            self._stores[str(folder)] = store
            lengths[str(file)] = store.descriptors(names[0]).shape[1]
        if len(set(lengths.values())) > 1:
            raise BadInputError(f"teachers with different descriptor dimensions: {lengths}; extract all the same way")
        self.dimension = next(iter(lengths.values()))

    def has(self, folder: Path, name: str) -> bool:
        """Whether a photograph has features."""
        return str(folder) in self._stores and self._stores[str(folder)].has(name)

    def on_canvas(
        self,
        folder: Path,
        name: str,
        canvas_from_image: Float[np.ndarray, "3 3"],
        image_size: tuple[int, int],
        canvas_size: tuple[int, int],
        count: int,
    ) -> TaughtPoints:
        """The best-scoring keypoints of a photograph that are on a canvas: `count` rows, padded if there are fewer.

        image_size: width and height of the pixels that `canvas_from_image` maps onto the canvas.
        """
        features = self._stores[str(folder)].read(name).as_seen()  # upright, as the photograph
        canvas_from_file = canvas_from_image @ as_homography(resize_affine(features.image_size, image_size))
        mapped = np.concatenate([features.keypoints, np.ones((len(features), 1))], axis=1) @ canvas_from_file.T
        front = mapped[:, 2] > 0  # the sign of a view's homography counts: see draw_view
        positions = mapped[:, :2] / np.where(front, mapped[:, 2], 1.0)[:, None]
        inside = front & ((positions >= 0) & (positions <= np.array(canvas_size) - 1)).all(axis=1)
        best = np.flatnonzero(inside)
        best = best[np.argsort(-features.scores[best], kind="stable")[:count]]
        points = np.zeros((count, 2), np.float32)
        descriptors = np.zeros((count, self.dimension), np.float32)
        scores = np.zeros(count, np.float32)
        points[: len(best)], scores[: len(best)] = positions[best], features.scores[best]
        descriptors[: len(best)] = features.descriptors[best]
        return TaughtPoints(points, descriptors, scores, np.arange(count) < len(best))

    def close(self) -> None:
        """Close the files."""
        self._open_files.close()
