"""The extract stage: images/ -> features.h5. Workers decode and extract, this process writes; resumable at any time.

Keypoints are detected by the extractor, or read from a file of another detector and only described.

Only a bounded window of images is in memory. Results are written in order of name, so an interrupted and resumed run
ends with the same file as an uninterrupted one.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
from pydantic import Field

from featkit.core.config import Config, Later, Runtime, WorkerCount, config_names, digest, make, named_config
from featkit.core.errors import BadInputError, EmptyResultError, FeatkitError, UsageError, WorkerDiedError, naming
from featkit.core.log import progress
from featkit.core.processes import end_with_parent, keep_freed_memory, worker_context
from featkit.core.registry import Method, class_of, resolve
from featkit.core.runtime import capped
from featkit.core.types import Features
from featkit.features.base import DescribesPoints, Extractor, TwoSteps, describes_points, takes_two_steps
from featkit.features.panoramas import extract_decoded, is_cut_into_views, is_panorama, merge_view_features, views_of
from featkit.images.exif import is_whole_sphere, some_names
from featkit.images.intensity import found_range
from featkit.images.listing import file_digest, list_images
from featkit.images.masks import find_masks, masked
from featkit.images.read import DecodeConfig, DecodedImage, are_inside, decode
from featkit.io.features import FeatureStore, append_features, extractor_name, open_features, points_digest

LOGGER = logging.getLogger(__name__)
NO_SIZE = (0, 0)  # image size of keypoints whose file does not give it
WINDOW_PER_WORKER = 2  # images in flight per worker: one being processed, one waiting to be written


class ExtractConfig(Config):
    """Everything that determines the content of features.h5."""

    features: Runtime[str] = "rootsift"
    """Features by name (`featkit features` lists them), or a yaml file."""
    extractor: dict[str, Any] = Field(default_factory=dict)
    """Overrides of that configuration; `resolve` fills in all of it, and the extractor's name as `extractor`."""
    decode: DecodeConfig = DecodeConfig()
    """How images are decoded, and which pixels are used."""
    panoramas: Later[Literal["views", "whole"]] = "views"
    """How panoramas of 360 by 180 degrees are processed: cut into pinhole views, or whole. Keypoints are in the
    panorama's pixels in either case.
    """
    all_panoramas: Later[bool] = False
    """Treat every photograph twice as wide as high as a panorama, even without GPano metadata."""
    workers: Runtime[WorkerCount] = 0
    """Number of parallel processes or threads that decode and extract, at most one per core; 0: one per core."""
    skip_broken: Runtime[bool] = False
    """Skip images that cannot be read (with a warning) instead of stopping."""
    masks: Runtime[Path | None] = None
    """Folder of masks with COLMAP's names (a/b.jpg.png for a/b.jpg): no keypoints where a mask is zero. A change in a
    mask's content is detected like a change in the image."""
    keypoints: Runtime[Path | None] = None
    """Describe the keypoints of this file, in featkit's or hloc's layout of features.h5. None: those that the features
    detect themselves. All keypoints inside their image are kept, with their scores, scales and orientations."""
    keypoints_digest: Later[str] = ""
    """Digest of the keypoints in that file, filled in by `extraction_method`; "": no file."""


def extraction_method(
    config: ExtractConfig, changes: dict[str, Any] | None = None, device: str = "auto"
) -> Method[Extractor]:
    """The extractor named in `config`, with this configuration of the stage.

    changes: overrides of the extractor's own configuration. Raises UsageError for an unknown name or field, or for
    `config.keypoints` if the extractor cannot describe given keypoints; BadInputError for a keypoints file that is
    missing, damaged, or not the one the configuration was made with.
    """
    values = {**config.extractor, **(changes or {})}
    if "extractor" not in values:
        if config.keypoints is not None and values.get("max_keypoints") is not None:
            raise UsageError("max_keypoints limits a detector; it cannot be used with --keypoints")
        return _with_keypoints_digest(with_stage_config(resolve("extractor", config.features, values, device), config))
    row = str(values.pop("extractor"))  # complete values: the yaml is not read, as it may have changed since
    cls = class_of("extractor", row)
    own = make(cls.Config, values, where=f"configuration {config.features!r}")
    return _with_keypoints_digest(with_stage_config(Method(config.features, cls, own, device, row), config))


