"""Patch descriptors by method name, and matching of the patches of two images."""

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
# Patches -> descriptors by method name: the baselines SIFT and RootSIFT, and every trained network.
#
# SIFT of a patch (Lowe 2004, as in UBC's tables): one upright descriptor at the centre, whose 4 x 4 cells of 3 sigma
# cover the patch, so that a patch is 12 sigma wide. RootSIFT: square root of the L1-normalised SIFT (Arandjelovic and
# Zisserman 2012).


BASELINES = ("sift", "rootsift")
BINS_PER_SIDE, SIGMA_PER_BIN = 4, 3
DIMENSION = 128
BATCH = 512  # patches per task of a thread
CHUNK = 8192  # patches per step of the progress bar
FIRST_BLUR_PX, LAYERS = 1.6, 3  # blur of the first layer and number of layers of an octave (OpenCV, Lowe)


class SiftPatchConfig(Config):
    """SIFT descriptor of an entire patch."""

    root: bool = True
    """RootSIFT instead of SIFT."""
    layer: int = Field(2, ge=0, le=3)
    """Layer of OpenCV's first octave used for gradients: the patch is blurred by 1.6 x 2^(layer / 3) px. Of the four
    layers, 2 gives RootSIFT its lowest FPR95 on patches of real images: a fair baseline."""
    threads: Runtime[WorkerCount] = 0
    """Number of threads, at most one per core; 0: one per core."""

    @property
    def blur_px(self) -> float:
        """Standard deviation of the Gaussian applied to the patch, px."""
        return float(FIRST_BLUR_PX * 2 ** (self.layer / LAYERS))


@dataclass(frozen=True)
class PatchDescriber:
    """A named descriptor. describe: (n, s, s) grey uint8 -> float32 (n, d), or packed bits uint8 (n, bits / 8)."""

    name: str
    describe: Callable[[PatchArray], Shaped[np.ndarray, "n d"]]
    info: dict[str, Any]


def patch_describer(
    name: str, device: str = "auto", batch_size: int = 0, precision: Literal["fp32", "bf16"] = "fp32"
) -> PatchDescriber:
    """The method with this name: "sift", "rootsift", or the name or path of weights. Raises UsageError.

    batch_size: 0 for automatic.
    """
    if name in BASELINES:
        config = SiftPatchConfig(root=name == "rootsift")
        return PatchDescriber(name, lambda patches: describe_by_sift(patches, config), config.result_fields())
    near = difflib.get_close_matches(name, BASELINES, n=1, cutoff=0.8)
    if near:
        raise UsageError(f"no method named {name!r}; did you mean {near[0]!r}?")

    target_device = torch_device(device)
    network, weight = load_patch_network(name, target_device)

    def describe(patches: PatchArray) -> np.ndarray:
        return describe_patches(network, patches, target_device, batch_size, precision)

    info = {"network": network.config.result_fields(), "precision": precision}
    return PatchDescriber(name, describe, info | ({"weight_sha256": weight.sha256} if weight is not None else {}))


def describe_by_sift(patches: PatchArray, config: SiftPatchConfig) -> Shaped[np.ndarray, "n d"]:
    """SIFT or RootSIFT of each patch, float32 (n, 128) with unit rows (zero for a patch without gradients)."""
    out = np.zeros((len(patches), DIMENSION), np.float32)
    starts = range(0, len(patches), BATCH)

    def describe_batch(start: int) -> None:
        index = np.arange(start, min(start + BATCH, len(patches)))
        out[index] = _compute_sift(patches[index], config)

    with ThreadPoolExecutor(capped(config.threads)) as pool:  # OpenCV releases the GIL
        for _ in pool.map(describe_batch, starts):
            pass
    return normalised(out, config.root)


def _compute_sift(patches: UInt8[np.ndarray, "b s s"], config: SiftPatchConfig) -> Shaped[np.ndarray, "b 128"]:
    sift = cv2.SIFT.create()
    side = patches.shape[-1]
    centre = (side - 1) / 2
    sigma = side / (BINS_PER_SIDE * SIGMA_PER_BIN)
    point = cv2.KeyPoint(centre, centre, 2 * sigma, 0.0, 1.0, config.layer << 8)  # octave 0
    rows = [sift.compute(np.ascontiguousarray(patch), [point])[1] for patch in patches]
    return np.stack([np.zeros(DIMENSION, np.float32) if row is None else row[0] for row in rows])


