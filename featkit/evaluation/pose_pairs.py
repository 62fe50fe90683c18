"""Which pairs of a scene are measured: drawn evenly from easy to hard, the same ones for every method.

MegaDepth-1500 (LoFTR, Sun et al., CVPR 2021) has 1,500 pairs of two scenes, as many from each range of overlap. Its
overlaps are of depth maps. Here the overlap of two images is what share of its points of the map the image with fewer
points has in common with the other. Where there is no map, the angle between the viewing directions stands for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, field_validator

from featkit.config import Config
from featkit.data.pair_choice import shared_counts
from featkit.data.tracks import SceneTracks
from featkit.errors import NothingCameOutError
from featkit.evaluation.pose_error import direction_angle_deg, relative_pose
from featkit.evaluation.pose_scenes import PosedScene
from featkit.geometry.poses import rotation_matrix
from featkit.mapping.tracks import read_tracks
from featkit.store.pairs import read_pairs, write_pairs
from featkit.types import Pair


class PosePairsConfig(Config):
    """How pairs are drawn. Limits are lower bounds except the last of a list of edges."""

    max_pairs: int = Field(300, ge=1)
    """Of a scene; in MegaDepth-1500: of a scene and a range of overlap."""
    overlap_edges: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7)
    """Ranges of overlap, in [0, 1], from each of which as many pairs are drawn; LoFTR's for MegaDepth-1500."""
    min_shared: int = Field(30, ge=1)
    """Points that both images see; of fewer, an overlap is an accident. featkit's own choice."""
    min_angle_deg: float = Field(1.0, ge=0)
    """Median angle under which both cameras see a shared point, degrees: below it the true direction of translation is
    rounding of the map. featkit's own choice."""
    view_edges_deg: tuple[float, ...] = (0.0, 20.0, 40.0, 60.0)
    """Without a map: ranges of the angle between the viewing directions, degrees. featkit's own choice."""

    @field_validator("overlap_edges", "view_edges_deg")
    @classmethod
    def _ascending(cls, edges: tuple[float, ...]) -> tuple[float, ...]:
        if len(edges) < 2 or not all(low < high for low, high in pairwise(edges)):
            raise ValueError("two or more edges, each above the one before")
        return edges


@dataclass(frozen=True)
class ScenePairs:
    """The pairs of a scene that are measured. rule: how they were chosen, in words. found, drawn: by range."""

    pairs: tuple[Pair, ...]
    rule: str
    found: dict[str, int]
    drawn: dict[str, int]


@dataclass(frozen=True)
class _Candidates:
    """Pairs of `names`, and what they are sorted into ranges by."""

    names: Sequence[str]
    pairs: Int[np.ndarray, "n 2"]
    values: Float[np.ndarray, " n"]


def choose_pairs(scene: PosedScene, config: PosePairsConfig, seed: int, given: Path | None = None) -> ScenePairs:
    """The pairs to measure: those of a file, those that the scene brings along, or drawn ones, sorted by name.

    Raises BadInputError for pairs that cannot be measured, NothingCameOutError when no pair is within the limits.
    """
    if given is not None:
        listed = read_pairs(given)
        chosen = ScenePairs(tuple(listed), f"the pairs of {given}", {}, {})
    elif scene.listed:
        chosen = ScenePairs(tuple(scene.listed), f"all pairs of {scene.truth.name}", {}, {})
    else:
        chosen = _drawn(scene, config, np.random.default_rng(seed))
    scene.check_pairs(chosen.pairs, given or scene.truth)
    return chosen


def keep_pairs(chosen: ScenePairs, config: PosePairsConfig, seed: int, folder: Path) -> Path:
    """Write the pairs beside the predictions. Raises NotWritableError."""
    extra = {"rule": chosen.rule, "seed": seed, "found": chosen.found, "drawn": chosen.drawn}
    return write_pairs(folder / "pose-pairs.txt", chosen.pairs, config, extra)


