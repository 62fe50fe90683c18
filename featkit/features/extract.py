"""The extract stage: images/ -> features.h5. Many workers decode and extract, one writes; resumable at any moment.

Only a bounded window of images is in memory, however many there are. Results are written in the order of the
names, so an interrupted and resumed run ends with the same file as an undisturbed one.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import Field

from featkit.config import Config, Runtime, make, named_config
from featkit.errors import BadInputError, NothingCameOutError
from featkit.features.base import Extractor, TwoSteps
from featkit.features.workers import Workers, usable_cores, workers
from featkit.images.decode import DecodeConfig, DecodedImage, decode
from featkit.images.listing import list_images
from featkit.images.masks import find_masks, masked
from featkit.log import progress
from featkit.registry import configured, resolve
from featkit.store.features import FeatureStore, append_features, open_features
from featkit.store.stamp import digest
from featkit.types import Features

LOGGER = logging.getLogger(__name__)
SAMPLE_BYTES = 1 << 16
WINDOW_PER_WORKER = 2  # images in flight per worker: one at work, one waiting to be written


class ExtractConfig(Config):
    """Everything that decides what stands in features.h5."""

    features: Runtime[str] = "rootsift"
    """A name in configs/, or the path of a yaml file."""
    extractor: dict[str, Any] = Field(default_factory=dict)
    """What differs from that configuration; `resolve` fills in all of it, and the extractor's name as `extractor`."""
    decode: DecodeConfig = DecodeConfig()
    workers: Runtime[int] = 0
    """Processes or threads that decode and extract; 0: one per core."""
    skip_broken: Runtime[bool] = False
    """Leave out images that cannot be read (with a warning) instead of stopping."""
    masks: Runtime[Path | None] = None
    """Folder of masks (`images.masks`). What a mask holds is told apart as the photograph's own content is."""


@dataclass(frozen=True)
class ExtractJob:
    """A resolved extraction: the extractor is built, the configuration complete."""

    config: ExtractConfig
    extractor: Extractor
    device: str

    @staticmethod
    def resolve(config: ExtractConfig, changes: dict | None = None, device: str = "auto") -> ExtractJob:
        """Build the extractor named in `config`. changes: fields of its configuration that differ from the yaml.

        Raises UsageError for an unknown name or field.
        """
        values = {**config.extractor, **(changes or {})}
        if "extractor" in values:  # resolved before: the yaml may have moved or changed since
            name = values.pop("extractor")
            cls = resolve("extractor", name)
            extractor_config = make(cls.Config, values, where=f"configuration {config.features!r}")
        else:
            cls, extractor_config = configured("extractor", config.features, values)
            name = named_config(config.features)["extractor"]
        complete = config.model_copy(update={"extractor": {"extractor": name, **extractor_config.result_fields()}})
        return ExtractJob(complete, cls(extractor_config, device), device)


def run(
    job: ExtractJob,
    images: Path,
    output: Path,
    names: list[str] | None = None,
    overwrite: bool = False,
    masks: Mapping[str, Path] | None = None,
) -> Path:
    """Extract features of all images of a folder that `output` does not hold yet, and return `output`.

    names: only these images, relative to the folder. masks: of the images; by default those of the configuration's
    folder. Raises BadInputError for an image that cannot be read (unless
    `skip_broken`) or a store of another configuration, NothingCameOutError when not one image could be used.
    """
    wanted = list_images(images) if names is None else names
    masks = _masks(job, images, wanted) if masks is None else masks
    with append_features(output, job.config, job.extractor.weights_sha256, overwrite) as store:
        todo = [name for name in wanted if not _whole(store, name, images, masks)]
        if len(todo) < len(wanted):
            LOGGER.info("extract: %d of %d images are done already", len(wanted) - len(todo), len(wanted))
        with progress("extract", len(todo), "images") as advance:
            for name, features in _extracted(job, images, todo, masks):
                if features is not None:
                    store.write(name, features, _source(images / name, masks.get(name)))
                advance(1)
        if not any(store.has(name) for name in wanted):
            raise NothingCameOutError(f"{images}: none of its {len(wanted)} images could be used")
    return output


def waiting(job: ExtractJob, images: Path, output: Path, names: list[str], overwrite: bool) -> list[str]:
    """The images that `run` would extract; `output` is begun if it is not there. Raises as `run` does."""
    masks = _masks(job, images, names)
    with append_features(output, job.config, job.extractor.weights_sha256, overwrite) as store:
        return [name for name in names if not _whole(store, name, images, masks)]


