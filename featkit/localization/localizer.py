"""A map that stays in memory, and answers one photograph after another: what `featkit localize` does, kept warm.

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
from featkit.core.errors import UsageError
from featkit.core.registry import resolve
from featkit.core.runtime import torch_device
from featkit.core.types import Features, Matches, Pair
from featkit.features.base import is_packed
from featkit.features.stage import extract_one, extraction, in_file, same_extraction, seen_features
from featkit.images.read import DecodedImage, decode, from_pixels
from featkit.io.features import FeatureStore, open_features
from featkit.io.lists import Intrinsics, parse_intrinsics
from featkit.localization.absolute_pose import MapPoints
from featkit.localization.queries import QueryCamera, camera_of_pixels, query_camera
from featkit.localization.stage import LocalizeConfig, QueryResult, localize_query
from featkit.mapping.cameras import SPHERE
from featkit.mapping.cameras import check as check_camera
from featkit.mapping.model import read_model
from featkit.mapping.scene import find_map
from featkit.matching.config import MatchWith
from featkit.matching.stage import Matcher, weights_for
from featkit.retrieval.retrieve import image_vector, image_vectors, needs_spill
from featkit.retrieval.search import MIB, top_k
from featkit.retrieval.vlad import VladConfig, train_codebook, unit_rows

Image = Path | str | UInt8[np.ndarray, "h w *c"]


class LocalizerConfig(MatchWith):
    """What decides a pose, beside the map: the fields of the recipe behind `featkit localize`, with its defaults."""

    retrieval: VladConfig = VladConfig()
    """How map images are found for a query."""
    localize: LocalizeConfig = LocalizeConfig()
    """Poses, and the query's camera."""
    seed: Seed = 0
    """Of the clusters of retrieval."""
    points_only: bool = False
    """Match with the 3D points that the retrieved images show, each once, as the most similar of them shows it: faster
    and smaller. The matches, and the pose by its noise, are then not those of `featkit localize`."""
    cache_mb: Runtime[int] = Field(1024, ge=0, le=10**6)
    """Features of map images that are kept in memory, MiB; 8,000 of 128 numbers are 4."""


class ServeConfig(Config):
    """What one client may ask of the server."""

    max_mb: Megabytes = 32.0
    """Largest photograph, millions of bytes."""
    max_megapixels: Factor = 50.0
    """Largest photograph, millions of pixels; a larger one is refused by its header, before it is decoded."""
    upload_s: Seconds = 30.0
    """Seconds within which a photograph must have arrived."""
    timeout_s: Seconds = 60.0
    """Seconds for one photograph, waiting included."""
    threads: int = Field(2, ge=1, le=1024)
    """Photographs that are worked on at once."""
    max_waiting: int = Field(16, ge=0, le=10**6)
    """Photographs that arrive or wait for a thread; more are sent away before they are read."""
    header_s: Seconds = 10.0
    """Seconds within which a connection must have made its request."""
    max_connections: int = Field(200, ge=1, le=10**6)
    """Connections at once; more are sent away."""


class ServedConfig(LocalizerConfig):
    """A localizer that answers others."""

    serve: ServeConfig = ServeConfig()
    """What one client may ask."""


class Localizer:
    """Poses of photographs in one map. Threads may share it: they extract side by side, and match one after another."""

    def __init__(
        self,
        map_folder: Path | str,
        config: LocalizerConfig | None = None,
        *,
        features: Path | str | None = None,
        device: str = "auto",
        number: int | None = None,
    ):
        """Load the model, describe its images, and build the extractor that the map's features were made with.

        map_folder: a scene, its featkit/ folder, or a sparse model beside its features. features: the map's features.h5
        when it is elsewhere. number: which of several models; None: the largest. Raises BadInputError and UsageError as
        `featkit localize` does.
        """
        self.config = config or LocalizerConfig()
        check_camera(self.config.localize.camera)
        found = find_map(Path(map_folder), None if features is None else Path(features), number)
        self._device = device
        self._method = extraction(same_extraction(found.features, workers=1), device=device)
        self._matcher: Matcher = resolve("matcher", self.config.matcher, self.config.matching, device).built
        self._turn = threading.Lock()
        with ExitStack() as stack:
            store = stack.enter_context(open_features(found.features))
            if weights_for(self._matcher, store.extractor) and self.config.points_only:
                raise UsageError(
                    f"points_only matches with points of several images at once; {self.config.matcher} looks at where"
                    " keypoints are in one image: leave out one of both"
                )
            self._points = MapPoints(read_model(found.model), store)
            self._warm = WarmFeatures(store, self._points, self.config.cache_mb * MIB, self.config.points_only)
            self._describe_map(store, stack)
            self._open = stack.pop_all()

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
        """The pose of one photograph, or the reason why there is none: what `featkit localize` finds for it.

        image: a file, or uint8 pixels, upright, grey (h, w) or RGB (h, w, 3). intrinsics: its camera, also as
        `MODEL width height params...`; None: the map's, EXIF's, or a guess that is refined with the pose. name: what
        the result calls it. features: of the file, where `extract` found them already; pixels are then not read again.
        Raises BadInputError for an image that cannot be read or is not of its camera's size.
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
            features = in_file(self._method, decoded, seen_features(self._method, decoded, is_panorama))
        assert features is not None
        with self._turn:  # torch's number of threads and the open file are shared
            partners = self._retrieve(name, features)
            found = self._match(name, features, partners) if partners else None
        pose = self.config.localize.pose
        return localize_query(pose, name, camera, features.keypoints, partners, found, self._points)

    def _camera_of_pixels(self, name: str, image: DecodedImage, intrinsics: Intrinsics | None) -> QueryCamera:
        model, config = self._points.model, self.config.localize.camera
        return camera_of_pixels(name, image.stored_size, config, intrinsics, model)

    def _camera_of_file(self, path: Path, intrinsics: Intrinsics | None) -> QueryCamera:
        listed = None if intrinsics is None else {path.name: intrinsics}
        return query_camera(path.name, path.parent, self.config.localize.camera, listed, self._points.model)

    def _retrieve(self, name: str, features: Features) -> list[str]:
        """The most similar images of the map, best first; none for an image without keypoints."""
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

    def _match(self, name: str, features: Features, partners: Sequence[str]) -> FoundMatches:
        query, warm = real_numbers(features), [self._warm.read(partner) for partner in partners]
        if self.config.points_only:
            points = PointsOnce.of(warm)
            [found] = self._matcher.match([(query, points.features)])
            by_image = points.by_image(found, len(warm))
        else:
            by_image = self._matcher.match([(query, image.features) for image in warm])
        return FoundMatches({Pair(name, partner): m for partner, m in zip(partners, by_image, strict=True)})

    @property
    def extract(self) -> Callable[[Path], Features] | None:
        """What finds a photograph's features, to be called in another process; None on a GPU, which this one has."""
        on_cpu = torch_device(self._device).type == "cpu"
        return functools.partial(extract_one, self._method) if on_cpu else None

    @property
    def map_images(self) -> int:
        """Images of the map that have a pose."""
        return len(self._points.names())

    @property
    def map_points(self) -> int:
        """3D points of the map."""
        return self._points.model.num_points3D()

    def close(self) -> None:
        """Close the map's files; nothing can be localized after that."""
        self._open.close()

    def __enter__(self) -> Localizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class FoundMatches:
    """Matches in memory, read as from a matches.h5."""

    by_pair: dict[Pair, Matches]

    def read(self, pair: Pair) -> Matches:
        return self.by_pair[pair]


