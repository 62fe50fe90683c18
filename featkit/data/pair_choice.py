"""Choose training pairs from the images of a reconstruction: those that share points, in near and far views alike.

Every image gets up to `max_pairs` partners. Its candidates, sorted by overlap, are split into that many groups, and one
is drawn from each: easy and hard pairs are equally frequent, no matter how many easy ones there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from featkit.core.config import Config, Count, Degrees, Factor, Share
from featkit.data.tracks import SceneTracks

BOX_SHARE = 0.05  # fraction of the shared points that may be outside of a box, on each of its sides


class PairChoiceConfig(Config):
    """Limits for a pair. Limits without a named source are featkit's own choice."""

    min_shared: Count = 30
    """Minimum number of map points that both images see."""
    min_overlap: Share = 0.05
    """Minimum overlap: the shared points as a fraction of those of the image that sees fewer."""
    min_angle_deg: Degrees = 1.0
    """Smallest median triangulation angle of the shared points, degrees. Below it the baseline, and thus F, is
    dominated by errors of the map."""
    max_angle_deg: Degrees = Field(60.0, gt=0)
    """Largest median triangulation angle of the shared points, degrees."""
    max_rotation_deg: Degrees = Field(80.0, gt=0)
    """Largest relative rotation of the two cameras, degrees. CAPS and SCFeat: 80."""
    max_scale: Factor = Field(4.0, ge=1)
    """Largest median ratio of the sizes at which the two images show a shared point."""
    max_pairs: Count = 30
    """Maximum number of pairs per image."""


