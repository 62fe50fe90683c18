"""`featkit data posed-pairs`: mapped scenes -> posed pairs in the layout of posed_pairs.py.

    OUT/scene/dense0/aligned/...    undistorted photographs (pinhole camera), their cameras, the pairs
    OUT/scene/made.json             settings and counts; written last, so a scene that has it is complete
    OUT/dataset.json, licence.txt   for all scenes

A scene is written to OUT/.scene.part and moved when it is complete; an interrupted command resumes where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from featkit import __version__
from featkit.core.config import Config, Factor, FactorOrZero, Runtime, WorkerCount, digest
from featkit.core.errors import BadInputError, EmptySceneError, NotWritableError
from featkit.core.log import progress
from featkit.core.runtime import capped
from featkit.data.make_patches import DATASET, LICENCE
from featkit.data.pair_choice import (
    PairChoiceConfig,
    PairStatistics,
    PinholeView,
    candidates,
    choose_training_pairs,
    shared_counts,
)
from featkit.data.posed_format import CameraTable, format_cameras, parse_cameras, posed_pairs_text
from featkit.data.posed_pairs import (
    ALIGNED,
    CAMERAS,
    IMAGES,
    PAIRS,
    STATISTICS,
    PosedConfig,
    camera_faults,
    resize_factors,
)
from featkit.data.tracks import Scene, SceneTracks, skip_empty_scenes
from featkit.data.undistort import Pinhole, ResizedProjector, pinhole_of, pinhole_picture
from featkit.geometry.pixels import intrinsics_from_colmap
from featkit.images.read import DecodedImage, decode
from featkit.io.artifact import inside, scratch, write_bytes, write_stamp, write_text
from featkit.io.atomic import FOREIGN, is_own_json, is_stamped, read_stamp, refuse_foreign

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
MADE, STARTED = "made.json", "started.json"


def write_posed_pairs(
    config: PosedPairsConfig, scenes: Sequence[Scene], out: Path, seed: int = 0, overwrite: bool = False
) -> dict[str, Any]:
    """Write posed pairs of all scenes to the folder `out`, where completed scenes are kept. If there are several
    scenes, those without usable pairs are skipped with a warning. Returns the content of dataset.json. Raises
    BadInputError, NotWritableError.
    """
    check_pairs_output(out)
    scenes = skip_empty_scenes(scenes, lambda scene: _check_shared_points(scene.tracks, config.choice))
    counts: dict[str, dict[str, Any]] = {}
    try:
        scenes = skip_empty_scenes(
            scenes,
            lambda scene: counts.update({scene.tracks.name: _make_scene(config, scene, out, seed, overwrite)}),
        )
        summary = {
            "featkit_version": __version__,
            "seed": seed,
            "settings": config.result_fields(),
            "pairs": sum(count["pairs"] for count in counts.values()),
            "images": sum(count["images"] for count in counts.values()),
            "scenes": counts,
            "licences": {scene.tracks.name: scene.licence for scene in scenes},
        }
        licences = "".join(f"{scene.tracks.name}: {scene.licence.strip()}\n" for scene in scenes)
        write_text(out / LICENCE, licences, owned=True)
        write_text(out / DATASET, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise NotWritableError(f"{out}: cannot be written ({error.strerror}); choose another --out") from None
    return summary


def check_pairs_output(out: Path) -> None:
    """Refuse a folder that contains anything but posed pairs. Raises BadInputError."""
    if out.is_file():
        raise BadInputError(f"{out}: is a file; choose another --out")
    for entry in sorted(out.iterdir()) if out.is_dir() else ():
        known = entry.name in {DATASET, LICENCE} or entry.name.startswith(".") or (entry / MADE).is_file()
        if not known:
            raise BadInputError(f"{out}: contains {entry.name!r}, so it is no posed-pairs folder; choose another --out")
    refuse_foreign(out / DATASET)
    if os.path.lexists(out / LICENCE) and not _holds_posed_pairs(out):
        raise BadInputError(f"{out / LICENCE}: {FOREIGN}")


def _holds_posed_pairs(out: Path) -> bool:
    """Whether a folder contains posed pairs, complete or only some scenes."""
    return (out / DATASET).is_file() or any((entry / MADE).is_file() for entry in out.iterdir())


def _check_shared_points(tracks: SceneTracks, config: PairChoiceConfig) -> None:
    """Raise EmptySceneError, before anything is written, if no two images share enough points."""
    seen = [np.unique(tracks.observed_points[tracks.observed_images == i]) for i in range(len(tracks.image_names))]
    most = shared_counts(seen, len(tracks.points)).max()
    if most < config.min_shared:
        raise EmptySceneError(
            f"{tracks.name}: no two images share {config.min_shared} points (at most {most}); map the scene with more"
            " photographs of the same things, or lower choice.min_shared"
        )


def _make_scene(config: PosedPairsConfig, scene: Scene, out: Path, seed: int, overwrite: bool) -> dict[str, Any]:
    name, inputs = scene.tracks.name, _inputs_digest(scene, seed)
    target, part = out / name, out / f".{name}.part"
    if is_stamped(target / MADE, config, inputs):
        LOGGER.info("%s: up to date in %s", name, target)
        return _made_counts(target)
    refuse_foreign(target)
    for path in target.iterdir() if target.is_dir() else ():
        if path.name not in (DENSE, MADE):
            raise BadInputError(f"{path}: {FOREIGN}")
    if target.exists() and not overwrite:
        raise BadInputError(
            f"{target}: was made with other settings or from another map; --overwrite, or choose another --out"
        )
    if not is_stamped(part / MADE, config, inputs):
        if not is_stamped(part / STARTED, config, inputs):
            _remove_partial_scene(part)
            write_stamp(part / STARTED, config, inputs)
        try:
            counts = write_scene(config, scene, part, np.random.default_rng([seed, 4]))
        except EmptySceneError:
            _remove_partial_scene(part)
            raise
        write_stamp(part / MADE, config, inputs, counts=counts)
    for file in (STARTED, JOURNAL):
        (part / file).unlink(missing_ok=True)
    with scratch(out / f".{name}.old") as aside:
        if target.exists():
            target.rename(aside / name)
        part.rename(target)
    return _made_counts(target)


def _made_counts(target: Path) -> dict[str, Any]:
    """What a scene's made.json says was made. Raises BadInputError where it has been changed."""
    counts = (read_stamp(target / MADE) or {}).get("counts")
    if not isinstance(counts, dict):
        raise BadInputError(f"{target / MADE}: says nothing of what was made; remove {target} and make it again")
    return counts


