"""Training samples from pairs of photographs: canvases of one size with exact geometry.

Each image is decoded, warped onto the canvas by one homography, then changed in light and colour (all in views.py), and
its margins are set to black. F of the canvases is F of the photographs, transformed by both homographies.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, UInt8
from torch import Tensor

from featkit.core.config import Config
from featkit.core.errors import BadInputError
from featkit.core.runtime import capped
from featkit.data.posed_pairs import PosedPairs
from featkit.data.teacher import TaughtPoints, Teacher
from featkit.data.tree import FileTree, is_image, open_tree
from featkit.data.views import (
    CanvasConfig,
    JitterConfig,
    PhotometricConfig,
    ViewConfig,
    draw_canvas,
    draw_jitter,
    draw_view,
    draw_zoom,
    jittered_colours,
    photometric,
    warp,
)
from featkit.geometry.pixels import warped_fundamental
from featkit.images.intensity import common_decoding


class PairAugmentation(Config):
    """Random augmentation of a posed pair."""

    canvas: CanvasConfig = CanvasConfig()
    """Size of the network input, and how a photograph is placed on it."""
    jitter: JitterConfig = JitterConfig()
    """Random changes of colour."""
    photometric: PhotometricConfig = PhotometricConfig()
    """Random changes of light and camera."""
    views: ViewConfig = ViewConfig()
    """Random rotation, zoom and perspective."""


@dataclass(frozen=True)
class PosedSample:
    """A pair of RGB canvases. fundamental01: x1^T F x0 = 0 in their pixels, Frobenius norm 1. valid: not a margin.

    canvas0_from_image, canvas1_from_image: homographies from the pixels of the files.
    """

    image0: UInt8[np.ndarray, "h w 3"]
    image1: UInt8[np.ndarray, "h w 3"]
    fundamental01: Float64[np.ndarray, "3 3"]
    valid0: Bool[np.ndarray, "h w"]
    valid1: Bool[np.ndarray, "h w"]
    canvas0_from_image: Float64[np.ndarray, "3 3"]
    canvas1_from_image: Float64[np.ndarray, "3 3"]
    names: tuple[str, str]


@dataclass(frozen=True)
class PosedBatch:
    """Samples of several pairs; names: `scene/image` of both images of each pair."""

    images0: UInt8[Tensor, "b h w 3"]
    images1: UInt8[Tensor, "b h w 3"]
    fundamentals01: Float64[Tensor, "b 3 3"]
    valid0: Bool[Tensor, "b h w"]
    valid1: Bool[Tensor, "b h w"]
    names: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.names)


class PosedSamples:
    """Samples of posed pairs: the same index and generator state give the same bytes."""

    def __init__(self, pairs: PosedPairs, config: PairAugmentation | None = None, cache_mb: float = 1000.0):
        self._pairs, self._config, self._cache = pairs, config or PairAugmentation(), PixelCache(cache_mb)

    def __len__(self) -> int:
        return len(self._pairs)

    def sample(self, index: int, generator: np.random.Generator) -> PosedSample:
        """A random sample of pair `index`. Raises BadInputError if an image is broken."""
        scene, *images = (int(v) for v in self._pairs.pairs[index])
        place, zoom = generator.random(2), draw_zoom(self._config.canvas, generator)
        boxes = self._pairs.boxes[index]
        canvases = [
            self._draw_canvas_view(scene, image, place, box, zoom, generator)
            for image, box in zip(images, boxes, strict=True)
        ]
        (image0, valid0, warp0), (image1, valid1, warp1) = canvases
        fundamental = warped_fundamental(self._pairs.fundamental01(index), warp0, warp1)
        return PosedSample(image0, image1, fundamental, valid0, valid1, warp0, warp1, self._pairs.names(index))

    def collate(self, samples: Sequence[PosedSample]) -> PosedBatch:
        """Samples -> batch."""

        def stacked(name: str) -> Tensor:
            return torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))

        return PosedBatch(
            stacked("image0"),
            stacked("image1"),
            stacked("fundamental01"),
            stacked("valid0"),
            stacked("valid1"),
            tuple(sample.names for sample in samples),
        )

    def _draw_canvas_view(
        self,
        scene: int,
        image: int,
        place: Float[np.ndarray, "2"],
        box: Float[np.ndarray, "4"],
        zoom: float,
        generator: np.random.Generator,
    ) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"], Float64[np.ndarray, "3 3"]]:
        config = self._config
        pixels = self._cache.get((scene, image), lambda: self._pairs.pixels(scene, image))
        size = pixels.shape[1], pixels.shape[0]
        onto_canvas = draw_canvas(config.canvas, size, generator, place, box, zoom)
        canvas_from_image = draw_view(config.views, config.canvas.size, generator) @ onto_canvas
        canvas, valid = on_canvas(
            pixels, canvas_from_image, config.canvas, config.jitter, config.photometric, generator
        )
        return canvas, valid, canvas_from_image


def on_canvas(
    pixels: UInt8[np.ndarray, "h w 3"],
    canvas_from_image: Float64[np.ndarray, "3 3"],
    canvas: CanvasConfig,
    jitter: JitterConfig,
    light: PhotometricConfig,
    generator: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]:
    """A photograph warped, changed in light and colour, and black outside its content; and the mask of its content."""
    warped, valid = warp(pixels, canvas_from_image, canvas.size)
    changed = photometric(warped, light, generator)
    changed = jittered_colours(changed, draw_jitter(jitter, generator), valid)
    return cv2.bitwise_and(changed, changed, mask=valid.astype(np.uint8)), valid


# ----------------------------------------------------------------------------------------------------------------------
# Pairs from single photographs: two random views of one photograph, related by a known homography.
#
# Used for warm-up without poses: the position of every pixel in the other view is known exactly.


CACHED_PX = 1.5  # larger photographs are cached reduced to this multiple of the canvas's longer side


class WarpConfig(Config):
    """How two views of a photograph differ. The strengths are featkit's own choice."""

    canvas: CanvasConfig = CanvasConfig()
    """Size of the network input, and how a photograph is placed on it."""
    jitter: JitterConfig = JitterConfig()
    """Random changes of colour."""
    photometric: PhotometricConfig = PhotometricConfig()
    """Random changes of light and camera."""
    views: ViewConfig = ViewConfig(rotation_deg=30.0, scale_max=1.5, perspective=0.2)
    """Geometry of each view, drawn independently: between two views angles and zooms add up."""


