"""Random changes of a photograph's colours, by the definitions that PyTorch's users know as ColorJitter.

With grey = 0.299 r + 0.587 g + 0.114 b, colours in [0, 1] and every result cut to [0, 1]:

    brightness b:  b x                     b in [1 - brightness, 1 + brightness], as the next two
    contrast c:    c x + (1 - c) mean(grey)
    saturation s:  s x + (1 - s) grey
    hue h:         the hue angle moves by h turns, h in [-hue, hue]

in an order drawn anew every time. SCFeat and CAPS: 1, 1, 1 and 0.4, both images of a pair by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from pydantic import Field

from featkit.config import Config

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
    colours = pixels.astype(np.float32) * np.float32(1 / 255)
    changes = (
        lambda x: jitter.brightness * x,
        lambda x: _contrast(x, jitter.contrast, valid),
        lambda x: _saturation(x, jitter.saturation),
        lambda x: _hue(x, jitter.hue),
    )
    idle = (jitter.brightness == 1, jitter.contrast == 1, jitter.saturation == 1, jitter.hue == 0)
    for which in jitter.order:
        if not idle[which]:
            colours = changes[which](colours)
            np.clip(colours, 0, 1, out=colours)
    return np.rint(colours * np.float32(255)).astype(np.uint8)


def _contrast(
    colours: Float32[np.ndarray, "h w 3"], factor: float, valid: Bool[np.ndarray, "h w"] | None
) -> Float32[np.ndarray, "h w 3"]:
    grey = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)
    mean = cv2.mean(grey, None if valid is None else valid.astype(np.uint8))[0]
    return factor * colours + np.float32((1 - factor) * mean)


def _saturation(colours: Float32[np.ndarray, "h w 3"], factor: float) -> Float32[np.ndarray, "h w 3"]:
    grey = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)
    return factor * colours + (np.float32(1 - factor) * grey)[:, :, None]


def _hue(colours: Float32[np.ndarray, "h w 3"], turns: float) -> Float32[np.ndarray, "h w 3"]:
    hsv = cv2.cvtColor(colours, cv2.COLOR_RGB2HSV)
    hsv[:, :, 0] = np.mod(hsv[:, :, 0] + np.float32(TURN * turns), np.float32(TURN))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
