"""Patch classes of a scene: choose keypoints, find them in all images that see them, and remove ambiguous ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from featkit.data.keypoint_classes import (
    Assignment,
    ClassesConfig,
    DepthConfig,
    Detections,
    Keypoints3D,
    Members,
    PixelGrid,
    PredictedKeypoints,
    keypoints_of_tracks,
    members_in_image,
    predictions,
    turn,
)
from featkit.data.tracks import ImagePoints, SceneTracks


@dataclass(frozen=True)
class SceneClasses:
    """The classes of a scene, and counts for each rule. members: `keypoints` are classes 0 .. n-1.

    dense: classes of detections that belong to no track.
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
        keypoints, extended = _add_dense_keypoints(tracks, detections, elected, config)
    dense = keypoints.points >= len(tracks.points)
    parts, expected = [], []
    for image, image_detections in enumerate(detections):
        members, predicted = _members_of_image(tracks, extended, keypoints, image, image_detections, config)
        parts.append(members)
        expected.append(predicted)
    members = Members.joined(parts)
    sizes = np.bincount(members.keypoints, minlength=len(dense))
    smallest = np.where(dense, config.dense.min_patches if config.dense else 0, config.min_patches)
    large = sizes >= smallest
    kept = separate(expected, np.where(large, sizes, 0), config) & large
    counts |= {
        "dense_points": int(dense.sum()),
        "classes_too_small": int((~large).sum()),
        "classes_ambiguous": int((large & ~kept).sum()),
    }
    return select_classes(SceneClasses(members, keypoints, dense, counts), kept)


def select_classes(classes: SceneClasses, kept: Bool[np.ndarray, " c"]) -> SceneClasses:
    """The classes in the mask `kept`, renumbered to 0 .. n-1."""
    members = classes.members.select(np.flatnonzero(kept[classes.members.keypoints]))
    new_numbers = np.cumsum(kept) - 1
    members = replace(members, keypoints=new_numbers[members.keypoints])
    counts = {
        "classes": int(kept.sum()),
        "classes_dense": int(classes.dense[kept].sum()),
        "patches": len(members.images),
        **{f"patches_{origin.name.lower()}": int((members.origins == origin).sum()) for origin in Assignment},
    }
    keypoints = classes.keypoints.select(np.flatnonzero(kept))
    return SceneClasses(members, keypoints, classes.dense[kept], classes.counts | counts)


def _add_dense_keypoints(
    tracks: SceneTracks, detections: Sequence[Detections], elected: Keypoints3D, config: ClassesConfig
) -> tuple[Keypoints3D, SceneTracks]:
    """Keypoints of tracks, then those of detections with a known depth, for which tracks are added."""
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


def _members_of_image(
    tracks: SceneTracks,
    extended: SceneTracks,
    keypoints: Keypoints3D,
    image: int,
    detections: Detections,
    config: ClassesConfig,
) -> tuple[Members, PredictedKeypoints]:
    """Members among the detections of an image, and its predicted keypoints."""
    searched = np.zeros(len(extended.points), bool)
    searched[extended.observed_points[extended.observed_images == image]] = True
    observed = searched[keypoints.points]
    dense = keypoints.points >= len(tracks.points)
    extra = np.zeros(len(observed), bool)
    if config.extra_views:
        candidates = np.flatnonzero(~observed & ~dense)
        extra[candidates] = visible_in(tracks, image, keypoints.points[candidates], config)
    predicted = predictions(extended, keypoints, image, observed | extra)
    share = np.where(extra[predicted.keypoints], config.extra_share, 1.0)
    share = np.where(dense[predicted.keypoints], config.dense_share, share)
    rows, which = members_in_image(predicted, share, detections, config)
    origins = np.where(extra[rows], Assignment.EXTRA, np.where(dense[rows], Assignment.DENSE, Assignment.MATCHED))
    return Members(rows, np.full(len(rows), image), which, origins), predicted


def separate(
    expected: Sequence[PredictedKeypoints], priority: Int[np.ndarray, " k"], config: ClassesConfig
) -> Bool[np.ndarray, " k"]:
    """Which keypoints to keep: of two that are ambiguous in some image, the one with the higher priority.

    Keypoints of priority 0 are neither kept nor compete with others.
    """
    ambiguous = [
        _ambiguous_pairs(predicted.select(priority[predicted.keypoints] > 0), config) for predicted in expected
    ]
    edges = np.unique(np.concatenate(ambiguous), axis=0)
    directed = np.concatenate([edges, edges[:, ::-1]])
    directed = directed[np.argsort(directed[:, 0], kind="stable")]
    starts = np.searchsorted(directed[:, 0], np.arange(len(priority) + 1))
    kept = priority > 0
    for keypoint in np.lexsort((np.arange(len(priority)), -priority)):
        if kept[keypoint]:
            kept[directed[starts[keypoint] : starts[keypoint + 1], 1]] = False
    return kept


