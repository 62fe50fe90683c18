"""All images of a scene together: keypoints elected, found again wherever visible, and ambiguous ones left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from featkit.data.keypoint_classes import (
    ClassesConfig,
    Detections,
    Keypoints3D,
    Members,
    Predictions,
    keypoints_of_tracks,
    members_in_image,
    predictions,
    turn,
)
from featkit.data.pixel_grid import PixelGrid
from featkit.data.tracks import SceneTracks
from featkit.data.visibility import observed_in, visible_in


@dataclass(frozen=True)
class SceneClasses:
    """The classes of a scene and how many each rule gave.

    members: `keypoints` are classes 0 .. n-1. points: of the map, one per class.
    """

    members: Members
    points: Int[np.ndarray, " c"]
    counts: dict[str, int]


def scene_classes(tracks: SceneTracks, detections: Sequence[Detections], config: ClassesConfig) -> SceneClasses:
    """Keypoint classes of a scene. detections: one per image of `tracks`."""
    keypoints = keypoints_of_tracks(tracks, detections, config)
    parts: list[Members] = []
    expected: list[Predictions] = []
    visible = 0
    for image, found in enumerate(detections):
        own = observed_in(tracks, image, keypoints.points)
        extra = visible_in(tracks, image, keypoints.points, config) & ~own
        visible += int(extra.sum())
        expected.append(predictions(tracks, keypoints, image, own | extra))
        used = expected[-1] if config.extra_views else predictions(tracks, keypoints, image, own)
        rows, which = members_in_image(used, found, config)
        parts.append(Members(rows, np.full(len(rows), image), which, ~own[rows]))
    joined = Members(*(np.concatenate([getattr(p, n) for p in parts]) for n in Members.__dataclass_fields__))
    joined = joined.select(np.argsort(joined.keypoints, kind="stable"))
    sizes = np.bincount(joined.keypoints, minlength=len(keypoints.points))
    kept = _separate(expected, sizes, config) & (sizes >= config.min_patches)
    members = joined.select(np.flatnonzero(kept[joined.keypoints]))
    names = np.cumsum(kept) - 1
    members = Members(names[members.keypoints], members.images, members.detections, members.extra)
    counts = {
        "map_points": len(tracks.points),
        "observations": len(tracks.observed_points),
        "keypoints_elected": len(keypoints.points),
        "elected_observations": int(np.isin(tracks.observed_points, keypoints.points).sum()),
        "own_patches": int((~joined.extra).sum()),
        "extra_visible": visible,
        "extra_patches": int(joined.extra.sum()),
        "classes_too_small": int((sizes < config.min_patches).sum()),
        "classes_ambiguous": int((~kept & (sizes >= config.min_patches)).sum()),
        "classes": int(kept.sum()),
        "patches": len(members.images),
        "patches_own": int((~members.extra).sum()),
        "patches_extra": int(members.extra.sum()),
    }
    return SceneClasses(members, keypoints.points[kept], counts)


def _separate(expected: Sequence[Predictions], sizes: Int[np.ndarray, " k"], config: ClassesConfig) -> Bool[np.ndarray, " k"]:
    """Which keypoints stay when of any two that some image cannot tell apart only the one with more patches does."""
    edges = np.unique(np.concatenate([_confusable(p, config) for p in expected]), axis=0)
    rank = np.lexsort((np.arange(len(sizes)), -sizes))
    kept = np.ones(len(sizes), bool)
    both = np.concatenate([edges, edges[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    starts = np.searchsorted(both[:, 0], np.arange(len(sizes) + 1))
    for keypoint in rank:
        if kept[keypoint]:
            kept[both[starts[keypoint] : starts[keypoint + 1], 1]] = False
    return kept


def _confusable(predicted: Predictions, config: ClassesConfig) -> Int[np.ndarray, "e 2"]:
    """Pairs of keypoints nearer than `separation` tolerances in position, size and direction."""
    apart = config.separation
    reach = apart * config.position_px
    a, b, distance = PixelGrid(predicted.xy, reach).pairs_within(predicted.xy, reach)
    once = a < b
    a, b, distance = a[once], b[once], distance[once]
    sigma = 2.0 ** np.maximum(predicted.log_scales[a], predicted.log_scales[b])
    near = (
        (distance <= apart * np.minimum(config.position_px, config.position_sigmas * sigma))
        & (np.abs(predicted.log_scales[a] - predicted.log_scales[b]) <= apart * config.scale_octaves)
        & (turn(predicted.angles[a], predicted.angles[b]) <= apart * config.orientation_rad)
    )
    return np.stack([predicted.keypoints[a[near]], predicted.keypoints[b[near]]], axis=1)
