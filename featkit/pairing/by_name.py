"""Pairs by names: every image with every other, or with the next ones (and loops, and cameras of a rig)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath

import numpy as np

from featkit.core.config import Config, Count, CountOrZero, Later
from featkit.core.errors import BadInputError, UsageError
from featkit.core.types import Pair
from featkit.images.listing import natural_key
from featkit.io.features import FeatureStore
from featkit.pairing.stage import RigFrames
from featkit.retrieval.retrieve import Describe, retrieve
from featkit.retrieval.vlad import VladConfig

LOGGER = logging.getLogger(__name__)

# ----------------------------------------------------------------------------------------------------------------------
# Every image with every other: n (n - 1) / 2 pairs.


class ExhaustiveConfig(Config):
    """Nothing to choose."""


class Exhaustive:
    """All pairs, in the order of the names."""

    Config = ExhaustiveConfig
    needs_features = False
    scratch_folder: Path | None = None

    def __init__(self, config: ExhaustiveConfig, device: str = "auto"):
        self.config = config

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """See `Pairing.pairs`. A name given twice counts once."""
        return [Pair(a, b) for a, b in combinations(dict.fromkeys(names), 2)]


# ----------------------------------------------------------------------------------------------------------------------
# Each image with the next ones in name order, for video and for photographs taken along a path; with similar ones of
# another time, where the path comes back; with those that other cameras of a rig took at about the same time.
#
# Source of the quadratic overlap and of loop closure: COLMAP, `SequentialPairingOptions` (images 1, 2, 4, 8, ... ahead;
# every tenth image looks for loops, if it is asked to).


class SequentialConfig(Config):
    """How far ahead an image is matched, and which loops and cameras are."""

    overlap: Count = 10
    """Following images that each one is paired with."""
    # Off: `overlap` then means just what it says. On reaches further for few pairs when a path returns slowly.
    quadratic: bool = False
    """Pair also with the images 2^k ahead, for all k below overlap."""
    # Off, as in COLMAP: a path that never comes back finds none, and repeated structure finds wrong ones.
    loop_closure: Later[CountOrZero] = 0
    """Most similar images of other times (VLAD) that every `loop_every`-th one is paired with, where a path may come
    back to a place; 0: none. Reads features."""
    loop_every: Later[Count] = 10
    """Of how many images one looks for loops."""
    loop_gap: Later[Count | None] = None
    """Images up to so many before or after are no loops. None: twice the overlap."""
    vlad: Later[VladConfig] = VladConfig()
    """How images are described and compared for loops."""
    across_cameras: Later[bool | None] = None
    """Each camera of a rig is a sequence of its own, and images of several cameras at one time are paired: by the rigs
    of the scene, or by sibling folders with equal names for one time (cam0/0001.jpg, cam1/0001.jpg). None: where the
    scene has rigs (`reconstruct --rig`)."""
    across_overlap: Later[CountOrZero] = 1
    """Following times whose images of the other cameras an image is paired with too; 0: only its own time."""


@dataclass(frozen=True)
class Moment:
    """When, by order, and by which camera an image was taken. rig: images of different ones have no common time."""

    rig: str
    camera: str
    time: int


class Sequential:
    """Neighbours in natural name order: img2 comes before img10."""

    Config = SequentialConfig

    def __init__(self, config: SequentialConfig, device: str = "auto"):
        self.config = config
        self.device = device
        self.needs_features = config.loop_closure > 0
        self.scratch_folder: Path | None = None
        self.describe: Describe | None = None  # what makes the images' vectors; None: this process
        self.rigs: RigFrames = ()

    def uses_rigs(self) -> bool:
        """See `FollowsRigs.uses_rigs`."""
        return self.config.across_cameras is not False

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """See `Pairing.pairs`; in sequence, then across cameras, then loops. A name given twice counts once.

        In sequence they are ordered by the first image, then by distance. Raises UsageError for loops without features,
        BadInputError where no name occurs in two folders that are to be cameras.
        """
        if self.needs_features and features is None:
            raise UsageError("loop closure compares features: extract first, then pair features.h5")
        ordered = sorted(set(names), key=natural_key)
        across = bool(self.config.across_cameras or (self.rigs and self.uses_rigs()))
        moments = one_camera(ordered)
        if across:
            moments = moments | moments_of(self.rigs, set(ordered)) if self.rigs else rig_moments(ordered)
        sequences: dict[tuple[str, str], list[str]] = {}
        for name in ordered:
            sequences.setdefault((moments[name].rig, moments[name].camera), []).append(name)
        pairs_found = [pair for sequence in sequences.values() for pair in self._pairs_in_sequence(sequence)]
        if across:
            between = self._pairs_across_cameras(moments)
            LOGGER.info(
                "pair: %d sequences, one for each camera; across the cameras of a rig, images of one time and of the"
                " next %d: %d pairs",
                *(len(sequences), self.config.across_overlap, len(between)),
            )
            pairs_found += between
        if features is not None and self.needs_features:
            by_key = {pair.key(): pair for pair in pairs_found}
            for pair in self._loop_pairs(list(sequences.values()), moments, features, generator):
                by_key.setdefault(pair.key(), pair)
            pairs_found = list(by_key.values())
        return pairs_found

    def _pairs_in_sequence(self, ordered: list[str]) -> list[Pair]:
        """Each image of a sequence with the next ones."""
        steps = set(range(1, self.config.overlap + 1))
        if self.config.quadratic:
            steps |= {1 << k for k in range(min(self.config.overlap, len(ordered).bit_length()))}
        return [
            Pair(name, ordered[index + step])
            for index, name in enumerate(ordered)
            for step in sorted(steps)
            if index + step < len(ordered)
        ]

    def _pairs_across_cameras(self, moments: Mapping[str, Moment]) -> list[Pair]:
        """Images of different cameras of a rig, at one time or the next ones."""
        names_at: dict[tuple[str, int], list[str]] = {}
        for name, moment in moments.items():
            names_at.setdefault((moment.rig, moment.time), []).append(name)
        return [
            Pair(name, other)
            for name, moment in moments.items()
            for later in range(self.config.across_overlap + 1)
            for other in names_at.get((moment.rig, moment.time + later), [])
            if moments[other].camera != moment.camera and (later or moment.camera < moments[other].camera)
        ]

    def _loop_pairs(
        self,
        sequences: list[list[str]],
        moments: Mapping[str, Moment],
        features: FeatureStore,
        generator: np.random.Generator,
    ) -> list[Pair]:
        """Every so many images of a sequence, each with the most similar ones of other times; best first."""
        config = self.config
        gap = 2 * config.overlap if config.loop_gap is None else config.loop_gap
        queries = [name for sequence in sequences for name in sequence[:: config.loop_every]]
        most_near = 2 * gap * len(sequences) + len(sequences) - 1  # images so near in time that they are no loops
        similar = retrieve(
            features, queries, features, list(moments), config.vlad,
            min(config.loop_closure + most_near, max(1, len(moments) - 1)), generator,
            device=self.device, spill_folder=self.scratch_folder, describe=self.describe,
        )  # fmt: skip
        by_query: dict[str, list[Pair]] = {}
        for pair in similar:
            query_moment, similar_moment = moments[pair.name0], moments[pair.name1]
            is_near = query_moment.rig == similar_moment.rig and abs(query_moment.time - similar_moment.time) <= gap
            if not is_near and len(by_query.setdefault(pair.name0, [])) < config.loop_closure:
                by_query[pair.name0].append(pair)
        loops = [pair for pairs in by_query.values() for pair in pairs]
        LOGGER.info("pair: %d images look for loops: %d pairs", len(queries), len(loops))
        return loops


def one_camera(ordered: Sequence[str]) -> dict[str, Moment]:
    """All images by one camera, in this order."""
    return {name: Moment("", "", index) for index, name in enumerate(ordered)}


def moments_of(rigs: RigFrames, names: Collection[str]) -> dict[str, Moment]:
    """The moments of those of these images that are on rigs."""
    return {
        name: Moment(f"rig {number}", str(place), time)
        for number, frames in enumerate(rigs)
        for time, frame in enumerate(frames)
        for place, name in frame.items()
        if name in names
    }


def rig_moments(ordered: Sequence[str]) -> dict[str, Moment]:
    """A camera for each folder, a rig for each folder of such folders, a time for each file name but its ending.

    Times of a rig go by natural order. Raises BadInputError when no time is of two cameras.
    """
    moments: dict[str, Moment] = {}
    times: dict[str, dict[str, int]] = {}
    for name in sorted(ordered, key=lambda name: natural_key(PurePosixPath(name).stem)):
        path = PurePosixPath(name)
        time_of_stem = times.setdefault(path.parent.parent.as_posix(), {})
        moments[name] = Moment(
            path.parent.parent.as_posix(), path.parent.as_posix(), time_of_stem.setdefault(path.stem, len(time_of_stem))
        )
    cameras = {(moment.rig, moment.time, moment.camera) for moment in moments.values()}
    if len(cameras) == len({(rig, time) for rig, time, _ in cameras}):
        raise BadInputError(
            "across_cameras: no two folders next to each other have an image of the same name; cameras of a rig are"
            " folders such as cam0/ and cam1/, where 0001.jpg in both was taken at one time"
        )
    return {name: moments[name] for name in ordered}
