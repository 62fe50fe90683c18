"""Patches around keypoints, for all keypoints of an image: bilinear samples from a level of a Gaussian pyramid.

Semantics of kornia's `extract_patches_from_pyramid`: the level is floor(log2(side / out_px)), so that neighbouring
samples are 1 to 2 pixels of that level apart; outside the image the nearest border pixel is used. Levels are computed
once per image, and keypoints are sampled level by level.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)  # sum 16: the pyramid's blur along each axis, sigma 1 px
CHUNK_SAMPLES = {"cpu": 1 << 18, "cuda": 1 << 25}  # samples at a time: on the CPU their grid (2 MB) stays in the cache


class PatchPyramid:
    """A pyramid of one grey image, from which patches of any scale are cut. Levels are computed on demand."""

    def __init__(self, image: Shaped[Tensor, "h w"]):
        """image: uint8, or floating point in [0, 1]; patches are on its device. Raises ValueError for other shapes."""
        if image.ndim != 2 or not image.numel():
            raise ValueError(f"patches are cut from a grey image (h, w), not from one of shape {tuple(image.shape)}")
        level = image.float()
        self.levels = [level / 255.0 if image.dtype == torch.uint8 else level]

    @property
    def device(self) -> torch.device:
        return self.levels[0].device

    def cut(
        self,
        centres: Float[Tensor, "n 2"],
        side_px: Float[Tensor, " n"],
        oris: Float[Tensor, " n"],
        out_px: int,
    ) -> Float[Tensor, "n out out"]:
        """Square patches of side `side_px` around `centres`, rotated so that `oris` points along their +x axis.

        Sample (i, j) is at centre + R (u_j, u_i) side / 2, with u_k = (2 k + 1) / out_px - 1. centres: pixels, with the
        centre of the top-left one at (0, 0). oris: radians from +x towards +y. Non-finite keypoints give zeros.
        """
        return KeypointPatches(self, centres, side_px, oris, out_px).all()

    def level(self, level: int) -> Float[Tensor, "h w"]:
        """The image, halved `level` times."""
        while len(self.levels) <= level:
            self.levels.append(halved(self.levels[-1]))
        return self.levels[level]

    def coarsest(self, out_px: int) -> int:
        """The last level: the image is halved while its shorter side stays at least `out_px`."""
        short, level = min(self.levels[0].shape), 0
        while short // 2 >= out_px and short > 2:
            short, level = short // 2, level + 1
        return level


class KeypointPatches:
    """The patches of keypoints of one image, cut when they are indexed; thread-safe."""

    def __init__(
        self,
        pyramid: PatchPyramid,
        centres: Float[Tensor, "n 2"],
        side_px: Float[Tensor, " n"],
        oris: Float[Tensor, " n"],
        out_px: int,
    ):
        """See `PatchPyramid.cut`."""
        self._pyramid, self._out_px = pyramid, out_px
        self._centres, sides, oris = (v.to(pyramid.device, torch.float32) for v in (centres, side_px, oris))
        self._x_axis = torch.stack([oris.cos(), oris.sin()], 1) * (0.5 * sides)[:, None]
        self._levels = self._choose_levels(sides)
        pyramid.level(int(self._levels.max()) if len(sides) else 0)  # compute all levels now: threads share the pyramid

    def __len__(self) -> int:
        return len(self._centres)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), self._out_px, self._out_px)

    def __getitem__(self, index: Int[np.ndarray, " b"]) -> Float[Tensor, "b out out"]:
        return self._cut(torch.as_tensor(index, device=self._pyramid.device))

    def all(self) -> Float[Tensor, "n out out"]:
        """All patches."""
        return self._cut(torch.arange(len(self), device=self._pyramid.device))

    def _choose_levels(self, sides: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Level of every patch; -1 for keypoints that are not finite."""
        finite = (self._centres.sum(1) + self._x_axis.sum(1)).isfinite()
        spacing = torch.where(finite, sides, 0.0) / self._out_px
        levels = spacing.clamp_min(1.0).log2().floor().long().clamp_max(self._pyramid.coarsest(self._out_px))
        return torch.where(finite, levels, -1)

    def _cut(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b out out"]:
        patches = torch.zeros(len(index), self._out_px, self._out_px, device=index.device)
        levels = self._levels[index]
        size = max(1, CHUNK_SAMPLES.get(index.device.type, 1 << 18) // self._out_px**2)
        for level in levels.unique().tolist():
            if level >= 0:
                for part in torch.nonzero(levels == level)[:, 0].split(size):
                    patches[part] = self._sample(level, index[part])
        return patches

    def _sample(self, level: int, index: Int[Tensor, " n"]) -> Float[Tensor, "n out out"]:
        image = self._pyramid.levels[level]
        steps = (2.0 * torch.arange(self._out_px, device=image.device) + 1.0) / self._out_px - 1.0
        height, width = self._pyramid.levels[0].shape
        # grid_sample's coordinates: image corners at -1 and 1, the same on every level (align_corners=False)
        unit = 2.0 / torch.tensor([width, height], device=image.device, dtype=torch.float32)
        x_axis = self._x_axis[index]
        y_axis = torch.stack([-x_axis[:, 1], x_axis[:, 0]], 1)
        centres = (self._centres[index] + 0.5) * unit - 1.0
        rows = centres[:, None] + steps[:, None] * (y_axis * unit)[:, None]  # (n, out, 2)
        grid = rows[:, :, None] + (steps[:, None] * (x_axis * unit)[:, None])[:, None]  # (n, out, out, 2)
        folded = grid.view(1, -1, self._out_px, 2)  # one image for all keypoints
        sampled = F.grid_sample(image[None, None], folded, padding_mode="border", align_corners=False)
        return sampled.view(-1, self._out_px, self._out_px)


def halved(image: Float[Tensor, "h w"]) -> Float[Tensor, "h2 w2"]:
    """Blur with a 5-tap binomial and mirrored borders, then resize bilinearly to half the size (rounded down)."""
    padded = F.pad(image[None, None], (2, 2, 2, 2), mode="reflect")[0, 0]
    blurred = _blur_rows(_blur_rows(padded).T).T
    size = (image.shape[0] // 2, image.shape[1] // 2)
    return F.interpolate(blurred[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def _blur_rows(image: Float[Tensor, "h w"]) -> Float[Tensor, "h2 w"]:
    """Binomial filter along the first axis; drops two rows at either end."""
    outer, inner, centre = (weight / sum(BINOMIAL) for weight in BINOMIAL[:3])
    blurred = centre * image[2:-2]
    blurred.add_(image[1:-3], alpha=inner).add_(image[3:-1], alpha=inner)
    return blurred.add_(image[:-4], alpha=outer).add_(image[4:], alpha=outer)


def cut_patches(
    image: Shaped[Tensor, "h w"],
    centres: Float[Tensor, "n 2"],
    side_px: Float[Tensor, " n"],
    oris: Float[Tensor, " n"],
    out_px: int,
) -> Float[Tensor, "n out out"]:
    """Patches in [0, 1] of one grey image (uint8, or floats in [0, 1]); see `PatchPyramid.cut`."""
    return PatchPyramid(image).cut(centres, side_px, oris, out_px)
