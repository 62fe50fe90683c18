"""Which patches of one scene may be used as non-matches of each other: DOAP's label mining.

A facade repeats the same window many times: patches of different points can look alike, and separating their
descriptors would teach the network noise. Therefore the patches of each scene are clustered by appearance (HOG of the
patch at 64 x 64 and its pixels at 16 x 16, 2,240 values), and only patches of clusters that are far enough apart are
non-matches of each other. Source: DOAP, section 4.2 and appendix C.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from featkit.core.config import Config, Seed
from featkit.core.types import PatchArray
from featkit.data.patch_set import PatchSet

HOG_PX, PIXELS_PX = 64, 16
AT_ONCE = 512  # patches whose features are computed together


class LabelMiningConfig(Config):
    """Label mining (DOAP, appendix C.1)."""

    clusters: int = Field(100, ge=2, le=10**9)
    """Clusters per scene."""
    percentile: float = Field(20.0, ge=0, lt=100)
    """Clusters closer than this percentile of all distances between clusters are too similar, percent."""
    iterations: int = Field(20, ge=1, le=10**6)
    """Maximum number of k-means iterations; not given in the paper."""
    patches_per_scene: int = Field(20_000, ge=2, le=10**9)
    """Patches per scene used for k-means (all patches are assigned to clusters); not given in the paper."""
    seed: Seed = 0
    """Random seed of k-means."""


@dataclass(frozen=True)
class MinedLabels:
    """clusters: cluster of every patch within its scene. far[s, i, j]: clusters i and j of scene s are non-matches."""

    scenes: Int[np.ndarray, " n"]
    clusters: Int[np.ndarray, " n"]
    far: Bool[np.ndarray, "s k k"]

    def ignored(
        self, patches: Int[np.ndarray, " m"], labels: Int[np.ndarray, " m"], device: torch.device | str = "cpu"
    ) -> Bool[Tensor, "m m"]:
        """Pairs of a batch that are neither match nor non-match: same scene, different points, too similar."""
        scenes, clusters = self.scenes[patches], self.clusters[patches]
        same_scene = scenes[:, None] == scenes[None, :]
        other_point = labels[:, None] != labels[None, :]
        far = self.far[scenes[:, None], clusters[:, None], clusters[None, :]]
        return torch.from_numpy(same_scene & other_point & ~far).to(device)


def mine_labels(data: PatchSet, config: LabelMiningConfig, device: torch.device | str = "cpu") -> MinedLabels:
    """Cluster the patches of every scene and find the clusters that are far apart."""
    clusters = np.zeros(len(data), np.int64)
    far = np.zeros((len(data.scene_names), config.clusters, config.clusters), bool)
    for scene in range(len(data.scene_names)):
        members = np.flatnonzero(data.scenes == scene)
        if len(members) == 0:
            continue
        generator = np.random.default_rng([config.seed, scene])
        sample = np.sort(generator.permutation(members)[: config.patches_per_scene])
        centres = centres_of(
            patch_features(data.patches, sample, device), config.clusters, generator, config.iterations
        )
        clusters[members] = np.concatenate(
            [
                nearest_centre(patch_features(data.patches, part, device), centres).cpu().numpy()
                for part in np.array_split(members, -(-len(members) // AT_ONCE))
            ]
        )
        scene_far = far_apart(centres, config.percentile)
        far[scene, : len(scene_far), : len(scene_far)] = scene_far
    return MinedLabels(data.scenes, clusters, far)


def patch_features(
    patches: PatchArray, index: Int[np.ndarray, " m"], device: torch.device | str = "cpu"
) -> Float[Tensor, "m 2240"]:
    """HOG and pixels of patches of any size."""
    batches = []
    for start in range(0, len(index), AT_ONCE):
        pixels = torch.from_numpy(np.ascontiguousarray(patches[index[start : start + AT_ONCE]])).to(device)
        values = pixels[:, None].float() / 255.0
        if values.shape[-1] != HOG_PX:
            values = F.interpolate(values, size=(HOG_PX, HOG_PX), mode="bilinear", align_corners=False)
        small = F.avg_pool2d(values, HOG_PX // PIXELS_PX)
        batches.append(torch.cat([hog(values[:, 0]), small.flatten(1)], 1))
    return torch.cat(batches)


def centres_of(
    points: Float[Tensor, "n d"], clusters: int, generator: np.random.Generator, iterations: int
) -> Float[Tensor, "k d"]:
    """Lloyd's k-means from random points; k is smaller if there are fewer points. An empty cluster keeps its centre."""
    start = generator.permutation(len(points))[:clusters]
    centres = points[torch.from_numpy(np.sort(start)).to(points.device)].clone()
    previous = None
    for _ in range(iterations):
        labels = nearest_centre(points, centres)
        if previous is not None and torch.equal(labels, previous):
            break
        counts = torch.bincount(labels, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        previous = labels
    return centres


def nearest_centre(points: Float[Tensor, "n d"], centres: Float[Tensor, "k d"]) -> Int[Tensor, " n"]:
    """The nearest centre of every point."""
    return torch.addmm(centres.square().sum(1)[None, :], points, centres.T, alpha=-2.0).argmin(1)


def far_apart(centres: Float[Tensor, "k d"], percentile: float) -> Bool[np.ndarray, "k k"]:
    """Which pairs of centres are farther apart than the given percentile of all pairwise distances."""
    distances = torch.cdist(centres.double(), centres.double()).cpu().numpy()
    between = distances[np.triu_indices(len(distances), 1)]
    if len(between) == 0:
        return np.zeros(distances.shape, bool)
    return distances > np.percentile(between, percentile)


# ----------------------------------------------------------------------------------------------------------------------
# Histograms of oriented gradients as used by DOAP's label mining: 31 values per cell of 8 x 8 pixels.
#
# Source: Felzenszwalb et al., Object Detection with Discriminatively Trained Part-Based Models (PAMI 2010), section 6,
# without PCA: 18 signed and 9 unsigned orientations and 4 texture sums, each cell normalised by the gradient energy of
# the four 2 x 2 blocks of cells that contain it.


CELL_PX = 8
SIGNED = 18  # orientations over the full circle; 9 over the half
TRUNCATED = 0.2  # normalised values are clipped to this (section 6)
TEXTURE = 0.2357  # factor of the four sums: 1 / sqrt(18), which gives them the weight of one orientation
EPSILON = 1e-4


def hog(patches: Float[Tensor, "n s s"]) -> Float[Tensor, "n f"]:
    """Features of patches in [0, 1] whose side is a multiple of 8 px: 31 per cell, f = 31 (s / 8)^2."""
    cells = _cell_histograms(patches)  # (n, 18, s/8, s/8)
    unsigned = cells[:, :9] + cells[:, 9:]
    energy = F.pad(unsigned.square().sum(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    blocks = 4.0 * F.avg_pool2d(energy, 2, stride=1)  # (n, 1, s/8 + 1, s/8 + 1), one per corner of a cell
    corners = (blocks[..., :-1, :-1], blocks[..., :-1, 1:], blocks[..., 1:, :-1], blocks[..., 1:, 1:])
    scales = torch.cat([(corner + EPSILON).rsqrt() for corner in corners], 1)[:, :, None]  # (n, 4, 1, h, w)
    sensitive = (cells[:, None] * scales).clamp(max=TRUNCATED)
    insensitive = (unsigned[:, None] * scales).clamp(max=TRUNCATED)
    parts = (0.5 * sensitive.sum(1), 0.5 * insensitive.sum(1), TEXTURE * sensitive.sum(2))
    return torch.cat(parts, 1).flatten(1)


def _cell_histograms(patches: Float[Tensor, "n s s"]) -> Float[Tensor, "n 18 c c"]:
    """Gradient magnitudes by orientation, with bilinear weights of a pixel in the cells around it."""
    framed = F.pad(patches[:, None], (1, 1, 1, 1), mode="replicate")
    dx = 0.5 * (framed[..., 1:-1, 2:] - framed[..., 1:-1, :-2])
    dy = 0.5 * (framed[..., 2:, 1:-1] - framed[..., :-2, 1:-1])
    orientation = torch.round(torch.atan2(dy, dx) * (SIGNED / (2 * math.pi))).long() % SIGNED
    votes = torch.zeros((len(patches), SIGNED, *patches.shape[1:]), device=patches.device)
    votes.scatter_(1, orientation, torch.sqrt(dx * dx + dy * dy))
    offset = torch.arange(2 * CELL_PX, device=patches.device) - (CELL_PX - 0.5)
    tent = 1.0 - offset.abs() / CELL_PX
    kernel = (tent[:, None] * tent[None, :]).expand(SIGNED, 1, -1, -1)
    return F.conv2d(votes, kernel, stride=CELL_PX, padding=CELL_PX // 2, groups=SIGNED)