def _masks(job: ExtractJob, images: Path, names: list[str]) -> dict[str, Path]:
    return {} if job.config.masks is None else find_masks(job.config.masks, images, names)


def _whole(store: FeatureStore, name: str, images: Path, masks: Mapping[str, Path]) -> bool:
    """Whether the features are there, whole, and of the file (and mask) that lies there now."""
    return store.has(name) and store.source(name) in ("", _source(images / name, masks.get(name)))


def _source(path: Path, mask: Path | None) -> str:
    """What tells a photograph, and the mask it has, from others."""
    return source_digest(path) if mask is None else digest(source_digest(path), source_digest(mask))


def source_digest(path: Path) -> str:
    """16 hex digits that tell one photograph from another: of the file's size, its first and its last 64 KiB.

    "" when there is no such file. Hashing the whole file would make every resumed run read every photograph. (A PNG's
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
    job: ExtractJob, images: Path, names: Sequence[str], masks: Mapping[str, Path]
) -> Iterator[tuple[str, Features | None]]:
    """(name, features) in the order of `names`; None for an image passed over."""
    count = job.config.workers or usable_cores()
    waiting: deque[tuple[str, Future[Features | BegunImage]]] = deque()
    with workers(job, count, names) as pool:
        for name in names:
            waiting.append((name, pool.submit(images / name, masks.get(name))))
            if len(waiting) >= count * WINDOW_PER_WORKER:
                yield _finished(job, pool, *waiting.popleft())
        while waiting:
            yield _finished(job, pool, *waiting.popleft())


def _finished(
    job: ExtractJob, pool: Workers, name: str, future: Future[Features | BegunImage]
) -> tuple[str, Features | None]:
    try:
        features = pool.result(future, name)
    except BadInputError as error:
        if not job.config.skip_broken:
            raise BadInputError(f"{error} (or go on without it: --skip-broken)") from None
        LOGGER.warning("passed over: %s", error)
        return name, None
    if len(features) == 0:
        LOGGER.warning("%s: no keypoint found; it will match nothing", name)
    return name, features


def same_extraction(features: Path, workers: int = 0) -> ExtractConfig:
    """The configuration that made a features file; broken images are passed over.

    Raises BadInputError when featkit did not make the file.
    """
    with open_features(features) as store:
        stored = store.attributes().get("config")
    if not isinstance(stored, dict):
        raise BadInputError(f"{features}: does not say how it was made; queries cannot be extracted the same way")
    return make(ExtractConfig, {**stored, "skip_broken": True, "workers": workers}, where=str(features))


@dataclass(frozen=True)
class BegunImage:
    """A photograph after the first of two steps. image: without its pixels. begun: what the extractor goes on from."""

    path: Path
    image: DecodedImage
    begun: Any


def extract_one(job: ExtractJob, path: Path, mask: Path | None = None) -> Features:
    """Features of one photograph, in the pixels of its file. Raises BadInputError."""
    image = _decoded(job, path, mask)
    return _in_file(job, path, image, job.extractor.extract(image.pixels))


def begin_one(job: ExtractJob, path: Path, mask: Path | None = None) -> BegunImage:
    """The first of two steps on one photograph (`base.TwoSteps`). Raises BadInputError."""
    image = _decoded(job, path, mask)
    begun = cast(TwoSteps, job.extractor).begin(image.pixels)
    return BegunImage(path, replace(image, pixels=image.pixels[:0]), begun)


def _decoded(job: ExtractJob, path: Path, mask: Path | None) -> DecodedImage:
    image = decode(path, job.config.decode, job.extractor.colour)
    return image if mask is None else masked(image, mask, job.config.decode)


def finish_one(job: ExtractJob, begun: BegunImage) -> Features:
    """The second step, on the device; `extract_one` is both. Raises BadInputError."""
    return _in_file(job, begun.path, begun.image, cast(TwoSteps, job.extractor).finish(begun.begun))


def _in_file(job: ExtractJob, path: Path, image: DecodedImage, found: Features) -> Features:
    features = image.features_in_file(found)
    if not (np.isfinite(features.keypoints).all() and np.isfinite(features.descriptors).all()):
        raise BadInputError(f"{path}: {job.config.features} gave features that are not finite")
    return features
