"""The part of the training classes that is kept out of training, and FPR95 on its pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8

from featkit.data.patch_set import ClassIndex, PatchArray
from featkit.data.samplers import draw_members
from featkit.errors import BadInputError
from featkit.training.patch_config import HeldOut


@dataclass(frozen=True)
class HeldOutPairs:
    """Pairs of patches: pixels of the patches they are of, their places among them, and which of them match."""

    pixels: UInt8[np.ndarray, "m s s"]
    index0: Int[np.ndarray, " p"]
    index1: Int[np.ndarray, " p"]
    match: Bool[np.ndarray, " p"]


def split_classes(index: ClassIndex, config: HeldOut, seed: int) -> tuple[ClassIndex, ClassIndex]:
    """(to train with, held out), by class. Raises BadInputError when a side would be empty or too small for pairs."""
    order = np.random.default_rng([seed, 2]).permutation(len(index))
    out = max(2, round(config.share * len(index)))
    if len(index) - out < 2:
        raise BadInputError(
            f"only {len(index)} classes have two patches or more: too few to train with and hold some of them out"
        )

    def side(rows: np.ndarray) -> ClassIndex:
        return ClassIndex(index.members, index.starts[rows], index.counts[rows])

    return side(np.sort(order[out:])), side(np.sort(order[:out]))


def held_out_pairs(patches: PatchArray, index: ClassIndex, config: HeldOut, seed: int) -> HeldOutPairs:
    """One matching pair of each held-out class, at most `config.pairs`, and as many pairs across classes."""
    generator = np.random.default_rng([seed, 3])
    rows = generator.permutation(len(index))[: config.pairs]
    members = draw_members(index, rows, 2, generator)
    pixels = np.ascontiguousarray(patches[members.ravel()])
    anchor = 2 * np.arange(len(rows))
    other = (np.arange(len(rows)) + generator.integers(1, len(rows), len(rows))) % len(rows)
    return HeldOutPairs(
        pixels,
        np.concatenate([anchor, anchor]),
        np.concatenate([anchor + 1, 2 * other + 1]),
        np.arange(2 * len(rows)) < len(rows),
    )


def held_out_fpr95(network: Any, pairs: HeldOutPairs, device: torch.device, precision: str = "fp32") -> float:
    """FPR95 of a network on the pairs, in [0, 1]. The network is left in training mode."""
    from featkit.evaluation.verification import fpr95
    from featkit.features.describe import describe_patches

    found = describe_patches(network, pairs.pixels, device, precision=precision)  # type: ignore[arg-type]
    network.train()
    first, second = found[pairs.index0], found[pairs.index1]
    if network.is_binary:
        distances = np.unpackbits(first ^ second, axis=1).sum(axis=1).astype(np.float64)
    else:
        distances = np.linalg.norm(first.astype(np.float64) - second, axis=1)
    return float(fpr95(distances, pairs.match))
