"""Patch augmentation for training: rotation, crop, resize, flip and degradation of a complete batch.

Each patch is resampled with one affine transform from output to input, in the coordinates of `grid_sample` with
align_corners=False: the patch spans [-1, 1] in x and y. Without augmentation the transform is the identity, and the
result equals that of `featkit.features.patches.resize_patches`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from featkit.core.config import Config, Degrees, Factor, PositiveShare, Share

MAX_BLUR_PX = 4.0
KERNEL_SIGMAS = 3.0
"""Half width of the blur kernel, in standard deviations of the largest blur."""


class AugmentConfig(Config):
    """Patch augmentation. Quarter turns and flips are drawn once per class, everything else for every patch."""

    rotation_deg: Degrees = 0.0
    """Largest rotation in either direction, degrees. SDGMNet's and HardNet's code: 5."""
    crop_area_min: PositiveShare = 1.0
    """Smallest fraction of the area that a random crop keeps. SDGMNet's and HardNet's code: 0.9."""
    crop_ratio_max: Factor = Field(1.0, ge=1)
    """Largest aspect ratio (width / height) of a crop; the smallest is its inverse. SDGMNet's code: 1.1 and 0.9."""
    fill: Literal["zeros", "border"] = "zeros"
    """Fill outside the patch when it is rotated: zeros (black), as in the authors' code, or border (repeated)."""
    quarter_turns: Share = 0.0
    """Probability of a rotation by 90, 180 or 270 degrees, equally likely. SDGMNet: 0.75; HyNet: 0.5."""
    flip_horizontal: Share = 0.0
    """Probability of a left-right flip. SDGMNet: 1/3; HardNet+: 0.5."""
    flip_vertical: Share = 0.0
    """Probability of an up-down flip, never combined with a left-right flip. SDGMNet: 1/3; HyNet: 0.5."""
    transpose: Share = 0.0
    """Probability that x and y are swapped. HardNet+: 0.5."""
    degraded: Share = 0.0
    """Fraction of patches that are degraded by blur and noise, like out-of-focus, compressed or dark photographs."""
    blur_px: float = Field(1.5, ge=0, le=MAX_BLUR_PX)
    """Largest standard deviation of the blur of a degraded patch, px of the network's input."""
    noise: Share = 0.05
    """Largest standard deviation of the noise of a degraded patch, as a fraction of the intensity range."""


def draw_transforms(
    config: AugmentConfig,
    labels: Int[np.ndarray, " m"],
    generator: np.random.Generator,
    filled: Bool[np.ndarray, " m"] | None = None,
    filled_rotation_deg: float = 0.0,
) -> Float[np.ndarray, "m 2 3"]:
    """Draw the transform of every patch. labels: patches of one class share quarter turns and flips.

    filled: patches whose largest rotation is increased by `filled_rotation_deg`.
    """
    count = len(labels)
    largest = np.full(count, config.rotation_deg)
    if filled is not None:
        largest = largest + filled * filled_rotation_deg
    rotation = _rotation_matrices(np.deg2rad(largest * generator.uniform(-1, 1, count)))
    side, middle = _random_crops(config, count, generator)
    _, first, group = np.unique(labels, return_index=True, return_inverse=True)
    shared = _draw_turns_and_flips(config, len(first), generator)[group]
    linear = rotation @ (side[:, :, None] * shared)
    return np.concatenate([linear, rotation @ middle[:, :, None]], axis=2).astype(np.float32)


def _rotation_matrices(angle: Float[np.ndarray, " m"]) -> Float[np.ndarray, "m 2 2"]:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)


def _random_crops(
    config: AugmentConfig, count: int, generator: np.random.Generator
) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2"]]:
    """Sides (as a fraction of the patch's side) and centres of random crops; sides are at most that of the patch."""
    area = generator.uniform(config.crop_area_min, 1.0, count)
    widest = np.log(config.crop_ratio_max)
    ratio = np.exp(generator.uniform(-widest, widest, count))
    side = np.minimum(np.sqrt(np.stack([area * ratio, area / ratio], 1)), 1.0)
    return side, (1.0 - side) * generator.uniform(-1, 1, (count, 2))