@dataclass(frozen=True)
class HomographySample:
    """Two RGB canvases. homography01: pixels of canvas 0 -> pixels of canvas 1, Frobenius norm 1, with the sign that
    makes the third coordinate of everything that both see positive. valid: not a margin.
    """

    image0: UInt8[np.ndarray, "h w 3"]
    image1: UInt8[np.ndarray, "h w 3"]
    homography01: Float64[np.ndarray, "3 3"]
    valid0: Bool[np.ndarray, "h w"]
    valid1: Bool[np.ndarray, "h w"]
    name: str
    taught: tuple[TaughtPoints, TaughtPoints] | None = None


@dataclass(frozen=True)
class HomographyBatch:
    """Samples of several photographs; homographies01 as in HomographySample."""

    images0: UInt8[Tensor, "b h w 3"]
    images1: UInt8[Tensor, "b h w 3"]
    homographies01: Float64[Tensor, "b 3 3"]
    valid0: Bool[Tensor, "b h w"]
    valid1: Bool[Tensor, "b h w"]
    names: tuple[str, ...]
    taught: TaughtPoints | None = None
    """Points of all first, then of all second canvases, stacked; None without a teacher."""

    def __len__(self) -> int:
        return len(self.names)


class HomographyPairs:
    """Pairs of views of photographs in folders, zips, folders in zips, or single files.

    teacher: photographs without its features are left out; taught: maximum number of its keypoints per canvas.
    Raises BadInputError if there are no photographs.
    """

    def __init__(
        self,
        sources: Sequence[Path],
        config: WarpConfig | None = None,
        cache_mb: float = 1000.0,
        teacher: Teacher | None = None,
        taught: int = 256,
    ):
        self._config, self._cache = config or WarpConfig(), PixelCache(cache_mb)
        self._teacher, self._taught = teacher, taught
        self.files = [(*photograph, source) for source in sources for photograph in photographs(source)]
        if teacher is not None:
            self.files = [photograph for photograph in self.files if teacher.has(photograph[2], photograph[1])]
            if not self.files:
                raise BadInputError("the teacher has features for none of the photographs; check their names")

    def __len__(self) -> int:
        return len(self.files)

    def select(self, index: Int[np.ndarray, " k"]) -> HomographyPairs:
        """The photographs at `index`, in that order."""
        selected = copy.copy(self)
        selected.files = [self.files[int(i)] for i in index]
        selected._cache = PixelCache(self._cache.limit_mb)
        return selected

    def sample(self, index: int, generator: np.random.Generator) -> HomographySample:
        """Two random views of a photograph. Raises BadInputError if it is broken."""
        config = self._config
        tree, name, source = self.files[index]
        pixels = self._cache.get(index, lambda: self._load_reduced(tree, name))
        size, zoom = (pixels.shape[1], pixels.shape[0]), draw_zoom(config.canvas, generator)
        canvas = draw_canvas(config.canvas, size, generator, zoom=zoom)
        views = [draw_view(config.views, config.canvas.size, generator) for _ in range(2)]
        (image0, valid0), (image1, valid1) = (
            on_canvas(pixels, view @ canvas, config.canvas, config.jitter, config.photometric, generator)
            for view in views
        )
        between = views[1] @ np.linalg.inv(views[0])  # not divided by [2, 2]: pixel (0, 0) may be beyond the horizon
        between /= np.linalg.norm(between)
        taught = None
        if self._teacher is not None:
            taught0, taught1 = (
                self._teacher.on_canvas(source, name, view @ canvas, size, config.canvas.size, self._taught)
                for view in views
            )
            taught = taught0, taught1
        return HomographySample(image0, image1, between, valid0, valid1, tree.where(name), taught)

    def collate(self, samples: Sequence[HomographySample]) -> HomographyBatch:
        """Samples -> batch."""

        def stacked(name: str) -> Tensor:
            return torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))

        return HomographyBatch(
            stacked("image0"),
            stacked("image1"),
            stacked("homography01"),
            stacked("valid0"),
            stacked("valid1"),
            tuple(sample.name for sample in samples),
            self._stack_taught(samples),
        )

    @staticmethod
    def _stack_taught(samples: Sequence[HomographySample]) -> TaughtPoints | None:
        points = [sample.taught[view] for view in range(2) for sample in samples if sample.taught is not None]
        if not points:
            return None
        names = ("points", "descriptors", "scores", "shown")
        return TaughtPoints(*(np.stack([getattr(canvas_points, name) for canvas_points in points]) for name in names))

    def _load_reduced(self, tree: FileTree, name: str) -> UInt8[np.ndarray, "h w 3"]:
        canvas = self._config.canvas
        return reduced(tree.upright_pixels(name), round(CACHED_PX * canvas.zoom_max * max(canvas.size)))


