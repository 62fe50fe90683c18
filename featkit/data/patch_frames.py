"""Where patches are cut: the position, size and direction of each in its image, and how far these are jittered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from featkit.config import Config
from featkit.data.keypoint_classes import Detections
from featkit.data.scene_classes import SceneClasses
from featkit.images.decode import DecodedImage

PATCH_PX = 64.0  # side that `position_px` is measured on: the format's


class FrameJitter(Config):
    """Errors of an imagined detector, drawn for each patch by itself, evenly within these limits."""

    position_px: float = Field(2.0, ge=0)
    """Along x and along y, px of a patch of 64 px: a detector's error grows with the size of its keypoint. 2 px are
    0.375 sigma at a magnification of 12, two fifths of UBC's tolerance."""
    angle_deg: float = Field(15.0, ge=0, le=180)
    """Degrees; UBC's tolerance is 22.5."""
    octaves: float = Field(0.15, ge=0)
    """Of the size; UBC's tolerance is 0.25."""


@dataclass(frozen=True)
class Frames:
    """One row per patch, by class, then by image.

    classes: 0 .. n-1. images: places in the list of the source's images. xy: featkit pixels of the image; scales:
    sigma in px; oris: radians from +x towards +y.
    """

    classes: Int[np.ndarray, " n"]
    images: Int[np.ndarray, " n"]
    xy: Float[np.ndarray, "n 2"]
    scales: Float[np.ndarray, " n"]
    oris: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.classes)

    def select(self, rows: np.ndarray) -> Frames:
        """Some of the rows."""
        return Frames(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def sizes(self) -> Int[np.ndarray, " c"]:
        """Patches of every class."""
        return np.bincount(self.classes)

    def without_small(self, at_least: int) -> Frames:
        """The classes of at least so many patches, as 0 .. n-1."""
        return self.of_classes(self.sizes() >= at_least)

    def of_classes(self, kept: Bool[np.ndarray, " c"]) -> Frames:
        """Some of the classes, as 0 .. n-1."""
        found = self.select(np.flatnonzero(kept[self.classes]))
        return replace(found, classes=(np.cumsum(kept) - 1)[found.classes])

    @staticmethod
    def joined(parts: Sequence[Frames]) -> Frames:
        """The frames of several images (with classes in common) as one."""
        names = Frames.__dataclass_fields__
        whole = Frames(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
        return whole.select(np.lexsort((whole.images, whole.classes)))

    @staticmethod
    def of_detections(classes: SceneClasses, detections: Sequence[Detections]) -> Frames:
        """The frames of classes whose members are detections."""
        members = classes.members
        count = len(members.images)
        xy, scales, oris = np.zeros((count, 2)), np.zeros(count), np.zeros(count)
        for image, found in enumerate(detections):
            rows = np.flatnonzero(members.images == image)
            index = members.detections[rows]
            xy[rows], scales[rows], oris[rows] = found.xy[index], found.scales[index], found.oris[index]
        return Frames(members.keypoints, members.images, xy, scales, oris)


def jittered(frames: Frames, jitter: FrameJitter, magnification: float, generator: np.random.Generator) -> Frames:
    """Frames moved, turned and enlarged at random. magnification: side of a patch in sigmas."""
    moved, turned, enlarged = np.split(generator.uniform(-1, 1, (len(frames), 4)), (2, 3), axis=1)
    reach = jitter.position_px * (magnification / PATCH_PX) * frames.scales
    return replace(
        frames,
        xy=frames.xy + moved * reach[:, None],
        scales=frames.scales * 2.0 ** (jitter.octaves * enlarged[:, 0]),
        oris=frames.oris + np.radians(jitter.angle_deg) * turned[:, 0],
    )


def in_pixels(
    image: DecodedImage, xy: Float[np.ndarray, "n 2"], scales: Float[np.ndarray, " n"], oris: Float[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keypoints in pixels of the file -> in the decoded (turned upright) pixels."""
    linear = np.linalg.inv(image.stored_from_pixels[:, :2])
    directions = np.stack([np.cos(oris), np.sin(oris)], axis=1) @ linear.T
    return (
        image.pixels_from_file(xy),
        scales * np.sqrt(abs(np.linalg.det(linear))),
        np.arctan2(directions[:, 1], directions[:, 0]),
    )


def corners(frames: Frames | Detections, magnification: float) -> Float[np.ndarray, "n 4 2"]:
    """Corners of the squares that patches show, px."""
    half = (magnification / 2 * frames.scales)[:, None]
    along = half * np.stack([np.cos(frames.oris), np.sin(frames.oris)], axis=1)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    offsets = np.stack([along + across, along - across, -along - across, -along + across], axis=1)
    return frames.xy[:, None] + offsets


def within(points: Float[np.ndarray, "n 4 2"], size: tuple[int, int]) -> Bool[np.ndarray, " n"]:
    """Whether all corners lie in an image of `size` (width, height), its outermost half pixels included."""
    within = (points >= -0.5) & (points <= np.array(size) - 0.5)  # NaN: not
    return np.asarray(within.all(axis=(1, 2)))


def whole_classes(
    sizes: Int[np.ndarray, " c"], max_patches: int | None, generator: np.random.Generator
) -> Bool[np.ndarray, " c"]:
    """Which classes stay when there may be `max_patches` patches: whole ones in random order, while they fit."""
    if max_patches is None:
        return np.ones(len(sizes), bool)
    order = generator.permutation(len(sizes))
    kept = np.zeros(len(sizes), bool)
    kept[order[np.cumsum(sizes[order]) <= max_patches]] = True
    return kept
