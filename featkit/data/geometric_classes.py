"""Patch classes from projection and visibility alone: no descriptor decides which views belong together.

A seed is a keypoint of one image, from any detector, whose depth is interpolated from the map points around it
(scene_classes.py). It belongs to every image in which it should be visible: its projection is inside the image, the
viewing direction is similar, and its depth agrees with the map points seen around the projection. The patch is cut
either at the jittered projection or at the detection nearest to it. Tracks only provide depths here; `source: tracks`
selects points because SIFT matched them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from featkit.core.config import Config, Count, Factor, Pixels, PositiveShare, Share
from featkit.data.keypoint_classes import ClassesConfig, DepthConfig, Detections, PredictedKeypoints, members_in_image
from featkit.data.patch_frames import FrameJitter, Frames, corners, draw_complete_classes, jittered_frames, within
from featkit.data.scene_classes import depths_at, separate
from featkit.data.tracks import SceneTracks

TANGENT_PX = 0.1  # step of the finite differences for the surface tangents


class GeometryConfig(Config):
    """Which keypoints become seeds of a class, and in which images they are visible."""

    seeds_per_image: Count = 500
    """Seeds per image, drawn at random from the keypoints with a known depth."""
    projected_share: Share = 0.5
    """Fraction of classes whose patches are cut at jittered projections; the others use the nearest detections."""
    detection_share: PositiveShare = 0.75
    """Fraction of the tolerances of `classes` within which a detection must be."""
    max_view_angle_deg: float = Field(60.0, gt=0, le=90)
    """Largest angle at the point between the rays of the seed's image and another image, degrees."""
    depth: DepthConfig = DepthConfig(neighbours=6, radius=0.05)
    """How depth is interpolated from nearby map points, in the seed's image and in the other images."""
    depth_tolerance: Factor = 0.01
    """Largest relative difference between the projected depth and the depth interpolated there."""
    surface_sigmas: Factor = 0.5
    """Largest distance of the interpolated surface from the seed, seen in the seed's image, in sigmas of the seed.
    Distant objects need this test: their depths are nearly equal, yet a small depth error is a different place."""
    min_scale_px: Pixels = 1.0
    """Smallest sigma of a patch, px; smaller patches show no detail."""
    min_patches: int = Field(2, ge=2, le=10**9)
    """Minimum number of patches of a class."""


@dataclass(frozen=True)
class Seeds:
    """Keypoints of single images with 3D points and surface tangents.

    images: the image of each keypoint. tangents: the step on the surface for one px along x and y of that image, world
    units; jacobians: px of that image per world unit. scales: sigma in px, oris: radians, both in that image. rays:
    unit vectors from the points to its camera.
    """

    images: Int[np.ndarray, " s"]
    points: Float[np.ndarray, "s 3"]
    tangents: Float[np.ndarray, "s 3 2"]
    jacobians: Float[np.ndarray, "s 2 3"]
    scales: Float[np.ndarray, " s"]
    oris: Float[np.ndarray, " s"]
    rays: Float[np.ndarray, "s 3"]

    def __len__(self) -> int:
        return len(self.images)


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
    """The patches of a scene, and counts for each rule. detections: one per image of `tracks`.

    classes: tolerances for detections and for ambiguous keypoints. magnification: side of a patch in sigmas.
    max_patches: limit, reached by drawing complete classes at random.
    """
    seeds = draw_seeds(tracks, detections, config, generator)
    expected = [_predict_seeds(tracks, seeds, image, config, magnification) for image in range(len(detections))]
    views = np.bincount(np.concatenate([part.keypoints for part in expected]), minlength=len(seeds))
    order = generator.permutation(len(views)) + 1
    kept = separate(expected, np.where(views >= config.min_patches, order, 0), classes)
    projected = kept & (generator.random(len(kept)) < config.projected_share)
    frames, counts = [], {"seeds": len(kept), "seeds_kept": int(kept.sum())}
    for image, (predicted, image_detections) in enumerate(zip(expected, detections, strict=True)):
        at_projection = _frames_at_projections(predicted.select(projected[predicted.keypoints]), image)
        frames.append(jittered_frames(at_projection, jitter, magnification, generator))
        at_detections = predicted.select((kept & ~projected)[predicted.keypoints])
        share = np.full(len(at_detections.keypoints), config.detection_share)
        rows, which = members_in_image(at_detections, share, image_detections, classes)
        images = np.full(len(rows), image)
        frames.append(
            Frames(
                rows, images, image_detections.xy[which], image_detections.scales[which], image_detections.oris[which]
            )
        )
    joined = Frames.joined(frames)
    sizes = np.bincount(joined.classes, minlength=len(kept))
    large = sizes >= config.min_patches
    large &= draw_complete_classes(np.where(large, sizes, 0), max_patches, generator)
    counts |= {
        "classes": int(large.sum()),
        "classes_projected": int((large & projected).sum()),
        "patches": int(sizes[large].sum()),
        "patches_projected": int(sizes[large & projected].sum()),
    }
    return joined.of_classes(large), counts