def _draw_turns_and_flips(
    config: AugmentConfig, count: int, generator: np.random.Generator
) -> Float[np.ndarray, "g 2 2"]:
    chance = generator.random((count, 3))
    third = config.quarter_turns / 3
    turns = np.zeros(count) if third == 0 else np.minimum(3, np.ceil((config.quarter_turns - chance[:, 0]) / third))
    matrix = np.rint(_rotation_matrices(np.maximum(turns, 0) * (np.pi / 2)))
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
    """Resample patches through their transforms to `out_px` pixels a side, with values in [0, 1].

    Where an output pixel covers several input pixels, that many samples are averaged (64 -> 32: 2 x 2) against
    aliasing at any rotation. 64 -> 42 takes single samples 1.5 px apart, as an STN does.
    """
    values = patches[:, None].float().div_(255.0)
    dense = max(1, patches.shape[-1] // out_px)
    size = out_px * dense
    grid = F.affine_grid(transforms, [len(patches), 1, size, size], align_corners=False)
    warped = F.grid_sample(values, grid, mode="bilinear", padding_mode=fill, align_corners=False)
    return F.avg_pool2d(warped, dense) if dense > 1 else warped


# ----------------------------------------------------------------------------------------------------------------------
# Blur and noise, as differences between two photographs of the same place.


@dataclass(frozen=True)
class Degradations:
    """Degradations of a batch. blur_px: standard deviation of the blur per patch; 0: none. noise: standard deviation of
    the noise per patch, for intensities in [0, 1].

    seed: random seed of the noise.
    """

    blur_px: Float[np.ndarray, " m"]
    noise: Float[np.ndarray, " m"]
    seed: int


def draw_degradations(config: AugmentConfig, count: int, generator: np.random.Generator) -> Degradations | None:
    """Draw the degradations of a batch; None, without drawing any random number, if no patch is degraded."""
    if config.degraded == 0:
        return None
    chosen = generator.random(count) < config.degraded
    blur, noise = generator.uniform(0, 1, (2, count)) * chosen
    return Degradations(config.blur_px * blur, config.noise * noise, int(generator.integers(2**31)))


def degrade_patches(patches: Float[Tensor, "p 1 s s"], by: Degradations, rows: slice) -> Float[Tensor, "p 1 s s"]:
    """Blur patches in [0, 1], then add noise. rows: their rows in the batch for which `by` was drawn."""
    blur = torch.from_numpy(by.blur_px[rows]).to(patches)
    generator = torch.Generator().manual_seed(by.seed)  # for the complete batch: independent of how it is split
    noise = torch.randn((len(by.noise), *patches.shape[1:]), generator=generator)[rows].to(patches)
    return blur_patches(patches, blur) + noise * torch.from_numpy(by.noise[rows]).to(patches)[:, None, None, None]


def blur_patches(patches: Float[Tensor, "p 1 s s"], sigma_px: Float[Tensor, " p"]) -> Float[Tensor, "p 1 s s"]:
    """Convolve each patch with its own Gaussian, with repeated borders. Sigma 0 changes nothing."""
    reach = max(1, int(np.ceil(KERNEL_SIGMAS * float(sigma_px.max()))))
    offsets = torch.arange(-reach, reach + 1, device=patches.device, dtype=patches.dtype)
    kernels = torch.exp(-0.5 * (offsets / sigma_px.clamp_min(1e-3)[:, None]) ** 2)
    kernels = kernels / kernels.sum(1, keepdim=True)
    # Each image row is one channel of a grouped convolution: once along x, once along y.
    rows = F.pad(patches, (reach, reach, reach, reach), mode="replicate").transpose(0, 1)
    along_x = F.conv2d(rows, kernels[:, None, None, :], groups=len(patches))
    return F.conv2d(along_x, kernels[:, None, :, None], groups=len(patches)).transpose(0, 1)
