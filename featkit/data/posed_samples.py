"""One pair of photographs as it is learned from: on canvases of one size, its geometry exact.

An image's way: decode -> one homography onto the canvas (homographies.py) -> light (photometric.py) -> colour jitter
-> margins black. F of the
canvases is F of the photographs, carried through both homographies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, UInt8
from torch import Tensor

from featkit.config import Config
from featkit.data.colour_jitter import JitterConfig, draw_jitter, jittered
from featkit.data.homographies import CanvasConfig, ViewConfig, draw_canvas, draw_view, draw_zoom, warp
from featkit.data.photometric import PhotometricConfig, photometric
from featkit.data.pixel_cache import PixelCache
from featkit.data.posed_pairs import PosedPairs
from featkit.geometry.homography import warped_fundamental


class PairAugmentation(Config):
    """How a pair is varied every time it is seen."""

    canvas: CanvasConfig = CanvasConfig()
    jitter: JitterConfig = JitterConfig()
    photometric: PhotometricConfig = PhotometricConfig()
    views: ViewConfig = ViewConfig()


@dataclass(frozen=True)
class PosedSample:
    """A pair of RGB canvases. fundamental01: x1^T F x0 = 0 in their pixels, Frobenius norm 1. valid: has content.

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
    """Samples of several pairs; names: `scene/image` of both images of each."""

    images0: UInt8[Tensor, "b h w 3"]
    images1: UInt8[Tensor, "b h w 3"]
    fundamentals01: Float64[Tensor, "b 3 3"]
    valid0: Bool[Tensor, "b h w"]
    valid1: Bool[Tensor, "b h w"]
    names: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.names)


class PosedSamples:
    """Samples of posed pairs: the same index and the same state of the generator give the same bytes."""

    def __init__(self, pairs: PosedPairs, config: PairAugmentation | None = None, cache_mb: float = 1000.0):
        self._pairs, self._config, self._cache = pairs, config or PairAugmentation(), PixelCache(cache_mb)

    def __len__(self) -> int:
        return len(self._pairs)

    def sample(self, index: int, generator: np.random.Generator) -> PosedSample:
        """A pair as it looks this time. Raises BadInputError when an image is broken."""
        scene, *images = (int(v) for v in self._pairs.pairs[index])
        place, zoom = generator.random(2), draw_zoom(self._config.canvas, generator)
        boxes = self._pairs.boxes[index]
        seen = [self._seen(scene, image, place, box, zoom, generator) for image, box in zip(images, boxes, strict=True)]
        (image0, valid0, warp0), (image1, valid1, warp1) = seen
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

    def _seen(
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
        whole = draw_view(config.views, config.canvas.size, generator) @ onto_canvas
        canvas, valid = on_canvas(pixels, whole, config.canvas, config.jitter, config.photometric, generator)
        return canvas, valid, whole


def on_canvas(
    pixels: UInt8[np.ndarray, "h w 3"],
    canvas_from_image: Float64[np.ndarray, "3 3"],
    canvas: CanvasConfig,
    jitter: JitterConfig,
    light: PhotometricConfig,
    generator: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]:
    """A photograph warped, in another light, with changed colours, black where it has no content; and where it has."""
    warped, valid = warp(pixels, canvas_from_image, canvas.size)
    changed = photometric(warped, light, generator)
    changed = jittered(changed, draw_jitter(jitter, generator), valid)
    return cv2.bitwise_and(changed, changed, mask=valid.astype(np.uint8)), valid
