"""A map kept in memory that localizes one image after another: `featkit localize` without its start-up time.

from featkit import Localizer
result = Localizer("scene/").localize("photograph.jpg")
result.pose, result.reason
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Int, UInt8
from pydantic import Field

from featkit.core.config import Config, Factor, Megabytes, Runtime, Seconds, Seed
from featkit.core.errors import BadInputError, UsageError
from featkit.core.registry import resolve
from featkit.core.runtime import torch_device
from featkit.core.types import Features, Matches, Pair
from featkit.features.base import is_packed
from featkit.features.panoramas import extract_decoded
from featkit.features.stage import config_of_features, extract_one, extraction_method, to_file_pixels
from featkit.images.read import DecodedImage, decode, from_pixels
from featkit.io.features import FeatureStore, open_features
from featkit.io.lists import Intrinsics, parse_intrinsics
from featkit.localization.absolute_pose import MapPoints
from featkit.localization.queries import QueryCamera, camera_of_pixels, query_camera
from featkit.localization.stage import LocalizeConfig, QueryResult, localize_query
from featkit.mapping.cameras import SPHERE, check_camera_config
from featkit.mapping.model import read_model
from featkit.mapping.scene import find_map
from featkit.matching.config import MatchWith
from featkit.matching.stage import Matcher, weights_for
from featkit.retrieval.retrieve import image_vector, image_vectors, needs_spill
from featkit.retrieval.search import MIB, top_k
from featkit.retrieval.vlad import VladConfig, train_codebook, unit_rows

Image = Path | str | UInt8[np.ndarray, "h w *c"]


class LocalizerConfig(MatchWith):
    """What determines a pose, apart from the map: the fields of the recipe of `featkit localize`, with its defaults."""

    retrieval: VladConfig = VladConfig()
    """Retrieval of map images for a query."""
    localize: LocalizeConfig = LocalizeConfig()
    """Pose estimation, and the query's camera."""
    seed: Seed = 0
    """Random seed of the retrieval clustering."""
    points_only: bool = False
    """Match against the distinct 3D points visible in the retrieved images, each with its descriptor from the most
    similar image: faster and smaller. Matches, and thus poses up to noise, differ from those of `featkit localize`."""
    cache_mb: Runtime[int] = Field(1024, ge=0, le=10**6)
    """Maximum size of map image features kept in memory, MiB; 8,000 descriptors of 128 floats take 4 MiB."""


class ServeConfig(Config):
    """Limits of the server."""

    max_mb: Megabytes = 32.0
    """Largest image file, millions of bytes."""
    max_megapixels: Factor = 50.0
    """Largest image, millions of pixels; a larger one is refused by its header, before decoding."""
    upload_s: Seconds = 30.0
    """Time limit for receiving an image, s."""
    timeout_s: Seconds = 60.0
    """Time limit for one image, including waiting, s."""
    threads: int = Field(2, ge=1, le=1024)
    """Number of images processed in parallel."""
    max_waiting: int = Field(16, ge=0, le=10**6)
    """Maximum number of images being received or waiting for a thread; further ones are refused unread."""
    header_s: Seconds = 10.0
    """Time limit for a connection to send its request header, s."""
    max_connections: int = Field(200, ge=1, le=10**6)
    """Maximum number of simultaneous connections; further ones are refused."""


class ServedConfig(LocalizerConfig):
    """Configuration of a localizer behind the server."""

    serve: ServeConfig = ServeConfig()
    """Limits of the server."""


def _refuse_given_keypoints(features: Path) -> None:
    """Raise BadInputError for features of given keypoints, if there will be no keypoints of the other images."""
    with open_features(features) as store:
        stored = store.attributes().get("config")
    if isinstance(stored, dict) and stored.get("keypoints_digest"):
        raise BadInputError(
            f"{features}: describes keypoints of another detector (--keypoints), which photographs sent to a server do"
            " not bring along; use `featkit localize --keypoints FILE`, or map with features that detect their own"
        )


