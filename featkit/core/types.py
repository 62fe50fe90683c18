"""Data passed between packages: small frozen dataclasses of numpy arrays.

Pixel frame everywhere: the centre of the top-left pixel is (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8


@dataclass(frozen=True)
class Features:
    """Local features of one image.

    keypoints: x, y in pixels of the image they were taken from.
    descriptors: one row per keypoint, L2-normalised unless the extractor documents otherwise.
    scores: larger is better; extractors keep the best when the number is limited.
    image_size: width, height in pixels.
    scales: radius-like size in pixels; oris: radians, counted from +x towards +y.
    uncertainty_px: standard deviation of a keypoint, in pixels.
    turns: number of concatenated descriptors per row, of the image rotated counter-clockwise in that many equal steps.
    extractor: name by which learned matchers know the features ("aliked-n16", "rootsift"); "": unknown.
    from_seen: affine map to these pixels from those of the upright, resized image given to the extractor (pixel centres
    are integers in both); None: identity.
    """

    keypoints: Float[np.ndarray, "n 2"]
    descriptors: Float[np.ndarray, "n d"]
    scores: Float[np.ndarray, " n"]
    image_size: tuple[int, int]
    scales: Float[np.ndarray, " n"] | None = None
    oris: Float[np.ndarray, " n"] | None = None
    uncertainty_px: float = 1.0
    turns: int = 1
    extractor: str = ""
    from_seen: Float[np.ndarray, "2 3"] | None = None

    def __len__(self) -> int:
        return len(self.keypoints)

    def select(self, index: Int[np.ndarray, " m"]) -> Features:
        """The features at `index`, in that order."""
        return replace(
            self,
            keypoints=self.keypoints[index],
            descriptors=self.descriptors[index],
            scores=self.scores[index],
            scales=None if self.scales is None else self.scales[index],
            oris=None if self.oris is None else self.oris[index],
        )

    def as_seen(self) -> Features:
        """The same features in the pixels of the image given to the extractor: positions, sizes, orientations."""
        if self.from_seen is None:
            return self
        back = np.linalg.inv(self.from_seen[:, :2])
        scale = float(np.sqrt(abs(np.linalg.det(back))))
        width, height = np.rint(np.abs(back @ np.asarray(self.image_size))).astype(int).tolist()
        return replace(
            self,
            keypoints=((self.keypoints - self.from_seen[:, 2]) @ back.T).astype(np.float32),
            image_size=(width, height),
            scales=None if self.scales is None else (self.scales * scale).astype(np.float32),
            oris=None if self.oris is None else turned(back, self.oris),
            uncertainty_px=self.uncertainty_px * scale,
            from_seen=None,
        )


def turned(linear: Float[np.ndarray, "2 2"], oris: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Orientations, radians, after a linear map is applied to the image."""
    directions = np.stack([np.cos(oris), np.sin(oris)], axis=1) @ linear.T
    return np.arctan2(directions[:, 1], directions[:, 0]).astype(np.float32)


@dataclass(frozen=True)
class Matches:
    """Matches from image 0 to image 1.

    matches0: for every keypoint of image 0 the index of its match in image 1, or -1.
    scores0: similarity of that match (0 where there is none).
    """

    matches0: Int[np.ndarray, " n0"]
    scores0: Float[np.ndarray, " n0"]

    @property
    def count(self) -> int:
        return int((self.matches0 >= 0).sum())

    def as_index_pairs(self) -> Int[np.ndarray, "m 2"]:
        """Rows (index in image 0, index in image 1), ordered by the first."""
        index0 = np.flatnonzero(self.matches0 >= 0)
        return np.stack([index0, self.matches0[index0]], axis=1).astype(np.int32)


@dataclass(frozen=True, order=True, slots=True)
class Pair:
    """Two image names, as in pairs.txt. Uses slots, since a large collection has millions of them."""

    name0: str
    name1: str

    def key(self) -> tuple[str, str]:
        """The same for (a, b) and (b, a)."""
        return (self.name0, self.name1) if self.name0 <= self.name1 else (self.name1, self.name0)


@dataclass(frozen=True)
class Pose:
    """World-to-camera pose: x_camera = R(qvec) x_world + tvec. qvec is (w, x, y, z), unit norm."""

    qvec: Float[np.ndarray, "4"]
    tvec: Float[np.ndarray, "3"]


class PatchArray(Protocol):
    """An array of grey patches (n, side, side), in memory or memory-mapped."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: np.ndarray) -> UInt8[np.ndarray, "b s s"]: ...
