"""The extract stage: images/ -> features.h5. Many workers decode and extract, one writes; resumable at any moment.

Memory holds only a bounded window of images. Results are written in order of name, so an interrupted and resumed
run ends with the same file as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
from pydantic import Field

from featkit.core.config import Config, Later, Runtime, WorkerCount, digest, make
from featkit.core.errors import BadInputError, EmptyResultError, FeatkitError, WorkerDiedError
from featkit.core.log import progress
from featkit.core.processes import end_with
from featkit.core.registry import Method, class_of, resolve
from featkit.core.runtime import capped
from featkit.core.types import Features
from featkit.features.base import Extractor, TwoSteps, takes_two_steps
from featkit.images.exif import taken_with
from featkit.images.intensity import found_range
from featkit.images.listing import list_images
from featkit.images.masks import find_masks, masked
from featkit.images.panoramas import in_panorama, views_of
from featkit.images.read import DecodeConfig, DecodedImage, decode
from featkit.io.camera_models import is_whole_sphere
from featkit.io.features import FeatureStore, append_features, extractor_name, open_features

LOGGER = logging.getLogger(__name__)
SAMPLE_BYTES = 1 << 16
WINDOW_PER_WORKER = 2  # images in flight per worker: one being processed, one waiting to be written


class ExtractConfig(Config):
    """Everything that determines the content of features.h5."""

    features: Runtime[str] = "rootsift"
    """Features by name (`featkit features` lists them), or a yaml file."""
    extractor: dict[str, Any] = Field(default_factory=dict)
    """Overrides of that configuration; `resolve` fills in all of it, and the extractor's name as `extractor`."""
    decode: DecodeConfig = DecodeConfig()
    """How images are decoded, and which pixels count."""
    panoramas: Later[Literal["views", "whole"]] = "views"
    """Panoramas of 360 by 180 degrees: features of the picture as it is, or of pinhole views that it is cut into; in
    either case in the panorama's own pixels.
    """
    all_panoramas: Later[bool] = False
    """Every photograph of that shape is a panorama, without metadata (GPano) that say so."""
    workers: Runtime[WorkerCount] = 0
    """Number of parallel processes or threads that decode and extract, at most one per core; 0: one per core."""
    skip_broken: Runtime[bool] = False
    """Skip images that cannot be read (with a warning) instead of stopping."""
    masks: Runtime[Path | None] = None
    """Folder of masks with COLMAP's names (a/b.jpg.png for a/b.jpg): no keypoints where a mask is zero. A change in a
    mask's content is detected like a change in the image."""


def extraction(config: ExtractConfig, changes: dict[str, Any] | None = None, device: str = "auto") -> Method[Extractor]:
    """The extractor named in `config`, with this configuration of the stage.

    changes: fields of the extractor's own configuration that differ from the yaml. Raises UsageError for an unknown
    name or field.
    """
    values = {**config.extractor, **(changes or {})}
    if "extractor" not in values:
        return of_photographs(resolve("extractor", config.features, values, device), config)
    row = str(values.pop("extractor"))  # complete: the yaml may have moved or changed since
    cls = class_of("extractor", row)
    own = make(cls.Config, values, where=f"configuration {config.features!r}")
    return of_photographs(Method(config.features, cls, own, device, row), config)


def of_photographs(method: Method[Extractor], config: ExtractConfig | None = None) -> Method[Extractor]:
    """An extractor with the stage's configuration around it, which then contains all of the extractor's fields."""
    row = method.row or f"{method.cls.__module__}:{method.cls.__qualname__}"
    own = {"extractor": row, **method.own.result_fields()}
    config = config or ExtractConfig()
    return replace(method, stage=config.model_copy(update={"features": method.name, "extractor": own}))


