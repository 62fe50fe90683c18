"""Patch frames: the position, size and orientation of each patch in its image, and their jitter."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from featkit.core.config import Config, Count, Degrees, Pixels, PixelsOrZero, PositiveShare
from featkit.core.errors import BadInputError
from featkit.core.log import progress
from featkit.core.runtime import capped
from featkit.core.types import Features
from featkit.data.keypoint_classes import Detections
from featkit.data.scene_classes import SceneClasses
from featkit.features.stage import ExtractConfig, extraction_method, workers
from featkit.images.read import PLAIN_DECODING, DecodeConfig, DecodedImage, decode
from featkit.io.artifact import inside
from featkit.io.features import open_features

PATCH_PX = 64.0  # patch side to which `position_px` refers: that of the file format


class FrameJitter(Config):
    """Simulated detector errors, drawn independently for each patch, uniformly within these limits."""

    position_px: PixelsOrZero = 2.0
    """Largest shift along x and y, px of a 64 px patch, as a detector's error grows with keypoint size. 2 px are 0.375
    sigma at a magnification of 12, two fifths of UBC's tolerance."""
    angle_deg: Degrees = 15.0
    """Largest rotation, degrees; UBC's tolerance is 22.5."""
    octaves: float = Field(0.15, ge=0, le=10)
    """Largest change of size, octaves; UBC's tolerance is 0.25."""


