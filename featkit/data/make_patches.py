"""Make patches in UBC's format from reconstructions or single photographs: detect, find classes, cut, write.

`source` selects how classes are found: from tracks and detections that agree with them (scene_classes.py), from
projection and visibility alone (geometric_classes.py), or from homographies of single photographs
(homography_patches.py). Output folder: the files of phototour.py, dataset.json (settings, scenes, counts), licence.txt.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from pydantic import Field

from featkit import __version__
from featkit.core.config import Config, CountOrZero, Magnification, Runtime, WorkerCount
from featkit.core.errors import BadInputError, EmptyResultError
from featkit.core.log import progress
from featkit.data.geometric_classes import GeometryConfig, geometric_frames
from featkit.data.homography_patches import HomographiesConfig, homography_frames
from featkit.data.keypoint_classes import ClassesConfig, Detections
from featkit.data.patch_frames import (
    DetectorConfig,
    FrameJitter,
    Frames,
    corners,
    detected,
    draw_complete_classes,
    in_pixels,
    within,
)
from featkit.data.phototour import (
    DATASET,
    INFO,
    SIDE,
    MappedPatches,
    create_bitmaps,
    draw_pairs,
    write_info,
    write_phototour_pairs,
    write_scenes,
)
from featkit.data.scene_classes import scene_classes, select_classes
from featkit.data.tracks import PhotographFolder, Scene
from featkit.images.patches import cut_patches
from featkit.images.read import DecodedImage, decode
from featkit.io.artifact import inside, making, write_text
from featkit.io.atomic import FOREIGN, refuse_foreign

LOGGER = logging.getLogger(__name__)
LICENCE = "licence.txt"
WRITTEN = re.compile(r"patches\d+\.bmp|info\.txt|scenes\.txt|m50_\d+_\d+_0\.txt|dataset\.json|licence\.txt")


class PatchSetConfig(Config):
    """All settings that determine a patch set."""

    source: Literal["tracks", "geometry", "homographies"] = "tracks"
    """How classes are found: tracks (matches of the map), geometry (projection and visibility alone) or homographies
    (of single photographs)."""
    classes: ClassesConfig = ClassesConfig()
    """When two keypoints are ambiguous (all sources), and when a detection agrees (tracks and geometry)."""
    geometry: GeometryConfig = GeometryConfig()
    """How classes are found by projection (source geometry)."""
    homographies: HomographiesConfig = HomographiesConfig()
    """How views are made (source homographies)."""
    jitter: FrameJitter = FrameJitter()
    """Jitter of patches that are not cut at a detection: projections, and all patches of source homographies."""
    detector: DetectorConfig = DetectorConfig()
    """Keypoint detector, used if no keypoint file is given."""
    magnification: Magnification = 12.0
    """Side of a patch in sigmas of its keypoint, as in the `patches` extractor. 15 and 18 show 1.25 and 1.5 times as
    much. Weights that learn from the patches record it, and extraction cuts as large ones."""
    whole_patches: bool = True
    """Leave out detections whose patch extends beyond the image."""
    max_patches: int | None = Field(None, ge=2, le=10**9)
    """Maximum number of patches per scene, reached by drawing complete classes at random; None: all."""
    test_pairs: CountOrZero = 100_000
    """Number of test pairs, half of them matching; fewer if there are not enough matches. UBC's test sets: 100,000."""
    workers: Runtime[WorkerCount] = 0
    """Processes for detection; 0: one per core."""


@dataclass(frozen=True)
class _ScenePatches:
    """The patches of one scene, before they are cut.

    pixels: decodes an image by its number. views: number of consecutive images that show the same scene: all images of
    a reconstruction, or the views of one photograph.
    """

    name: str
    licence: str
    images: tuple[str, ...]
    frames: Frames
    counts: dict[str, int]
    pixels: Callable[[int], DecodedImage]
    views: int


