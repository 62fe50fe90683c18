"""Group detections of several images by scene keypoint (Winder and Brown 2007; Brown, Hua, Winder 2011).

A class is a map point with one physical size and one direction, both taken from a real detection and projected through
the cameras. A detection belongs to it if its position, size and orientation agree with the projection within UBC's
tolerances, so the patches of a class vary as real detections do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from featkit.core.config import Config, Count, Degrees, Factor, FactorOrZero, Pixels, PositiveShare, Radians, Share
from featkit.data.tracks import ImagePoints, SceneTracks

PAIRS_AT_ONCE = 4_000_000  # bounds the memory of the vote for any track lengths


class DepthConfig(Config):
    """When the depth of a detection can be interpolated from nearby map points; see scene_classes.py."""

    neighbours: int = Field(6, ge=1, le=1000)
    """Number of nearest observed points that are used."""
    radius: PositiveShare = 0.03
    """Largest distance of these points, as a fraction of the image's longer side."""
    depth_residual: FactorOrZero = 0.004
    """Largest relative, weighted deviation of the inverse depths from a plane; rejects depth discontinuities."""
    slope_ridge: FactorOrZero = 0.01
    """Ridge regularization of the plane's slope, relative to the spread of the neighbours."""
    shared_neighbours: Count = 3
    """An image is searched if it observed at least this many of the neighbours."""
    min_patches: Count = 3
    """Minimum number of patches of such a class, which no match of the map confirms."""


class ClassesConfig(Config):
    """When detections belong to the same keypoint, and when two keypoints are ambiguous."""

    position_px: Pixels = 5.0
    """Largest distance of a detection from the projected point, px of the image (Brown, Hua, Winder 2011, sec. 3)."""
    position_sigmas: Factor = 0.94
    """The same in sigmas of the detection: 5 px of a 64 px patch of 12 sigmas. UBC has no such limit; without it the
    patch of a small keypoint could miss its point."""
    scale_octaves: Factor = 0.25
    """Largest difference in size, octaves (same source)."""
    orientation_rad: Radians = math.pi / 8
    """Largest difference in orientation, radians (same source)."""
    separation: FactorOrZero = 2.0
    """Two classes closer than this many tolerances are ambiguous: the smaller one is left out (same source)."""
    extra_views: bool = True
    """Also use detections in images where the point should be visible but was not matched."""
    extra_share: Share = 0.75
    """Extra views: fraction of the tolerances that applies, as only geometry supports them. With 1, and a view angle of
    60 degrees, 8 % of them were wrong on the scenes where this was measured."""
    max_view_angle_deg: Degrees = 30.0
    """Extra views: largest angle to the viewing direction of an image that observed the point, degrees."""
    depth_tolerance: FactorOrZero = 0.05
    """Extra views: largest relative difference from the depth of the points seen around the projection."""
    depth_neighbours: int = Field(5, ge=1, le=1000)
    """Extra views: number of points seen around the projection whose median gives that depth."""
    depth_radius: PositiveShare = 0.04
    """Extra views: largest distance of these points, as a fraction of the image's longer side."""
    min_patches: Count = 2
    """Minimum number of patches of a class."""
    dense: DepthConfig | None = DepthConfig()
    """Classes at detections without a map point; None: only map points."""
    dense_share: Share = 0.75
    """Fraction of the tolerances that applies to these classes."""


@dataclass(frozen=True)
class Detections:
    """Keypoints of one image: featkit pixels of the file, DoG sigma in px, radians from +x towards +y."""

    xy: Float[np.ndarray, "n 2"]
    scales: Float[np.ndarray, " n"]
    oris: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.xy)


@dataclass(frozen=True)
class Keypoints3D:
    """Points with a size (log2 of world units) and a direction in the world, sorted by point."""

    points: Int[np.ndarray, " k"]
    log_sizes: Float[np.ndarray, " k"]
    directions: Float[np.ndarray, "k 3"]

    def __len__(self) -> int:
        return len(self.points)

    def select(self, index: np.ndarray) -> Keypoints3D:
        """The keypoints at `index`."""
        return Keypoints3D(self.points[index], self.log_sizes[index], self.directions[index])


class Assignment(IntEnum):
    """How a detection was assigned to its class."""

    MATCHED = 0
    """The image observes the point in the map."""
    EXTRA = 1
    """The image should see the point, and the detection agrees."""
    DENSE = 2
    """The class has no map point: its depth was interpolated from nearby points."""


