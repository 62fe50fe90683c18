"""What the network sees in training: patches and photographs turned, cropped, recoloured, seen from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from featkit.core.config import Config
from featkit.geometry.pixels import as_homography, local_scale, resize_affine

# ----------------------------------------------------------------------------------------------------------------------
# Patches as the network sees them in training: turned, cropped, resized and flipped, a whole batch at once.
#
# A patch is mapped by one affine transform from the output to the input, both in the frame of `grid_sample` with
# align_corners=False: the patch spans [-1, 1] in x and y. Without augmentation the transform is the identity, and the
# result is that of `featkit.features.patches.resize_patches`.


class AugmentConfig(Config):
    """How patches are varied. The first four are drawn for every patch, the others once for all of a class."""

    rotation_deg: float = Field(0.0, ge=0)
    """Degrees: largest rotation either way. SDGMNet's and HardNet's code: 5."""
    crop_area_min: float = Field(1.0, gt=0, le=1)
    """Smallest share of the area that a random crop keeps. SDGMNet's and HardNet's code: 0.9."""
    crop_ratio_max: float = Field(1.0, ge=1)
    """Largest width / height of a crop before it is resized; its inverse is the smallest. Same code: 1.1 and 0.9."""
    fill: Literal["zeros", "border"] = "zeros"
    """What lies outside of the patch when it is rotated: black as in the authors' code, or its border repeated."""
    quarter_turns: float = Field(0.0, ge=0, le=1)
    """Probability of a turn by 90, 180 or 270 degrees (each a third of it). SDGMNet: 0.75; HyNet: 0.5."""
    flip_horizontal: float = Field(0.0, ge=0, le=1)
    """Probability of a left-right flip. SDGMNet: 1/3; HardNet+: 0.5."""
    flip_vertical: float = Field(0.0, ge=0, le=1)
    """Probability of an up-down flip, never with the other one. SDGMNet: 1/3; HyNet: 0.5."""
    transpose: float = Field(0.0, ge=0, le=1)
    """Probability that x and y are swapped. HardNet+: 0.5."""


def draw_transforms(
    config: AugmentConfig,
    labels: Int[np.ndarray, " m"],
    generator: np.random.Generator,
    filled: Bool[np.ndarray, " m"] | None = None,
    filled_rotation_deg: float = 0.0,
) -> Float[np.ndarray, "m 2 3"]:
    """The transform of every patch. labels: patches of one class are turned by 90 degrees and flipped together.

    filled: these are turned by a random angle of up to `filled_rotation_deg` more, either way.
    """
    count = len(labels)
    largest = np.full(count, config.rotation_deg)
    if filled is not None:
        largest = largest + filled * filled_rotation_deg
    rotation = _rotations(np.deg2rad(largest * generator.uniform(-1, 1, count)))
    side, middle = _crops(config, count, generator)
    _, first, group = np.unique(labels, return_index=True, return_inverse=True)
    shared = _turns_and_flips(config, len(first), generator)[group]
    linear = rotation @ (side[:, :, None] * shared)
    return np.concatenate([linear, rotation @ middle[:, :, None]], axis=2).astype(np.float32)


def _rotations(angle: Float[np.ndarray, " m"]) -> Float[np.ndarray, "m 2 2"]:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)


def _crops(
    config: AugmentConfig, count: int, generator: np.random.Generator
) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2"]]:
    """Sides (as a share of the patch's) and middles of random crops; a side longer than the patch is cut to it."""
    area = generator.uniform(config.crop_area_min, 1.0, count)
    widest = np.log(config.crop_ratio_max)
    ratio = np.exp(generator.uniform(-widest, widest, count))
    side = np.minimum(np.sqrt(np.stack([area * ratio, area / ratio], 1)), 1.0)
    return side, (1.0 - side) * generator.uniform(-1, 1, (count, 2))


def _turns_and_flips(config: AugmentConfig, count: int, generator: np.random.Generator) -> Float[np.ndarray, "g 2 2"]:
    chance = generator.random((count, 3))
    third = config.quarter_turns / 3
    turns = np.zeros(count) if third == 0 else np.minimum(3, np.ceil((config.quarter_turns - chance[:, 0]) / third))
    matrix = np.rint(_rotations(np.maximum(turns, 0) * (np.pi / 2)))
    horizontal = chance[:, 1] < config.flip_horizontal
    vertical = ~horizontal & (chance[:, 1] < config.flip_horizontal + config.flip_vertical)
    matrix[horizontal, :, 0] *= -1
    matrix[vertical, :, 1] *= -1
    swapped = chance[:, 2] < config.transpose
    matrix[swapped] = matrix[swapped][:, :, ::-1]
    return matrix