def draw_seeds(
    tracks: SceneTracks, detections: Sequence[Detections], config: GeometryConfig, generator: np.random.Generator
) -> Seeds:
    """Random detections with a known depth, from every image."""
    parts = []
    for image, image_detections in enumerate(detections):
        views = tracks.views(image, np.unique(tracks.observed_points[tracks.observed_images == image]))
        known = depths_at(tracks.image_sizes[image], views, image_detections.xy, config.depth)
        drawn = np.sort(generator.permutation(len(known.rows))[: config.seeds_per_image])
        rows, depths, slopes = known.rows[drawn], known.depths[drawn], known.slopes[drawn]
        points = tracks.back_projected(image, image_detections.xy[rows], depths)
        tangents = []
        for axis in np.eye(2):
            nearby = 1.0 / (1.0 / depths + TANGENT_PX * slopes @ axis)
            step = tracks.back_projected(image, image_detections.xy[rows] + TANGENT_PX * axis, nearby) - points
            tangents.append(step / TANGENT_PX)
        own_views = tracks.views_of(image, points)
        images, surface = np.full(len(rows), image), np.stack(tangents, axis=2)
        scales, oris = image_detections.scales[rows], image_detections.oris[rows]
        parts.append(Seeds(images, points, surface, own_views.jacobian, scales, oris, own_views.directions))
    return Seeds(*(np.concatenate([getattr(part, name) for part in parts]) for name in Seeds.__dataclass_fields__))


def _predict_seeds(
    tracks: SceneTracks, seeds: Seeds, image: int, config: GeometryConfig, magnification: float
) -> PredictedKeypoints:
    """The seeds whose complete patch an image should show, with size and direction predicted from the surface."""
    chosen = np.flatnonzero(visible_seeds(tracks, seeds, image, config))
    views = tracks.views_of(image, seeds.points[chosen])
    affine = views.jacobian @ seeds.tangents[chosen]  # pixels of the seed's image -> pixels of this one
    area = np.linalg.det(affine)
    oris = seeds.oris[chosen]
    along = (affine @ np.stack([np.cos(oris), np.sin(oris)], axis=1)[:, :, None])[:, :, 0]
    scales = seeds.scales[chosen] * np.sqrt(np.maximum(area, 0))  # 0 for a surface that faces away
    shown = Frames(chosen, np.full(len(chosen), image), views.xy, scales, np.arctan2(along[:, 1], along[:, 0]))
    complete = within(corners(shown, magnification), tuple(tracks.image_sizes[image].tolist()))
    shown = shown.select(np.flatnonzero(complete & (shown.scales >= config.min_scale_px)))
    return PredictedKeypoints(shown.classes, shown.xy, np.log2(shown.scales), shown.oris)


def visible_seeds(tracks: SceneTracks, seeds: Seeds, image: int, config: GeometryConfig) -> Bool[np.ndarray, " s"]:
    """Which seeds an image should show: its own, and those whose depth agrees with the points seen around them."""
    views = tracks.views_of(image, seeds.points)
    similar_direction = (views.directions * seeds.rays).sum(axis=1) >= np.cos(np.radians(config.max_view_angle_deg))
    size = tracks.image_sizes[image]
    with np.errstate(invalid="ignore"):
        within = ((views.xy >= 0) & (views.xy <= size - 1)).all(axis=1)
    candidates = np.flatnonzero(similar_direction & within & (seeds.images != image))
    around = tracks.views(image, np.unique(tracks.observed_points[tracks.observed_images == image]))
    known = depths_at(size, around, views.xy[candidates], config.depth)
    known_rows = candidates[known.rows]
    agrees = np.abs(views.depth[known_rows] / known.depths - 1) <= config.depth_tolerance
    offset = tracks.back_projected(image, views.xy[known_rows], known.depths) - seeds.points[known_rows]
    shift = np.linalg.norm((seeds.jacobians[known_rows] @ offset[:, :, None])[:, :, 0], axis=1)
    visible = seeds.images == image
    visible[known_rows[agrees & (shift <= config.surface_sigmas * seeds.scales[known_rows])]] = True
    return visible


def _frames_at_projections(predicted: PredictedKeypoints, image: int) -> Frames:
    count = len(predicted.keypoints)
    return Frames(predicted.keypoints, np.full(count, image), predicted.xy, 2.0**predicted.log_scales, predicted.angles)
