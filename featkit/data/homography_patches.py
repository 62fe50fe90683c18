"""Patch classes from single photographs: a keypoint seen in several synthetic views made with homographies.

Every view has its own rotation, zoom, tilt and lighting; the keypoint's position, size and direction are transformed
exactly and then jittered. No descriptor takes part in finding correspondences.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from pydantic import Field

from featkit.core.config import Config, Count, Pixels
from featkit.data.keypoint_classes import ClassesConfig, Detections, PredictedKeypoints
from featkit.data.patch_frames import (
    DetectorConfig,
    FrameJitter,
    Frames,
    corners,
    detected,
    draw_complete_classes,
    in_pixels,
    jittered_frames,
    within,
)
from featkit.data.scene_classes import separate
from featkit.data.tracks import PhotographFolder
from featkit.data.views import (
    JitterConfig,
    PhotometricConfig,
    ViewConfig,
    draw_jitter,
    draw_view,
    jittered_colours,
    photometric,
    warp,
)
from featkit.geometry.pixels import apply_homography, local_scale
from featkit.images.read import DecodeConfig, DecodedImage, decode
from featkit.io.artifact import inside

TANGENT_PX = 1e-3  # step of the finite difference for directions under a homography


class LightConfig(Config):
    """Lighting changes between the views of a photograph."""

    colours: JitterConfig = JitterConfig(brightness=0.4, contrast=0.4, saturation=0.5, hue=0.1)
    """Random changes of colour."""
    camera: PhotometricConfig = PhotometricConfig(
        gamma_stops=0.7,
        temperature_stops=0.7,
        shade=0.6,
        night_probability=0.1,
        night_stops=3,
        noise=0.015,
        blur_px=1.0,
        jpeg=60,
        haze=0.3,
    )
    """Random light, from noon to dusk and night, followed by blur, noise, tone curve and JPEG."""


class HomographiesConfig(Config):
    """Synthetic views of single photographs. The strengths are featkit's own choice."""

    views: int = Field(4, ge=2, le=10**9)
    """Views per photograph; a keypoint has a patch in each view that shows it completely."""
    keypoints: Count = 200
    """Keypoints per photograph that become classes, drawn at random."""
    view: ViewConfig = ViewConfig(rotation_deg=180, scale_max=1.6, perspective=0.2)
    """Geometry of each view. Between two views the scale changes by up to 1.6 x 1.6, so from 0.4 to 2.5."""
    light: LightConfig = LightConfig()
    """Lighting of each view."""
    max_side: int = Field(1024, ge=64, le=2**16)
    """Larger photographs are reduced to this longer side, px."""
    min_scale_px: Pixels = 1.0
    """Smallest sigma of a patch, px."""
    min_patches: int = Field(2, ge=2, le=10**9)
    """Minimum number of patches of a class."""


