"""From a photograph to the canvas that the network sees, by one homography: put on the canvas, then seen anew.

    canvas_from_image = V C        C: scale and shift (draw_canvas);  V: turn, zoom, tilt (draw_view)

Both are exact maps between featkit pixels, so whatever holds between photographs holds between canvases:
F' = H1^-T F H0^-1. The pixels are resampled once.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from pydantic import Field

from featkit.config import Config
from featkit.geometry.homography import as_homography, local_scale
from featkit.geometry.pixels import resize_affine

REDUCED_FIRST = 1.5  # source pixels per canvas pixel: above it an image is reduced by area before it is warped


class CanvasConfig(Config):
    """The picture that the network sees, whatever the photograph's size and shape."""

    width: int = Field(640, ge=64)
    """px. SCFeat and CAPS: 640."""
    height: int = Field(480, ge=64)
    """px. SCFeat and CAPS: 480."""
    cover_min: float = Field(0.5, ge=0, le=1)
    """Between 0, a photograph of another shape fits whole and leaves margins, and 1, it covers the canvas and loses
    its ends. The place between is drawn uniformly from here to 1. Of no effect on photographs of the canvas's shape."""
    zoom_max: float = Field(1.0, ge=1, le=8)
    """The photograph is enlarged by up to so much beyond that (drawn evenly in the logarithm, alike for both images of
    a pair, never beyond its own resolution) and a part of it is shown: on a small canvas it is seen sharp as well."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height


class ViewConfig(Config):
    """How far a canvas is turned, zoomed and tilted, each image by itself. The paper: not at all."""

    rotation_deg: float = Field(0.0, ge=0, le=180)
    """Largest turn either way, degrees."""
    scale_max: float = Field(1.0, ge=1, le=8)
    """Largest zoom; its inverse is the smallest; drawn evenly in its logarithm."""
    perspective: float = Field(0.0, ge=0, lt=0.5)
    """Largest change of the scale from the middle to the border, along x and along y: 0.2 makes one side 1.2 / 0.8
    times as large as the other."""


def draw_canvas(
    config: CanvasConfig,
    size: tuple[int, int],
    generator: np.random.Generator,
    place: Float[np.ndarray, "2"] | None = None,
    box: Float[np.ndarray, "4"] | None = None,
    zoom: float = 1.0,
) -> Float[np.ndarray, "3 3"]:
    """C: an image of `size` (width, height) scaled and shifted onto the canvas. zoom: see `draw_zoom`.

    Where the image is cut, the cut is about the point at `place` (0 to 1 in x and y; drawn when None) of `box`
    (x0 y0 x1 y1, pixels; the whole image when None): two images of a pair are cut about the same place of what both
    see. Where margins are left, the image lies anywhere between them.
    """
    canvas, image = np.array(config.size, dtype=np.float64), np.array(size, dtype=np.float64)
    margins, between = generator.random(2), generator.uniform(config.cover_min, 1)
    place = generator.random(2) if place is None else place
    fit, cover = np.log((canvas / image).min()), np.log((canvas / image).max())
    scale = np.exp(fit + between * (cover - fit))
    scale = max(scale, min(zoom * scale, 1.0))
    low, high = (np.full(2, -0.5), image - 0.5) if box is None else (box[:2], box[2:])
    free = canvas - scale * image
    start = np.clip(scale * (low + place * (high - low) + 0.5) - canvas / 2, 0, np.maximum(-free, 0))
    shift = np.where(free > 0, margins * free, -start)
    return np.array([[scale, 0, 0.5 * scale - 0.5 + shift[0]], [0, scale, 0.5 * scale - 0.5 + shift[1]], [0, 0, 1]])


def draw_zoom(config: CanvasConfig, generator: np.random.Generator) -> float:
    """How much larger a photograph is shown than to fill the canvas."""
    return float(config.zoom_max ** generator.random()) if config.zoom_max > 1 else 1.0


def draw_view(config: ViewConfig, canvas: tuple[int, int], generator: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """V: canvas pixels -> canvas pixels, about the middle.

    It is drawn the way back, as the place that every new pixel is read from: no pixel is read from behind the horizon.
    Third coordinates are positive, both ways, of all that the canvas shows: the sign of the matrix means something.
    """
    turn, zoom, *tilt = generator.uniform(-1, 1, 4)
    angle, scale = np.radians(config.rotation_deg) * turn, config.scale_max**zoom
    half = np.array(canvas) / 2
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    back = np.array([[cos, sin, 0], [-sin, cos, 0], [*(config.perspective * np.array(tilt) / half), 1]])
    middle = np.array([[1, 0, half[0] - 0.5], [0, 1, half[1] - 0.5], [0, 0, 1]])
    return np.linalg.inv(middle @ back @ np.linalg.inv(middle))


def warp(
    pixels: UInt8[np.ndarray, "h w 3"], canvas_from_image: Float[np.ndarray, "3 3"], canvas: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]:
    """An image on the canvas (width, height), and where the canvas has content. The border's colours go on outside."""
    size = pixels.shape[1], pixels.shape[0]
    scale = _middle_scale(canvas_from_image, canvas)
    if scale * REDUCED_FIRST < 1:
        smaller = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        pixels = cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA)
        canvas_from_image = canvas_from_image @ as_homography(resize_affine(smaller, size))
        size = smaller
    warped = cv2.warpPerspective(
        pixels, canvas_from_image, canvas, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return warped, content(canvas_from_image, size, canvas)


def content(
    canvas_from_image: Float[np.ndarray, "3 3"], size: tuple[int, int], canvas: tuple[int, int]
) -> Bool[np.ndarray, "H W"]:
    """Canvas pixels whose centre lies in the image of `size`, its outermost half pixels included."""
    x, y = np.arange(canvas[0], dtype=np.float64), np.arange(canvas[1], dtype=np.float64)[:, None]
    back = np.linalg.inv(canvas_from_image)
    across, down, depth = (row[0] * x + row[1] * y + row[2] for row in back / back[2, 2])
    # Compared without dividing: depth is positive on the whole canvas (see draw_view).
    wide = (across >= -0.5 * depth) & (across <= (size[0] - 0.5) * depth)
    return wide & (down >= -0.5 * depth) & (down <= (size[1] - 0.5) * depth)


def _middle_scale(canvas_from_image: Float[np.ndarray, "3 3"], canvas: tuple[int, int]) -> float:
    """Canvas pixels per image pixel, in the middle of the canvas."""
    back = np.linalg.inv(canvas_from_image)
    middle = np.array([[canvas[0] / 2 - 0.5, canvas[1] / 2 - 0.5]])
    return float(1 / local_scale(back, middle)[0])
