"""Pairs out of single photographs: two random views of one, joined by a known homography.

What a warm-up learns from where there are no poses: every pixel's place in the other view is known exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int, UInt8
from torch import Tensor

from featkit.config import Config
from featkit.data.colour_jitter import JitterConfig
from featkit.data.homographies import CanvasConfig, ViewConfig, draw_canvas, draw_view, draw_zoom
from featkit.data.image_tree import FileTree, is_image, open_tree
from featkit.data.photometric import PhotometricConfig
from featkit.data.pixel_cache import PixelCache
from featkit.data.posed_samples import on_canvas
from featkit.data.teacher import TaughtPoints, Teacher
from featkit.errors import BadInputError

CACHED_PX = 1.5  # of the canvas's longer side: larger photographs are kept reduced to it


class HomographyConfig(Config):
    """How two views of a photograph differ. The strengths are featkit's own choice."""

    canvas: CanvasConfig = CanvasConfig()
    jitter: JitterConfig = JitterConfig()
    photometric: PhotometricConfig = PhotometricConfig()
    views: ViewConfig = ViewConfig(rotation_deg=30.0, scale_max=1.5, perspective=0.2)
    """Of both views, independently: between them angles and zooms add up."""


@dataclass(frozen=True)
class HomographySample:
    """Two RGB canvases. homography01: pixels of canvas 0 -> pixels of canvas 1, of Frobenius norm 1, its sign such that
    the third coordinate of whatever both see is positive. valid: has content.
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
    """Samples of several photographs; homographies01 with the sign of the samples'."""

    images0: UInt8[Tensor, "b h w 3"]
    images1: UInt8[Tensor, "b h w 3"]
    homographies01: Float64[Tensor, "b 3 3"]
    valid0: Bool[Tensor, "b h w"]
    valid1: Bool[Tensor, "b h w"]
    names: tuple[str, ...]
    taught: TaughtPoints | None = None
    """Of all first, then of all second canvases, stacked; None without a teacher."""

    def __len__(self) -> int:
        return len(self.names)


class HomographyPairs:
    """Photographs of folders, zips, folders in zips, or single files. Raises BadInputError when there is none.

    teacher: photographs without its features are left out; taught: how many of its keypoints a canvas gets at most.
    """

    def __init__(
        self,
        sources: Sequence[Path],
        config: HomographyConfig | None = None,
        cache_mb: float = 1000.0,
        teacher: Teacher | None = None,
        taught: int = 256,
    ):
        self._config, self._cache = config or HomographyConfig(), PixelCache(cache_mb)
        self._teacher, self._taught = teacher, taught
        self.files = [(*found, source) for source in sources for found in photographs(source)]
        if teacher is not None:
            self.files = [found for found in self.files if teacher.has(found[2], found[1])]
            if not self.files:
                raise BadInputError("the teacher's files hold features of none of the photographs; check their names")

    def __len__(self) -> int:
        return len(self.files)

    def select(self, index: Int[np.ndarray, " k"]) -> HomographyPairs:
        """The photographs at `index`, in that order."""
        some = copy.copy(self)
        some.files = [self.files[int(i)] for i in index]
        some._cache = PixelCache(self._cache.limit_mb)
        return some

    def sample(self, index: int, generator: np.random.Generator) -> HomographySample:
        """Two views of a photograph. Raises BadInputError when it is broken."""
        config = self._config
        tree, name, source = self.files[index]
        pixels = self._cache.get(index, lambda: self._load(tree, name))
        size, zoom = (pixels.shape[1], pixels.shape[0]), draw_zoom(config.canvas, generator)
        canvas = draw_canvas(config.canvas, size, generator, zoom=zoom)
        views = [draw_view(config.views, config.canvas.size, generator) for _ in range(2)]
        (image0, valid0), (image1, valid1) = (
            on_canvas(pixels, view @ canvas, config.canvas, config.jitter, config.photometric, generator)
            for view in views
        )
        between = views[1] @ np.linalg.inv(views[0])  # not through [2, 2]: pixel (0, 0) may lie beyond the horizon
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
            self._stacked_points(samples),
        )

    @staticmethod
    def _stacked_points(samples: Sequence[HomographySample]) -> TaughtPoints | None:
        points = [sample.taught[view] for view in range(2) for sample in samples if sample.taught is not None]
        if not points:
            return None
        names = ("points", "descriptors", "scores", "shown")
        return TaughtPoints(*(np.stack([getattr(one, name) for one in points]) for name in names))

    def _load(self, tree: FileTree, name: str) -> UInt8[np.ndarray, "h w 3"]:
        canvas = self._config.canvas
        return reduced(tree.upright_pixels(name), round(CACHED_PX * canvas.zoom_max * max(canvas.size)))


def photographs(source: Path) -> list[tuple[FileTree, str]]:
    """All images below a folder or in a zip, or the one file. Raises BadInputError when there is none."""
    if source.is_file() and is_image(source.name):
        return [(FileTree(source.parent), source.name)]
    tree = open_tree(source)
    found = [(tree, name) for name in tree.names() if is_image(name)]
    if not found:
        raise BadInputError(f"{source}: no photographs in it")
    return found


def reduced(pixels: UInt8[np.ndarray, "h w 3"], max_side: int) -> UInt8[np.ndarray, "H W 3"]:
    """A photograph reduced by area to a longer side of at most `max_side`."""
    import cv2

    scale = max_side / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