def photographs(source: Path) -> list[tuple[FileTree, str]]:
    """All images in a folder or zip, or a single image file. Raises BadInputError if there are none.

    Files of more than 8 bits in a folder are decoded with one common intensity range.
    """
    if source.is_file() and is_image(source.name):
        return [(FileTree(source.parent, decoding=common_decoding([source])), source.name)]
    tree = open_tree(source)
    names = [name for name in tree.names() if is_image(name)]
    if not names:
        raise BadInputError(f"{source}: no photographs in it")
    if tree.archive is None:
        tree = replace(tree, decoding=common_decoding([tree.root / name for name in names]))
    return [(tree, name) for name in names]


def reduced(pixels: UInt8[np.ndarray, "h w 3"], max_side: int) -> UInt8[np.ndarray, "H W 3"]:
    """A photograph reduced, by area averaging, to a longer side of at most `max_side`."""

    scale = max_side / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


# ----------------------------------------------------------------------------------------------------------------------
# Endless batches of samples, prefetched by threads; the state is a single number.
#
# The order of the epoch determines the pair of sample i, whose generator is seeded with [seed, 2, i]: samples do not
# depend on threads, prefetching or interruptions of the training. Decoding and warping run in OpenCV, which releases
# the GIL.


SampleT = TypeVar("SampleT")
BatchT = TypeVar("BatchT")
BatchT_co = TypeVar("BatchT_co", covariant=True)
AHEAD = 3  # batches prefetched


