"""The extract stage: images/ -> features.h5. Many workers decode and extract, one writes; resumable at any moment.

Keypoints are the extractor's own, or those of another detector's file, which are then only described.

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

from featkit.core.config import Config, Later, Runtime, WorkerCount, config_names, digest, make, named_config
from featkit.core.errors import BadInputError, EmptyResultError, FeatkitError, UsageError, WorkerDiedError
from featkit.core.log import progress
from featkit.core.processes import end_with
from featkit.core.registry import Method, class_of, resolve
from featkit.core.runtime import capped
from featkit.core.types import Features
from featkit.features.base import DescribesPoints, Extractor, TwoSteps, describes_points, takes_two_steps
from featkit.features.panoramas import in_views, is_panorama, of_views, seen_features
from featkit.images.exif import some_names
from featkit.images.intensity import found_range
from featkit.images.listing import list_images
from featkit.images.masks import find_masks, masked
from featkit.images.panoramas import views_of
from featkit.images.read import DecodeConfig, DecodedImage, are_inside, decode
from featkit.io.camera_models import is_whole_sphere
from featkit.io.features import FeatureStore, append_features, extractor_name, open_features, points_digest

LOGGER = logging.getLogger(__name__)
SAMPLE_BYTES = 1 << 16
NO_SIZE = (0, 0)  # of the image of keypoints whose file does not say
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
    keypoints: Runtime[Path | None] = None
    """Describe the keypoints of this file, in featkit's or hloc's layout of features.h5. None: those that the features
    detect themselves. All that lie on their image are kept, with their scores, scales and orientations."""
    keypoints_digest: Later[str] = ""
    """Digest of the keypoints in that file, which `extraction` fills in; "": no file."""


def extraction(config: ExtractConfig, changes: dict[str, Any] | None = None, device: str = "auto") -> Method[Extractor]:
    """The extractor named in `config`, with this configuration of the stage.

    changes: fields of the extractor's own configuration that differ from the yaml. Raises UsageError for an unknown
    name or field, or for `config.keypoints` that the extractor cannot describe; BadInputError for a file of keypoints
    that is missing, damaged, or another one than the configuration was made with.
    """
    values = {**config.extractor, **(changes or {})}
    if "extractor" not in values:
        if config.keypoints is not None and values.get("max_keypoints") is not None:
            raise UsageError("max_keypoints limits a detector; it does not go with --keypoints, whose file has chosen")
        return _with_digest(of_photographs(resolve("extractor", config.features, values, device), config))
    row = str(values.pop("extractor"))  # complete: the yaml may have moved or changed since
    cls = class_of("extractor", row)
    own = make(cls.Config, values, where=f"configuration {config.features!r}")
    return _with_digest(of_photographs(Method(config.features, cls, own, device, row), config))


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
    Raises BadInputError for an image that cannot be read (unless `skip_broken`), a store of another configuration, or
    given keypoints of images of another size; EmptyResultError when not one image could be used.
    """
    method = method if method.stage else of_photographs(method)
    wanted = usable_names(method, list_images(images) if names is None else names)
    masks = _masks(method, images, wanted) if masks is None else masks
    with append_features(output, method.config, method.weights_sha256, overwrite) as store:
        todo = [name for name in wanted if not _whole(method, store, name, images, masks)]
        if len(todo) < len(wanted):
            LOGGER.info("extract: %d of %d images are done already", len(wanted) - len(todo), len(wanted))
        with progress("extract", len(todo), "images") as advance:
            for name, features in _extracted(method, images, todo, masks):
                if features is not None:
                    store.write(name, features, _source(method, images / name, masks.get(name), features.image_size))
                advance(1)
        if not any(store.has(name) for name in wanted):
            raise EmptyResultError(f"{images}: none of its {len(wanted)} images could be used")
    return output


def usable_names(method: Method[Extractor], names: Sequence[str]) -> list[str]:
    """The images to extract: all, or those with keypoints in the file that gives them; others are named in one line.

    Raises BadInputError when the file has keypoints of none.
    """
    file = method.config.keypoints
    if file is None:
        return list(names)
    with open_features(file) as store:
        known = set(store.names())
    there = [name for name in names if name in known]
    if not there:
        raise BadInputError(f"{file}: has keypoints of none of {len(names)} images ({names[0]} ...); names must agree")
    without = sorted(set(names) - set(there))
    if without:
        LOGGER.warning(
            "%s: no keypoints of %d of %d images, which are left out: %s",
            *(file, len(without), len(names), some_names(without)),
        )
    return there


