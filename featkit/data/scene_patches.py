"""Patches in UBC's format from any reconstruction: detect again, find the classes, cut, write.

Folder written: see phototour.py, and dataset.json (settings, scenes, counts) and licence.txt beside it.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from featkit import __version__
from featkit.config import Config, Runtime
from featkit.data.keypoint_classes import ClassesConfig, Detections
from featkit.data.patch_pairs import draw_pairs
from featkit.data.phototour import INFO, SIDE, MappedPatches, create_bitmaps, write_info, write_pairs, write_scenes
from featkit.data.scene_classes import SceneClasses, kept_classes, scene_classes
from featkit.data.tracks import SceneTracks
from featkit.errors import BadInputError, NothingCameOutError
from featkit.features.extract import ExtractConfig, ExtractJob
from featkit.features.workers import usable_cores, workers
from featkit.images.decode import DecodeConfig, DecodedImage, decode
from featkit.log import progress
from featkit.store.artifact import inside, making, write_text
from featkit.store.stamp import FOREIGN, refuse_foreign
from featkit.types import Features

LOGGER = logging.getLogger(__name__)
WINDOW = 2  # images in flight per worker
DATASET, LICENCE = "dataset.json", "licence.txt"
WRITTEN = re.compile(r"patches\d+\.bmp|info\.txt|scenes\.txt|m50_\d+_\d+_0\.txt|dataset\.json|licence\.txt")
NO_LICENCE = "not stated: ask whoever took the photographs"


class PatchesConfig(Config):
    """Everything that decides a set of patches."""

    classes: ClassesConfig = ClassesConfig()
    magnification: float = 12.0
    """Side of a patch in sigmas of its keypoint; the `patches` extractor's default too."""
    peak_threshold: float = 0.01 / 3
    """Smallest DoG response of a detection: half of COLMAP's, so that weak repetitions of a keypoint count too."""
    max_num_features: int = 100_000
    """Detections of an image, coarse scales first."""
    whole_patches: bool = True
    """Leave out detections whose patch reaches beyond the image."""
    max_patches: int | None = None
    """Of each scene, by whole classes drawn at random; None: all."""
    test_pairs: int = 100_000
    """Half of them matching; fewer when the set has fewer matching ones. UBC's test sets have 100,000."""
    workers: Runtime[int] = 0
    """Processes that detect; 0: one per core."""


@dataclass(frozen=True)
class Scene:
    """A reconstruction to take patches of, where its photographs lie, and their licence."""

    tracks: SceneTracks
    images: Path
    licence: str = NO_LICENCE


@dataclass(frozen=True)
class _Cut:
    """The patches of one scene, before they are cut."""

    scene: Scene
    detections: list[Detections]
    classes: SceneClasses


def make_patches(
    config: PatchesConfig, scenes: Sequence[Scene], out: Path, seed: int = 0, overwrite: bool = False
) -> dict[str, Any]:
    """Write the patches of all scenes to the folder `out`, whole or not at all; returns what dataset.json holds.

    Raises BadInputError, NothingCameOutError when no scene gives a class, NotWritableError.
    """
    check_output(out, overwrite)
    generator = np.random.default_rng(seed)
    found = [_classes_of(config, scene, generator) for scene in scenes]
    if not any(len(part.classes.keypoints) for part in found):
        raise NothingCameOutError(f"{scenes[0].images}: no keypoint was found again in two images; see --verbose")
    with making(out) as new:
        return _write(config, found, new, generator, seed)


def check_output(out: Path, overwrite: bool) -> None:
    """Refuse to replace what is there, and ever to replace what is no set of patches. Raises BadInputError."""
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / INFO).is_file():
        raise BadInputError(f"{out}: is there and is no set of patches; choose another --out")
    refuse_foreign(out)
    for path in out.iterdir():
        if not WRITTEN.fullmatch(path.name):
            raise BadInputError(f"{path}: {FOREIGN}")
    if not overwrite:
        raise BadInputError(f"{out}: is there already; choose another --out, or --overwrite")


def _classes_of(config: PatchesConfig, scene: Scene, generator: np.random.Generator) -> _Cut:
    detections = list(_detected(config, scene))
    classes = scene_classes(scene.tracks, detections, config.classes)
    LOGGER.info("%s: %s", scene.tracks.name, ", ".join(f"{k} {v:,}" for k, v in classes.counts.items()))
    if config.max_patches is not None:
        classes = _limited(classes, config.max_patches, generator)
    return _Cut(scene, detections, classes)


def _detected(config: PatchesConfig, scene: Scene) -> Iterator[Detections]:
    """DoG keypoints of every image, in the order of the tracks, in pixels of the file."""
    changes = {"max_num_features": config.max_num_features, "peak_threshold": config.peak_threshold}
    job = ExtractJob.resolve(ExtractConfig(features="rootsift"), changes, "cpu")
    count = config.workers or usable_cores()
    names = scene.tracks.image_names
    with workers(job, count, names) as pool, progress(f"detect {scene.tracks.name}", len(names), "images") as advance:
        waiting: deque = deque()
        for number in range(len(names) + count * WINDOW):
            if number < len(names):
                waiting.append((names[number], pool.submit(inside(scene.images, names[number]))))
            if number >= count * WINDOW and waiting:
                name, future = waiting.popleft()
                features = pool.result(future, name)
                yield _detections(config, features, scene, names.index(name))
                advance(1)