@dataclass(frozen=True)
class HomographyViews:
    """All views of a folder's photographs, rendered on request. View v of photograph p has the number p k + v.

    homographies: pixels of the reduced, upright photograph -> pixels of the view, which has the same size.
    """

    photographs: PhotographFolder
    config: HomographiesConfig
    homographies: Float[np.ndarray, "v 3 3"]
    seed: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the views: the photograph's name and a number."""
        return tuple(f"{name}#{view}" for name in self.photographs.names for view in range(self.config.views))

    def render(self, number: int) -> DecodedImage:
        """A view in grey."""
        photograph = self.photographs.folder / self.photographs.names[number // self.config.views]
        pixels = decode(photograph, _reduced_decoding(self.photographs, self.config), colour=True).pixels
        size = pixels.shape[1], pixels.shape[0]
        shown, _ = warp(pixels, self.homographies[number], size)
        shown = relit(shown, self.config.light, np.random.default_rng([*self.seed, 1, number]))
        grey = cv2.cvtColor(shown, cv2.COLOR_RGB2GRAY)
        return DecodedImage(grey, size, np.eye(2, 3))


def relit(
    pixels: UInt8[np.ndarray, "h w 3"], config: LightConfig, generator: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """A photograph with random light and camera effects: every change of a view except its geometry."""
    return photometric(jittered_colours(pixels, draw_jitter(config.colours, generator)), config.camera, generator)


def homography_frames(
    photographs: PhotographFolder,
    config: HomographiesConfig,
    detector: DetectorConfig,
    classes: ClassesConfig,
    jitter: FrameJitter,
    magnification: float,
    max_patches: int | None,
    seed: tuple[int, ...],
    workers: int = 0,
) -> tuple[HomographyViews, Frames, dict[str, int]]:
    """The views of a folder's photographs, the patches in them, and counts.

    classes: tolerances for ambiguous keypoints. magnification: side of a patch in sigmas.
    max_patches: limit, reached by drawing complete classes at random. Raises BadInputError.
    """
    generator = np.random.default_rng([*seed, 0])
    decoding = _reduced_decoding(photographs, config)
    homographies, parts, first = [], [], 0
    detections_by_photograph = detected(
        detector, photographs.folder, photographs.names, photographs.name, generator, workers, decoding
    )
    for number, (_, detections) in enumerate(detections_by_photograph):
        image = decode(inside(photographs.folder, photographs.names[number]), decoding)
        seeds = _draw_seeds(image, detections, config, classes, magnification, generator)
        for view in range(config.views):
            homography = draw_view(config.view, image.size, generator)
            homographies.append(homography)
            shown = moved(seeds, homography, number * config.views + view, first)
            shown = shown.select(_completely_visible(shown, homography, image.size, magnification, config))
            parts.append(jittered_frames(shown, jitter, magnification, generator))
        first += len(seeds)
    frames = Frames.joined(parts).without_small(config.min_patches)
    frames = frames.of_classes(draw_complete_classes(frames.sizes(), max_patches, generator))
    counts = {
        "photographs": len(photographs.names),
        "views": len(homographies),
        "classes": int(frames.classes.max(initial=-1)) + 1,
        "patches": len(frames),
    }
    return HomographyViews(photographs, config, np.stack(homographies), seed), frames, counts


def _reduced_decoding(photographs: PhotographFolder, config: HomographiesConfig) -> DecodeConfig:
    return photographs.decoding.model_copy(update={"resize_max": config.max_side})


def _draw_seeds(
    image: DecodedImage,
    detections: Detections,
    config: HomographiesConfig,
    classes: ClassesConfig,
    magnification: float,
    generator: np.random.Generator,
) -> Detections:
    """Random keypoints of a photograph, in its reduced, upright pixels, without ambiguous ones."""
    upright = Detections(*in_pixels(image, detections.xy, detections.scales, detections.oris))
    complete = np.flatnonzero(within(corners(upright, magnification), image.size))
    drawn = generator.permutation(complete)[: config.keypoints]
    upright = Detections(upright.xy[drawn], upright.scales[drawn], upright.oris[drawn])
    predictions = PredictedKeypoints(np.arange(len(drawn)), upright.xy, np.log2(upright.scales), upright.oris)
    kept = separate([predictions], np.arange(len(drawn), 0, -1), classes)
    return Detections(upright.xy[kept], upright.scales[kept], upright.oris[kept])


def moved(seeds: Detections, homography: Float[np.ndarray, "3 3"], image: int, first: int) -> Frames:
    """Keypoints transformed by a homography. image: number of the view; first: class of the first keypoint."""
    xy = apply_homography(homography, seeds.xy)
    step = TANGENT_PX * np.stack([np.cos(seeds.oris), np.sin(seeds.oris)], axis=1)
    along = apply_homography(homography, seeds.xy + step) - apply_homography(homography, seeds.xy - step)
    scales = seeds.scales * local_scale(homography, seeds.xy)
    classes = np.arange(first, first + len(seeds))
    return Frames(classes, np.full(len(seeds), image), xy, scales, np.arctan2(along[:, 1], along[:, 0]))


def _completely_visible(
    shown: Frames,
    homography: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
    magnification: float,
    config: HomographiesConfig,
) -> np.ndarray:
    """Patches that are inside the view and, mapped back, inside the photograph."""
    in_view = corners(shown, magnification)
    in_photograph = apply_homography(np.linalg.inv(homography), in_view.reshape(-1, 2)).reshape(-1, 4, 2)
    return within(in_view, size) & within(in_photograph, size) & (shown.scales >= config.min_scale_px)