def _remove_partial_scene(part: Path) -> None:
    """Remove the partial scene of an interrupted command. Raises BadInputError for any other folder."""
    is_own = part.is_dir() and any(is_own_json(part / name) for name in (STARTED, MADE))
    if part.is_symlink() or not (is_own or not os.path.lexists(part) or (part.is_dir() and not any(part.iterdir()))):
        raise BadInputError(
            f"{part}: is in the way of a temporary folder and was not made by featkit; remove it yourself"
        )
    shutil.rmtree(part, ignore_errors=True)


def _inputs_digest(scene: Scene, seed: int) -> str:
    """A digest of the map, the file sizes of the photographs, and the seed."""
    tracks = scene.tracks
    hashed = hashlib.sha256()
    for array in (
        tracks.image_sizes,
        tracks.rotations,
        tracks.translations,
        tracks.points,
        tracks.observed_points,
        tracks.observed_images,
        tracks.observed_xy,
    ):
        hashed.update(np.ascontiguousarray(array).tobytes())
    paths = {name: inside(scene.images, name) for name in tracks.image_names}
    sizes = [f"{name} {path.stat().st_size if path.is_file() else -1}" for name, path in paths.items()]
    return digest(hashed.hexdigest(), str(seed), *sizes)


# ----------------------------------------------------------------------------------------------------------------------
# One mapped scene as posed pairs: undistorted and reduced photographs, their cameras, and the chosen pairs.


DENSE, JOURNAL = "dense0", "img_cam.part"
BOX_DIGITS = 1  # decimals of box coordinates in pairs.json


class PosedPairsConfig(Config):
    """All settings that determine a set of posed pairs."""

    max_side: int = Field(800, ge=64, le=2**16)
    """Longer side of the photographs, px; smaller ones keep their size."""
    quality: int = Field(92, ge=1, le=100)
    """JPEG quality, 1 to 100."""
    choice: PairChoiceConfig = PairChoiceConfig()
    """Which pairs of photographs are taken."""
    principal_tolerance: Runtime[Factor] = PosedConfig().principal_tolerance
    """Largest offset of the principal point, as in `PosedConfig`. A higher value is also needed in the training."""
    stretch_tolerance: Runtime[FactorOrZero] = PosedConfig().stretch_tolerance
    """Largest difference between the resize factors of width and height, as in `PosedConfig`."""
    workers: Runtime[WorkerCount] = 0
    """Photographs resampled in parallel; 0: one per core."""


