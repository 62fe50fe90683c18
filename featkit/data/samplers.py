"""Samplers of patch batches: pairs, complete groups, or the candidates of AdaSample.

A sampler draws all random numbers of a batch from its own numpy generator, before any patch is read: the same seed
gives the same batches on any device and any number of devices, and the state is a small plain dict.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from featkit.core.errors import BadInputError, UsageError
from featkit.data.patch_set import ClassIndex

MAX_IMAGES = 64  # images tried for the same-image part of a batch; the pass over the classes supplies the rest


@dataclass(frozen=True)
class BatchPlan:
    """A batch before its patches are read.

    patches: index of every patch. labels: its class; patches of one class are consecutive.
    columns: patches per class if equal for all (pairs: 2; AdaSample: the anchor and its candidates), otherwise 0.
    filled: patches that are copies of another one in the batch, to be rotated at random.
    chance: a random number in [0, 1) per class, which selects the positive of AdaSample.
    """

    patches: Int[np.ndarray, " m"]
    labels: Int[np.ndarray, " m"]
    columns: int
    filled: Bool[np.ndarray, " m"]
    chance: Float[np.ndarray, " n"]


class Sampler(Protocol):
    """Draws batches without end; `state` and `restore` resume bit-exactly."""

    def draw(self) -> BatchPlan: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class _ShuffledClasses:
    """Iterates over all classes in random order, reshuffled for each pass; a class recurs only after all others."""

    def __init__(self, count: int, generator: np.random.Generator):
        self._count = count
        self._generator = generator
        self._order = np.zeros(0, np.int64)
        self._position = 0

    def ahead(self, number: int) -> Int[np.ndarray, " n"]:
        """The next `number` classes, all different; they remain the next ones until `advance`."""
        remaining = self._order[self._position :]
        if len(remaining) < number:
            fresh = self._generator.permutation(self._count)
            # Classes that are still due in the old pass are moved to the end of the new one.
            self._order, self._position = np.concatenate([remaining, fresh[~np.isin(fresh, remaining)], remaining]), 0
        return self._order[self._position : self._position + number]

    def advance(self, number: int) -> None:
        self._position += number

    def state(self) -> dict[str, Any]:
        return {"order": self._order[self._position :].copy()}

    def restore(self, state: dict[str, Any]) -> None:
        self._order, self._position = np.asarray(state["order"], np.int64), 0


def usable_classes(classes: Int[np.ndarray, " n"], at_least: int = 2) -> ClassIndex:
    """The classes with enough patches for training. Raises BadInputError if there are none."""
    if len(classes) == 0:
        raise BadInputError("the patch set is empty: there is nothing to train with")
    index = ClassIndex.of(classes, at_least)
    if len(index) == 0:
        raise BadInputError(f"no class has {at_least} patches or more: every point needs at least two views")
    return index


class _ClassSampler:
    """Base of all samplers: the generator, the pass over the classes, and their state."""

    def __init__(self, index: ClassIndex, generator: np.random.Generator):
        self._index = index
        self._generator = generator
        self._pass = _ShuffledClasses(len(index), generator)

    def _take_classes(self, number: int) -> Int[np.ndarray, " n"]:
        rows = self._pass.ahead(number).copy()
        self._pass.advance(number)
        return rows

    def state(self) -> dict[str, Any]:
        return {"generator": json.dumps(self._generator.bit_generator.state), **self._pass.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._generator.bit_generator.state = json.loads(state["generator"])
        self._pass.restore(state)


class PairSampler(_ClassSampler):
    """Two distinct patches of each of `batch_size` classes, no class twice in a batch.

    Every class is used at least once per pass. same_image_share: fraction of each batch that is drawn from one image
    (and from more images if it has too few classes): the first patches of these pairs are all from that image, so their
    non-matches are like those in image matching. images: image of every patch, -1 if unknown; if all are unknown the
    fraction has no effect. Raises UsageError if the batch is larger than the number of classes.
    """

    def __init__(
        self,
        index: ClassIndex,
        batch_size: int,
        generator: np.random.Generator,
        same_image_share: float = 0.0,
        images: Int[np.ndarray, " n"] | None = None,
    ):
        super().__init__(index, generator)
        check_batch(batch_size, len(index))
        self._batch_size = batch_size
        shown = None if images is None or same_image_share == 0 else _ImageClasses.of(index, images)
        self._image_classes = shown if shown is not None and len(shown.rows) else None
        self._from_image = round(same_image_share * batch_size)

    def draw(self) -> BatchPlan:
        if self._image_classes is None:
            rows = self._take_classes(self._batch_size)
            members = draw_members(self._index, rows, 2, self._generator)
        else:
            near, members = self._draw_from_image(self._image_classes)
            others = self._fill_batch(near)
            members = np.concatenate([members, draw_members(self._index, others, 2, self._generator)])
            rows = np.concatenate([near, others])
        filled = np.zeros(members.size, bool)
        return BatchPlan(members.ravel(), rows.repeat(2), 2, filled, np.zeros(len(rows)))

    def _draw_from_image(self, shown: _ImageClasses) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n 2"]]:
        """Classes seen in one image, with its patch of each class and another patch of the class."""
        rows, firsts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for _ in range(MAX_IMAGES):
            missing = self._from_image - len(rows)
            if missing == 0:
                break
            entries = shown.of_image(int(self._generator.integers(len(shown.rows))))
            entries = entries[~np.isin(shown.rows[entries], rows)]
            entries = self._generator.permutation(entries)[:missing]
            rows, firsts = np.r_[rows, shown.rows[entries]], np.r_[firsts, shown.places[entries]]
        counts = self._index.counts[rows]
        seconds = (firsts + 1 + (self._generator.random(len(rows)) * (counts - 1)).astype(np.int64)) % counts
        return rows, self._index.members[self._index.starts[rows][:, None] + np.stack([firsts, seconds], axis=1)]

    def _fill_batch(self, chosen: Int[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
        """The next classes of the pass that fill the batch; those already taken count as used."""
        ahead = self._pass.ahead(self._batch_size)
        unused = np.flatnonzero(~np.isin(ahead, chosen))[: self._batch_size - len(chosen)]
        rows = ahead[unused].copy()
        self._pass.advance(int(unused[-1]) + 1 if len(unused) else 0)
        return rows


@dataclass(frozen=True)
class _ImageClasses:
    """The classes seen in each image, sorted by image: class `rows` with its member number `places`."""

    rows: Int[np.ndarray, " k"]
    places: Int[np.ndarray, " k"]
    starts: Int[np.ndarray, " k"]
    ends: Int[np.ndarray, " k"]

    @staticmethod
    def of(index: ClassIndex, images: Int[np.ndarray, " n"]) -> _ImageClasses:
        rows = np.repeat(np.arange(len(index)), index.counts)
        places = np.arange(len(rows)) - np.repeat(np.cumsum(index.counts) - index.counts, index.counts)
        of_image = images[index.members[index.starts[rows] + places]]
        order = np.lexsort((rows, of_image))
        rows, places, of_image = rows[order], places[order], of_image[order]
        first = np.r_[True, (np.diff(of_image) != 0) | (np.diff(rows) != 0)] if len(rows) else np.zeros(0, bool)
        known = first & (of_image >= 0)
        rows, places, of_image = rows[known], places[known], of_image[known]
        starts, ends = (np.searchsorted(of_image, of_image, side=side) for side in ("left", "right"))
        return _ImageClasses(rows, places, starts, ends)

    def of_image(self, place: int) -> Int[np.ndarray, " n"]:
        """Indices of all classes in the image to which entry `place` belongs."""
        return np.arange(self.starts[place], self.ends[place])


class AdaSampler(_ClassSampler):
    """The candidates of AdaSample: an anchor and `candidates - 1` other patches of each class.

    A class of fewer than `class_size` patches is filled with copies of its patches, to be rotated at random.
    `choose_positives` selects the positive among the candidates with the network's descriptors.
    Source: AdaSample, Alg. 1 and sec. 5.2. Raises UsageError if the batch is larger than the number of classes.
    """

    def __init__(
        self, index: ClassIndex, batch_size: int, class_size: int, candidates: int, generator: np.random.Generator
    ):
        super().__init__(index, generator)
        check_batch(batch_size, len(index))
        if not 2 <= candidates <= class_size:
            raise UsageError(f"sampler.candidates: must be between 2 and class_size, {class_size} (got {candidates})")
        self._batch_size, self._class_size, self._candidates = batch_size, class_size, candidates

    def draw(self) -> BatchPlan:
        rows = self._take_classes(self._batch_size)
        counts = self._index.counts[rows]
        size = np.maximum(counts, self._class_size)
        # Indices in the filled class, in random order: the first is the anchor. Index p is a copy if p >= count.
        places = _draw_distinct(size, self._candidates, self._generator)
        members = self._index.members[self._index.starts[rows][:, None] + places % counts[:, None]]
        filled = places >= counts[:, None]
        chance = self._generator.random(len(rows))
        return BatchPlan(members.ravel(), rows.repeat(self._candidates), self._candidates, filled.ravel(), chance)


class GroupSampler(_ClassSampler):
    """Complete classes up to `batch_size` patches; from large classes `max_per_group` random patches.

    class_scenes: scene of every class of `index`: half of the batch comes from each of two random scenes (DOAP,
    appendix C.2). fill_at_random: only the first group of a batch follows the pass, the others are random (appendix D,
    for the few groups of RomePatches). Raises UsageError if the batch is larger than all patches together, or if fewer
    than two scenes are large enough.
    """

    def __init__(
        self,
        index: ClassIndex,
        batch_size: int,
        generator: np.random.Generator,
        max_per_group: int,
        class_scenes: Int[np.ndarray, " c"] | None = None,
        fill_at_random: bool = False,
    ):
        super().__init__(index, generator)
        self._batch_size, self._max, self._fill_at_random = batch_size, max_per_group, fill_at_random
        self._sizes = np.minimum(index.counts, max_per_group)
        if batch_size > self._sizes.sum():
            raise UsageError(
                f"batch_size: a batch of {batch_size} patches is more than all groups have together "
                f"({self._sizes.sum()}); reduce it, or use more data"
            )
        self._scenes: list[np.ndarray] = []
        if class_scenes is not None:
            scenes = [np.flatnonzero(class_scenes == scene) for scene in np.unique(class_scenes)]
            self._scenes = [rows for rows in scenes if self._sizes[rows].sum() >= batch_size // 2]
            if len(self._scenes) < 2:
                raise UsageError(
                    f"sampler.two_scenes: fewer than two scenes have {batch_size // 2} patches; "
                    "reduce batch_size, or set it to false"
                )

    def draw(self) -> BatchPlan:
        rows = self._groups_of_two_scenes() if self._scenes else self._groups_in_order()
        parts = [self._patches_of_group(row) for row in rows]
        patches = np.concatenate(parts)
        labels = rows.repeat([len(part) for part in parts])
        return BatchPlan(patches, labels, 0, np.zeros(len(patches), bool), np.zeros(0))

    def _groups_in_order(self) -> Int[np.ndarray, " g"]:
        if self._fill_at_random:
            first = self._take_classes(1)
            others = self._generator.permutation(len(self._index))
            rows = np.concatenate([first, others[others != first[0]]])
            return rows[: _fitting_groups(self._sizes[rows], self._batch_size)]
        rows = self._pass.ahead(min(self._batch_size // 2, len(self._index)))
        return self._take_classes(_fitting_groups(self._sizes[rows], self._batch_size))

    def _groups_of_two_scenes(self) -> Int[np.ndarray, " g"]:
        chosen = self._generator.choice(len(self._scenes), 2, replace=False)
        halves = []
        for number in chosen:
            rows = self._generator.permutation(self._scenes[number])
            halves.append(rows[: _fitting_groups(self._sizes[rows], self._batch_size // 2)])
        return np.concatenate(halves)

    def _patches_of_group(self, row: int) -> Int[np.ndarray, " k"]:
        start, count = self._index.starts[row], self._index.counts[row]
        members = self._index.members[start : start + count]
        return members if count <= self._max else self._generator.permutation(members)[: self._max]


def check_batch(batch_size: int, classes: int) -> None:
    """Raise UsageError for a batch that would need a class twice."""
    if batch_size > classes:
        raise UsageError(
            f"batch_size: a batch of {batch_size} pairs needs as many classes, but there are only {classes}; "
            f"use at most {classes}, or more data"
        )


def draw_members(
    index: ClassIndex, rows: Int[np.ndarray, " n"], number: int, generator: np.random.Generator
) -> Int[np.ndarray, "n number"]:
    """`number` distinct patches of every class in `rows`, uniformly, in random order."""
    places = _draw_distinct(index.counts[rows], number, generator)
    return index.members[index.starts[rows][:, None] + places]


def _draw_distinct(
    sizes: Int[np.ndarray, " n"], number: int, generator: np.random.Generator
) -> Int[np.ndarray, "n number"]:
    """Row i: `number` distinct integers below sizes[i], uniform over all ordered choices.

    The j-th is drawn from the number of free values, then shifted past the smaller values that are taken.
    """
    drawn = np.empty((len(sizes), number), np.int64)
    for j in range(number):
        value = np.minimum((generator.random(len(sizes)) * (sizes - j)).astype(np.int64), sizes - j - 1)
        for smaller in np.sort(drawn[:, :j], axis=1).T:
            value += value >= smaller
        drawn[:, j] = value
    return drawn


def _fitting_groups(sizes: Int[np.ndarray, " g"], most: int) -> int:
    """The number of leading groups that fit into `most` patches; at least one."""
    return max(1, int(np.searchsorted(np.cumsum(sizes), most, side="right")))


# ----------------------------------------------------------------------------------------------------------------------
# AdaSample: the positive of a pair is drawn with a probability that depends on its distance from the anchor.
#
# p_i is proportional to d(x_i, x_0)^(lambda / L_avg), the pair's weight to 1 / d(x_i, x_0); d is the angle between
# descriptors or their Euclidean distance, L_avg a moving average of the loss. Source: AdaSample, eq. 13 and 15.
# descriptors (n, k, d): for each of n classes the anchor (first) and k - 1 candidates.


def distances_from_anchor(
    descriptors: Float[Tensor, "n k d"], distance: Literal["angular", "euclidean"]
) -> Float[Tensor, "n c"]:
    """Distance of every candidate from its anchor: radians, or Euclidean. Descriptors have unit length; c = k - 1."""
    if distance == "euclidean":
        return (descriptors[:, 1:] - descriptors[:, :1]).norm(dim=2)
    cosine = (descriptors[:, 1:] * descriptors[:, :1]).sum(dim=2)
    return torch.arccos(cosine.clamp(-1.0, 1.0))


def choose_positives(
    distances: Float[Tensor, "n c"], exponent: float, chance: Float[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """Draw one candidate of every class with p proportional to distance^exponent (eq. 13).

    exponent: lambda / L_avg; 0: uniform, infinity: the most distant candidate ("Hardpos").
    chance: random numbers of the draw, uniform in [0, 1).
    """
    if math.isinf(exponent):
        return distances.argmax(dim=1)
    probability = (
        torch.softmax(exponent * _safe_log(distances), dim=1).double() if exponent else _uniform_probability(distances)
    )
    reached = probability.cumsum(dim=1)
    return (reached[:, :-1] <= chance[:, None].double() * reached[:, -1:]).sum(dim=1)


def distance_weights(distances: Float[Tensor, " n"], exponent: float, smallest: float) -> Float[Tensor, " n"] | None:
    """1 / distance of the chosen positives (eq. 13, up to a factor); None for exponent 0, which is random sampling.

    smallest: lower limit of the distance, in the same unit.
    """
    return None if exponent == 0 else 1.0 / distances.clamp(min=smallest)


def _safe_log(distances: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    return distances.clamp(min=torch.finfo(distances.dtype).tiny).log()


def _uniform_probability(distances: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    return torch.full_like(distances, 1.0 / distances.shape[1], dtype=torch.float64)