@dataclass(frozen=True)
class Members:
    """Detections assigned to classes: one row per patch, sorted by class, then by image.

    keypoints: row of the Keypoints3D. origins: see Origin.
    """

    keypoints: Int[np.ndarray, " n"]
    images: Int[np.ndarray, " n"]
    detections: Int[np.ndarray, " n"]
    origins: Int[np.ndarray, " n"]

    def select(self, index: np.ndarray) -> Members:
        """The rows at `index`."""
        return Members(self.keypoints[index], self.images[index], self.detections[index], self.origins[index])

    @staticmethod
    def joined(parts: Sequence[Members]) -> Members:
        """Concatenate the members of all images."""
        names = ("keypoints", "images", "detections", "origins")
        members = Members(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
        return members.select(np.argsort(members.keypoints, kind="stable"))


@dataclass(frozen=True)
class PredictedKeypoints:
    """Predicted keypoints of an image: rows of Keypoints3D with position, sigma (px) and angle in the image."""

    keypoints: Int[np.ndarray, " n"]
    xy: Float[np.ndarray, "n 2"]
    log_scales: Float[np.ndarray, " n"]
    angles: Float[np.ndarray, " n"]

    def select(self, index: np.ndarray) -> PredictedKeypoints:
        """The rows at `index`."""
        return PredictedKeypoints(self.keypoints[index], self.xy[index], self.log_scales[index], self.angles[index])


def turn(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Absolute difference of two angles, radians."""
    return np.abs((a - b + math.pi) % (2 * math.pi) - math.pi)


def position_limit(config: ClassesConfig, scales: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Largest distance of detections with these sigmas from the projection, px."""
    return np.minimum(config.position_px, config.position_sigmas * scales)


def keypoints_of_tracks(tracks: SceneTracks, detections: Sequence[Detections], config: ClassesConfig) -> Keypoints3D:
    """The size and direction on which most images of a track agree; every detection at an observation votes.

    Points on which fewer than `min_patches` images agree are left out.
    """
    rows = _vote_candidates(tracks, detections, config)
    starts = np.flatnonzero(np.r_[True, np.diff(rows.points) != 0]) if len(rows.points) else np.zeros(0, np.int64)
    counts = np.diff(np.r_[starts, len(rows.points)])
    chosen, sizes = [], []
    batches = np.cumsum(counts**2) // PAIRS_AT_ONCE
    for batch in np.unique(batches):
        in_batch = batches == batch
        best, size = _elect_keypoints(rows, starts[in_batch], counts[in_batch], config)
        chosen.append(best)
        sizes.append(size)
    best = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
    return Keypoints3D(rows.points[best], np.concatenate(sizes) if sizes else np.zeros(0), rows.directions[best])


@dataclass(frozen=True)
class _VoteCandidates:
    """Detections at observations, sorted by point, then image."""

    points: np.ndarray
    images: np.ndarray
    distances: np.ndarray  # in tolerances
    log_sizes: np.ndarray
    directions: np.ndarray
    oris: np.ndarray
    jacobians: np.ndarray


def _vote_candidates(tracks: SceneTracks, detections: Sequence[Detections], config: ClassesConfig) -> _VoteCandidates:
    parts: list[_VoteCandidates] = []
    for image, image_detections in enumerate(detections):
        index = np.unique(tracks.observed_points[tracks.observed_images == image])
        views = tracks.views(image, index)
        grid = PixelGrid(image_detections.xy, config.position_px)
        query, detection, distance = grid.pairs_within(views.xy, config.position_px)
        limit = position_limit(config, image_detections.scales[detection])
        near = distance <= limit
        query, detection, distance = query[near], detection[near], distance[near] / limit[near]
        views_of_pairs = ImagePoints(*(getattr(views, field)[query] for field in ImagePoints.__dataclass_fields__))
        parts.append(
            _VoteCandidates(
                points=index[query],
                images=np.full(len(query), image),
                distances=distance,
                log_sizes=np.log2(image_detections.scales[detection] / views_of_pairs.magnification),
                directions=tracks.in_plane(image, views_of_pairs, image_detections.oris[detection]),
                oris=image_detections.oris[detection],
                jacobians=views_of_pairs.jacobian,
            )
        )
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in _VoteCandidates.__dataclass_fields__}
    order = np.argsort(joined["points"], kind="stable")
    return _VoteCandidates(**{name: values[order] for name, values in joined.items()})


def _elect_keypoints(
    rows: _VoteCandidates, starts: np.ndarray, counts: np.ndarray, config: ClassesConfig
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """For each run of candidates, the row whose size and direction most images support, and their median size."""
    group, speaker = expand(starts, counts)
    which, listener = expand(starts[group], counts[group])
    speaker = speaker[which]
    angle = _angles_in_image(rows.jacobians[listener], rows.directions[speaker])
    agrees = (np.abs(rows.log_sizes[speaker] - rows.log_sizes[listener]) <= config.scale_octaves) & (
        turn(angle, rows.oris[listener]) <= config.orientation_rad
    )
    speaker, listener = speaker[agrees], listener[agrees]
    # Both are sorted, so the candidates of one image are adjacent: count images, not detections.
    new = np.r_[True, (np.diff(speaker) != 0) | (np.diff(rows.images[listener]) != 0)]
    votes = np.bincount(speaker[new], minlength=len(rows.points)) if len(speaker) else np.zeros(len(rows.points))
    score = votes - 0.5 * rows.distances  # ties go to the detection nearest to the point
    best = np.array([s + int(np.argmax(score[s : s + c])) for s, c in zip(starts, counts, strict=True)], dtype=np.int64)
    best = best[votes[best] >= config.min_patches]
    supporting = np.isin(speaker, best)
    runs = np.flatnonzero(np.r_[True, np.diff(speaker[supporting]) != 0])
    sizes = [float(np.median(part)) for part in np.split(rows.log_sizes[listener[supporting]], runs[1:])]
    return best, np.array(sizes if len(best) else [], dtype=np.float64)


def _angles_in_image(jacobians: Float[np.ndarray, "n 2 3"], directions: Float[np.ndarray, "n 3"]) -> np.ndarray:
    flow = (jacobians @ directions[:, :, None])[:, :, 0]
    return np.arctan2(flow[:, 1], flow[:, 0])


def predictions(
    tracks: SceneTracks, keypoints: Keypoints3D, image: int, extra: Bool[np.ndarray, " k"]
) -> PredictedKeypoints:
    """Predict the keypoints for which `extra` is true in `image`."""
    chosen = np.flatnonzero(extra)
    views = tracks.views(image, keypoints.points[chosen])
    return PredictedKeypoints(
        keypoints=chosen,
        xy=views.xy,
        log_scales=keypoints.log_sizes[chosen] + np.log2(views.magnification),
        angles=_angles_in_image(views.jacobian, keypoints.directions[chosen]),
    )


def members_in_image(
    predicted: PredictedKeypoints, share: Float[np.ndarray, " n"], detections: Detections, config: ClassesConfig
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """(row of Keypoints3D, detection): for every predicted keypoint the nearest detection within all tolerances.

    share: fraction of the tolerances that applies to each prediction.
    """
    grid = PixelGrid(detections.xy, config.position_px)
    query, detection, distance = grid.pairs_within(predicted.xy, config.position_px)
    limit = position_limit(config, detections.scales[detection])
    within_tolerances = (
        (distance <= share[query] * limit)
        & (
            np.abs(np.log2(detections.scales[detection]) - predicted.log_scales[query])
            <= share[query] * config.scale_octaves
        )
        & (turn(detections.oris[detection], predicted.angles[query]) <= share[query] * config.orientation_rad)
    )
    query, detection, distance = (
        query[within_tolerances],
        detection[within_tolerances],
        (distance / limit)[within_tolerances],
    )
    order = np.lexsort((distance, query))
    query, detection = query[order], detection[order]
    first = np.r_[True, np.diff(query) != 0] if len(query) else np.zeros(0, bool)
    return predicted.keypoints[query[first]], detection[first]


# ----------------------------------------------------------------------------------------------------------------------
# Radius search between points of an image, with a grid of cells and without another library.


LARGEST_GRID = 1 << 20  # cells a side


class PixelGrid:
    """Points sorted into square cells, for queries within a radius up to the cell's side, px."""

    def __init__(self, points: Float[np.ndarray, "n 2"], cell_px: float):
        self._points, self._cell = np.asarray(points, dtype=np.float64), cell_px
        finite = np.flatnonzero(np.isfinite(self._points).all(axis=1))
        cell_keys = self._cell_key(self._cell_of(self._points[finite]))
        order = np.argsort(cell_keys, kind="stable")
        self._order, self._sorted_keys = finite[order], cell_keys[order]

    def _cell_of(self, points: np.ndarray) -> np.ndarray:
        return np.floor(points / self._cell).astype(np.int64)

    @staticmethod
    def _cell_key(cells: np.ndarray) -> np.ndarray:
        return cells[:, 1] * LARGEST_GRID + cells[:, 0]

    def pairs_within(
        self, queries: Float[np.ndarray, "q 2"], radius_px: float
    ) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """(query, point, distance) of all pairs within a radius, sorted by query. NaN queries have none."""
        if radius_px > self._cell:
            raise ValueError(f"radius {radius_px} px is larger than the cells of {self._cell} px")
        finite = np.flatnonzero(np.isfinite(queries).all(axis=1))
        cells = self._cell_of(queries[finite])
        found_queries, found_points = [], []
        for row in (-1, 0, 1):  # three neighbouring cells of a row have consecutive keys
            first = np.searchsorted(self._sorted_keys, self._cell_key(cells + np.array([-1, row])), side="left")
            last = np.searchsorted(self._sorted_keys, self._cell_key(cells + np.array([1, row])), side="right")
            which, positions = expand(first, last - first)
            found_queries.append(finite[which])
            found_points.append(self._order[positions])
        query, point = np.concatenate(found_queries), np.concatenate(found_points)
        distance = np.linalg.norm(queries[query] - self._points[point], axis=1)
        near = np.flatnonzero(distance <= radius_px)
        near = near[np.lexsort((point[near], query[near]))]
        return query[near], point[near], distance[near]


def expand(
    starts: Int[np.ndarray, " n"], counts: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Expand runs to indices: (number of the run, index) for every element of every run."""
    which = np.repeat(np.arange(len(starts)), counts)
    within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return which, starts[which] + within