@dataclass(frozen=True)
class Frames:
    """One row per patch, sorted by class, then by image.

    classes: 0 .. n-1. images: indices into the source's list of images. xy: featkit pixels of the image; scales: sigma
    in px; oris: radians from +x towards +y.
    """

    classes: Int[np.ndarray, " n"]
    images: Int[np.ndarray, " n"]
    xy: Float[np.ndarray, "n 2"]
    scales: Float[np.ndarray, " n"]
    oris: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.classes)

    def select(self, rows: np.ndarray) -> Frames:
        """The given rows."""
        return Frames(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def sizes(self) -> Int[np.ndarray, " c"]:
        """Number of patches of every class."""
        return np.bincount(self.classes)

    def without_small(self, at_least: int) -> Frames:
        """The classes with at least `at_least` patches, renumbered to 0 .. n-1."""
        return self.of_classes(self.sizes() >= at_least)

    def of_classes(self, kept: Bool[np.ndarray, " c"]) -> Frames:
        """The classes in the mask `kept`, renumbered to 0 .. n-1."""
        selected = self.select(np.flatnonzero(kept[self.classes]))
        return replace(selected, classes=(np.cumsum(kept) - 1)[selected.classes])

    @staticmethod
    def joined(parts: Sequence[Frames]) -> Frames:
        """Concatenate the frames of several images (with common class numbers)."""
        names = Frames.__dataclass_fields__
        frames = Frames(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
        return frames.select(np.lexsort((frames.images, frames.classes)))

    @staticmethod
    def of_detections(classes: SceneClasses, detections: Sequence[Detections]) -> Frames:
        """The frames of classes whose members are detections."""
        members = classes.members
        count = len(members.images)
        xy, scales, oris = np.zeros((count, 2)), np.zeros(count), np.zeros(count)
        for image, image_detections in enumerate(detections):
            rows = np.flatnonzero(members.images == image)
            index = members.detections[rows]
            xy[rows], scales[rows], oris[rows] = (
                image_detections.xy[index],
                image_detections.scales[index],
                image_detections.oris[index],
            )
        return Frames(members.keypoints, members.images, xy, scales, oris)


def jittered_frames(
    frames: Frames, jitter: FrameJitter, magnification: float, generator: np.random.Generator
) -> Frames:
    """Frames with random shift, rotation and scale. magnification: side of a patch in sigmas."""
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
    """Convert keypoints from pixels of the file to the decoded (upright) pixels."""
    linear = np.linalg.inv(image.stored_from_pixels[:, :2])
    directions = np.stack([np.cos(oris), np.sin(oris)], axis=1) @ linear.T
    return (
        image.pixels_from_file(xy),
        scales * np.sqrt(abs(np.linalg.det(linear))),
        np.arctan2(directions[:, 1], directions[:, 0]),
    )


def corners(frames: Frames | Detections, magnification: float) -> Float[np.ndarray, "n 4 2"]:
    """Corners of the patches in the image, px."""
    half = (magnification / 2 * frames.scales)[:, None]
    along = half * np.stack([np.cos(frames.oris), np.sin(frames.oris)], axis=1)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    offsets = np.stack([along + across, along - across, -along - across, -along + across], axis=1)
    return frames.xy[:, None] + offsets


def within(points: Float[np.ndarray, "n 4 2"], size: tuple[int, int]) -> Bool[np.ndarray, " n"]:
    """Whether all corners are inside an image of `size` (width, height), including its outermost half pixels."""
    within = (points >= -0.5) & (points <= np.array(size) - 0.5)  # False for NaN
    return np.asarray(within.all(axis=(1, 2)))


def draw_complete_classes(
    sizes: Int[np.ndarray, " c"], max_patches: int | None, generator: np.random.Generator
) -> Bool[np.ndarray, " c"]:
    """Which classes are kept to have at most `max_patches` patches: complete classes in random order while they fit."""
    if max_patches is None:
        return np.ones(len(sizes), bool)
    order = generator.permutation(len(sizes))
    kept = np.zeros(len(sizes), bool)
    kept[order[np.cumsum(sizes[order]) <= max_patches]] = True
    return kept


# ----------------------------------------------------------------------------------------------------------------------
# Keypoints at which patches are cut: DoG, FAST, random positions, or those of any detector from a features.h5.


WINDOW = 2  # images in flight per worker
OPENCV_LAYERS = 3  # layers per octave, by which OpenCV divides its threshold


class DetectorConfig(Config):
    """Keypoint detection for patches."""

    kind: Literal["dog", "opencv-dog", "fast", "random"] = "dog"
    """Detector: dog (SIFT's detector, COLMAP), opencv-dog, fast (FAST corners) or random (uniform positions).
    opencv-dog detects without describing, which takes a tenth of the time; four in five keypoints are the same. Ignored
    if a keypoint file is given."""
    peak_threshold: PositiveShare = 0.01 / 3
    """Smallest DoG response: half of COLMAP's default, so that weak repetitions of a keypoint are found too."""
    max_num_features: Count = 100_000
    """Maximum keypoints per image: the coarsest scales with COLMAP, the strongest responses with OpenCV and FAST."""
    fast_threshold: int = Field(20, ge=1, le=255)
    """FAST threshold: grey level difference between the centre and the circle around it."""
    random_places: Count = 4000
    """Random positions per image, at most `max_num_features`."""
    free_scale_px: tuple[Pixels, Pixels] = (1.6, 12.0)
    """Smallest and largest sigma of keypoints without a size (FAST, random, files without scales), px of the image they
    were detected in, reduced or not. Drawn uniformly in the logarithm. Keypoints without an orientation get a random
    one."""


def detected(
    config: DetectorConfig,
    images: Path,
    names: Sequence[str],
    label: str,
    generator: np.random.Generator,
    count: int = 0,
    decoding: DecodeConfig = PLAIN_DECODING,
    file: Path | None = None,
) -> Iterator[tuple[tuple[int, int], Detections]]:
    """(width and height, keypoints) of every image, in pixels of the file.

    count: processes, 0 for one per core. decoding: of the images, with the size at which keypoints are detected.
    file: a features.h5 with keypoints to use instead. Raises BadInputError.
    """
    if file is not None:
        all_features = _read_stored(file, names)
    elif config.kind == "dog":
        all_features = _detect_with_dog(config, images, names, count, decoding)
    else:
        all_features = _detect_in_threads(config, images, names, count, decoding, generator)
    with progress(f"detect {label}", len(names), "images") as advance:
        for features in all_features:
            yield features.image_size, with_frames(features, config, generator)
            advance(1)


def with_frames(features: Features, config: DetectorConfig, generator: np.random.Generator) -> Detections:
    """Keypoints with sizes and orientations: their own, or random ones, drawn where the keypoints were detected."""
    count = len(features.keypoints)
    reduction = 1.0 if features.from_seen is None else np.sqrt(abs(np.linalg.det(features.from_seen[:, :2])))
    low, high = np.log2(np.multiply(config.free_scale_px, reduction))
    scales = features.scales if features.scales is not None else 2.0 ** generator.uniform(low, high, count)
    oris = features.oris if features.oris is not None else generator.uniform(-np.pi, np.pi, count)
    return Detections(*(np.asarray(values, dtype=np.float64) for values in (features.keypoints, scales, oris)))


def _detect_with_dog(
    config: DetectorConfig, images: Path, names: Sequence[str], count: int, decoding: DecodeConfig
) -> Iterator[Features]:
    changes = {"max_num_features": config.max_num_features, "peak_threshold": config.peak_threshold}
    stage = ExtractConfig(features="rootsift", decode=decoding)
    method = extraction_method(stage, changes, "cpu")
    count = capped(count)
    with workers(method, count, names) as pool:
        waiting: deque = deque()
        for number in range(len(names) + count * WINDOW):
            if number < len(names):
                waiting.append((names[number], pool.submit(inside(images, names[number]))))
            if number >= count * WINDOW and waiting:
                name, future = waiting.popleft()
                yield pool.result(future, name)


def _detect_in_threads(
    config: DetectorConfig,
    images: Path,
    names: Sequence[str],
    count: int,
    decoding: DecodeConfig,
    generator: np.random.Generator,
) -> Iterator[Features]:
    def detect_image(name: str, image_generator: np.random.Generator) -> Features:
        image = decode(inside(images, name), decoding)
        return image.features_in_file(_detect_with_opencv(config, image, image_generator))

    with ThreadPoolExecutor(capped(count)) as pool:  # OpenCV releases the GIL
        yield from pool.map(detect_image, names, generator.spawn(len(names)))


def _detect_with_opencv(config: DetectorConfig, image: DecodedImage, generator: np.random.Generator) -> Features:
    """Keypoints without descriptors, in the image's pixels."""
    scales = oris = None
    if config.kind == "random":
        places = min(config.random_places, config.max_num_features)
        xy = (generator.random((places, 2)) * image.size - 0.5).astype(np.float32)
    else:
        detector: Any = cv2.FastFeatureDetector.create(config.fast_threshold)
        if config.kind == "opencv-dog":
            contrast = OPENCV_LAYERS * config.peak_threshold
            detector = cv2.SIFT.create(
                nOctaveLayers=OPENCV_LAYERS, contrastThreshold=contrast, enable_precise_upscale=True
            )
        keypoints = sorted(detector.detect(image.pixels), key=lambda point: -point.response)[: config.max_num_features]
        xy = np.array([point.pt for point in keypoints], np.float32).reshape(-1, 2)
        if config.kind == "opencv-dog":
            scales = np.array([point.size / 2 for point in keypoints], np.float32)
            oris = np.radians(np.array([point.angle for point in keypoints], np.float32))
    empty = np.zeros((len(xy), 0), np.float32)
    return Features(xy, empty, np.ones(len(xy), np.float32), image.size, scales, oris)


def _read_stored(file: Path, names: Sequence[str]) -> Iterator[Features]:
    with open_features(file) as store:
        missing = next((name for name in names if not store.has(name)), None)
        if missing is not None:
            raise BadInputError(f"{file}: no keypoints of {missing!r}; extract the features of all photographs")
        yield from (store.read(name) for name in names)
