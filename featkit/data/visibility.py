"""In which images a point of the map should be visible, beyond those where it was matched."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from featkit.data.keypoint_classes import ClassesConfig
from featkit.data.pixel_grid import PixelGrid
from featkit.data.tracks import SceneTracks, Views


def visible_in(
    tracks: SceneTracks, image: int, points: Int[np.ndarray, " k"], config: ClassesConfig
) -> Bool[np.ndarray, " k"]:
    """Which points should be seen: inside the image, from a like direction, at the depth of what is seen around."""
    views = tracks.views(image, points)
    width, height = tracks.image_sizes[image]
    with np.errstate(invalid="ignore"):
        inside = (views.xy >= 0).all(axis=1) & (views.xy <= (width - 1, height - 1)).all(axis=1)
    chosen = np.flatnonzero(inside)
    chosen = chosen[_like_direction(tracks, points[chosen], views.directions[chosen], config)]
    visible = np.zeros(len(points), bool)
    chosen = chosen[_at_seen_depth(tracks, image, views, chosen, config)]
    visible[chosen] = True
    return visible


def _like_direction(
    tracks: SceneTracks, points: Int[np.ndarray, " n"], directions: Float[np.ndarray, "n 3"], config: ClassesConfig
) -> Bool[np.ndarray, " n"]:
    """Whether some image that observed the point looked at it from nearly there."""
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


def _at_seen_depth(
    tracks: SceneTracks, image: int, views: Views, chosen: Int[np.ndarray, " n"], config: ClassesConfig
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