def warp_patches(
    patches: UInt8[Tensor, "m s s"], transforms: Float[Tensor, "m 2 3"], out_px: int, fill: str = "zeros"
) -> Float[Tensor, "m 1 out out"]:
    """Patches in [0, 1] seen through their transforms, at `out_px` pixels a side.

    Where a pixel of the result covers several of the input's, as many are sampled and averaged (64 -> 32: 2 x 2), so
    that nothing aliases however the patch is turned. 64 -> 42 is read as it is: 1.5 px apart, as an STN does.
    """
    values = patches[:, None].float().div_(255.0)
    dense = max(1, patches.shape[-1] // out_px)
    size = out_px * dense
    grid = F.affine_grid(transforms, [len(patches), 1, size, size], align_corners=False)
    warped = F.grid_sample(values, grid, mode="bilinear", padding_mode=fill, align_corners=False)
    return F.avg_pool2d(warped, dense) if dense > 1 else warped


# ----------------------------------------------------------------------------------------------------------------------
# Random changes of a photograph's colours, by the definitions that PyTorch's users know as ColorJitter.
#
# With grey = 0.299 r + 0.587 g + 0.114 b, and every result rounded and cut to 0 to 255:
#
#     brightness b:  b x                     b in [1 - brightness, 1 + brightness], as the next two
#     contrast c:    c x + (1 - c) mean(grey)
#     saturation s:  s x + (1 - s) grey
#     hue h:         the hue angle moves by h turns, h in [-hue, hue]
#
# in an order drawn anew every time. SCFeat and CAPS: 1, 1, 1 and 0.4, both images of a pair by themselves.


TURN = 360.0  # OpenCV's unit of hue in float images: degrees


class JitterConfig(Config):
    """Largest change of each property; 0 leaves it."""

    brightness: float = Field(1.0, ge=0)
    """Factors from 1 - this (not below 0) to 1 + this. Paper: 1."""
    contrast: float = Field(1.0, ge=0)
    """The same. Paper: 1."""
    saturation: float = Field(1.0, ge=0)
    """The same. Paper: 1."""
    hue: float = Field(0.4, ge=0, le=0.5)
    """Turns of the colour circle, either way. Paper: 0.4."""
    probability: float = Field(1.0, ge=0, le=1)
    """Share of the images that are changed at all. Paper: 1."""


@dataclass(frozen=True)
class Jitter:
    """One draw. order: of the four changes, in their order in the file's head."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    order: tuple[int, ...] = (0, 1, 2, 3)


def draw_jitter(config: JitterConfig, generator: np.random.Generator) -> Jitter:
    """Factors and order of one image's changes."""
    change = generator.random()
    low = [max(0.0, 1 - v) for v in (config.brightness, config.contrast, config.saturation)]
    high = [1 + v for v in (config.brightness, config.contrast, config.saturation)]
    brightness, contrast, saturation, hue = generator.uniform([*low, -config.hue], [*high, config.hue]).tolist()
    order = tuple(int(i) for i in generator.permutation(4))
    if change >= config.probability:
        return Jitter()
    return Jitter(brightness, contrast, saturation, hue, order)


def jittered(
    pixels: UInt8[np.ndarray, "h w 3"], jitter: Jitter, valid: Bool[np.ndarray, "h w"] | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """An image with its colours changed. valid: what counts for the mean that contrast turns about."""
    if jitter == Jitter():
        return pixels
    changes = (
        lambda x: _looked_up(x, jitter.brightness, 0.0),
        lambda x: _contrast(x, jitter.contrast, valid),
        lambda x: _saturation(x, jitter.saturation),
        lambda x: _hue(x, jitter.hue),
    )
    idle = (jitter.brightness == 1, jitter.contrast == 1, jitter.saturation == 1, jitter.hue == 0)
    for which in jitter.order:
        if not idle[which]:
            pixels = changes[which](pixels)
    return pixels


def _looked_up(pixels: UInt8[np.ndarray, "h w 3"], factor: float, offset: float) -> UInt8[np.ndarray, "h w 3"]:
    """factor x + offset of every value, by a table."""
    return cv2.LUT(pixels, np.clip(np.rint(factor * np.arange(256) + offset), 0, 255).astype(np.uint8))


def _contrast(
    pixels: UInt8[np.ndarray, "h w 3"], factor: float, valid: Bool[np.ndarray, "h w"] | None
) -> UInt8[np.ndarray, "h w 3"]:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    mean = cv2.mean(grey, None if valid is None else valid.astype(np.uint8))[0]
    return _looked_up(pixels, factor, (1 - factor) * mean)


def _saturation(pixels: UInt8[np.ndarray, "h w 3"], factor: float) -> UInt8[np.ndarray, "h w 3"]:
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(pixels, factor, grey, 1 - factor, 0)


def _hue(pixels: UInt8[np.ndarray, "h w 3"], turns: float) -> UInt8[np.ndarray, "h w 3"]:
    """In floats: 8-bit hues are steps of 1.4 or 2 degrees."""
    hsv = cv2.cvtColor(pixels.astype(np.float32), cv2.COLOR_RGB2HSV)  # value keeps the range 0 to 255
    hue = hsv[:, :, 0]
    hue += np.float32(TURN * turns % TURN)
    hue[hue >= TURN] -= np.float32(TURN)
    return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).clip(0, 255).astype(np.uint8)


# ----------------------------------------------------------------------------------------------------------------------
# From a photograph to the canvas that the network sees, by one homography: put on the canvas, then seen anew.
#
#     canvas_from_image = V C        C: scale and shift (draw_canvas);  V: turn, zoom, tilt (draw_view)
#
# Both are exact maps between featkit pixels, so whatever holds between photographs holds between canvases:
# F' = H1^-T F H0^-1. The pixels are resampled once.


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
