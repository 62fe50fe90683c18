"""The part of the training data that is kept out of training, and how well the network matches on it.

What is chosen by is what descriptors are for: mean AP of matching between images of scenes that were never trained on
(evaluation/patch_matching.py). FPR95 on the same patches is measured besides; on classes of the training's own scenes
all networks tell the classes apart (0.05 to 0.5 %), and it chooses by chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8

from featkit.data.patch_set import ClassIndex, PatchSet
from featkit.data.samplers import draw_members
from featkit.errors import BadInputError, UsageError
from featkit.evaluation.descriptor_distances import pair_distances
from featkit.evaluation.patch_matching import ImagePair, image_pairs, matching_ap
from featkit.evaluation.verification import fpr95
from featkit.features.describe import describe_patches
from featkit.training.patch_config import HeldOut


@dataclass(frozen=True)
class HeldOutPairs:
    """Pixels of matching pairs, by pair of images. others: for each pair, a first patch's non-match of that image.

    Rows 0 .. p-1 of `pixels` are the first patches, p .. 2p-1 the second ones. ends: pairs after each pair of images.
    """

    pixels: UInt8[np.ndarray, "m s s"]
    others: Int[np.ndarray, " p"]
    ends: Int[np.ndarray, " g"]


@dataclass(frozen=True)
class HeldOutScores:
    """Shares in [0, 1]; both smaller is better. matching_error: 1 - mAP."""

    matching_error: float
    fpr95: float


def split_classes(data: PatchSet, index: ClassIndex, config: HeldOut, seed: int) -> tuple[ClassIndex, ClassIndex]:
    """(to train with, held out), by class: whole scenes where possible, see `HeldOut`.

    Raises UsageError for a name that no scene has, BadInputError when a side would be too small for pairs.
    """
    generator = np.random.default_rng([seed, 2])
    of_class = np.array(data.scene_names)[data.scenes[index.members[index.starts]]]
    if config.scenes:
        unknown = next((name for name in config.scenes if name not in data.scene_names), None)
        if unknown is not None:
            have = ", ".join(sorted(set(data.scene_names)))
            raise UsageError(f"held_out.scenes: no scene {unknown!r} in the data; it has {have}")
        out = np.isin(of_class, config.scenes)
    else:
        out = _whole_scenes(data, of_class, config, generator)
        if not out.any():
            out[generator.permutation(len(out))[: max(2, round(config.share * len(out)))]] = True
    if min(int(out.sum()), int((~out).sum())) < 2:
        raise BadInputError(
            f"only {len(out)} classes have two patches or more, {int(out.sum())} of them held out: too few to train"
            " with and to measure on"
        )
    train, held_out = (ClassIndex(index.members, index.starts[rows], index.counts[rows]) for rows in (~out, out))
    return train, held_out


def _whole_scenes(
    data: PatchSet, of_class: np.ndarray, config: HeldOut, generator: np.random.Generator
) -> Bool[np.ndarray, " c"]:
    """Classes of whole scenes, drawn while they fit; only those whose images share enough, where images are known.

    Scenes of one name in several sets are one scene.
    """
    names, counts = np.unique(of_class, return_counts=True)
    usable = set(names.tolist())
    if data.images is not None:
        pairs = image_pairs(data.classes, data.scenes, data.images, config.min_shared, 1, generator)
        usable = {data.scene_names[data.scenes[pair.rows0[0]]] for pair in pairs}
    chosen: list[str] = []
    room = config.share * len(of_class)
    for place in generator.permutation(len(names)):
        if names[place] in usable and counts[place] <= room:
            chosen.append(names[place])
            room -= counts[place]
    return np.isin(of_class, chosen)


def held_out_pairs(data: PatchSet, index: ClassIndex, config: HeldOut, seed: int) -> HeldOutPairs:
    """At most `config.pairs` matching pairs of held-out classes, by pair of images."""
    generator = np.random.default_rng([seed, 3])
    members = np.concatenate([index.members[s : s + c] for s, c in zip(index.starts, index.counts, strict=True)])
    found: list[ImagePair] = []
    if data.images is not None:
        of_images = image_pairs(
            data.classes[members],
            data.scenes[members],
            data.images[members],
            config.min_shared,
            config.max_shared,
            generator,
        )
        found = _up_to(config.pairs, (ImagePair(members[p.rows0], members[p.rows1]) for p in of_images))
    if not found:
        found = _up_to(config.pairs, _made_up(data, index, config, generator))
    rows0, rows1 = (np.concatenate([getattr(pair, name) for pair in found]) for name in ("rows0", "rows1"))
    sizes = np.array([len(pair) for pair in found])
    first, size = np.repeat(np.cumsum(sizes) - sizes, sizes), np.repeat(sizes, sizes)
    place = np.arange(len(rows0)) - first
    others = first + (place + 1 + (generator.random(len(place)) * (size - 1)).astype(np.int64)) % size
    pixels = np.ascontiguousarray(data.patches[np.concatenate([rows0, rows1])])
    return HeldOutPairs(pixels, len(rows0) + others, np.cumsum(sizes))


def _up_to(most: int, pairs: Iterator[ImagePair]) -> list[ImagePair]:
    """Pairs of images, the last one shortened, until there are `most` pairs of patches; none of less than two."""
    found: list[ImagePair] = []
    for pair in pairs:
        kept = min(most, len(pair))
        if kept >= 2:
            found.append(ImagePair(pair.rows0[:kept], pair.rows1[:kept]))
            most -= kept
        if most < 2:
            break
    return found


def _made_up(data: PatchSet, index: ClassIndex, config: HeldOut, generator: np.random.Generator) -> Iterator[ImagePair]:
    """Two patches of each class, put together by scene as if they were of two images; without scenes of two classes, of
    all classes."""
    order = generator.permutation(len(index))
    members = draw_members(index, order, 2, generator)
    scenes = data.scenes[members[:, 0]]
    groups = [members[scenes == scene] for scene in np.unique(scenes)]
    groups = [group for group in groups if len(group) >= 2] or [members]
    for group in groups:
        for start in range(0, len(group), config.max_shared):
            part = group[start : start + config.max_shared]
            yield ImagePair(part[:, 0], part[:, 1])


def held_out_scores(network: Any, pairs: HeldOutPairs, device: torch.device, precision: str = "fp32") -> HeldOutScores:
    """How well a network matches the held-out patches. The network is left in training mode."""
    described = describe_patches(network, pairs.pixels, device, precision=precision)  # type: ignore[arg-type]
    network.train()
    first, second = np.split(described, 2)
    starts = np.r_[0, pairs.ends[:-1]]
    aps = [matching_ap(first[a:b], second[a:b]) for a, b in zip(starts, pairs.ends, strict=True)]
    near, far = pair_distances(first, second), pair_distances(first, described[pairs.others])
    match = np.arange(2 * len(first)) < len(first)
    return HeldOutScores(1.0 - float(np.mean(aps)), float(fpr95(np.concatenate([near, far]), match)))