def with_intensities(
    method: Method[Extractor], images: Path, output: Path, names: Sequence[str] | None = None, overwrite: bool = False
) -> Method[Extractor]:
    """The extractor with one intensity stretch for the folder's 16-bit files, if they use a small part of the range.

    A configured range is kept, and an existing features file keeps the range it was started with, so that
    photographs may be added. Raises BadInputError for a folder without images.
    """
    method = method if method.stage else of_photographs(method)
    decoding = method.config.decode
    if decoding.intensity_range is not None:
        return method
    if output.is_file() and not overwrite:
        try:
            with open_features(output) as store:
                known = store.intensity_range
        except FeatkitError:  # the caller reports what is wrong
            return method
    else:
        known = found_range(images, list_images(images) if names is None else names)
    if known is None:
        return method
    decoding = decoding.model_copy(update={"intensity_range": known})
    return replace(method, stage=method.config.model_copy(update={"decode": decoding}))


def run(
    method: Method[Extractor],
    images: Path,
    output: Path,
    names: list[str] | None = None,
    overwrite: bool = False,
    masks: Mapping[str, Path] | None = None,
) -> Path:
    """Extract features of all images of a folder that `output` does not contain yet, and return `output`.

    method: from `extraction`, or from `resolve` (images are then decoded with ExtractConfig's defaults). names: only
    these images, relative to the folder. masks: of the images; by default those of the configuration's folder.
    Raises BadInputError for an image that cannot be read (unless `skip_broken`) or a store of another configuration,
    EmptyResultError when not one image could be used.
    """
    method = method if method.stage else of_photographs(method)
    wanted = list_images(images) if names is None else names
    masks = _masks(method, images, wanted) if masks is None else masks
    with append_features(output, method.config, method.weights_sha256, overwrite) as store:
        todo = [name for name in wanted if not _whole(store, name, images, masks)]
        if len(todo) < len(wanted):
            LOGGER.info("extract: %d of %d images are done already", len(wanted) - len(todo), len(wanted))
        with progress("extract", len(todo), "images") as advance:
            for name, features in _extracted(method, images, todo, masks):
                if features is not None:
                    store.write(name, features, _source(images / name, masks.get(name)))
                advance(1)
        if not any(store.has(name) for name in wanted):
            raise EmptyResultError(f"{images}: none of its {len(wanted)} images could be used")
    return output


def waiting(method: Method[Extractor], images: Path, output: Path, names: list[str], overwrite: bool) -> list[str]:
    """The images that `run` would extract; `output` is created if missing. Raises as `run` does."""
    masks = _masks(method, images, names)
    with append_features(output, method.config, method.weights_sha256, overwrite) as store:
        return [name for name in names if not _whole(store, name, images, masks)]


def _masks(method: Method[Extractor], images: Path, names: list[str]) -> dict[str, Path]:
    return {} if method.config.masks is None else find_masks(method.config.masks, images, names)


def _whole(store: FeatureStore, name: str, images: Path, masks: Mapping[str, Path]) -> bool:
    """Whether complete features are stored, computed from the current file (and mask)."""
    return store.has(name) and store.source(name) in ("", _source(images / name, masks.get(name)))


def _source(path: Path, mask: Path | None) -> str:
    """Identifies an image together with its mask."""
    return source_digest(path) if mask is None else digest(source_digest(path), source_digest(mask))


def source_digest(path: Path) -> str:
    """16 hex digits that identify an image file: hash of its size, its first and its last 64 KiB.

    "" if there is no such file. Hashing entire files would make every resumed run read every image. (A PNG's
    last bytes are a checksum of all its pixels.)
    """
    try:
        with path.open("rb") as file:
            head = file.read(SAMPLE_BYTES)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - SAMPLE_BYTES))
            return hashlib.sha256(size.to_bytes(8, "little") + head + file.read()).hexdigest()[:16]
    except OSError:
        return ""


