"""Random changes of light and camera, from a brighter noon to dusk and night: what colour jitter alone leaves out.

A photograph is changed in the order in which the world does it: light (exposure, colour temperature, shadows, lamps,
haze) in linear intensities, then the camera (blur, shot and read noise, tone curve), then the file (JPEG).

    linear:  y = x^2.2                              x in [0, 1]
    light:   y <- 2^-e  t_c  s(p)  y                e: stops of underexposure; t_c: gain of channel c; s(p): shade
    haze:    y <- (1 - h) y + h a                   a: grey of the air
    noise:   y <- y + N(0, shot y + read^2)
    tone:    x = y^(gamma / 2.2)                    gamma in [2^-g, 2^g]

Every strength is a field, 0 leaves that part out, and all of them 0 return the photograph itself. The strengths of
scfeat-s are featkit's own choice; the model of noise is that of Foi et al., "Practical Poissonian-Gaussian noise
modeling and fitting for single-image raw-data", 2008.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8
from pydantic import Field

from featkit.core.config import Config

DISPLAY_GAMMA = 2.2
SHADE_CELLS = (2, 5)  # control points of the smooth shade along the shorter side: from, to (exclusive)
LAMPS_AT_MOST = 4


class PhotometricConfig(Config):
    """Largest change of each kind, drawn anew for every image."""

    probability: float = Field(1.0, ge=0, le=1)
    """Share of the images that are changed at all."""
    gamma_stops: float = Field(0.0, ge=0, le=2)
    """Exponent of the tone curve: between 2 to the power of minus this and of this."""
    temperature_stops: float = Field(0.0, ge=0, le=2)
    """Gain of red over blue, either way, in powers of 2."""
    shade: float = Field(0.0, ge=0, le=1)
    """Depth of local light and shadow: a smooth field, half of the time one shadow with an edge; 1 reaches black."""
    night_probability: float = Field(0.0, ge=0, le=1)
    """Share of the images that are seen at dusk or by night: underexposed, with lamps and noise."""
    night_stops: float = Field(4.0, ge=0, le=10)
    """Largest underexposure of those."""
    noise: float = Field(0.0, ge=0, le=0.5)
    """Standard deviation of the shot noise of white, and a quarter of it of the read noise, in linear intensities."""
    blur_px: float = Field(0.0, ge=0, le=10)
    """Largest sigma of a Gaussian blur, or half the length of a motion's, px."""
    jpeg: float = Field(0.0, ge=0, le=100)
    """How far below 100 JPEG's quality goes; 0: no compression."""
    haze: float = Field(0.0, ge=0, lt=1)
    """Largest share of the light that comes from the air."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is ever changed."""
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
    """An RGB image under another light and through another camera. The same generator state gives the same bytes."""
    if config.is_idle or generator.random() >= config.probability:
        return pixels
    night = generator.random() < config.night_probability
    light = (np.arange(256, dtype=np.float32) / 255) ** DISPLAY_GAMMA
    linear = light[pixels] * _gains(config, night, generator)
    shade = _shade(pixels.shape[:2], config, night, generator)
    if shade is not None:
        linear *= shade[:, :, None]
    share = generator.uniform(0, config.haze)
    if share > 0:
        linear = (1 - share) * linear + np.float32(share * generator.uniform(0.3, 1.0) * float(linear.mean() + 0.1))
    linear = _blurred(linear, config.blur_px, generator)
    linear = _noisy(linear, config.noise * (2.0 if night else 1.0) * generator.random(), generator)
    gamma = 2.0 ** generator.uniform(-config.gamma_stops, config.gamma_stops) / DISPLAY_GAMMA
    changed = np.rint(255 * np.clip(linear, 0, 1) ** np.float32(gamma)).astype(np.uint8)
    return _compressed(changed, config.jpeg * generator.random())


def _gains(config: PhotometricConfig, night: bool, generator: np.random.Generator) -> Float32[np.ndarray, "3"]:
    """Gain of each channel: exposure, and red against blue."""
    exposure = -config.night_stops * generator.uniform(0.25, 1.0) if night else 0.0
    warmth = generator.uniform(-config.temperature_stops, config.temperature_stops) / 2
    return np.exp2([exposure + warmth, exposure, exposure - warmth]).astype(np.float32)


def _shade(
    shape: tuple[int, int], config: PhotometricConfig, night: bool, generator: np.random.Generator
) -> Float32[np.ndarray, "h w"] | None:
    """How much light reaches each pixel: a smooth field times a shadow's, and by night the lamps'."""
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


def _blurred(
    image: Float32[np.ndarray, "h w 3"], largest_px: float, generator: np.random.Generator
) -> Float32[np.ndarray, "h w 3"]:
    """Out of focus or moved: each half of the time."""
    size, moved, angle = largest_px * generator.random(), generator.random() < 0.5, generator.uniform(0, np.pi)
    if size < 0.3:
        return image
    if not moved:
        return cv2.GaussianBlur(image, (0, 0), size)
    reach = int(np.ceil(size))
    x, y = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    kernel = np.clip(1 - np.abs(across), 0, 1) * np.clip(size + 0.5 - np.abs(along), 0, 1)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


def _noisy(
    image: Float32[np.ndarray, "h w 3"], shot: float, generator: np.random.Generator
) -> Float32[np.ndarray, "h w 3"]:
    if shot <= 0:
        return image
    deviation = np.sqrt(np.float32(shot**2) * np.clip(image, 0, 1) + np.float32((shot / 4) ** 2))
    return image + deviation * generator.standard_normal(image.shape, dtype=np.float32)


def _compressed(pixels: UInt8[np.ndarray, "h w 3"], below: float) -> UInt8[np.ndarray, "h w 3"]:
    """Through JPEG at quality 100 - below."""
    if below < 1:
        return pixels
    _, content = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, max(1, round(100 - below))])
    decoded = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    return decoded
