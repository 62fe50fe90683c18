"""Patches around keypoints, all of one image at once: a Gaussian pyramid, then bilinear samples from the right level.

Semantics of kornia's `extract_patches_from_pyramid` (Ebel et al. 2019 sample the same way): the level is
floor(log2(side / out_px)), so that neighbouring samples lie 1 to 2 pixels of that level apart; outside the image the
nearest border pixel is read. Levels are computed once per image, and keypoints are sampled level by level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)  # of sum 16: the pyramid's blur along each axis, sigma 1 px
CHUNK_SAMPLES = {"cpu": 1 << 18, "cuda": 1 << 25}  # at a time: on the CPU their grid (2 MB) stays in the cache


class PatchPyramid:
    """One grey image, ready to have patches cut out of it at any scale. Levels are made when they are first needed."""

    def __init__(self, image: Shaped[Tensor, "h w"]):
        """image: uint8, or floating point in [0, 1]; the patches come out on its device."""
        if image.ndim != 2 or not image.numel():
            raise ValueError(f"patches are cut from a grey image (h, w), not from one of shape {tuple(image.shape)}")
        level = image.float()
        self._levels = [level / 255.0 if image.dtype == torch.uint8 else level]

    def cut(
        self,
        centres: Float[Tensor, "n 2"],
        side_px: Float[Tensor, " n"],
        oris: Float[Tensor, " n"],
        out_px: int,
    ) -> Float[Tensor, "n out out"]:
        """Square patches of side `side_px` around `centres`, turned so that `oris` points along their +x axis.

        Sample (i, j) lies at centre + R (u_j, u_i) side / 2, with u_k = (2 k + 1) / out_px - 1. centres: pixels, centre
        of the top-left one at (0, 0). oris: radians from +x towards +y. A keypoint that is not finite gives zeros.
        """
        device = self._levels[0].device
        centres, side_px, oris = (v.to(device, torch.float32) for v in (centres, side_px, oris))
        patches = torch.zeros(len(centres), out_px, out_px, device=device)
        levels = self._level_of(side_px, out_px)
        levels[~(centres.sum(1) + oris).isfinite()] = -1
        for level in levels.unique().tolist():
            if level < 0:
                continue
            index = torch.nonzero(levels == level)[:, 0]
            axis = torch.stack([oris.cos(), oris.sin()], 1) * (0.5 * side_px)[:, None]
            for part in index.split(max(1, CHUNK_SAMPLES.get(device.type, 1 << 20) // out_px**2)):
                patches[part] = self._sample(int(level), centres[part], axis[part], out_px)
        return patches

    def _level_of(self, side_px: Float[Tensor, " n"], out_px: int) -> Int[Tensor, " n"]:
        """Level of every patch; -1 where the side is not finite. The coarsest level still holds a whole patch."""
        finite = side_px.isfinite()
        wanted = (torch.where(finite, side_px, 0.0) / out_px).clamp_min(1.0).log2().floor().long()
        wanted = wanted.clamp_max(self._coarsest(out_px))
        return torch.where(finite, wanted, -1)

    def _coarsest(self, out_px: int) -> int:
        """Levels are halved while the shorter side stays at least `out_px`."""
        short = min(self._levels[0].shape)
        level = 0
        while short // 2 >= out_px and short > 2:
            short //= 2
            level += 1
        return level

    def _sample(
        self, level: int, centres: Float[Tensor, "n 2"], axis: Float[Tensor, "n 2"], out_px: int
    ) -> Float[Tensor, "n out out"]:
        """axis: from a patch's centre to the middle of its +x side, in pixels."""
        image = self._level(level)
        steps = (2.0 * torch.arange(out_px, device=image.device) + 1.0) / out_px - 1.0
        height, width = self._levels[0].shape
        # Corners at -1 and 1 (align_corners=False) are the same places on every level, also where a side was odd.
        unit = 2.0 / torch.tensor([width, height], device=image.device, dtype=torch.float32)
        along = axis * unit
        across = torch.stack([-axis[:, 1], axis[:, 0]], 1) * unit
        origin = (centres + 0.5) * unit - 1.0
        rows = origin[:, None] + steps[:, None] * across[:, None]  # (n, out, 2)
        grid = rows[:, :, None] + (steps[:, None] * along[:, None])[:, None]  # (n, out, out, 2)
        folded = grid.view(1, -1, out_px, 2)
        sampled = F.grid_sample(image[None, None], folded, padding_mode="border", align_corners=False)
        return sampled.view(-1, out_px, out_px)

    def _level(self, level: int) -> Float[Tensor, "h w"]:
        while len(self._levels) <= level:
            self._levels.append(halved(self._levels[-1]))
        return self._levels[level]


def halved(image: Float[Tensor, "h w"]) -> Float[Tensor, "h2 w2"]:
    """Blur by a 5-tap binomial with mirrored borders, then bilinear at half the size (rounded down)."""
    padded = F.pad(image[None, None], (2, 2, 2, 2), mode="reflect")[0, 0]
    blurred = _blur_rows(_blur_rows(padded).T).T
    size = (image.shape[0] // 2, image.shape[1] // 2)
    return F.interpolate(blurred[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def _blur_rows(image: Float[Tensor, "h w"]) -> Float[Tensor, "h2 w"]:
    """The binomial along the first axis, without the two rows at either end."""
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