def write_scene(config: PosedPairsConfig, scene: Scene, folder: Path, generator: np.random.Generator) -> dict[str, Any]:
    """Write folder/dense0/aligned, keeping photographs that the journal lists. Returns counts.

    Raises BadInputError, EmptySceneError.
    """
    aligned = folder / DENSE / ALIGNED
    aligned.mkdir(parents=True, exist_ok=True)
    table = _write_photographs(config, scene, aligned, folder / JOURNAL)
    views = [
        PinholeView((int(w), int(h)), k, r, t)
        for (w, h), k, r, t in zip(
            table.sizes, intrinsics_from_colmap(table.intrinsics), table.rotations, table.translations, strict=True
        )
    ]
    possible = candidates(scene.tracks, views, config.choice)
    if not len(possible):
        raise EmptySceneError(
            f"{scene.tracks.name}: no pair that shares points is within the limits of the choice (angles, rotation,"
            " scale, overlap); change them with --set choice.max_angle_deg=90 and the like"
        )
    chosen = choose_training_pairs(possible, len(views), config.choice.max_pairs, generator)
    used = np.unique(chosen.pairs)
    for image in np.setdiff1d(np.arange(len(views)), used):
        inside(aligned / IMAGES, table.names[image]).unlink(missing_ok=True)
    write_text(aligned / CAMERAS, format_cameras(_select_rows(table, used)), owned=True)
    pairs = posed_pairs_text(chosen.pairs, table.names)
    write_text(aligned / PAIRS, pairs, owned=True)
    write_text(aligned / STATISTICS, json.dumps(_pair_statistics(chosen, pairs)) + "\n", owned=True)
    return _summary_counts(scene, chosen, len(possible), len(used))


def name_of(name: str) -> str:
    """The file name of an image in the output: always a JPEG."""
    return name if name.lower().endswith((".jpg", ".jpeg")) else f"{name}.jpg"


def _write_photographs(config: PosedPairsConfig, scene: Scene, aligned: Path, journal: Path) -> CameraTable:
    """Write all photographs that are missing; returns the cameras of all, in the order of the tracks.

    The journal is an img_cam.txt in the order of writing; a line in it marks a photograph as complete.
    """
    tracks = scene.tracks
    names = [name_of(name) for name in tracks.image_names]
    _check_names(names, scene.images)
    for name in tracks.image_names:
        inside(scene.images, name)
    done = _read_journal(journal, aligned)
    missing = [number for number, name in enumerate(names) if name not in done]

    def write_numbered(number: int) -> tuple[int, CameraTable]:
        return number, _write_photograph(config, scene, number, inside(aligned / IMAGES, names[number]))

    with (
        ThreadPoolExecutor(capped(config.workers)) as pool,
        progress(f"photographs of {tracks.name}", len(missing), "images") as advance,
        journal.open("w", encoding="utf-8") as lines,
    ):
        lines.write("".join(done.values()))
        for number, camera in pool.map(write_numbered, missing):
            line = format_cameras(camera)
            lines.write(line)
            lines.flush()
            done[names[number]] = line
            advance(1)
    return parse_cameras("".join(done[name] for name in names), str(journal))