def with_stage_config(method: Method[Extractor], config: ExtractConfig | None = None) -> Method[Extractor]:
    """Add a stage configuration to an extractor; it then contains all of the extractor's fields."""
    row = method.row or f"{method.cls.__module__}:{method.cls.__qualname__}"
    own = {"extractor": row, **method.own.result_fields()}
    config = config or ExtractConfig()
    return replace(method, stage=config.model_copy(update={"features": method.name, "extractor": own}))


def with_intensity_range(
    method: Method[Extractor], images: Path, output: Path, names: Sequence[str] | None = None, overwrite: bool = False
) -> Method[Extractor]:
    """Set one intensity range for all 16-bit files of a folder, if they use only a small part of their range.

    A configured range is kept, and an existing features file keeps its range, so that photographs can be added.
    Raises BadInputError for a folder without images.
    """
    method = method if method.stage else with_stage_config(method)
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
        known = found_range([images / name for name in (list_images(images) if names is None else names)])
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
    """Extract features of all images of a folder that are not in `output` yet, and return `output`.

    method: from `extraction_method`, or from `resolve` (images are then decoded with ExtractConfig's defaults). names:
    only these images, relative to the folder. masks: by image name; by default those in the configuration's folder.
    Raises BadInputError for an image that cannot be read (unless `skip_broken`), a store of another configuration, or
    given keypoints of images of another size; EmptyResultError if no image could be used.
    """
    method = method if method.stage else with_stage_config(method)
    wanted = usable_names(method, list_images(images) if names is None else names)
    masks = _find_masks(method, images, wanted) if masks is None else masks
    with append_features(output, method.config, method.weights_sha256, overwrite) as store:
        todo = [name for name in wanted if not _is_complete(method, store, name, images, masks)]
        if len(todo) < len(wanted):
            LOGGER.info("extract: %d of %d images are done already", len(wanted) - len(todo), len(wanted))
        with progress("extract", len(todo), "images") as advance:
            for name, features in _extract_in_order(method, images, todo, masks):
                if features is not None:
                    made_from = _input_digest(method, images / name, masks.get(name), features.image_size)
                    store.write(name, features, made_from)
                advance(1)
        if not any(store.has(name) for name in wanted):
            raise EmptyResultError(f"{images}: none of its {len(wanted)} images could be used")
    return output


def usable_names(method: Method[Extractor], names: Sequence[str]) -> list[str]:
    """The images to extract: all, or those with keypoints in the given file; warns of the others.

    Raises BadInputError if the file has no keypoints of these images.
    """
    file = method.config.keypoints
    if file is None:
        return list(names)
    with open_features(file) as store:
        known = set(store.names())
    there = [name for name in names if name in known]
    if not there:
        raise BadInputError(
            f"{file}: has no keypoints of the {len(names)} images ({names[0]} ...); image names must be equal"
        )
    without = sorted(set(names) - set(there))
    if without:
        LOGGER.warning(
            "%s: has no keypoints of %d of %d images, which are left out: %s",
            *(file, len(without), len(names), some_names(without)),
        )
    return there


def images_to_extract(
    method: Method[Extractor], images: Path, output: Path, names: list[str], overwrite: bool
) -> list[str]:
    """The images that `run` would extract. Creates `output` if missing; raises the same errors as `run`."""
    masks = _find_masks(method, images, names)
    with append_features(output, method.config, method.weights_sha256, overwrite) as store:
        return [name for name in names if not _is_complete(method, store, name, images, masks)]


def _find_masks(method: Method[Extractor], images: Path, names: list[str]) -> dict[str, Path]:
    return {} if method.config.masks is None else find_masks(method.config.masks, images, names)


