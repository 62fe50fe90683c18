"""Patch descriptors by the names of their methods, and the matching of two images' patches."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Int, Shaped, UInt8
from pydantic import Field

from featkit.core.config import Config, Runtime, WorkerCount
from featkit.core.errors import UsageError
from featkit.core.log import progress
from featkit.core.runtime import capped, torch_device
from featkit.core.types import PatchArray
from featkit.data.phototour import all_matching
from featkit.evaluation.metrics import average_precision, distance_matrix
from featkit.features.patches import describe_patches
from featkit.weights.files import load_patch_network

# ----------------------------------------------------------------------------------------------------------------------
# Patches -> descriptors by the name of the method: the baselines SIFT and RootSIFT, and every trained network.
#
# SIFT of a patch (Lowe 2004, as UBC's tables have it): one upright descriptor at its centre, whose 4 x 4 cells of
# 3 sigma cover the patch, so that a patch is 12 sigma wide. RootSIFT: square root of the L1-normalised SIFT
# (Arandjelovic and Zisserman 2012).


BASELINES = ("sift", "rootsift")
BINS_PER_SIDE, SIGMA_PER_BIN = 4, 3
DIMENSION = 128
BATCH = 512  # patches of one task of a thread
CHUNK = 8192  # patches between two steps of a progress bar
FIRST_BLUR_PX, LAYERS = 1.6, 3  # of an octave, as in OpenCV and Lowe


class SiftPatchConfig(Config):
    """SIFT of a whole patch."""

    root: bool = True
    """RootSIFT instead of SIFT."""
    layer: int = Field(2, ge=0, le=3)
    """Layer of OpenCV's first octave that gives the gradients: the patch is blurred by 1.6 x 2^(layer / 3) px. Of the
    four, 2 gives RootSIFT its lowest FPR95 on patches of real photographs, so that the baseline is not a weak one."""
    threads: Runtime[WorkerCount] = 0
    """Threads that describe, never more than there are cores; 0: one per core."""

    @property
    def blur_px(self) -> float:
        """Gaussian that the patch is smoothed with."""
        return float(FIRST_BLUR_PX * 2 ** (self.layer / LAYERS))


@dataclass(frozen=True)
class PatchDescriber:
    """A method. describe: (n, s, s) grey uint8 -> float32 (n, d), or packed bits uint8 (n, bits / 8)."""

    name: str
    describe: Callable[[PatchArray], Shaped[np.ndarray, "n d"]]
    info: dict[str, Any]


def describer(
    name: str, device: str = "auto", batch_size: int = 0, precision: Literal["fp32", "bf16"] = "fp32"
) -> PatchDescriber:
    """The method of that name: "sift", "rootsift", the name of a weight, or the path of one. Raises UsageError.

    batch_size: 0 for a good one.
    """
    if name in BASELINES:
        config = SiftPatchConfig(root=name == "rootsift")
        return PatchDescriber(name, lambda patches: describe_by_sift(patches, config), config.result_fields())
    near = difflib.get_close_matches(name, BASELINES, n=1, cutoff=0.8)
    if near:
        raise UsageError(f"no method named {name!r}; did you mean {near[0]!r}?")

    place = torch_device(device)
    network, weight = load_patch_network(name, place)

    def describe(patches: PatchArray) -> np.ndarray:
        return describe_patches(network, patches, place, batch_size, precision)

    info = {"network": network.config.result_fields(), "precision": precision}
    return PatchDescriber(name, describe, info | ({"weight_sha256": weight.sha256} if weight is not None else {}))


def describe_by_sift(patches: PatchArray, config: SiftPatchConfig) -> Shaped[np.ndarray, "n d"]:
    """SIFT or RootSIFT of every patch, float32 (n, 128) with unit rows (zero for a patch without any gradient)."""
    out = np.zeros((len(patches), DIMENSION), np.float32)
    starts = range(0, len(patches), BATCH)

    def work(start: int) -> None:
        index = np.arange(start, min(start + BATCH, len(patches)))
        out[index] = _sift_of(patches[index], config)

    with ThreadPoolExecutor(capped(config.threads)) as pool:  # OpenCV lets go of Python's lock
        for _ in pool.map(work, starts):
            pass
    return normalised(out, config.root)


def _sift_of(patches: UInt8[np.ndarray, "b s s"], config: SiftPatchConfig) -> Shaped[np.ndarray, "b 128"]:
    sift = cv2.SIFT.create()
    side = patches.shape[-1]
    centre = (side - 1) / 2
    sigma = side / (BINS_PER_SIDE * SIGMA_PER_BIN)
    point = cv2.KeyPoint(centre, centre, 2 * sigma, 0.0, 1.0, config.layer << 8)  # octave 0
    rows = [sift.compute(np.ascontiguousarray(patch), [point])[1] for patch in patches]
    return np.stack([np.zeros(DIMENSION, np.float32) if row is None else row[0] for row in rows])


def normalised(descriptors: Shaped[np.ndarray, "n 128"], root: bool) -> Shaped[np.ndarray, "n 128"]:
    """SIFT with unit length, or its RootSIFT."""
    if root:
        sums = descriptors.sum(axis=1, keepdims=True)
        return np.sqrt(descriptors / np.maximum(sums, 1e-12))
    lengths = np.linalg.norm(descriptors, axis=1, keepdims=True)
    return descriptors / np.maximum(lengths, 1e-12)


def describe_used(
    method: PatchDescriber, patches: PatchArray, indices: Sequence[np.ndarray]
) -> tuple[Shaped[np.ndarray, "m d"], list[np.ndarray]]:
    """Describe only the patches that `indices` name; the descriptors, and each index array into them."""
    used, inverse = np.unique(np.concatenate(indices), return_inverse=True)
    parts = []
    with progress(method.name, len(used), "patches") as advance:
        for start in range(0, len(used), CHUNK):
            parts.append(method.describe(_Chosen(patches, used[start : start + CHUNK])))
            advance(len(parts[-1]))
    ends = np.cumsum([len(index) for index in indices])
    return np.concatenate(parts), np.split(inverse, ends[:-1])


class _Chosen:
    """Some patches of an array, read when they are asked for."""

    def __init__(self, patches: PatchArray, index: np.ndarray):
        self._patches, self._index = patches, index
        self.shape = (len(index), *patches.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> UInt8[np.ndarray, "b s s"]:
        return self._patches[self._index[index]]


# ----------------------------------------------------------------------------------------------------------------------
# Matching the patches of two images: HPatches' matching task on any set whose patches know their image.
#
# Every patch of image A is matched with its nearest neighbour among those of image B; AP of the matches ranked by
# distance, of all patches of A (Balntas et al., CVPR 2017, section 5); mean over pairs of images. Only points that both
# images show take part, so every patch has its right partner among the others.


@dataclass(frozen=True)
class ImagePair:
    """Patches of two images of one scene: rows of a PatchSet, those at one place show the same point."""

    rows0: Int[np.ndarray, " k"]
    rows1: Int[np.ndarray, " k"]

    def __len__(self) -> int:
        return len(self.rows0)


def matching_ap(descriptors0: Shaped[np.ndarray, "n d"], descriptors1: Shaped[np.ndarray, "n d"]) -> float:
    """AP in [0, 1] of the nearest neighbours of rows of the one among the other; right is the row of the same number.

    Unit vectors by Euclidean, packed bits by Hamming distance.
    """
    distances = distance_matrix(descriptors0, descriptors1)
    nearest, rows = distances.argmin(axis=1), np.arange(len(distances))
    return average_precision(distances[rows, nearest], nearest == rows, num_relevant=len(rows))


def image_pairs(
    classes: Int[np.ndarray, " n"],
    scenes: Int[np.ndarray, " n"],
    images: Int[np.ndarray, " n"],
    min_shared: int,
    max_shared: int,
    generator: np.random.Generator,
) -> Iterator[ImagePair]:
    """Pairs of images that share at least `min_shared` classes, in random order, of all scenes in turn.

    Of each at most `max_shared` classes, drawn at random. images: -1 where not known.
    """
    first, second = all_matching(classes)
    swap = images[first] > images[second]
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    known = (images[first] >= 0) & (images[first] != images[second])
    first, second = first[known], second[known]
    key = images[first] * (int(images.max(initial=0)) + 1) + images[second]
    order = np.lexsort((classes[first], key))
    first, second, key = first[order], second[order], key[order]
    once = np.r_[True, (np.diff(key) != 0) | (np.diff(classes[first]) != 0)] if len(key) else np.zeros(0, bool)
    first, second, key = first[once], second[once], key[once]
    starts = np.flatnonzero(np.r_[True, np.diff(key) != 0]) if len(key) else np.zeros(0, np.int64)
    counts = np.diff(np.r_[starts, len(key)])
    chosen = generator.permutation(np.flatnonzero(counts >= min_shared))
    for pair in chosen[_in_turn(scenes[first[starts[chosen]]])]:
        rows = starts[pair] + np.sort(generator.permutation(counts[pair])[:max_shared])
        yield ImagePair(first[rows], second[rows])


def _in_turn(scenes: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
    """An order in which every scene comes once before any comes twice."""
    by_scene = np.argsort(scenes, kind="stable")
    ordered = scenes[by_scene]
    turn = np.arange(len(scenes)) - np.searchsorted(ordered, ordered)
    return by_scene[np.argsort(turn, kind="stable")]