def _ambiguous_pairs(predicted: PredictedKeypoints, config: ClassesConfig) -> Int[np.ndarray, "e 2"]:
    """Pairs of keypoints closer than `separation` tolerances in position, size and direction."""
    tolerances = config.separation
    reach = tolerances * config.position_px
    a, b, distance = PixelGrid(predicted.xy, reach).pairs_within(predicted.xy, reach)
    ordered = a < b
    a, b, distance = a[ordered], b[ordered], distance[ordered]
    sigma = 2.0 ** np.maximum(predicted.log_scales[a], predicted.log_scales[b])
    near = (
        (distance <= tolerances * np.minimum(config.position_px, config.position_sigmas * sigma))
        & (np.abs(predicted.log_scales[a] - predicted.log_scales[b]) <= tolerances * config.scale_octaves)
        & (turn(predicted.angles[a], predicted.angles[b]) <= tolerances * config.orientation_rad)
    )
    return np.stack([predicted.keypoints[a[near]], predicted.keypoints[b[near]]], axis=1)


# ----------------------------------------------------------------------------------------------------------------------
# Points for detections without a track: their depth is interpolated from the map points seen around them.
#
# UBC takes the depth of every interest point from multi-view stereo; a sparse map provides it only near its points.
# There inverse depth is nearly linear in the image (exactly, on a plane), so a linear fit to the neighbours is good
# enough to search for the detection in the images that observed the same neighbours.


@dataclass(frozen=True)
class DensePoints:
    """Keypoints with new points, and the images in which to search for them (rows of `keypoints`, sorted)."""

    points: Float[np.ndarray, "p 3"]
    keypoints: Keypoints3D
    searched_rows: Int[np.ndarray, " s"]
    searched_images: Int[np.ndarray, " s"]


def dense_points(tracks: SceneTracks, detections: Sequence[Detections], config: DepthConfig) -> DensePoints:
    """A point for every detection with a known depth; `keypoints.points` index the points returned."""
    observers = np.zeros((len(tracks.points), len(tracks.image_names)), bool)
    observers[tracks.observed_points, tracks.observed_images] = True
    points, sizes, directions, rows, images = [], [], [], [], []
    first = 0
    for image, image_detections in enumerate(detections):
        seen = np.flatnonzero(observers[:, image])
        views = tracks.views(image, seen)
        known = depths_at(tracks.image_sizes[image], views, image_detections.xy, config)
        chosen = known.rows
        world = tracks.back_projected(image, image_detections.xy[chosen], known.depths)
        own_views = tracks.views_of(image, world)
        points.append(world)
        sizes.append(np.log2(image_detections.scales[chosen] / own_views.magnification))
        directions.append(tracks.in_plane(image, own_views, image_detections.oris[chosen]))
        shared = observers[seen[known.neighbours]].sum(axis=1) >= config.shared_neighbours
        shared[:, image] = True
        row, searched = np.nonzero(shared)
        rows.append(row + first)
        images.append(searched)
        first += len(chosen)
    keypoints = Keypoints3D(np.arange(first), np.concatenate(sizes), np.concatenate(directions))
    return DensePoints(np.concatenate(points), keypoints, np.concatenate(rows), np.concatenate(images))


@dataclass(frozen=True)
class LocalDepths:
    """Depths interpolated at image positions: `rows` of the positions that were requested.

    slopes: change of the inverse depth along x and y, per px. neighbours: rows of the views that were used.
    """

    rows: Int[np.ndarray, " n"]
    depths: Float[np.ndarray, " n"]
    slopes: Float[np.ndarray, "n 2"]
    neighbours: Int[np.ndarray, "n k"]