def _extracted(
    method: Method[Extractor], images: Path, names: Sequence[str], masks: Mapping[str, Path]
) -> Iterator[tuple[str, Features | None]]:
    """(name, features) in the order of `names`; None for a skipped image."""
    count = capped(method.config.workers)
    waiting: deque[tuple[str, Future[Features | DetectedImage]]] = deque()
    with workers(method, count, names) as pool:
        for name in names:
            waiting.append((name, pool.submit(images / name, masks.get(name))))
            if len(waiting) >= count * WINDOW_PER_WORKER:
                yield _finished(method, pool, *waiting.popleft())
        while waiting:
            yield _finished(method, pool, *waiting.popleft())


def _finished(
    method: Method[Extractor], pool: Workers, name: str, future: Future[Features | DetectedImage]
) -> tuple[str, Features | None]:
    try:
        features = pool.result(future, name)
    except BadInputError as error:
        if not method.config.skip_broken:
            raise BadInputError(f"{error} (or go on without it: --skip-broken)") from None
        LOGGER.warning("passed over: %s", error)
        return name, None
    if len(features) == 0:
        LOGGER.warning("%s: no keypoint found; it will match nothing", name)
    return name, features


def same_extraction(features: Path, workers: int = 0) -> ExtractConfig:
    """The configuration that made a features file; unreadable images are skipped.

    Raises BadInputError when featkit did not make the file.
    """
    with open_features(features) as store:
        stored = store.attributes().get("config")
    if not isinstance(stored, dict):
        raise BadInputError(f"{features}: does not say how it was made; queries cannot be extracted the same way")
    return make(ExtractConfig, {**stored, "skip_broken": True, "workers": workers}, where=str(features))


@dataclass(frozen=True)
class DetectedImage:
    """An image after the first of two steps. image: without its pixels. detected: the extractor's intermediate result.

    in_views: of a panorama; detected is then a list, and the image has its pixels.
    """

    path: Path
    image: DecodedImage
    detected: Any
    in_views: bool = False


def extract_one(method: Method[Extractor], path: Path, mask: Path | None = None) -> Features:
    """Features of one image, in the pixels of its file. Raises BadInputError."""
    image = _decoded(method, path, mask)
    return _finite(method, path, in_file(method, image, seen_features(method, image, _is_panorama(method, path))))


def seen_features(method: Method[Extractor], image: DecodedImage, is_panorama: bool) -> Features:
    """An extractor's result on decoded pixels; of a panorama in views, where the configuration says so."""
    if not (is_panorama and _in_views(method, image)):
        return method.built.extract(image.pixels)
    return _of_views(method, image, [method.built.extract(v.cut(image.pixels)) for v in views_of(*image.size)])


def _in_views(method: Method[Extractor], image: DecodedImage) -> bool:
    """Whether a panorama is cut into views."""
    return bool(method.config.panoramas == "views") and is_whole_sphere(image.size)


def _is_panorama(method: Method[Extractor], path: Path) -> bool:
    """Whether a photograph is a panorama: as the configuration says, or its metadata."""
    if method.config.panoramas == "whole" or method.config.all_panoramas:
        return bool(method.config.all_panoramas)
    taken = taken_with(path)
    return taken is not None and taken.is_panorama


def _of_views(method: Method[Extractor], image: DecodedImage, found: Sequence[Features]) -> Features:
    """The panorama's features, no more of them than the extractor gives of one image."""
    limit = method.own.result_fields().get("max_keypoints")
    return in_panorama(found, *image.size, limit if isinstance(limit, int) and limit > 0 else None)


def detect_one(method: Method[Extractor], path: Path, mask: Path | None = None) -> DetectedImage:
    """The first of two steps on one image (`base.TwoSteps`). Raises BadInputError."""
    image = _decoded(method, path, mask)
    extractor = cast(TwoSteps, method.built)
    if _is_panorama(method, path) and _in_views(method, image):
        views = [extractor.detect(view.cut(image.pixels)) for view in views_of(*image.size)]
        return DetectedImage(path, image, views, in_views=True)
    return DetectedImage(path, replace(image, pixels=image.pixels[:0]), extractor.detect(image.pixels))