class Localizer:
    """Localizes images in one map. Thread-safe: threads extract in parallel, and match one at a time."""

    def __init__(
        self,
        map_folder: Path | str,
        config: LocalizerConfig | None = None,
        *,
        features: Path | str | None = None,
        device: str = "auto",
        number: int | None = None,
    ):
        """Load the model, compute its images' global descriptors, and build the extractor of the map's features.

        map_folder: a scene, its featkit/ folder, or a sparse model next to its features. features: the map's
        features.h5, if it is elsewhere. number: which of several models; None: the largest. Raises BadInputError and
        UsageError like `featkit localize`, BadInputError also for a map of given keypoints.
        """
        self.config = config or LocalizerConfig()
        check_camera_config(self.config.localize.camera)
        map_files = find_map(Path(map_folder), None if features is None else Path(features), number)
        _refuse_given_keypoints(map_files.features)
        self._device = device
        self._method = extraction_method(config_of_features(map_files.features, workers=1), device=device)
        self._matcher: Matcher = resolve("matcher", self.config.matcher, self.config.matching, device).built
        self._matching_lock = threading.Lock()
        with ExitStack() as stack:
            store = stack.enter_context(open_features(map_files.features))
            if weights_for(self._matcher, store.extractor) and self.config.points_only:
                raise UsageError(
                    f"points_only matches with points of several images at once; {self.config.matcher} needs the"
                    " keypoint positions in one image: use one or the other"
                )
            if self.config.points_only and any(store.read(name).turns > 1 for name in store.names()[:1]):
                raise UsageError(
                    "points_only matches with points of several images at once; descriptors in several rotations are"
                    " aligned image by image: use one or the other"
                )
            self._points = MapPoints(read_model(map_files.model), store)
            self._map_features = WarmFeatures(store, self._points, self.config.cache_mb * MIB, self.config.points_only)
            self._describe_map(store, stack)
            self._open_files = stack.pop_all()

    def _describe_map(self, store: FeatureStore, stack: ExitStack) -> None:
        config, names = self.config.retrieval, self._points.names()
        generator = np.random.default_rng(self.config.seed)
        self._codebook = train_codebook(store, names, config, generator, device=self._device)
        spill = needs_spill(
            len(names) + 1, self._codebook.dims, self.config.localize.num_retrieved, config.memory_budget_mb
        )
        self._index = stack.enter_context(image_vectors(store, names, self._codebook, config, self._device, spill))
        self._search_bytes = config.memory_budget_mb * MIB - (0 if spill else self._index.vectors.nbytes)

    def localize(
        self,
        image: Image,
        intrinsics: Intrinsics | str | None = None,
        *,
        name: str | None = None,
        features: Features | None = None,
    ) -> QueryResult:
        """Pose of one image, or the reason why there is none; the same result as `featkit localize`.

        image: a file, or uint8 pixels, upright, grey (h, w) or RGB (h, w, 3). intrinsics: its camera, also as
        `MODEL width height params...`; None: from the map, from EXIF, or a guess that is refined with the pose. name:
        its name in the result. features: of the file, if `extract` computed them already; the image is then not read
        again. Raises BadInputError if the image cannot be read or its size differs from its camera's.
        """
        if isinstance(intrinsics, str):
            intrinsics = parse_intrinsics(intrinsics, "intrinsics")
        extractor, decoding = self._method.built, self._method.config.decode
        decoded: DecodedImage | None = None
        if isinstance(image, np.ndarray):
            name = name or "image"
            decoded = pixels = from_pixels(image, decoding, extractor.colour)
            camera = self._camera_of_pixels(name, pixels, intrinsics)
        elif isinstance(image, str | Path):
            path, name = Path(image), name or Path(image).name
            decoded = decode(path, decoding, extractor.colour) if features is None else None
            camera = self._camera_of_file(path, intrinsics)
        else:
            raise UsageError(f"an image is a path or a numpy array, not a {type(image).__name__}")
        if decoded is not None:
            is_panorama = camera.camera.model_name == SPHERE
            features = to_file_pixels(self._method, decoded, extract_decoded(self._method, decoded, is_panorama))
        assert features is not None
        with self._matching_lock:  # torch's thread count and the open file are shared
            partners = self._retrieve(name, features)
            matches = self._match(name, features, partners) if partners else None
        pose = self.config.localize.pose
        return localize_query(pose, name, camera, features.keypoints, partners, matches, self._points)

    def _camera_of_pixels(self, name: str, image: DecodedImage, intrinsics: Intrinsics | None) -> QueryCamera:
        model, config = self._points.model, self.config.localize.camera
        return camera_of_pixels(name, image.stored_size, config, intrinsics, model)

    def _camera_of_file(self, path: Path, intrinsics: Intrinsics | None) -> QueryCamera:
        listed = None if intrinsics is None else {path.name: intrinsics}
        return query_camera(path.name, path.parent, self.config.localize.camera, listed, self._points.model)

    def _retrieve(self, name: str, features: Features) -> list[str]:
        """The most similar map images, best first; empty for an image without keypoints."""
        config = self.config.retrieval
        rows = unit_rows(features, config.descriptors_per_image, f"{name!r}: descriptors")
        vector = image_vector(rows, self._codebook, config, self._device, repr(name))
        if not vector.any():
            return []
        best, _ = top_k(
            vector[None],
            self._index.vectors,
            self.config.localize.num_retrieved,
            available_bytes=self._search_bytes,
            backend=config.backend,
            device=self._device,
        )
        return [self._index.names[index] for index in best[0][best[0] >= 0].tolist()]

    def _match(self, name: str, features: Features, partners: Sequence[str]) -> MemoryMatches:
        query, map_images = real_numbers(features), [self._map_features.read(partner) for partner in partners]
        if self.config.points_only:
            points = DistinctPoints.of(map_images)
            [matches] = self._matcher.match([(query, points.features)])
            by_image = points.by_image(matches, len(map_images))
        else:
            by_image = self._matcher.match([(query, image.features) for image in map_images])
        return MemoryMatches({Pair(name, partner): m for partner, m in zip(partners, by_image, strict=True)})

    @property
    def extract(self) -> Callable[[Path], Features] | None:
        """Function that extracts an image's features in another process; None on a GPU, used only by this process."""
        on_cpu = torch_device(self._device).type == "cpu"
        return functools.partial(extract_one, self._method) if on_cpu else None

    @property
    def map_images(self) -> int:
        """Number of registered map images."""
        return len(self._points.names())

    @property
    def map_points(self) -> int:
        """Number of 3D points in the map."""
        return self._points.model.num_points3D()

    def close(self) -> None:
        """Close the map's files. The localizer cannot be used afterwards."""
        self._open_files.close()

    def __enter__(self) -> Localizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class MemoryMatches:
    """Matches in memory, with the interface of a matches.h5 store."""

    by_pair: dict[Pair, Matches]

    def read(self, pair: Pair) -> Matches:
        return self.by_pair[pair]