def waiting(method: Method[Extractor], images: Path, output: Path, names: list[str], overwrite: bool) -> list[str]:
    """The images that `run` would extract; `output` is created if missing. Raises as `run` does."""
    masks = _masks(method, images, names)
    with append_features(output, method.config, method.weights_sha256, overwrite) as store:
        return [name for name in names if not _whole(method, store, name, images, masks)]


def _masks(method: Method[Extractor], images: Path, names: list[str]) -> dict[str, Path]:
    return {} if method.config.masks is None else find_masks(method.config.masks, images, names)


def _whole(method: Method[Extractor], store: FeatureStore, name: str, images: Path, masks: Mapping[str, Path]) -> bool:
    """Whether complete features are stored, computed from the current file (and mask)."""
    if not store.has(name):
        return False
    return store.source(name) in ("", _source(method, images / name, masks.get(name), store.image_size(name)))


def _source(method: Method[Extractor], path: Path, mask: Path | None, size: tuple[int, int]) -> str:
    """Identifies an image together with its mask. size: of the image.

    Features of a panorama's views have another source than those of the picture as it is, which stores have from
    before there were views.
    """
    source = source_digest(path) if mask is None else digest(source_digest(path), source_digest(mask))
    of_views = method.config.panoramas == "views" and method.config.keypoints is None and is_whole_sphere(size)
    return digest(source, "views") if of_views and is_panorama(method, path) else source


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
    with workers(method, count, names) as pool, GivenPoints.of(method.config) as given:
        for name in names:
            waiting.append((name, pool.submit(images / name, masks.get(name), given.read(name))))
            if len(waiting) >= count * WINDOW_PER_WORKER:
                yield given.counted(_finished(method, pool, *waiting.popleft()))
        while waiting:
            yield given.counted(_finished(method, pool, *waiting.popleft()))


class GivenPoints:
    """The keypoints of a file that an extraction describes; without a file it gives none."""

    def __init__(self, path: Path, store: FeatureStore | None):
        self._path, self._store = path, store
        self._outside: dict[str, int] = {}

    @classmethod
    @contextmanager
    def of(cls, config: ExtractConfig) -> Iterator[GivenPoints]:
        """Open a configuration's file; at the end how many keypoints lay outside their images is said once."""
        if config.keypoints is None:
            yield cls(Path(), None)
            return
        with open_features(config.keypoints) as store:
            given = cls(config.keypoints, store)
            yield given
        if given._outside:
            some = f"{len(given._outside)} images ({some_names(sorted(given._outside))})"
            LOGGER.warning("%s: %d keypoints outside %s dropped", given._path, sum(given._outside.values()), some)

    def read(self, name: str) -> Features | None:
        """Keypoints of an image in the pixels of its file. Raises BadInputError."""
        return None if self._store is None else self._store.read_points(name)

    def counted(self, result: tuple[str, Features | None]) -> tuple[str, Features | None]:
        """The same result, after counting which of its image's keypoints lie outside."""
        name, features = result
        if self._store is not None and features is not None:
            outside = int((~are_inside(self._store.keypoints(name), features.image_size)).sum())
            if outside:
                self._outside[name] = outside
        return result


def _with_digest(method: Method[Extractor]) -> Method[Extractor]:
    """The method with the digest of its file of keypoints, if it has one."""
    config: ExtractConfig = method.config
    if config.keypoints is None:
        return method
    if not describes_points(method.cls):
        raise UsageError(f"{config.features}: describes its own keypoints only; --keypoints goes with {_describers()}")
    with open_features(config.keypoints) as store:
        found = points_digest(store)
    if config.keypoints_digest not in ("", found):
        raise BadInputError(
            f"{config.keypoints}: has other keypoints than this configuration was made with"
            f" ({config.keypoints_digest} -> {found}); bring them back, or start again"
        )
    return replace(method, stage=config.model_copy(update={"keypoints_digest": found}))


def _describers() -> str:
    """Names of the features that describe any keypoints."""
    rows = {name: str(named_config(name, "extractor")["extractor"]) for name in config_names("extractor")}
    return ", ".join(name for name, row in rows.items() if describes_points(class_of("extractor", row)))


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