@dataclass(frozen=True)
class PinholeView:
    """An image without lens distortion. size: width, height; intrinsics: in featkit pixels; pose: world to camera."""

    size: tuple[int, int]
    intrinsics: Float[np.ndarray, "3 3"]
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]

    def project(self, points: Float[np.ndarray, "n 3"]) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
        """featkit pixels and depths of world points; pixels are only valid for positive depths."""
        local = points @ self.rotation.T + self.translation
        mapped = local @ self.intrinsics.T
        return mapped[:, :2] / mapped[:, 2:], local[:, 2]

    def inside(self, points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
        """Points in front of the camera and inside the image."""
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels, depth = self.project(points)
        return (depth > 0) & (pixels >= -0.5).all(axis=1) & (pixels <= np.array(self.size) - 0.5).all(axis=1)


@dataclass(frozen=True)
class PairStatistics:
    """Pairs with: number and fraction of shared points, median triangulation angle and relative rotation in degrees,
    ratio of sizes (at least 1), and the bounding boxes of the shared points in both images (x0 y0 x1 y1, featkit
    pixels)."""

    pairs: Int[np.ndarray, "n 2"]
    shared: Int[np.ndarray, " n"]
    overlap: Float[np.ndarray, " n"]
    angle_deg: Float[np.ndarray, " n"]
    rotation_deg: Float[np.ndarray, " n"]
    scale: Float[np.ndarray, " n"]
    box0: Float[np.ndarray, "n 4"]
    box1: Float[np.ndarray, "n 4"]

    def __len__(self) -> int:
        return len(self.pairs)

    def select(self, index: np.ndarray) -> PairStatistics:
        """The pairs at `index` (numbers or a mask)."""
        return PairStatistics(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def seen_points(tracks: SceneTracks, views: Sequence[PinholeView]) -> list[Int[np.ndarray, " p"]]:
    """For every image, the points that it observed and that are inside its picture, sorted."""
    points_by_image = []
    for image, view in enumerate(views):
        points = np.unique(tracks.observed_points[tracks.observed_images == image])
        points_by_image.append(points[view.inside(tracks.points[points])])
    return points_by_image


def shared_counts(seen: Sequence[Int[np.ndarray, " p"]], num_points: int) -> Int[np.ndarray, "m m"]:
    """Number of points that each pair of images shares."""
    counts = np.zeros((len(seen), len(seen)), np.int64)
    mask = np.zeros(num_points, bool)
    for first, points in enumerate(seen):
        mask[points] = True
        for second in range(first):
            counts[first, second] = counts[second, first] = int(mask[seen[second]].sum())
        mask[points] = False
    return counts


def candidates(tracks: SceneTracks, views: Sequence[PinholeView], config: PairChoiceConfig) -> PairStatistics:
    """All pairs within the limits, first image before second."""
    seen = seen_points(tracks, views)
    counts = shared_counts(seen, len(tracks.points))
    rows = [
        _measure_pair(tracks, views, seen, int(first), int(second))
        for first, second in np.argwhere(np.triu(counts >= config.min_shared, 1))
    ]
    columns = [np.array(column) for column in zip(*rows, strict=True)] if rows else _NO_PAIRS
    measured = PairStatistics(*columns)
    return measured.select(
        (measured.overlap >= config.min_overlap)
        & (measured.angle_deg >= config.min_angle_deg)
        & (measured.angle_deg <= config.max_angle_deg)
        & (measured.rotation_deg <= config.max_rotation_deg)
        & (measured.scale <= config.max_scale)
    )


_NO_PAIRS = [np.zeros((0, 2), np.int64), *[np.zeros(0)] * 5, np.zeros((0, 4)), np.zeros((0, 4))]


def _measure_pair(
    tracks: SceneTracks, views: Sequence[PinholeView], seen: Sequence[Int[np.ndarray, " p"]], first: int, second: int
) -> tuple:
    both = np.intersect1d(seen[first], seen[second], assume_unique=True)
    points, pair = tracks.points[both], (views[first], views[second])
    rays = [points + view.rotation.T @ view.translation for view in pair]  # from the camera centre
    rays = [ray / np.linalg.norm(ray, axis=1, keepdims=True) for ray in rays]
    angle = np.degrees(np.arccos(np.clip((rays[0] * rays[1]).sum(axis=1), -1, 1)))
    placed = [view.project(points) for view in pair]
    focal = [np.sqrt(view.intrinsics[0, 0] * view.intrinsics[1, 1]) for view in pair]
    scale = float(np.median(placed[1][1] / placed[0][1])) * focal[0] / focal[1]
    cosine = (np.trace(pair[0].rotation.T @ pair[1].rotation) - 1) / 2
    return (
        (first, second),
        len(both),
        len(both) / min(len(seen[first]), len(seen[second])),
        float(np.median(angle)),
        float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
        max(scale, 1 / scale),
        *(np.quantile(xy, (BOX_SHARE, 1 - BOX_SHARE), axis=0).ravel() for xy, _ in placed),
    )


def choose_training_pairs(
    possible: PairStatistics, images: int, max_pairs: int, generator: np.random.Generator
) -> PairStatistics:
    """Choose training pairs from the candidates: at most `max_pairs` per image, spread over easy and hard pairs."""
    partners: list[Int[np.ndarray, " k"]] = []
    for image in range(images):
        of_image = np.flatnonzero((possible.pairs == image).any(axis=1))
        partners.append(of_image[np.argsort(-possible.overlap[of_image], kind="stable")])
    used, chosen = np.zeros(images, np.int64), np.zeros(len(possible), bool)

    def choose_random(rows: Int[np.ndarray, " k"]) -> bool:
        """Take a random row whose two images both have fewer than `max_pairs` pairs; whether there is one."""
        free = rows[~chosen[rows] & (used[possible.pairs[rows]] < max_pairs).all(axis=1)]
        if len(free):
            row = free[generator.integers(len(free))]
            chosen[row] = True
            used[possible.pairs[row]] += 1
        return bool(len(free))

    for group in range(max_pairs):
        for image in generator.permutation(images):
            of_image = partners[image]
            start, stop = (len(of_image) * (group + end) // max_pairs for end in (0, 1))
            choose_random(of_image[start:stop])
    for row in generator.permutation(len(possible)):  # fill the remaining places
        choose_random(np.array([row]))
    return possible.select(chosen)
