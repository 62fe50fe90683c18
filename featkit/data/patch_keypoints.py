"""The keypoints that patches are cut at: DoG, FAST, random places, or those of any detector from a features.h5."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import Field

from featkit.config import Config
from featkit.data.keypoint_classes import Detections
from featkit.errors import BadInputError
from featkit.features.extract import ExtractConfig, ExtractJob
from featkit.features.workers import usable_cores, workers
from featkit.images.decode import DecodeConfig, DecodedImage, decode
from featkit.log import progress
from featkit.store.artifact import inside
from featkit.store.features import open_features
from featkit.types import Features

WINDOW = 2  # images in flight per worker
OPENCV_LAYERS = 3  # of an octave, which OpenCV divides its threshold by


class DetectorConfig(Config):
    """Which keypoints."""

    kind: Literal["dog", "opencv-dog", "fast", "random"] = "dog"
    """DoG, SIFT's detector, by COLMAP; by OpenCV, which need not describe what it detects (a tenth of the time; four in
    five keypoints are the same); FAST corners; or places drawn evenly over the image. A file of keypoints takes their
    place."""
    peak_threshold: float = Field(0.01 / 3, gt=0)
    """Smallest DoG response: half of COLMAP's, so that weak repetitions of a keypoint count too."""
    max_num_features: int = Field(100_000, ge=1)
    """Keypoints of an image: of COLMAP's the coarse scales first, of OpenCV's and FAST's the strongest."""
    fast_threshold: int = Field(20, ge=1, le=255)
    """FAST: grey levels between the centre and the circle around it."""
    random_places: int = Field(4000, ge=1)
    """Random places of an image, at most `max_num_features`."""
    free_scale_px: tuple[float, float] = (1.6, 12.0)
    """Smallest and largest sigma, px, drawn evenly in the logarithm, of keypoints that have no size of their own (FAST,
    random, files without scales). Those without a direction get one drawn over the circle."""


def detected(
    config: DetectorConfig,
    images: Path,
    names: Sequence[str],
    label: str,
    generator: np.random.Generator,
    count: int = 0,
    resize_max: int | None = None,
    file: Path | None = None,
) -> Iterator[tuple[tuple[int, int], Detections]]:
    """(width and height, keypoints) of every image, in pixels of the file.

    count: processes, 0 for one per core. resize_max: DoG and FAST look at images reduced to this longer side, px.
    file: a features.h5 with the keypoints. Raises BadInputError.
    """
    if file is not None:
        found = _stored(file, names)
    elif config.kind == "dog":
        found = _dog(config, images, names, count, resize_max)
    else:
        found = _in_threads(config, images, names, count, resize_max, generator)
    with progress(f"detect {label}", len(names), "images") as advance:
        for features in found:
            yield features.image_size, with_frames(features, config, generator)
            advance(1)


def with_frames(features: Features, config: DetectorConfig, generator: np.random.Generator) -> Detections:
    """Keypoints with sizes and directions: their own, or drawn."""
    count = len(features.keypoints)
    low, high = np.log2(config.free_scale_px)
    scales = features.scales if features.scales is not None else 2.0 ** generator.uniform(low, high, count)
    oris = features.oris if features.oris is not None else generator.uniform(-np.pi, np.pi, count)
    return Detections(*(np.asarray(values, dtype=np.float64) for values in (features.keypoints, scales, oris)))


def _dog(
    config: DetectorConfig, images: Path, names: Sequence[str], count: int, resize_max: int | None
) -> Iterator[Features]:
    changes = {"max_num_features": config.max_num_features, "peak_threshold": config.peak_threshold}
    extract = ExtractConfig(features="rootsift", decode=DecodeConfig(resize_max=resize_max))
    job = ExtractJob.resolve(extract, changes, "cpu")
    count = count or usable_cores()
    with workers(job, count, names) as pool:
        waiting: deque = deque()
        for number in range(len(names) + count * WINDOW):
            if number < len(names):
                waiting.append((names[number], pool.submit(inside(images, names[number]))))
            if number >= count * WINDOW and waiting:
                name, future = waiting.popleft()
                yield pool.result(future, name)


def _in_threads(
    config: DetectorConfig,
    images: Path,
    names: Sequence[str],
    count: int,
    resize_max: int | None,
    generator: np.random.Generator,
) -> Iterator[Features]:
    def detect(name: str, own: np.random.Generator) -> Features:
        image = decode(inside(images, name), DecodeConfig(resize_max=resize_max))
        return image.features_in_file(_detect(config, image, own))

    with ThreadPoolExecutor(count or usable_cores()) as pool:  # OpenCV lets go of Python's lock
        yield from pool.map(detect, names, generator.spawn(len(names)))


def _detect(config: DetectorConfig, image: DecodedImage, generator: np.random.Generator) -> Features:
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
        found = sorted(detector.detect(image.pixels), key=lambda point: -point.response)[: config.max_num_features]
        xy = np.array([point.pt for point in found], np.float32).reshape(-1, 2)
        if config.kind == "opencv-dog":
            scales = np.array([point.size / 2 for point in found], np.float32)
            oris = np.radians(np.array([point.angle for point in found], np.float32))
    empty = np.zeros((len(xy), 0), np.float32)
    return Features(xy, empty, np.ones(len(xy), np.float32), image.size, scales, oris)


def _stored(file: Path, names: Sequence[str]) -> Iterator[Features]:
    with open_features(file) as store:
        missing = next((name for name in names if not store.has(name)), None)
        if missing is not None:
            raise BadInputError(f"{file}: no keypoints of {missing!r}; extract the features of all photographs")
        yield from (store.read(name) for name in names)
