"""Points where no track has one: a detection gets its depth from the map's points seen around it.

UBC takes the depth of every interest point from multi-view stereo; a sparse map knows it only near its points. There
inverse depth is nearly linear in the image (exactly so on a plane), so a line of neighbours tells it well enough
to look for the detection in the images that observed the same neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from featkit.data.keypoint_classes import DenseConfig, Detections, Keypoints3D
from featkit.data.pixel_grid import PixelGrid
from featkit.data.tracks import SceneTracks, Views


@dataclass(frozen=True)
class DensePoints:
    """Keypoints with points of their own, and the images to search for them (rows of `keypoints`, ascending)."""

    points: Float[np.ndarray, "p 3"]
    keypoints: Keypoints3D
    searched_rows: Int[np.ndarray, " s"]
    searched_images: Int[np.ndarray, " s"]


def dense_points(tracks: SceneTracks, detections: Sequence[Detections], config: DenseConfig) -> DensePoints:
    """A point for every detection that knows its depth; `keypoints.points` index the points returned."""
    observers = np.zeros((len(tracks.points), len(tracks.image_names)), bool)
    observers[tracks.observed_points, tracks.observed_images] = True
    points, sizes, directions, rows, images = [], [], [], [], []
    first = 0
    for image, found in enumerate(detections):
        seen = np.flatnonzero(observers[:, image])
        views = tracks.views(image, seen)
        known = depths_at(tracks.image_sizes[image], views, found.xy, config)
        chosen = known.rows
        world = tracks.back_projected(image, found.xy[chosen], known.depths)
        own = tracks.views_of(image, world)
        points.append(world)
        sizes.append(np.log2(found.scales[chosen] / own.magnification))
        directions.append(tracks.in_plane(image, own, found.oris[chosen]))
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
    """Places of an image that know their depth: `rows` of those asked for.

    slopes: change of the inverse depth along x and y, per px. neighbours: rows of the views that told.
    """

    rows: Int[np.ndarray, " n"]
    depths: Float[np.ndarray, " n"]
    slopes: Float[np.ndarray, "n 2"]
    neighbours: Int[np.ndarray, "n k"]


def depths_at(
    image_size: Int[np.ndarray, "2"], views: Views, xy: Float[np.ndarray, "q 2"], config: DenseConfig
) -> LocalDepths:
    """What the points around tell of the depth at some places. views: of the points that the image observed. xy: px."""
    radius = config.radius * float(max(image_size))
    query, point, distance = PixelGrid(views.xy, radius).pairs_within(xy, radius)
    order = np.lexsort((distance, query))
    query, point, distance = query[order], point[order], distance[order]
    starts = np.searchsorted(query, np.arange(len(xy) + 1))
    chosen = np.flatnonzero(np.diff(starts) >= config.neighbours)
    pick = starts[chosen][:, None] + np.arange(config.neighbours)
    around, distance = point[pick], distance[pick]
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