def write_patch_set(
    config: PatchSetConfig,
    scenes: Sequence[Scene | PhotographFolder],
    out: Path,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the patches of all scenes to the folder `out`, atomically; returns the content of dataset.json.

    scenes: photographs if the source is homographies, otherwise reconstructions.

    Raises BadInputError, EmptyResultError if no scene has a class, NotWritableError.
    """
    check_patches_output(out, overwrite)
    generator = np.random.default_rng(seed)
    scene_patches = [
        _patches_of_photographs(config, scene, (seed, number))
        if isinstance(scene, PhotographFolder)
        else _patches_of_reconstruction(config, scene, generator)
        for number, scene in enumerate(scenes)
    ]
    for patches in scene_patches:
        LOGGER.info("%s: %s", patches.name, ", ".join(f"{key} {value:,}" for key, value in patches.counts.items()))
    if not any(len(patches.frames) for patches in scene_patches):
        raise EmptyResultError(f"{scene_patches[0].name}: no keypoint was found in two images; see --verbose")
    with making(out) as new:
        return _write_patch_set(config, scene_patches, new, generator, seed)


def check_patches_output(out: Path, overwrite: bool) -> None:
    """Refuse to replace a patch set without `overwrite`, and anything else always. Raises BadInputError."""
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / INFO).is_file():
        raise BadInputError(f"{out}: exists and is not a patch set; choose another --out")
    refuse_foreign(out)
    for path in out.iterdir():
        if not WRITTEN.fullmatch(path.name):
            raise BadInputError(f"{path}: {FOREIGN}")
    if not overwrite:
        raise BadInputError(f"{out}: exists already; choose another --out, or --overwrite")


def _patches_of_reconstruction(config: PatchSetConfig, scene: Scene, generator: np.random.Generator) -> _ScenePatches:
    """Patches of a reconstruction, from tracks or geometry."""
    tracks = scene.tracks
    detections = list(_detect_keypoints(config, scene, generator))
    if config.source == "geometry":
        frames, counts = geometric_frames(
            tracks,
            detections,
            config.geometry,
            config.classes,
            config.jitter,
            config.magnification,
            config.max_patches,
            generator,
        )
    else:
        classes = scene_classes(tracks, detections, config.classes)
        if config.max_patches is not None:
            sizes = np.bincount(classes.members.keypoints, minlength=len(classes.keypoints))
            classes = select_classes(classes, draw_complete_classes(sizes, config.max_patches, generator))
        frames, counts = Frames.of_detections(classes, detections), classes.counts
    return _ScenePatches(
        tracks.name,
        scene.licence,
        tracks.image_names,
        frames,
        counts,
        lambda image: decode(inside(scene.images, tracks.image_names[image]), scene.decoding),
        len(tracks.image_names),
    )


def _patches_of_photographs(
    config: PatchSetConfig, photographs: PhotographFolder, seed: tuple[int, int]
) -> _ScenePatches:
    """Patches of single photographs."""
    views, frames, counts = homography_frames(
        photographs,
        config.homographies,
        config.detector,
        config.classes,
        config.jitter,
        config.magnification,
        config.max_patches,
        seed,
        config.workers,
    )
    return _ScenePatches(
        photographs.name, photographs.licence, views.names, frames, counts, views.render, config.homographies.views
    )


def _detect_keypoints(config: PatchSetConfig, scene: Scene, generator: np.random.Generator) -> list[Detections]:
    """Keypoints of every image, in the order of the tracks, in pixels of the file."""
    tracks, kept = scene.tracks, []
    sizes = [tuple(size) for size in tracks.image_sizes.tolist()]
    names = tracks.image_names
    detections = detected(
        config.detector, scene.images, names, tracks.name, generator, config.workers, scene.decoding, scene.keypoints
    )
    for name, expected_size, (size, image_keypoints) in zip(names, sizes, detections, strict=True):
        if size != expected_size:
            raise BadInputError(
                f"{scene.images / name}: {size[0]} x {size[1]} pixels, but the model's camera has {expected_size[0]} x"
                f" {expected_size[1]}; use the photographs the model was made from"
            )
        if config.whole_patches:
            complete = within(corners(image_keypoints, config.magnification), size)
            image_keypoints = Detections(
                image_keypoints.xy[complete], image_keypoints.scales[complete], image_keypoints.oris[complete]
            )
        kept.append(image_keypoints)
    return kept


def _write_patch_set(
    config: PatchSetConfig,
    scene_patches: Sequence[_ScenePatches],
    folder: Path,
    generator: np.random.Generator,
    seed: int,
) -> dict[str, Any]:
    classes, images, groups, rows = _number_across_scenes(scene_patches)
    bitmaps = create_bitmaps(folder, len(classes))
    for scene, first in zip(scene_patches, rows, strict=True):
        _write_scene_patches(config, scene, bitmaps, first)
    write_info(folder, classes, images)
    write_scenes(folder, [(scene.name, name) for scene in scene_patches for name in scene.images])
    pairs = draw_pairs(classes, groups, config.test_pairs, generator)
    written = write_phototour_pairs(folder, pairs, classes)
    licences = {scene.name: scene.licence for scene in scene_patches}
    write_text(folder / LICENCE, "".join(f"{name}: {text.strip()}\n" for name, text in licences.items()))
    summary = {
        "featkit_version": __version__,
        "seed": seed,
        "settings": config.result_fields(),
        "patches": len(classes),
        "classes": int(classes.max()) + 1,
        "images": int(images.max()) + 1,
        "test_pairs": {"file": written.name, "matching": int(pairs.match.sum()), "other": int((~pairs.match).sum())},
        "scenes": {scene.name: scene.counts for scene in scene_patches},
        "licences": licences,
    }
    write_text(folder / DATASET, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return summary


def _number_across_scenes(
    scene_patches: Sequence[_ScenePatches],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Class, image and group of every patch, numbered across all scenes, and each scene's first patch.

    Both patches of a test pair come from the same group: a scene, or one photograph.
    """
    classes, images, groups, rows = [], [], [], []
    next_class = next_image = next_group = next_row = 0
    for scene in scene_patches:
        frames = scene.frames
        classes.append(frames.classes + next_class)
        images.append(frames.images + next_image)
        groups.append(frames.images // scene.views + next_group)
        rows.append(next_row)
        next_class += len(frames.sizes())
        next_image += len(scene.images)
        next_group += len(scene.images) // scene.views
        next_row += len(frames)
    return np.concatenate(classes), np.concatenate(images), np.concatenate(groups), rows


def _write_scene_patches(config: PatchSetConfig, scene: _ScenePatches, bitmaps: MappedPatches, first: int) -> None:
    frames = scene.frames
    with progress(f"cut {scene.name}", len(scene.images), "images") as advance:
        for image in range(len(scene.images)):
            rows = np.flatnonzero(frames.images == image)
            if len(rows):
                keypoints = Detections(frames.xy, frames.scales, frames.oris)
                bitmaps[first + rows] = cut(config, scene.pixels(image), keypoints, rows)
            advance(1)


def cut(
    config: PatchSetConfig, image: DecodedImage, keypoints: Detections, index: Int[np.ndarray, " n"]
) -> UInt8[np.ndarray, "n 64 64"]:
    """Patches at the positions, sizes and directions of some keypoints."""

    xy, scales, oris = in_pixels(image, keypoints.xy[index], keypoints.scales[index], keypoints.oris[index])
    patches = cut_patches(
        torch.from_numpy(np.ascontiguousarray(image.pixels)),
        torch.from_numpy(xy),
        torch.from_numpy(config.magnification * scales),
        torch.from_numpy(oris),
        SIDE,
    )
    return (patches * 255).round().clamp(0, 255).to(torch.uint8).numpy()
