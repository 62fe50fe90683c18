"""Random changes of a photograph's colours, by the definitions that PyTorch's users know as ColorJitter.

With grey = 0.299 r + 0.587 g + 0.114 b, and every result rounded and cut to 0 to 255:

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
from jaxtyping import Bool, UInt8
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
