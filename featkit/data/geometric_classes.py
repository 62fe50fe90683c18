"""Classes of patches by projection and visibility alone: no descriptor has chosen which views belong together.

A seed is a keypoint of one image, of any detector, whose depth the map's points around it tell (dense_points.py). It
belongs to every image in which it should be visible: inside, seen from a direction not too different, and at the depth
that the points seen around its projection tell. There its patch is cut either at the projection itself, jittered, or
at the detection nearest to it. Tracks only give depths here; `source: tracks` takes points because SIFT matched them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from featkit.config import Config
from featkit.data.dense_points import depths_at
from featkit.data.keypoint_classes import (
    ClassesConfig,
    DenseConfig,
    Detections,
    Keypoints3D,
    Predictions,
    members_in_image,
    predictions,
)
from featkit.data.patch_frames import FrameJitter, Frames, corners, inside, jittered, whole_classes
from featkit.data.scene_classes import separate
from featkit.data.tracks import SceneTracks


class GeometryConfig(Config):
    """Which keypoints begin a class, and where it is visible."""

    seeds_per_image: int = Field(500, ge=1)
    """Keypoints of an image that begin a class, drawn at random among those that know their depth."""
    projected_share: float = Field(0.5, ge=0, le=1)
    """Share of the classes that are cut at jittered projections; the others at the detections nearest to them."""
    detection_share: float = Field(0.75, gt=0, le=1)
    """Share of the tolerances of `classes` that a detection has to keep."""
    max_view_angle_deg: float = Field(60.0, gt=0, le=90)
    """Largest angle at the point between the seed's ray and another image's."""
    depth: DenseConfig = DenseConfig(neighbours=6, radius=0.05)
    """How the points around tell a depth, in the seed's image and where it is looked for."""
    depth_tolerance: float = Field(0.01, gt=0)
    """Largest relative difference of the projected point's depth from what the points around it tell there."""
    min_scale_px: float = Field(1.0, gt=0)
    """Smallest sigma of a patch, px: what is smaller has no detail left to show."""
    min_patches: int = Field(2, ge=2)
    """Smaller classes are left out."""


@dataclass(frozen=True)
class _Seeds:
    """Keypoints with points of their own. images: whose keypoint each is; rays: from the point to its camera."""

    points: Float[np.ndarray, "s 3"]
    keypoints: Keypoints3D
    images: Int[np.ndarray, " s"]
    rays: Float[np.ndarray, "s 3"]


def geometric_frames(
    tracks: SceneTracks,
    detections: Sequence[Detections],
    config: GeometryConfig,
    classes: ClassesConfig,
    jitter: FrameJitter,
    magnification: float,
    max_patches: int | None,
    generator: np.random.Generator,
) -> tuple[Frames, dict[str, int]]:
    """The patches of a scene and how many each rule gave. detections: one per image of `tracks`.

    classes: tolerances of detections, and of keypoints that are told apart. magnification: side of a patch in sigmas.
    max_patches: by whole classes drawn at random.
    """
    seeds = _seeds(tracks, detections, config, generator)
    placed = replace(tracks, points=seeds.points)
    expected = [_expected(tracks, placed, seeds, image, config, magnification) for image in range(len(detections))]
    views = np.bincount(np.concatenate([part.keypoints for part in expected]), minlength=len(seeds.keypoints))
    order = generator.permutation(len(views)) + 1
    kept = separate(expected, np.where(views >= config.min_patches, order, 0), classes)
    projected = kept & (generator.random(len(kept)) < config.projected_share)
    frames, counts = [], {"seeds": len(kept), "seeds_kept": int(kept.sum())}
    for image, (predicted, found) in enumerate(zip(expected, detections, strict=True)):
        at_projection = _at_projections(predicted.select(projected[predicted.keypoints]), image)
        frames.append(jittered(at_projection, jitter, magnification, generator))
        wanted = predicted.select((kept & ~projected)[predicted.keypoints])
        share = np.full(len(wanted.keypoints), config.detection_share)
        rows, which = members_in_image(wanted, share, found, classes)
        images = np.full(len(rows), image)
        frames.append(Frames(rows, images, found.xy[which], found.scales[which], found.oris[which]))
    joined = Frames.joined(frames)
    sizes = np.bincount(joined.classes, minlength=len(kept))
    large = sizes >= config.min_patches
    large &= whole_classes(np.where(large, sizes, 0), max_patches, generator)
    counts |= {
        "classes": int(large.sum()),
        "classes_projected": int((large & projected).sum()),
        "patches": int(sizes[large].sum()),
        "patches_projected": int(sizes[large & projected].sum()),
    }
    return joined.of_classes(large), counts


def _seeds(
    tracks: SceneTracks, detections: Sequence[Detections], config: GeometryConfig, generator: np.random.Generator
) -> _Seeds:
    points, sizes, directions, rays, images = [], [], [], [], []
    for image, found in enumerate(detections):
        views = tracks.views(image, np.unique(tracks.observed_points[tracks.observed_images == image]))
        chosen, depths, _ = depths_at(tracks.image_sizes[image], views, found.xy, config.depth)
        some = np.sort(generator.permutation(len(chosen))[: config.seeds_per_image])
        chosen, depths = chosen[some], depths[some]
        world = tracks.back_projected(image, found.xy[chosen], depths)
        own = tracks.views_of(image, world)
        points.append(world)
        sizes.append(np.log2(found.scales[chosen] / own.magnification))
        directions.append(tracks.in_plane(image, own, found.oris[chosen]))
        rays.append(own.directions)
        images.append(np.full(len(chosen), image))
    of_images = np.concatenate(images)
    keypoints = Keypoints3D(np.arange(len(of_images)), np.concatenate(sizes), np.concatenate(directions))
    return _Seeds(np.concatenate(points), keypoints, of_images, np.concatenate(rays))


def _expected(
    tracks: SceneTracks, placed: SceneTracks, seeds: _Seeds, image: int, config: GeometryConfig, magnification: float
) -> Predictions:
    """The seeds that an image should show whole. placed: the tracks with the seeds as points."""
    predicted = predictions(placed, seeds.keypoints, image, visible_seeds(tracks, seeds, image, config))
    shown = _at_projections(predicted, image)
    whole = inside(corners(shown, magnification), tuple(tracks.image_sizes[image].tolist()))
    return predicted.select(np.flatnonzero(whole & (shown.scales >= config.min_scale_px)))


def visible_seeds(tracks: SceneTracks, seeds: _Seeds, image: int, config: GeometryConfig) -> Bool[np.ndarray, " s"]:
    """Which seeds an image should show: its own, and those at the depth of what it sees around them."""
    views = tracks.views_of(image, seeds.points)
    like = (views.directions * seeds.rays).sum(axis=1) >= np.cos(np.radians(config.max_view_angle_deg))
    size = tracks.image_sizes[image]
    with np.errstate(invalid="ignore"):
        within = ((views.xy >= 0) & (views.xy <= size - 1)).all(axis=1)
    asked = np.flatnonzero(like & within & (seeds.images != image))
    around = tracks.views(image, np.unique(tracks.observed_points[tracks.observed_images == image]))
    known, depths, _ = depths_at(size, around, views.xy[asked], config.depth)
    agrees = np.abs(views.depth[asked[known]] / depths - 1) <= config.depth_tolerance
    visible = seeds.images == image
    visible[asked[known[agrees]]] = True
    return visible


def _at_projections(predicted: Predictions, image: int) -> Frames:
    count = len(predicted.keypoints)
    return Frames(predicted.keypoints, np.full(count, image), predicted.xy, 2.0**predicted.log_scales, predicted.angles)