def _is_complete(
    method: Method[Extractor], store: FeatureStore, name: str, images: Path, masks: Mapping[str, Path]
) -> bool:
    """Whether complete features of an image are stored that were computed from its current file and mask."""
    if not store.has(name):
        return False
    return store.source(name) in ("", _input_digest(method, images / name, masks.get(name), store.image_size(name)))


def _input_digest(method: Method[Extractor], path: Path, mask: Path | None, size: tuple[int, int]) -> str:
    """Digest of an image file and its mask. size: of the image.

    Features of a panorama's views have another digest than those of the panorama as it is, as old stores have them.
    """
    source = file_digest(path) if mask is None else digest(file_digest(path), file_digest(mask))
    of_views = method.config.panoramas == "views" and method.config.keypoints is None and is_whole_sphere(size)
    return digest(source, "views") if of_views and is_panorama(method, path) else source


def _extract_in_order(
    method: Method[Extractor], images: Path, names: Sequence[str], masks: Mapping[str, Path]
) -> Iterator[tuple[str, Features | None]]:
    """Yield (name, features) in the order of `names`, with None for skipped images."""
    count = capped(method.config.workers)
    waiting: deque[tuple[str, Future[Features | DetectedImage]]] = deque()
    with workers(method, count, names) as pool, GivenPoints.open(method.config) as given:
        for name in names:
            waiting.append((name, pool.submit(images / name, masks.get(name), given.read(name))))
            if len(waiting) >= count * WINDOW_PER_WORKER:
                yield given.count_outside(_collect_result(method, pool, *waiting.popleft()))
        while waiting:
            yield given.count_outside(_collect_result(method, pool, *waiting.popleft()))


class GivenPoints:
    """Keypoints to describe, read from a file; None for all images if there is no file."""

    def __init__(self, path: Path, store: FeatureStore | None):
        self._path, self._store = path, store
        self._outside: dict[str, int] = {}

    @classmethod
    @contextmanager
    def open(cls, config: ExtractConfig) -> Iterator[GivenPoints]:
        """Open a configuration's keypoints file. At the end, warns once of keypoints outside their images."""
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
        """Keypoints of an image, in pixels of its file. Raises BadInputError."""
        return None if self._store is None else self._store.read_points(name)

    def count_outside(self, result: tuple[str, Features | None]) -> tuple[str, Features | None]:
        """Count the given keypoints outside the image of a result, and return the result."""
        name, features = result
        if self._store is not None and features is not None:
            outside = int((~are_inside(self._store.keypoints(name), features.image_size)).sum())
            if outside:
                self._outside[name] = outside
        return result


def _with_keypoints_digest(method: Method[Extractor]) -> Method[Extractor]:
    """Add the digest of the keypoints file, if there is one, to the method's configuration."""
    config: ExtractConfig = method.config
    if config.keypoints is None:
        return method
    if not describes_points(method.cls):
        raise UsageError(
            f"{config.features} describes its own keypoints only; --keypoints can be used with {_describer_names()}"
        )
    with open_features(config.keypoints) as store:
        found = points_digest(store)
    if config.keypoints_digest not in ("", found):
        raise BadInputError(
            f"{config.keypoints}: its keypoints have changed since this configuration was made"
            f" ({config.keypoints_digest} -> {found}); restore the file, or start again"
        )
    return replace(method, stage=config.model_copy(update={"keypoints_digest": found}))


def _describer_names() -> str:
    """Names of the features that can describe given keypoints."""
    rows = {name: str(named_config(name, "extractor")["extractor"]) for name in config_names("extractor")}
    return ", ".join(name for name, row in rows.items() if describes_points(class_of("extractor", row)))


def _collect_result(
    method: Method[Extractor], pool: Workers, name: str, future: Future[Features | DetectedImage]
) -> tuple[str, Features | None]:
    try:
        features = pool.result(future, name)
    except BadInputError as error:
        if not method.config.skip_broken:
            raise BadInputError(f"{error} (or skip it: --skip-broken)") from None
        LOGGER.warning("skipped: %s", error)
        return name, None
    if len(features) == 0:
        LOGGER.warning("%s: no keypoints found in %d x %d px; it matches no image", name, *features.image_size)
    return name, features