def same_extraction(features: Path, workers: int = 0, keypoints: Path | None = None) -> ExtractConfig:
    """The configuration that made a features file; unreadable images are skipped.

    keypoints: file of the other images' keypoints, for features of given keypoints. Raises BadInputError without one,
    or when featkit did not make the features.
    """
    with open_features(features) as store:
        stored = store.attributes().get("config")
    if not isinstance(stored, dict):
        raise BadInputError(f"{features}: does not say how it was made; queries cannot be extracted the same way")
    if stored.get("keypoints_digest") and keypoints is None:
        raise BadInputError(
            f"{features}: describes keypoints of another detector, so other images need theirs: --keypoints FILE of"
            " `featkit localize` or `extend` (`serve` cannot take this map)"
        )
    others = {"skip_broken": True, "workers": workers, "keypoints": keypoints, "keypoints_digest": ""}
    return make(ExtractConfig, {**stored, **others}, where=str(features))


@dataclass(frozen=True)
class DetectedImage:
    """An image after the first of two steps. image: without its pixels. detected: the extractor's intermediate result.

    in_views: of a panorama; detected is then a list, and the image has its pixels.
    """

    path: Path
    image: DecodedImage
    detected: Any
    in_views: bool = False


def extract_one(
    method: Method[Extractor], path: Path, mask: Path | None = None, points: Features | None = None
) -> Features:
    """Features of one image, in the pixels of its file. points: keypoints to describe. Raises BadInputError."""
    image = _decoded(method, path, mask)
    if points is not None:
        return _finite(method, path, _described(method, path, image, points))
    return _finite(method, path, in_file(method, image, seen_features(method, image, is_panorama(method, path))))


def detect_one(method: Method[Extractor], path: Path, mask: Path | None = None) -> DetectedImage:
    """The first of two steps on one image (`base.TwoSteps`). Raises BadInputError."""
    image = _decoded(method, path, mask)
    extractor = cast(TwoSteps, method.built)
    if is_panorama(method, path) and in_views(method, image):
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
        found = of_views(method, detected.image, [extractor.describe(view) for view in detected.detected])
    else:
        found = extractor.describe(detected.detected)
    return _finite(method, detected.path, in_file(method, detected.image, found))


def in_file(method: Method[Extractor], image: DecodedImage, found: Features) -> Features:
    """An extractor's result on decoded pixels, in the form of a features file. method: from `extraction`."""
    return replace(image.features_in_file(found), extractor=extractor_name(method.config.result_fields()))


def _described(method: Method[Extractor], path: Path, image: DecodedImage, points: Features) -> Features:
    """Given keypoints of an image's file with descriptors; see `GivenPoints`."""
    if points.image_size not in (NO_SIZE, image.stored_size):
        sizes = ["{} x {}".format(*size) for size in (points.image_size, image.stored_size)]
        raise BadInputError(
            f"{method.config.keypoints}: its keypoints are of an image of {sizes[0]} px, {path} has {sizes[1]};"
            " give the keypoints of these images"
        )
    kept, seen = image.features_from_file(points)
    found = cast(DescribesPoints, method.built).describe_points(image.pixels, seen)
    if not len(found):
        kept = kept.select(np.zeros(0, np.int64))
    name = extractor_name(method.config.result_fields())
    return replace(kept, descriptors=found.descriptors, turns=found.turns, extractor=name)


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

    def submit(
        self, path: Path, mask: Path | None = None, points: Features | None = None
    ) -> Future[Features | DetectedImage]:
        """Submit one image; mask: the file of its mask. points: keypoints to describe instead of its own."""

        if self._in_processes:
            return self._pool.submit(_work, path, mask, points)
        return self._pool.submit(extract_one, self._method, path, mask, points)

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
    two_steps = takes_two_steps(method.built)
    only_describes = two_steps and bool(method.config.keypoints)  # on a GPU, by threads: there is no first step
    in_processes = method.built.holds_gil and count > 1 and not only_describes
    pool: Executor
    if in_processes:
        context = multiprocessing.get_context("spawn")
        arguments = (pickle.dumps(method), os.getpid(), two_steps)
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


def _work(path: Path, mask: Path | None, points: Features | None) -> Features | DetectedImage:
    assert _method is not None
    return detect_one(_method, path, mask) if _only_detect else extract_one(_method, path, mask, points)
