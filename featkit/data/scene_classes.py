"""All images of a scene together: keypoints elected, found again wherever visible, and ambiguous ones left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int

from featkit.data.dense_points import dense_points
from featkit.data.keypoint_classes import (
    ClassesConfig,
    Detections,
    Keypoints3D,
    Members,
    Origin,
    Predictions,
    keypoints_of_tracks,
    members_in_image,
    predictions,
    turn,
)
from featkit.data.pixel_grid import PixelGrid
from featkit.data.tracks import SceneTracks
from featkit.data.visibility import visible_in


@dataclass(frozen=True)
class SceneClasses:
    """The classes of a scene and how many each rule gave. members: `keypoints` are classes 0 .. n-1.

    dense: classes of detections that no track has.
    """

    members: Members
    keypoints: Keypoints3D
    dense: Bool[np.ndarray, " c"]
    counts: dict[str, int]


def scene_classes(tracks: SceneTracks, detections: Sequence[Detections], config: ClassesConfig) -> SceneClasses:
    """Keypoint classes of a scene. detections: one per image of `tracks`."""
    elected = keypoints_of_tracks(tracks, detections, config)
    counts = {
        "map_points": len(tracks.points),
        "observations": len(tracks.observed_points),
        "elected_points": len(elected.points),
        "elected_observations": int(np.isin(tracks.observed_points, elected.points).sum()),
    }
    keypoints, extended = elected, tracks
    if config.dense is not None:
        keypoints, extended = _with_dense(tracks, detections, elected, config)
    dense = keypoints.points >= len(tracks.points)
    parts, expected = [], []
    for image, found in enumerate(detections):
        members, predicted = _in_image(tracks, extended, keypoints, image, found, config)
        parts.append(members)
        expected.append(predicted)
    members = Members.joined(parts)
    sizes = np.bincount(members.keypoints, minlength=len(dense))
    least = np.where(dense, config.dense.min_patches if config.dense else 0, config.min_patches)
    large = sizes >= least
    kept = separate(expected, np.where(large, sizes, 0), config) & large
    counts |= {
        "dense_points": int(dense.sum()),
        "classes_too_small": int((~large).sum()),
        "classes_ambiguous": int((large & ~kept).sum()),
    }
    return kept_classes(SceneClasses(members, keypoints, dense, counts), kept)


def kept_classes(classes: SceneClasses, kept: Bool[np.ndarray, " c"]) -> SceneClasses:
    """Only some of the classes, as 0 .. n-1, counted anew."""
    members = classes.members.select(np.flatnonzero(kept[classes.members.keypoints]))
    names = np.cumsum(kept) - 1
    members = replace(members, keypoints=names[members.keypoints])
    counts = {
        "classes": int(kept.sum()),
        "classes_dense": int(classes.dense[kept].sum()),
        "patches": len(members.images),
        **{f"patches_{origin.name.lower()}": int((members.origins == origin).sum()) for origin in Origin},
    }
    keypoints = classes.keypoints.select(np.flatnonzero(kept))
    return SceneClasses(members, keypoints, classes.dense[kept], classes.counts | counts)


def _with_dense(
    tracks: SceneTracks, detections: Sequence[Detections], elected: Keypoints3D, config: ClassesConfig
) -> tuple[Keypoints3D, SceneTracks]:
    """Keypoints of tracks, then those of detections that know their depth, with tracks of their own."""
    assert config.dense is not None
    dense = dense_points(tracks, detections, config.dense)
    shift = len(tracks.points)
    order = np.argsort(dense.searched_rows, kind="stable")
    keypoints = Keypoints3D(
        np.concatenate([elected.points, dense.keypoints.points + shift]),
        np.concatenate([elected.log_sizes, dense.keypoints.log_sizes]),
        np.concatenate([elected.directions, dense.keypoints.directions]),
    )
    extended = replace(
        tracks,
        points=np.concatenate([tracks.points, dense.points]),
        observed_points=np.concatenate([tracks.observed_points, dense.searched_rows[order] + shift]),
        observed_images=np.concatenate([tracks.observed_images, dense.searched_images[order]]),
        observed_xy=np.concatenate([tracks.observed_xy, np.full((len(order), 2), np.nan)]),
    )
    return keypoints, extended


def _in_image(
    tracks: SceneTracks,
    extended: SceneTracks,
    keypoints: Keypoints3D,
    image: int,
    found: Detections,
    config: ClassesConfig,
) -> tuple[Members, Predictions]:
    """Members among the detections of an image, and what the image should show."""
    searched = np.zeros(len(extended.points), bool)
    searched[extended.observed_points[extended.observed_images == image]] = True
    own = searched[keypoints.points]
    dense = keypoints.points >= len(tracks.points)
    extra = np.zeros(len(own), bool)
    if config.extra_views:
        asked = np.flatnonzero(~own & ~dense)
        extra[asked] = visible_in(tracks, image, keypoints.points[asked], config)
    predicted = predictions(extended, keypoints, image, own | extra)
    share = np.where(extra[predicted.keypoints], config.extra_share, 1.0)
    share = np.where(dense[predicted.keypoints], config.dense_share, share)
    rows, which = members_in_image(predicted, share, found, config)
    origins = np.where(extra[rows], Origin.EXTRA, np.where(dense[rows], Origin.DENSE, Origin.MATCHED))
    return Members(rows, np.full(len(rows), image), which, origins), predicted


def separate(
    expected: Sequence[Predictions], priority: Int[np.ndarray, " k"], config: ClassesConfig
) -> Bool[np.ndarray, " k"]:
    """Which keypoints stay when of any two that some image cannot tell apart only the one of higher priority does.

    Keypoints of priority 0 neither stay nor stand in the way.
    """
    found = [_confusable(predicted.select(priority[predicted.keypoints] > 0), config) for predicted in expected]
    edges = np.unique(np.concatenate(found), axis=0)
    both = np.concatenate([edges, edges[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    starts = np.searchsorted(both[:, 0], np.arange(len(priority) + 1))
    kept = priority > 0
    for keypoint in np.lexsort((np.arange(len(priority)), -priority)):
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