def config_of_features(features: Path, workers: int = 0, keypoints: Path | None = None) -> ExtractConfig:
    """The configuration that made a features file, for extracting other images; unreadable images are skipped.

    keypoints: keypoints file of the other images, required for features of given keypoints. Raises BadInputError if it
    is missing, or if the features were not made by featkit.
    """
    with open_features(features) as store:
        stored = store.attributes().get("config")
    if not isinstance(stored, dict):
        raise BadInputError(f"{features}: does not record how it was made; queries cannot be extracted the same way")
    if stored.get("keypoints_digest") and keypoints is None:
        raise BadInputError(
            f"{features}: describes keypoints of another detector (--keypoints), so other images need theirs:"
            " --keypoints FILE of `featkit localize` or `extend`"
        )
    others = {"skip_broken": True, "workers": workers, "keypoints": keypoints, "keypoints_digest": ""}
    return make(ExtractConfig, {**stored, **others}, where=str(features))


@dataclass(frozen=True)
class DetectedImage:
    """An image after detection. image: without its pixels. detected: the extractor's intermediate result.

    in_views: whether it is a panorama cut into views; `detected` is then a list, and `image` has its pixels.
    """

    path: Path
    image: DecodedImage
    detected: Any
    in_views: bool = False


def extract_one(
    method: Method[Extractor], path: Path, mask: Path | None = None, points: Features | None = None
) -> Features:
    """Features of one image, in pixels of its file. points: keypoints to describe. Raises BadInputError."""
    image = _decoded(method, path, mask)
    with naming(path):
        if points is not None:
            return _check_finite(method, path, _describe_given_points(method, path, image, points))
        found = extract_decoded(method, image, is_panorama(method, path))
        return _check_finite(method, path, to_file_pixels(method, image, found))


def detect_one(method: Method[Extractor], path: Path, mask: Path | None = None) -> DetectedImage:
    """Detect features of one image, the first step of `base.TwoSteps`. Raises BadInputError."""
    image, extractor = _decoded(method, path, mask), cast(TwoSteps, method.built)
    with naming(path):
        if is_panorama(method, path) and is_cut_into_views(method, image):
            views = [extractor.detect(view.cut(image.pixels)) for view in views_of(*image.size)]
            return DetectedImage(path, image, views, in_views=True)
        return DetectedImage(path, replace(image, pixels=image.pixels[:0]), extractor.detect(image.pixels))


def _decoded(method: Method[Extractor], path: Path, mask: Path | None) -> DecodedImage:
    image = decode(path, method.config.decode, method.built.colour)
    return image if mask is None else masked(image, mask, method.config.decode)


def describe_one(method: Method[Extractor], detected: DetectedImage) -> Features:
    """Describe a detected image, on the device; `extract_one` does both steps. Raises BadInputError."""
    extractor = cast(TwoSteps, method.built)
    with naming(detected.path):
        if detected.in_views:
            found = merge_view_features(method, detected.image, [extractor.describe(v) for v in detected.detected])
        else:
            found = extractor.describe(detected.detected)
    return _check_finite(method, detected.path, to_file_pixels(method, detected.image, found))


def to_file_pixels(method: Method[Extractor], image: DecodedImage, found: Features) -> Features:
    """Convert features of decoded pixels to pixels of the image file. method: from `extraction_method`."""
    return replace(image.features_in_file(found), extractor=extractor_name(method.config.result_fields()))


def _describe_given_points(method: Method[Extractor], path: Path, image: DecodedImage, points: Features) -> Features:
    """Describe given keypoints, which are in pixels of the image file; see `GivenPoints`."""
    if points.image_size not in (NO_SIZE, image.stored_size):
        sizes = ["{} x {}".format(*size) for size in (points.image_size, image.stored_size)]
        raise BadInputError(
            f"{method.config.keypoints}: its keypoints are of an image of {sizes[0]} px, but {path} has {sizes[1]};"
            " give keypoints of the same images"
        )
    kept, seen = image.features_from_file(points)
    found = cast(DescribesPoints, method.built).describe_points(image.pixels, seen)
    if not len(found):
        kept = kept.select(np.zeros(0, np.int64))
    name = extractor_name(method.config.result_fields())
    return replace(kept, descriptors=found.descriptors, turns=found.turns, extractor=name)