def _detections(config: PatchesConfig, features: Features, scene: Scene, image: int) -> Detections:
    size = tuple(scene.tracks.image_sizes[image].tolist())
    if features.image_size != size:
        raise BadInputError(
            f"{scene.images / scene.tracks.image_names[image]}: {features.image_size[0]} x {features.image_size[1]}"
            f" pixels, but the model's camera has {size[0]} x {size[1]}; use the photographs the model was made of"
        )
    assert features.scales is not None
    assert features.oris is not None
    xy, scales, oris = (np.asarray(v, dtype=np.float64) for v in (features.keypoints, features.scales, features.oris))
    if config.whole_patches:
        reach = (config.magnification / 2 * scales * (np.abs(np.cos(oris)) + np.abs(np.sin(oris))))[:, None]
        whole = ((xy - reach >= -0.5) & (xy + reach <= np.array(size) - 0.5)).all(axis=1)
        xy, scales, oris = xy[whole], scales[whole], oris[whole]
    return Detections(xy, scales, oris)


def _limited(classes: SceneClasses, max_patches: int, generator: np.random.Generator) -> SceneClasses:
    """Whole classes in random order while they fit."""
    sizes = np.bincount(classes.members.keypoints, minlength=len(classes.keypoints))
    order = generator.permutation(len(sizes))
    kept = np.zeros(len(sizes), bool)
    kept[order[np.cumsum(sizes[order]) <= max_patches]] = True
    return kept_classes(classes, kept)


def _write(
    config: PatchesConfig, found: Sequence[_Cut], folder: Path, generator: np.random.Generator, seed: int
) -> dict[str, Any]:
    classes, images, scenes, rows = _numbered(found)
    bitmaps = create_bitmaps(folder, len(classes))
    for part, first in zip(found, rows, strict=True):
        _cut_scene(config, part, bitmaps, first)
    write_info(folder, classes, images)
    write_scenes(folder, [(p.scene.tracks.name, name) for p in found for name in p.scene.tracks.image_names])
    pairs = draw_pairs(classes, scenes, config.test_pairs, generator)
    written = write_pairs(folder, pairs, classes)
    licences = {p.scene.tracks.name: p.scene.licence for p in found}
    write_text(folder / LICENCE, "".join(f"{name}: {text.strip()}\n" for name, text in licences.items()))
    summary = {
        "featkit_version": __version__,
        "seed": seed,
        "settings": config.result_fields(),
        "patches": len(classes),
        "classes": int(classes.max()) + 1,
        "images": int(images.max()) + 1,
        "test_pairs": {"file": written.name, "matching": int(pairs.match.sum()), "other": int((~pairs.match).sum())},
        "scenes": {p.scene.tracks.name: p.classes.counts for p in found},
        "licences": licences,
    }
    write_text(folder / DATASET, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return summary


def _numbered(found: Sequence[_Cut]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Class, image and scene of every patch, numbered through all scenes, and each scene's first patch."""
    classes, images, scenes, rows = [], [], [], []
    next_class = next_image = next_row = 0
    for number, part in enumerate(found):
        members = part.classes.members
        classes.append(members.keypoints + next_class)
        images.append(members.images + next_image)
        scenes.append(np.full(len(members.images), number))
        rows.append(next_row)
        next_class += len(part.classes.keypoints)
        next_image += len(part.detections)
        next_row += len(members.images)
    return np.concatenate(classes), np.concatenate(images), np.concatenate(scenes), rows


def _cut_scene(config: PatchesConfig, part: _Cut, bitmaps: MappedPatches, first: int) -> None:
    members, tracks = part.classes.members, part.scene.tracks
    with progress(f"cut {tracks.name}", len(tracks.image_names), "images") as advance:
        for image, name in enumerate(tracks.image_names):
            rows = np.flatnonzero(members.images == image)
            if len(rows):
                decoded = decode(inside(part.scene.images, name), DecodeConfig())
                index = members.detections[rows]
                bitmaps[first + rows] = cut(config, decoded, part.detections[image], index)
            advance(1)


def cut(
    config: PatchesConfig, image: DecodedImage, found: Detections, index: Int[np.ndarray, " n"]
) -> UInt8[np.ndarray, "n 64 64"]:
    """Patches at the detections' own positions, sizes and directions."""
    import torch

    from featkit.features.patch_cutting import cut_patches

    xy, scales, oris = in_pixels(image, found.xy[index], found.scales[index], found.oris[index])
    patches = cut_patches(
        torch.from_numpy(np.ascontiguousarray(image.pixels)),
        torch.from_numpy(xy),
        torch.from_numpy(config.magnification * scales),
        torch.from_numpy(oris),
        SIDE,
    )
    return (patches * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def in_pixels(
    image: DecodedImage, xy: Float[np.ndarray, "n 2"], scales: Float[np.ndarray, " n"], oris: Float[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keypoints in pixels of the file -> in the decoded (turned upright) pixels."""
    linear = np.linalg.inv(image.stored_from_pixels[:, :2])
    directions = np.stack([np.cos(oris), np.sin(oris)], axis=1) @ linear.T
    return (
        image.pixels_from_file(xy),
        scales * np.sqrt(abs(np.linalg.det(linear))),
        np.arctan2(directions[:, 1], directions[:, 0]),
    )