def _read_journal(journal: Path, aligned: Path) -> dict[str, str]:
    """Lines of existing photographs, by name; a truncated line is ignored."""
    if not journal.is_file():
        return {}
    complete = [line for line in journal.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    if not complete:
        return {}
    names = parse_cameras("".join(complete), str(journal)).names
    return {name: line for name, line in zip(names, complete, strict=True) if inside(aligned / IMAGES, name).is_file()}


def _camera_row(scene: Scene, number: int, pinhole: Pinhole) -> CameraTable:
    """Its line of img_cam.txt."""
    return CameraTable(
        (name_of(scene.tracks.image_names[number]),),
        np.array([0]),
        np.array([pinhole.size]),
        pinhole.intrinsics[None],
        (pinhole.turn @ scene.tracks.rotations[number])[None],
        (pinhole.turn @ scene.tracks.translations[number])[None],
    )


def _write_photograph(config: PosedPairsConfig, scene: Scene, number: int, target: Path) -> CameraTable:
    path = inside(scene.images, scene.tracks.image_names[number])
    image = decode(path, scene.decoding, colour=True)
    width, height = scene.tracks.image_sizes[number].tolist()
    size = (width, height)
    factors = resize_factors(size, image.stored_size, config.stretch_tolerance)
    if factors is None:
        raise BadInputError(
            f"{path}: {image.stored_size[0]} x {image.stored_size[1]} pixels, but the model's camera has"
            f" {size[0]} x {size[1]}: cropped or rotated; use the photographs the model was made from (at any size)"
        )
    if np.linalg.det(image.stored_from_pixels[:, :2]) < 0:  # no camera can undo mirroring: pixels stay as stored
        image = _as_stored(image)
    projector = scene.tracks.projectors[number]
    if factors != (1.0, 1.0):
        projector = ResizedProjector(projector, factors)
    try:
        pinhole = pinhole_of(projector, image.size, image.stored_from_pixels, config.max_side)
        camera = _camera_row(scene, number, pinhole)
        faults = camera_faults(camera, PosedConfig(principal_tolerance=config.principal_tolerance))
        if faults:
            raise BadInputError(f"{path}: {faults[0]}")
        picture = pinhole_picture(image, projector, pinhole)
    except ValueError as error:
        raise BadInputError(
            f"{path}: cannot be undistorted ({error}); remove it from the model, or map the scene again"
        ) from None
    _write_jpeg(picture, target, config.quality)
    return camera


def _as_stored(image: DecodedImage) -> DecodedImage:
    """The image with its pixels as they are stored."""
    linear = image.stored_from_pixels[:, :2].round().astype(int)
    pixels = image.pixels if linear[0, 0] else image.pixels.transpose(1, 0, 2)
    stored = linear if linear[0, 0] else linear @ np.array([[0, 1], [1, 0]])
    pixels = np.ascontiguousarray(pixels[:: stored[1, 1], :: stored[0, 0]])
    return DecodedImage(pixels, image.stored_size, np.eye(2, 3))


def _write_jpeg(picture: UInt8[np.ndarray, "h w 3"], target: Path, quality: int) -> None:
    encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    write_bytes(target, encoded.tobytes(), owned=True)


def _check_names(names: Sequence[str], images: Path) -> None:
    """Raise BadInputError for names that cannot be written in a text file, or that two images would share."""
    for name in names:
        if name != name.strip() or "\t" in name or name.splitlines() != [name] or name[0] == "#":
            raise BadInputError(f"{images}: the name {name!r} cannot be used in a text file; rename it and map again")
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise BadInputError(f"{images}: two images would be written as {duplicate!r}; rename one and map again")


def _select_rows(table: CameraTable, rows: np.ndarray) -> CameraTable:
    return CameraTable(
        tuple(table.names[row] for row in rows),
        table.lines[rows],
        table.sizes[rows],
        table.intrinsics[rows],
        table.rotations[rows],
        table.translations[rows],
    )


def _pair_statistics(chosen: PairStatistics, pairs: str) -> dict[str, Any]:
    """The content of pairs.json: lists in the order of pairs.txt."""
    return {
        "of_pairs": digest(pairs),
        "shared": chosen.shared.tolist(),
        "overlap": chosen.overlap.round(4).tolist(),
        "angle_deg": chosen.angle_deg.round(3).tolist(),
        "rotation_deg": chosen.rotation_deg.round(3).tolist(),
        "scale": chosen.scale.round(4).tolist(),
        "box0": chosen.box0.round(BOX_DIGITS).tolist(),
        "box1": chosen.box1.round(BOX_DIGITS).tolist(),
    }


def _summary_counts(scene: Scene, chosen: PairStatistics, possible: int, images: int) -> dict[str, Any]:
    def rounded_median(values: np.ndarray) -> float:
        return round(float(np.median(values)), 3)

    return {
        "images": images,
        "of_images": len(scene.tracks.image_names),
        "pairs": len(chosen),
        "of_pairs": possible,
        "median_shared": rounded_median(chosen.shared),
        "median_overlap": rounded_median(chosen.overlap),
        "median_angle_deg": rounded_median(chosen.angle_deg),
        "median_rotation_deg": rounded_median(chosen.rotation_deg),
        "median_scale": rounded_median(chosen.scale),
    }