class SampleSource(Protocol[SampleT, BatchT_co]):
    """Interface of PosedSamples and HomographyPairs."""

    def __len__(self) -> int: ...

    def sample(self, index: int, generator: np.random.Generator) -> SampleT: ...

    def collate(self, samples: Sequence[SampleT]) -> BatchT_co: ...


class PairOrder:
    """Every pair once per epoch, in an order drawn from (seed, epoch)."""

    def __init__(self, count: int, seed: int):
        self._count, self._seed = count, seed
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __getitem__(self, number: int) -> int:
        """The pair of sample `number` (0, 1, ..., without end)."""
        epoch, place = divmod(number, self._count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self._seed, 1, epoch]).permutation(self._count)
        return int(self._order[place])


class PairFeed(Generic[SampleT, BatchT]):
    """Batches of `batch_size` samples.

    workers: threads; 0: no prefetching. part: which rows of a batch belong to this process.
    """

    def __init__(
        self,
        source: SampleSource[SampleT, BatchT],
        batch_size: int,
        seed: int = 0,
        workers: int = 2,
        part: Callable[[int], slice] = slice,
    ):
        self._source, self._batch_size, self._seed = source, batch_size, seed
        self._rows = range(batch_size)[part(batch_size)]
        self._order = PairOrder(len(source), seed)
        self._pool = ThreadPoolExecutor(capped(workers)) if workers else None
        self._waiting: deque[list[Future[SampleT]]] = deque()
        self._next = 0  # next batch to return
        self.waited_s = 0.0

    def next(self) -> BatchT:
        """The next batch; the time spent waiting for it is added to `waited_s`. Raises errors of the samples."""
        started = time.perf_counter()
        if self._pool is None:
            samples = [self._draw_sample(*task) for task in self._tasks(self._next)]
        else:
            while len(self._waiting) < AHEAD:
                tasks = self._tasks(self._next + len(self._waiting))
                self._waiting.append([self._pool.submit(self._draw_sample, *task) for task in tasks])
            samples = [future.result() for future in self._waiting[0]]
            self._waiting.popleft()
        self._next += 1
        batch = self._source.collate(samples)
        self.waited_s += time.perf_counter() - started
        return batch

    def state(self) -> dict[str, Any]:
        """The state after the last batch returned."""
        return {"batches": self._next}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a state."""
        self._cancel_waiting()
        self._next = int(state["batches"])

    def close(self) -> None:
        """Stop prefetching."""
        self._cancel_waiting()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _tasks(self, batch: int) -> list[tuple[int, int]]:
        numbers = [batch * self._batch_size + row for row in self._rows]
        return [(number, self._order[number]) for number in numbers]

    def _draw_sample(self, number: int, index: int) -> SampleT:
        return self._source.sample(index, np.random.default_rng([self._seed, 2, number]))

    def _cancel_waiting(self) -> None:
        for batch in self._waiting:
            for future in batch:
                future.cancel()
        self._waiting.clear()


# ----------------------------------------------------------------------------------------------------------------------
# Cache of decoded photographs.


class PixelCache:
    """Keeps the first photographs up to a limit: no other policy has more hits in an order reshuffled every epoch."""

    def __init__(self, limit_mb: float):
        self.limit_mb = limit_mb
        self._pixels: dict[Hashable, np.ndarray] = {}
        self._lock = threading.Lock()
        self.held_bytes = 0

    def get(self, key: Hashable, load: Callable[[], np.ndarray]) -> np.ndarray:
        """The pixels of `key`, read-only."""
        cached = self._pixels.get(key)
        if cached is not None:
            return cached
        pixels = load()
        with self._lock:
            if key not in self._pixels and self.held_bytes + pixels.nbytes <= 1e6 * self.limit_mb:
                pixels.flags.writeable = False
                self._pixels[key] = pixels
                self.held_bytes += pixels.nbytes
        return pixels