def normalised(descriptors: Shaped[np.ndarray, "n 128"], root: bool) -> Shaped[np.ndarray, "n 128"]:
    """SIFT descriptors normalised to unit length, or converted to RootSIFT."""
    if root:
        sums = descriptors.sum(axis=1, keepdims=True)
        return np.sqrt(descriptors / np.maximum(sums, 1e-12))
    lengths = np.linalg.norm(descriptors, axis=1, keepdims=True)
    return descriptors / np.maximum(lengths, 1e-12)


def describe_used(
    method: PatchDescriber, patches: PatchArray, indices: Sequence[np.ndarray]
) -> tuple[Shaped[np.ndarray, "m d"], list[np.ndarray]]:
    """Describe only the patches in `indices`; returns their descriptors, and each index array as rows of these."""
    used, inverse = np.unique(np.concatenate(indices), return_inverse=True)
    parts = []
    with progress(method.name, len(used), "patches") as advance:
        for start in range(0, len(used), CHUNK):
            parts.append(method.describe(_PatchSelection(patches, used[start : start + CHUNK])))
            advance(len(parts[-1]))
    ends = np.cumsum([len(index) for index in indices])
    return np.concatenate(parts), np.split(inverse, ends[:-1])


class _PatchSelection:
    """A selection of an array's patches, read on access."""

    def __init__(self, patches: PatchArray, index: np.ndarray):
        self._patches, self._index = patches, index
        self.shape = (len(index), *patches.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> UInt8[np.ndarray, "b s s"]:
        return self._patches[self._index[index]]


# ----------------------------------------------------------------------------------------------------------------------
# Matching the patches of two images: HPatches' matching task, for any patch set that records the image of each patch.
#
# Every patch of image A is matched with its nearest neighbour in image B. The score is the AP of all patches of A,
# their matches ranked by distance (Balntas et al., CVPR 2017, section 5), averaged over image pairs. Only points
# visible in both images are used, so that every patch has a correct partner.


@dataclass(frozen=True)
class ImagePair:
    """Patches of two images of one scene, as rows of a PatchSet; `rows0[i]` and `rows1[i]` show the same point."""

    rows0: Int[np.ndarray, " k"]
    rows1: Int[np.ndarray, " k"]

    def __len__(self) -> int:
        return len(self.rows0)


def matching_ap(descriptors0: Shaped[np.ndarray, "n d"], descriptors1: Shaped[np.ndarray, "n d"]) -> float:
    """AP in [0, 1] of nearest neighbours of `descriptors0` in `descriptors1`; the correct match of row i is row i.

    Euclidean distance for real values, Hamming distance for packed bits.
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
    """Image pairs that share at least `min_shared` classes, in random order, alternating between scenes.

    At most `max_shared` classes are drawn at random from each pair. images: -1 where unknown.
    """
    first, second = all_matching(classes)
    swap = images[first] > images[second]
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    known = (images[first] >= 0) & (images[first] != images[second])
    first, second = first[known], second[known]
    key = images[first] * (int(images.max(initial=0)) + 1) + images[second]
    order = np.lexsort((classes[first], key))
    first, second, key = first[order], second[order], key[order]
    first_of_class = (
        np.r_[True, (np.diff(key) != 0) | (np.diff(classes[first]) != 0)] if len(key) else np.zeros(0, bool)
    )
    first, second, key = first[first_of_class], second[first_of_class], key[first_of_class]
    starts = np.flatnonzero(np.r_[True, np.diff(key) != 0]) if len(key) else np.zeros(0, np.int64)
    counts = np.diff(np.r_[starts, len(key)])
    chosen = generator.permutation(np.flatnonzero(counts >= min_shared))
    for pair in chosen[_alternate_scenes(scenes[first[starts[chosen]]])]:
        rows = starts[pair] + np.sort(generator.permutation(counts[pair])[:max_shared])
        yield ImagePair(first[rows], second[rows])


def _alternate_scenes(scenes: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
    """An order that alternates between the scenes: each appears once before any appears twice."""
    by_scene = np.argsort(scenes, kind="stable")
    ordered = scenes[by_scene]
    turn = np.arange(len(scenes)) - np.searchsorted(ordered, ordered)
    return by_scene[np.argsort(turn, kind="stable")]