@dataclass(frozen=True)
class WarmImage:
    """Features of a map image, ready for the matcher.

    index, point_ids: the keypoints' indices in the image, and their 3D points (-1: none).
    """

    features: Features
    index: Int[np.ndarray, " n"]
    point_ids: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class DistinctPoints:
    """Distinct 3D points of several images, each with the descriptor of the first image that shows it.

    features: their descriptors; each keypoint position refers to its own image. image, index: (n + 1,) number of
    that image and index of the keypoint in it, with a final -1.
    """

    features: Features
    image: Int[np.ndarray, " n1"]
    index: Int[np.ndarray, " n1"]

    @classmethod
    def of(cls, images: Sequence[WarmImage]) -> DistinctPoints:
        """images: one or more, with only keypoints that have a 3D point."""
        number = np.repeat(np.arange(len(images)), [len(image.features) for image in images])
        point_ids = np.concatenate([image.point_ids for image in images])
        first = np.sort(np.unique(point_ids, return_index=True)[1])

        def of_distinct(parts: Iterable[np.ndarray]) -> np.ndarray:
            return np.concatenate(list(parts))[first]

        features = replace(
            images[0].features,
            keypoints=of_distinct(image.features.keypoints for image in images),
            descriptors=of_distinct(image.features.descriptors for image in images),
            scores=of_distinct(image.features.scores for image in images),
            scales=None,
            oris=None,
            from_seen=None,
        )
        index = of_distinct(image.index for image in images)
        return cls(features, np.append(number[first], -1), np.append(index, -1))

    def by_image(self, matches: Matches, count: int) -> list[Matches]:
        """Convert matches with these points to matches with the keypoints of each image."""
        shown_by, index = self.image[matches.matches0], self.index[matches.matches0]
        return [replace(matches, matches0=np.where(shown_by == number, index, -1)) for number in range(count)]


class WarmFeatures:
    """Features of map images, with an LRU cache. Not thread-safe.

    points_only: keep only keypoints with a 3D point.
    """

    def __init__(self, store: FeatureStore, points: MapPoints, budget_bytes: int, points_only: bool):
        self._store, self._point_ids, self._budget_left, self._points_only = (
            store,
            points.point_ids,
            budget_bytes,
            points_only,
        )
        self._cached: OrderedDict[str, WarmImage] = OrderedDict()

    def read(self, name: str) -> WarmImage:
        """Read a map image's features. Raises BadInputError if they are missing or damaged."""
        if name in self._cached:
            self._cached.move_to_end(name)
            return self._cached[name]
        features, point_ids = self._store.read(name), self._point_ids(name)
        index = np.arange(len(features))
        if self._points_only:
            index = np.flatnonzero(point_ids >= 0)
            features = features.select(index)
        image = WarmImage(real_numbers(features), index, point_ids[index])
        self._cached[name] = image
        self._budget_left -= _num_bytes(image.features)
        while self._budget_left < 0 and self._cached:
            self._budget_left += _num_bytes(self._cached.popitem(last=False)[1].features)
        return image


def real_numbers(features: Features) -> Features:
    """The same features with float32 descriptors, as matchers convert float16; packed bits are unchanged."""
    rows = features.descriptors
    return features if is_packed(rows) else replace(features, descriptors=np.ascontiguousarray(rows, np.float32))


def _num_bytes(features: Features) -> int:
    arrays = (features.keypoints, features.descriptors, features.scores, features.scales, features.oris)
    return sum(array.nbytes for array in arrays if array is not None)