def _decoded(method: Method[Extractor], path: Path, mask: Path | None) -> DecodedImage:
    image = decode(path, method.config.decode, method.built.colour)
    return image if mask is None else masked(image, mask, method.config.decode)


def describe_one(method: Method[Extractor], detected: DetectedImage) -> Features:
    """The second step, on the device; `extract_one` is both. Raises BadInputError."""
    extractor = cast(TwoSteps, method.built)
    if detected.in_views:
        found = _of_views(method, detected.image, [extractor.describe(view) for view in detected.detected])
    else:
        found = extractor.describe(detected.detected)
    return _finite(method, detected.path, in_file(method, detected.image, found))


def in_file(method: Method[Extractor], image: DecodedImage, found: Features) -> Features:
    """An extractor's result on decoded pixels, in the form of a features file. method: from `extraction`."""
    return replace(image.features_in_file(found), extractor=extractor_name(method.config.result_fields()))


def _finite(method: Method[Extractor], path: Path, features: Features) -> Features:
    if not (np.isfinite(features.keypoints).all() and np.isfinite(features.descriptors).all()):
        raise BadInputError(f"{path}: {method.config.features} gave features that are not finite")
    return features


# ----------------------------------------------------------------------------------------------------------------------
# Processes that decode and extract. pycolmap's SIFT holds the GIL, so threads would not run in parallel.
#
# A two-step extractor (`base.TwoSteps`) detects in the workers and describes in this process, which alone uses the
# GPU. Processes are spawned, not forked: a fork would copy locks of threads (OpenMP, HDF5) that no longer run. A
# program that extracts at its top level therefore needs `if __name__ == "__main__":`, as with every spawning library.


_method: Method[Extractor] | None = None  # in a worker process: its method
_only_detect = False  # in a worker process: whether its parent describes the images


class Workers:
    """Runs `extract_one` on images, in order of submission, in processes or threads."""

    def __init__(self, pool: Executor, method: Method[Extractor], in_processes: bool):
        self._pool, self._method, self._in_processes = pool, method, in_processes

    def submit(self, path: Path, mask: Path | None = None) -> Future[Features | DetectedImage]:
        """Submit one image; mask: the file of its mask."""

        if self._in_processes:
            return self._pool.submit(_work, path, mask)
        return self._pool.submit(extract_one, self._method, path, mask)

    def result(self, future: Future[Features | DetectedImage], name: str) -> Features:
        """Wait for one image. Raises what `extract_one` raises, and WorkerDiedError if its process died."""

        try:
            done = future.result()
            return done if isinstance(done, Features) else describe_one(self._method, done)
        except BrokenProcessPool:
            raise WorkerDiedError(
                f"{name}: a worker process died on it or near it, most likely for memory;"
                " run the same command again with fewer workers (--workers), or with --resize-max"
            ) from None


@contextmanager
def workers(method: Method[Extractor], count: int, images: Sequence[str]) -> Iterator[Workers]:
    """At most `count` workers, fewer for a few images. Pending work is cancelled at the end."""
    count = max(1, min(count, (len(images) + 1) // 2))
    in_processes = method.built.holds_gil and count > 1
    pool: Executor
    if in_processes:
        context = multiprocessing.get_context("spawn")
        arguments = (pickle.dumps(method), os.getpid(), takes_two_steps(method.built))
        pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=arguments)
    else:
        pool = ThreadPoolExecutor(count, thread_name_prefix="extract")
    try:
        yield Workers(pool, method, in_processes)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(pickled: bytes, parent: int, only_detect: bool) -> None:
    """Initialise a worker process: ignore Ctrl-C (the parent handles it), exit with the parent, use one core.

    pickled: the method, unpickled here because that imports torch, which reads the number of cores then.
    """
    global _method, _only_detect

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()

    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads this when it is imported
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    _only_detect = only_detect
    _method = pickle.loads(pickled)


def _work(path: Path, mask: Path | None) -> Features | DetectedImage:
    assert _method is not None
    return detect_one(_method, path, mask) if _only_detect else extract_one(_method, path, mask)