def depths_at(
    image_size: Int[np.ndarray, "2"], views: ImagePoints, xy: Float[np.ndarray, "q 2"], config: DepthConfig
) -> LocalDepths:
    """Interpolate the depth at positions `xy`, px, from nearby points. views: the points that the image observed."""
    radius = config.radius * float(max(image_size))
    query, point, distance = PixelGrid(views.xy, radius).pairs_within(xy, radius)
    order = np.lexsort((distance, query))
    query, point, distance = query[order], point[order], distance[order]
    starts = np.searchsorted(query, np.arange(len(xy) + 1))
    chosen = np.flatnonzero(np.diff(starts) >= config.neighbours)
    nearest = starts[chosen][:, None] + np.arange(config.neighbours)
    around, distance = point[nearest], distance[nearest]
    inverse = 1.0 / views.depth[around]
    offset = (views.xy[around] - xy[chosen][:, None]) / radius
    weights = 1.0 / (distance / radius + 0.05) ** 2
    weights /= weights.sum(axis=1, keepdims=True)
    design = np.concatenate([np.ones((*around.shape, 1)), offset], axis=2)
    normal = np.einsum("nk,nki,nkj->nij", weights, design, design)
    spread = np.einsum("nk,nki,nki->n", weights, offset, offset)
    normal[:, [1, 2], [1, 2]] += config.slope_ridge * spread[:, None]
    right = np.einsum("nk,nki,nk->ni", weights, design, inverse)
    fit = np.linalg.solve(normal, right[:, :, None])[:, :, 0]
    residual = np.einsum("nki,ni->nk", design, fit) / inverse - 1.0
    smooth = np.sqrt((weights * residual**2).sum(axis=1)) <= config.depth_residual
    smooth &= (fit[:, 0] >= inverse.min(axis=1)) & (fit[:, 0] <= inverse.max(axis=1))
    return LocalDepths(chosen[smooth], 1.0 / fit[smooth, 0], fit[smooth, 1:] / radius, around[smooth])


# ----------------------------------------------------------------------------------------------------------------------
# In which images a map point should be visible, in addition to those where it was matched.


def visible_in(
    tracks: SceneTracks, image: int, points: Int[np.ndarray, " k"], config: ClassesConfig
) -> Bool[np.ndarray, " k"]:
    """Which points should be visible: inside the image, from a similar direction, at the depth of nearby points."""
    views = tracks.views(image, points)
    width, height = tracks.image_sizes[image]
    with np.errstate(invalid="ignore"):
        inside = (views.xy >= 0).all(axis=1) & (views.xy <= (width - 1, height - 1)).all(axis=1)
    chosen = np.flatnonzero(inside)
    chosen = chosen[_seen_from_similar_direction(tracks, points[chosen], views.directions[chosen], config)]
    visible = np.zeros(len(points), bool)
    chosen = chosen[_at_observed_depth(tracks, image, views, chosen, config)]
    visible[chosen] = True
    return visible


def _seen_from_similar_direction(
    tracks: SceneTracks, points: Int[np.ndarray, " n"], directions: Float[np.ndarray, "n 3"], config: ClassesConfig
) -> Bool[np.ndarray, " n"]:
    """Whether some image observed the point from a similar direction."""
    centres = -np.einsum("mji,mj->mi", tracks.rotations, tracks.translations)
    place = np.full(len(tracks.points), -1)
    place[points] = np.arange(len(points))
    rows = place[tracks.observed_points]
    used = rows >= 0
    rows, seen = rows[used], tracks.observed_points[used]
    rays = centres[tracks.observed_images[used]] - tracks.points[seen]
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    nearest = np.full(len(points), -1.0)
    np.maximum.at(nearest, rows, (rays * directions[rows]).sum(axis=1))
    return nearest >= np.cos(np.radians(config.max_view_angle_deg))


def _at_observed_depth(
    tracks: SceneTracks, image: int, views: ImagePoints, chosen: Int[np.ndarray, " n"], config: ClassesConfig
) -> Bool[np.ndarray, " n"]:
    """Whether the depth agrees with the median depth of the nearest points that the image observed."""
    around = np.unique(tracks.observed_points[tracks.observed_images == image])
    seen = tracks.views(image, around)
    radius = config.depth_radius * float(max(tracks.image_sizes[image]))
    query, point, distance = PixelGrid(seen.xy, radius).pairs_within(views.xy[chosen], radius)
    order = np.lexsort((distance, query))
    query, point = query[order], point[order]
    starts = np.searchsorted(query, np.arange(len(chosen)))
    rank = np.arange(len(query)) - starts[query]
    near = rank < config.depth_neighbours
    depths = np.full((len(chosen), config.depth_neighbours), np.nan)
    depths[query[near], rank[near]] = seen.depth[point[near]]
    enough = np.isfinite(depths).all(axis=1)
    agrees = np.zeros(len(chosen), bool)
    median = np.median(depths[enough], axis=1)
    agrees[enough] = np.abs(views.depth[chosen[enough]] - median) <= config.depth_tolerance * median
    return agrees