def _drawn(scene: PosedScene, config: PosePairsConfig, generator: np.random.Generator) -> ScenePairs:
    if scene.model is not None:
        found, edges, unit = by_overlap(read_tracks(scene.model), scene, config), config.overlap_edges, ""
        rule = f"overlap {edges[0]:g} to {edges[-1]:g}, {config.min_shared} shared points or more"
    else:
        found, edges, unit = by_view(scene), config.view_edges_deg, " deg"
        rule = f"viewing directions {edges[0]:g} to {edges[-1]:g} deg apart"
    groups = np.searchsorted(edges, found.values, side="right") - 1
    groups[found.values == edges[-1]] = len(edges) - 2  # the last edge belongs to the last range
    inside = np.flatnonzero((groups >= 0) & (groups < len(edges) - 1))
    if not len(inside):
        raise NothingCameOutError(
            f"{scene.truth}: no pair of its {len(scene.poses)} images has {rule}; widen the ranges by"
            f" --set pairs.{'overlap_edges' if scene.model else 'view_edges_deg'}=[...], or give --pairs"
        )
    taken = inside[evenly(groups[inside], config.max_pairs, generator)]
    labels = [f"{low:g} to {high:g}{unit}" for low, high in pairwise(edges)]
    counts = [
        {label: int(np.sum(groups[rows] == number)) for number, label in enumerate(labels)} for rows in (inside, taken)
    ]
    pairs = sorted(Pair(found.names[first], found.names[second]) for first, second in found.pairs[taken].tolist())
    return ScenePairs(tuple(pairs), rule, *counts)


def evenly(groups: Int[np.ndarray, " n"], count: int, generator: np.random.Generator) -> Int[np.ndarray, " m"]:
    """Rows drawn in turn from each group until `count` are taken or none is left, ascending."""
    queues = [generator.permutation(np.flatnonzero(groups == group)).tolist() for group in np.unique(groups)]
    taken: list[int] = []
    while any(queues) and len(taken) < count:
        for queue in queues:
            if queue and len(taken) < count:
                taken.append(queue.pop())
    return np.sort(np.array(taken, dtype=np.int64))


def by_overlap(tracks: SceneTracks, scene: PosedScene, config: PosePairsConfig) -> _Candidates:
    """All pairs that share enough points under a wide enough angle, with their overlaps."""
    images = [number for number, name in enumerate(tracks.image_names) if name in scene.poses]
    seen = [np.unique(tracks.observed_points[tracks.observed_images == number]) for number in images]
    counts = shared_counts(seen, len(tracks.points))
    centres = [-tracks.rotations[number].T @ tracks.translations[number] for number in images]
    pairs, values = [], []
    for first, second in np.argwhere(np.triu(counts >= config.min_shared, 1)).tolist():
        both = tracks.points[np.intersect1d(seen[first], seen[second], assume_unique=True)]
        rays = [both - centres[number] for number in (first, second)]
        cross, dot = np.linalg.norm(np.cross(*rays), axis=1), np.sum(rays[0] * rays[1], axis=1)
        if np.degrees(np.median(np.arctan2(cross, dot))) >= config.min_angle_deg:
            pairs.append((first, second))
            values.append(counts[first, second] / min(len(seen[first]), len(seen[second])))
    names = [tracks.image_names[number] for number in images]
    return _Candidates(names, np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(values))


def by_view(scene: PosedScene) -> _Candidates:
    """All pairs of cameras at different places, with the angles between their viewing directions in degrees."""
    names = sorted(scene.poses)
    forward = [rotation_matrix(scene.poses[name].qvec)[2] for name in names]
    pairs = [
        (first, second)
        for first, second in combinations(range(len(names)), 2)
        if relative_pose(scene.poses[names[first]], scene.poses[names[second]]).translation.any()
    ]
    values = np.array([direction_angle_deg(forward[first], forward[second]) for first, second in pairs])
    return _Candidates(names, np.array(pairs, dtype=np.int64).reshape(-1, 2), values)