@dataclass(frozen=True)
class WarmImage:
    """Features of a map image as the matcher wants them.

    index, point_ids: which of the image's keypoints they are, and their 3D points (-1: none).
    """

    features: Features
    index: Int[np.ndarray, " n"]
    point_ids: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class PointsOnce:
    """3D points that several images show, each as the first of them shows it.

    features: their descriptors; where a keypoint lies is said of the image that shows it. image, index: for each, and
    a -1 after the last, the number of that image and of its keypoint.
    """

    features: Features
    image: Int[np.ndarray, " n1"]
    index: Int[np.ndarray, " n1"]

    @classmethod
    def of(cls, images: Sequence[WarmImage]) -> PointsOnce:
        """images: one or more, of keypoints with 3D points alone."""
        number = np.repeat(np.arange(len(images)), [len(image.features) for image in images])
        point_ids = np.concatenate([image.point_ids for image in images])
        first = np.sort(np.unique(point_ids, return_index=True)[1])

        def joined(parts: Iterable[np.ndarray]) -> np.ndarray:
            return np.concatenate(list(parts))[first]

        features = replace(
            images[0].features,
            keypoints=joined(image.features.keypoints for image in images),
            descriptors=joined(image.features.descriptors for image in images),
            scores=joined(image.features.scores for image in images),
            scales=None,
            oris=None,
            from_seen=None,
        )
        index = joined(image.index for image in images)
        return cls(features, np.append(number[first], -1), np.append(index, -1))

    def by_image(self, matches: Matches, count: int) -> list[Matches]:
        """Matches with these points as matches with the keypoints of each image."""
        shown_by, index = self.image[matches.matches0], self.index[matches.matches0]
        return [replace(matches, matches0=np.where(shown_by == number, index, -1)) for number in range(count)]


class WarmFeatures:
    """Features of map images; those used last stay in memory. Not for several threads.

    points_only: only keypoints with a 3D point are kept.
    """

    def __init__(self, store: FeatureStore, points: MapPoints, budget_bytes: int, points_only: bool):
        self._store, self._point_ids, self._left, self._points_only = store, points.point_ids, budget_bytes, points_only
        self._kept: OrderedDict[str, WarmImage] = OrderedDict()

    def read(self, name: str) -> WarmImage:
        """Raises BadInputError when they are missing or damaged."""
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        features, point_ids = self._store.read(name), self._point_ids(name)
        index = np.arange(len(features))
        if self._points_only:
            index = np.flatnonzero(point_ids >= 0)
            features = features.select(index)
        image = WarmImage(real_numbers(features), index, point_ids[index])
        self._kept[name] = image
        self._left -= _bytes(image.features)
        while self._left < 0 and self._kept:
            self._left += _bytes(self._kept.popitem(last=False)[1].features)
        return image


def real_numbers(features: Features) -> Features:
    """The same features with float32 descriptors, which is what a matcher makes of halves; packed bits stay."""
    rows = features.descriptors
    return features if is_packed(rows) else replace(features, descriptors=np.ascontiguousarray(rows, np.float32))


def _bytes(features: Features) -> int:
    arrays = (features.keypoints, features.descriptors, features.scores, features.scales, features.oris)
    return sum(array.nbytes for array in arrays if array is not None)