def _check_finite(method: Method[Extractor], path: Path, features: Features) -> Features:
    if not (np.isfinite(features.keypoints).all() and np.isfinite(features.descriptors).all()):
        raise BadInputError(f"{path}: {method.config.features} returned NaN or infinity")
    return features


# ----------------------------------------------------------------------------------------------------------------------
# Processes that decode and extract. pycolmap's SIFT holds the GIL, so threads would not run in parallel.
#
# A two-step extractor (`base.TwoSteps`) detects in the workers and describes in this process, the only one to use the
# GPU. A program that extracts at its top level needs `if __name__ == "__main__":`, as with any `multiprocessing`.


_method: Method[Extractor] | None = None  # in a worker process: the method
_only_detect = False  # in a worker process: whether the parent describes the images


class Workers:
    """Runs `extract_one` on images, in order of submission, in processes or threads."""

    def __init__(self, pool: Executor, method: Method[Extractor], in_processes: bool):
        self._pool, self._method, self._in_processes = pool, method, in_processes

    def submit(
        self, path: Path, mask: Path | None = None, points: Features | None = None
    ) -> Future[Features | DetectedImage]:
        """Submit one image. mask: its mask file. points: keypoints to describe instead of detecting any."""

        if self._in_processes:
            return self._pool.submit(_run_in_worker, path, mask, points)
        return self._pool.submit(extract_one, self._method, path, mask, points)

    def result(self, future: Future[Features | DetectedImage], name: str) -> Features:
        """Wait for one image. Raises the errors of `extract_one`, and WorkerDiedError if its process died."""

        try:
            done = future.result()
            return done if isinstance(done, Features) else describe_one(self._method, done)
        except BrokenProcessPool:
            raise WorkerDiedError(
                f"{name}: a worker process died at or near this image, most likely out of memory;"
                " run the same command again with fewer --workers or a smaller --resize-max"
            ) from None


@contextmanager
def workers(method: Method[Extractor], count: int, images: Sequence[str]) -> Iterator[Workers]:
    """Start at most `count` workers, fewer for few images. Pending work is cancelled at the end."""
    count = max(1, min(count, (len(images) + 1) // 2))
    two_steps = takes_two_steps(method.built)
    only_describes = two_steps and bool(method.config.keypoints)  # on a GPU, in threads: there is no detection
    in_processes = method.built.holds_gil and count > 1 and not only_describes
    pool: Executor
    if in_processes:
        arguments = (pickle.dumps(method), dict(os.environ), two_steps)
        pool = ProcessPoolExecutor(count, mp_context=_worker_context(), initializer=_init_worker, initargs=arguments)
    else:
        pool = ThreadPoolExecutor(count, thread_name_prefix="extract")
    try:
        yield Workers(pool, method, in_processes)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def prepare_workers(method: Method[Extractor]) -> None:
    """Begin the imports of the processes that `workers` will start, if any, beside what this process does."""
    if method.cls.holds_gil:
        _worker_context()


def _worker_context() -> BaseContext:
    return worker_context(["featkit.features.worker"])


def _init_worker(pickled: bytes, environment: dict[str, str], only_detect: bool) -> None:
    """Initialise a worker process: ignore Ctrl-C (the parent handles it), exit with the parent, use one core.

    pickled: the method, unpickled only after the number of cores is set, as this imports torch, which reads it.
    """
    global _method, _only_detect

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    keep_freed_memory()
    cv2.setNumThreads(1)
    os.environ |= {**environment, "OMP_NUM_THREADS": "1"}  # torch reads the latter when it is imported
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    _only_detect = only_detect
    _method = pickle.loads(pickled)


def _run_in_worker(path: Path, mask: Path | None, points: Features | None) -> Features | DetectedImage:
    assert _method is not None
    return detect_one(_method, path, mask) if _only_detect else extract_one(_method, path, mask, points)
