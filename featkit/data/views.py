"""Augmentation of photographs: placement on a canvas, rotation, zoom, tilt, light, camera effects and colour.

One homography maps a photograph to the canvas; then light and camera effects are applied, then colour jitter.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from pydantic import Field

from featkit.core.config import Config, Degrees, Share
from featkit.geometry.pixels import as_homography, local_scale, resize_affine

# ----------------------------------------------------------------------------------------------------------------------
# From a photograph to the canvas (the network input) by one homography: placement on the canvas, then a new view.
#
#     canvas_from_image = V C        C: scale and shift (draw_canvas);  V: rotation, zoom, tilt (draw_view)
#
# Both are exact maps between featkit pixels, so the geometry of the photographs carries over to the canvases:
# F' = H1^-T F H0^-1. The pixels are resampled once.


REDUCED_FIRST = 1.5  # source pixels per canvas pixel above which an image is reduced by area before it is warped


class CanvasConfig(Config):
    """The canvas: the network input, independent of the photograph's size and aspect ratio."""

    width: int = Field(640, ge=64, le=2**16)
    """Width of the canvas, px. SCFeat and CAPS: 640."""
    height: int = Field(480, ge=64, le=2**16)
    """Height of the canvas, px. SCFeat and CAPS: 480."""
    cover_min: Share = 0.5
    """Smallest value of the random fit of a photograph with another aspect ratio, between 0 (fits completely, with
    margins) and 1 (covers the canvas, cropped). The value is drawn uniformly from here to 1."""
    zoom_max: float = Field(1.0, ge=1, le=8)
    """Largest additional magnification of a photograph, of which only a part is then shown. Drawn uniformly in the
    logarithm, the same for both images of a pair, and limited to the photograph's resolution; shows sharp detail on
    small canvases too."""

    def check_cells(self, name: str, cell_px: int) -> None:
        """Raise ValueError for cells of which no complete one is on the canvas. name: of their field."""
        if cell_px > min(self.width, self.height):
            raise ValueError(
                f"{name}: {cell_px} is more than augmentation.canvas, {self.width} x {self.height} px, holds"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height


class ViewConfig(Config):
    """Random rotation, zoom and tilt of the canvas, independent for each image. The paper uses none."""

    rotation_deg: Degrees = 0.0
    """Largest rotation in either direction, degrees."""
    scale_max: float = Field(1.0, ge=1, le=8)
    """Largest zoom; the smallest is its inverse; drawn uniformly in the logarithm."""
    perspective: float = Field(0.0, ge=0, lt=0.5)
    """Largest relative change of scale from the centre to the border, along x and y: 0.2 makes one side 1.2 / 0.8 times
    as large as the other."""


def draw_canvas(
    config: CanvasConfig,
    size: tuple[int, int],
    generator: np.random.Generator,
    place: Float[np.ndarray, "2"] | None = None,
    box: Float[np.ndarray, "4"] | None = None,
    zoom: float = 1.0,
) -> Float[np.ndarray, "3 3"]:
    """C: an image of `size` (width, height) scaled and shifted onto the canvas. zoom: see `draw_zoom`.

    A crop is centred on the point at `place` (0 to 1 in x and y; random if None) of `box` (x0 y0 x1 y1, pixels; the
    whole image if None), so that both images of a pair are cropped around the same part of their overlap. If there are
    margins, the image is placed at random between them.
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
    """Draw the additional magnification of a photograph (see `zoom_max`)."""
    return float(config.zoom_max ** generator.random()) if config.zoom_max > 1 else 1.0


def draw_view(config: ViewConfig, canvas: tuple[int, int], generator: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """V: canvas pixels -> canvas pixels, about the centre.

    The inverse is drawn, which maps every new pixel to its source: no pixel is read from beyond the horizon. In both
    directions, third coordinates are positive for everything on the canvas, so the sign of the matrix matters.
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
    """An image on the canvas (width, height), and the mask of its content. Outside, border colours are repeated."""
    size = pixels.shape[1], pixels.shape[0]
    scale = _scale_at_centre(canvas_from_image, canvas)
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
    """Canvas pixels whose centre is inside the image of `size`, including its outermost half pixels."""
    x, y = np.arange(canvas[0], dtype=np.float64), np.arange(canvas[1], dtype=np.float64)[:, None]
    back = np.linalg.inv(canvas_from_image)
    across, down, depth = (row[0] * x + row[1] * y + row[2] for row in back / back[2, 2])
    # Compared without dividing: depth is positive on the whole canvas (see draw_view).
    wide = (across >= -0.5 * depth) & (across <= (size[0] - 0.5) * depth)
    return wide & (down >= -0.5 * depth) & (down <= (size[1] - 0.5) * depth)


def _scale_at_centre(canvas_from_image: Float[np.ndarray, "3 3"], canvas: tuple[int, int]) -> float:
    """Canvas pixels per image pixel, at the centre of the canvas."""
    back = np.linalg.inv(canvas_from_image)
    middle = np.array([[canvas[0] / 2 - 0.5, canvas[1] / 2 - 0.5]])
    return float(1 / local_scale(back, middle)[0])


# ----------------------------------------------------------------------------------------------------------------------
# Random changes of a photograph's colours, defined as in torchvision's ColorJitter.
#
# With grey = 0.299 r + 0.587 g + 0.114 b, and every result rounded and clipped to 0 to 255:
#
#     brightness b:  b x                     b in [1 - brightness, 1 + brightness]; same for the next two
#     contrast c:    c x + (1 - c) mean(grey)
#     saturation s:  s x + (1 - s) grey
#     hue h:         the hue angle is shifted by h turns, h in [-hue, hue]
#
# in a random order for every image. SCFeat and CAPS: 1, 1, 1 and 0.4, independent for both images of a pair.


TURN = 360.0  # OpenCV's unit of hue in float images: degrees


class JitterConfig(Config):
    """Largest change of each property; 0: no change."""

    brightness: float = Field(1.0, ge=0, le=100)
    """Brightness factors range from 1 - this (not below 0) to 1 + this. Paper: 1."""
    contrast: float = Field(1.0, ge=0, le=100)
    """Contrast factors range from 1 - this (not below 0) to 1 + this. Paper: 1."""
    saturation: float = Field(1.0, ge=0, le=100)
    """Saturation factors range from 1 - this (not below 0) to 1 + this. Paper: 1."""
    hue: float = Field(0.4, ge=0, le=0.5)
    """Largest shift of the hue in either direction, full turns. Paper: 0.4."""
    probability: Share = 1.0
    """Fraction of images that are changed. Paper: 1."""


@dataclass(frozen=True)
class Jitter:
    """One draw. order: order of the four changes, which are numbered as in the list above."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    order: tuple[int, ...] = (0, 1, 2, 3)


def draw_jitter(config: JitterConfig, generator: np.random.Generator) -> Jitter:
    """Draw the factors and the order of the changes of one image."""
    change = generator.random()
    low = [max(0.0, 1 - v) for v in (config.brightness, config.contrast, config.saturation)]
    high = [1 + v for v in (config.brightness, config.contrast, config.saturation)]
    brightness, contrast, saturation, hue = generator.uniform([*low, -config.hue], [*high, config.hue]).tolist()
    order = tuple(int(i) for i in generator.permutation(4))
    if change >= config.probability:
        return Jitter()
    return Jitter(brightness, contrast, saturation, hue, order)


def jittered_colours(
    pixels: UInt8[np.ndarray, "h w 3"], jitter: Jitter, valid: Bool[np.ndarray, "h w"] | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """An image with changed colours. valid: pixels included in the mean grey value for contrast."""
    if jitter == Jitter():
        return pixels
    changes = (
        lambda x: _scale_values(x, jitter.brightness, 0.0),
        lambda x: _change_contrast(x, jitter.contrast, valid),
        lambda x: _change_saturation(x, jitter.saturation),
        lambda x: _shift_hue(x, jitter.hue),
    )
    idle = (jitter.brightness == 1, jitter.contrast == 1, jitter.saturation == 1, jitter.hue == 0)
    for which in jitter.order:
        if not idle[which]:
            pixels = changes[which](pixels)
    return pixels


def _scale_values(pixels: UInt8[np.ndarray, "h w 3"], factor: float, offset: float) -> UInt8[np.ndarray, "h w 3"]:
    """factor x + offset of every value, with a lookup table."""
    return cv2.LUT(pixels, np.clip(np.rint(factor * np.arange(256) + offset), 0, 255).astype(np.uint8))


def _change_contrast(
    pixels: UInt8[np.ndarray, "h w 3"], factor: float, valid: Bool[np.ndarray, "h w"] | None
) -> UInt8[np.ndarray, "h w 3"]:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    mean = cv2.mean(grey, None if valid is None else valid.astype(np.uint8))[0]
    return _scale_values(pixels, factor, (1 - factor) * mean)


def _change_saturation(pixels: UInt8[np.ndarray, "h w 3"], factor: float) -> UInt8[np.ndarray, "h w 3"]:
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(pixels, factor, grey, 1 - factor, 0)


def _shift_hue(pixels: UInt8[np.ndarray, "h w 3"], turns: float) -> UInt8[np.ndarray, "h w 3"]:
    """Shift the hue in floating point, as 8-bit hues have steps of 1.4 or 2 degrees."""
    hsv = cv2.cvtColor(pixels.astype(np.float32), cv2.COLOR_RGB2HSV)  # value keeps the range 0 to 255
    hue = hsv[:, :, 0]
    hue += np.float32(TURN * turns % TURN)
    hue[hue >= TURN] -= np.float32(TURN)
    return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).clip(0, 255).astype(np.uint8)


# ----------------------------------------------------------------------------------------------------------------------
# Random changes of light and camera, from bright noon to dusk and night, which colour jitter does not cover.
#
# The changes follow the physical order: light (exposure, colour temperature, shadows, lamps, haze) in linear
# intensities, then the camera (blur, shot and read noise, tone curve), then the file (JPEG).
#
#     linear:  y = x^2.2                              x in [0, 1]
#     light:   y <- 2^-e  t_c  s(p)  y                e: stops of underexposure; t_c: gain of channel c; s(p): shade
#     haze:    y <- (1 - h) y + h a                   a: grey of the air
#     noise:   y <- y + N(0, shot y + read^2)
#     tone:    x = y^(gamma / 2.2)                    gamma in [2^-g, 2^g]
#
# Every strength is a field; 0 disables that part, and if all are 0 the photograph is returned unchanged. The strengths
# of scfeat-s are featkit's own choice; the noise model is that of Foi et al., "Practical Poissonian-Gaussian noise
# modeling and fitting for single-image raw-data", 2008.

DISPLAY_GAMMA = 2.2
SHADE_CELLS = (2, 5)  # number of cells of the smooth shade along each side: from, to (exclusive)
LAMPS_AT_MOST = 4


class PhotometricConfig(Config):
    """Largest change of each kind, drawn for every image."""

    probability: Share = 1.0
    """Fraction of images that are changed."""
    gamma_stops: float = Field(0.0, ge=0, le=2)
    """Largest change of the tone curve's exponent, which is between 2^-this and 2^this."""
    temperature_stops: float = Field(0.0, ge=0, le=2)
    """Largest gain of red over blue, or of blue over red, stops (powers of 2)."""
    shade: Share = 0.0
    """Strength of local light and shadow: a smooth field, and in half of the images a shadow edge; 1 reaches black."""
    night_probability: Share = 0.0
    """Fraction of images rendered as dusk or night: underexposed, with lamps and noise."""
    night_stops: float = Field(4.0, ge=0, le=10)
    """Largest underexposure of night images, stops."""
    noise: float = Field(0.0, ge=0, le=0.5)
    """Largest standard deviation of shot noise at white, in linear intensity; read noise has a quarter of it."""
    blur_px: float = Field(0.0, ge=0, le=10)
    """Largest sigma of a Gaussian blur, or half the length of a motion blur, px."""
    jpeg: float = Field(0.0, ge=0, le=100)
    """Largest reduction of the JPEG quality below 100; 0: no compression."""
    haze: Share = Field(0.0, lt=1)
    """Largest fraction of haze (light scattered by the air)."""

    @property
    def is_idle(self) -> bool:
        """Whether images are never changed."""
        strengths = (
            self.gamma_stops,
            self.temperature_stops,
            self.shade,
            self.noise,
            self.blur_px,
            self.jpeg,
            self.haze,
        )
        return self.probability == 0 or (not any(strengths) and self.night_probability == 0)


def photometric(
    pixels: UInt8[np.ndarray, "h w 3"], config: PhotometricConfig, generator: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """An RGB image with random light and camera effects. The same generator state gives the same bytes."""
    if config.is_idle or generator.random() >= config.probability:
        return pixels
    night = generator.random() < config.night_probability
    light = (np.arange(256, dtype=np.float32) / 255) ** DISPLAY_GAMMA
    linear = light[pixels] * _draw_gains(config, night, generator)
    shade = _draw_shade(pixels.shape[:2], config, night, generator)
    if shade is not None:
        linear *= shade[:, :, None]
    share = generator.uniform(0, config.haze)
    if share > 0:
        linear = (1 - share) * linear + np.float32(share * generator.uniform(0.3, 1.0) * float(linear.mean() + 0.1))
    linear = _random_blur(linear, config.blur_px, generator)
    linear = _add_noise(linear, config.noise * (2.0 if night else 1.0) * generator.random(), generator)
    gamma = 2.0 ** generator.uniform(-config.gamma_stops, config.gamma_stops) / DISPLAY_GAMMA
    changed = np.rint(255 * np.clip(linear, 0, 1) ** np.float32(gamma)).astype(np.uint8)
    return _compress_jpeg(changed, config.jpeg * generator.random())


def _draw_gains(config: PhotometricConfig, night: bool, generator: np.random.Generator) -> Float32[np.ndarray, "3"]:
    """Gain of each channel: exposure and colour temperature."""
    exposure = -config.night_stops * generator.uniform(0.25, 1.0) if night else 0.0
    warmth = generator.uniform(-config.temperature_stops, config.temperature_stops) / 2
    return np.exp2([exposure + warmth, exposure, exposure - warmth]).astype(np.float32)


def _draw_shade(
    shape: tuple[int, int], config: PhotometricConfig, night: bool, generator: np.random.Generator
) -> Float32[np.ndarray, "h w"] | None:
    """Light at each pixel: a smooth field, times a shadow, times lamps in night images; None: no change."""
    height, width = shape
    field: Float[np.ndarray, "h w"] | None = None
    if config.shade > 0:
        cells = generator.integers(*SHADE_CELLS, 2)
        low = 1 - config.shade * generator.random() * generator.random((cells[0] + 1, cells[1] + 1))
        field = cv2.resize(low.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        if generator.random() < 0.5:
            angle, place = generator.uniform(0, 2 * np.pi), generator.uniform(-0.3, 0.3, 2)
            depth, soft_px = config.shade * generator.random(), generator.uniform(0.5, 0.05 * max(shape) + 1)
            across = np.cos(angle) * (np.arange(width) - (0.5 + place[0]) * width)
            down = np.sin(angle) * (np.arange(height) - (0.5 + place[1]) * height)
            edge = np.clip((across[None] + down[:, None]) / soft_px + 0.5, 0, 1).astype(np.float32)
            field = field * (1 - np.float32(depth) * edge)
    if night:
        lamps = np.zeros(shape, np.float32)
        for _ in range(generator.integers(0, LAMPS_AT_MOST + 1)):
            x, y = generator.random(2) * (width, height)
            size, power = generator.uniform(0.05, 0.4) * max(shape), generator.uniform(1, config.night_stops + 1)
            falloff = np.exp(-((np.arange(width) - x) ** 2) / size**2)[None]
            falloff = falloff * np.exp(-((np.arange(height) - y) ** 2) / size**2)[:, None]
            lamps += np.float32(2**power - 1) * falloff.astype(np.float32)
        field = (1 + lamps) if field is None else field * (1 + lamps)
    return None if field is None else field.astype(np.float32)


def _random_blur(
    image: Float32[np.ndarray, "h w 3"], largest_px: float, generator: np.random.Generator
) -> Float32[np.ndarray, "h w 3"]:
    """Defocus or motion blur, with equal probability."""
    size, is_motion, angle = largest_px * generator.random(), generator.random() < 0.5, generator.uniform(0, np.pi)
    if size < 0.3:
        return image
    if not is_motion:
        return cv2.GaussianBlur(image, (0, 0), size)
    reach = int(np.ceil(size))
    x, y = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    kernel = np.clip(1 - np.abs(across), 0, 1) * np.clip(size + 0.5 - np.abs(along), 0, 1)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


def _add_noise(
    image: Float32[np.ndarray, "h w 3"], shot: float, generator: np.random.Generator
) -> Float32[np.ndarray, "h w 3"]:
    if shot <= 0:
        return image
    deviation = np.sqrt(np.float32(shot**2) * np.clip(image, 0, 1) + np.float32((shot / 4) ** 2))
    return image + deviation * generator.standard_normal(image.shape, dtype=np.float32)


def _compress_jpeg(pixels: UInt8[np.ndarray, "h w 3"], below: float) -> UInt8[np.ndarray, "h w 3"]:
    """JPEG compression at quality 100 - below."""
    if below < 1:
        return pixels
    _, content = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, max(1, round(100 - below))])
    decoded = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    return decoded
