"""`featkit data posed-pairs`: mapped scenes -> posed pairs in the layout of posed_pairs.py.

    OUT/scene/dense0/aligned/...    the photographs as a pinhole camera sees them, their cameras, the pairs
    OUT/scene/made.json             settings and counts; written last, so a scene with it is whole
    OUT/dataset.json, licence.txt   of all scenes

A scene grows in OUT/.scene.part and is moved when it is whole; a command that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from featkit import __version__
from featkit.data.pair_choice import PairChoiceConfig, shared_counts
from featkit.data.posed_scene import DENSE, JOURNAL, PosedPairsConfig, write_scene
from featkit.data.scene_patches import DATASET, LICENCE, Scene
from featkit.data.tracks import SceneTracks
from featkit.errors import BadInputError, EmptySceneError, NotWritableError
from featkit.store.artifact import inside, scratch, write_stamp, write_text
from featkit.store.stamp import FOREIGN, digest, is_own_json, is_stamped, read_stamp, refuse_foreign

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
MADE, STARTED = "made.json", "started.json"


def make_posed_pairs(
    config: PosedPairsConfig, scenes: Sequence[Scene], out: Path, seed: int = 0, overwrite: bool = False
) -> dict[str, Any]:
    """Write posed pairs of all scenes to the folder `out`; scenes that are whole there are kept. Of several scenes
    those with nothing to learn from are passed over with a line. Returns what dataset.json holds. Raises BadInputError,
    NotWritableError.
    """
    check_output(out)
    scenes = kept_of(scenes, lambda scene: _check_shared(scene.tracks, config.choice))
    counts: dict[str, dict[str, Any]] = {}
    try:
        scenes = kept_of(
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


def kept_of(items: Sequence[T], work: Callable[[T], object]) -> list[T]:
    """The items that `work` finds something to learn from in; the others are passed over with a line.

    Raises the first EmptySceneError when none is left.
    """
    kept, empty = [], []
    for item in items:
        try:
            work(item)
            kept.append(item)
        except EmptySceneError as error:
            empty.append(error)
    if not kept and empty:
        raise empty[0]
    for reason in empty:
        LOGGER.warning("passed over: %s", reason)
    return kept


def check_output(out: Path) -> None:
    """Refuse a folder that holds anything but posed pairs. Raises BadInputError."""
    if out.is_file():
        raise BadInputError(f"{out}: is a file; choose another --out")
    for entry in sorted(out.iterdir()) if out.is_dir() else ():
        known = entry.name in {DATASET, LICENCE} or entry.name.startswith(".") or (entry / MADE).is_file()
        if not known:
            raise BadInputError(f"{out}: holds {entry.name!r}, so it is no set of posed pairs; choose another --out")
    refuse_foreign(out / DATASET)
    if os.path.lexists(out / LICENCE) and not _is_made(out):
        raise BadInputError(f"{out / LICENCE}: {FOREIGN}")


def _is_made(out: Path) -> bool:
    """Whether a folder holds posed pairs, or scenes of them."""
    return (out / DATASET).is_file() or any((entry / MADE).is_file() for entry in out.iterdir())


def _check_shared(tracks: SceneTracks, config: PairChoiceConfig) -> None:
    """Raise BadInputError, before anything is written, when no two images share enough points."""
    seen = [np.unique(tracks.observed_points[tracks.observed_images == i]) for i in range(len(tracks.image_names))]
    most = shared_counts(seen, len(tracks.points)).max()
    if most < config.min_shared:
        raise EmptySceneError(
            f"{tracks.name}: no two images share {config.min_shared} points (at most {most}); map the scene with more"
            " photographs of the same things, or lower choice.min_shared"
        )


def _make_scene(config: PosedPairsConfig, scene: Scene, out: Path, seed: int, overwrite: bool) -> dict[str, Any]:
    name, inputs = scene.tracks.name, _inputs(scene, seed)
    target, part = out / name, out / f".{name}.part"
    if is_stamped(target / MADE, config, inputs):
        LOGGER.info("%s: up to date in %s", name, target)
        return (read_stamp(target / MADE) or {})["counts"]
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
            _remove_part(part)
            write_stamp(part / STARTED, config, inputs)
        try:
            counts = write_scene(config, scene, part, np.random.default_rng([seed, 4]))
        except EmptySceneError:
            _remove_part(part)
            raise
        write_stamp(part / MADE, config, inputs, counts=counts)
    for file in (STARTED, JOURNAL):
        (part / file).unlink(missing_ok=True)
    with scratch(out / f".{name}.old") as aside:
        if target.exists():
            target.rename(aside / name)
        part.rename(target)
    return (read_stamp(target / MADE) or {})["counts"]


def _remove_part(part: Path) -> None:
    """Remove what another command, which was stopped, left of a scene. Raises BadInputError for another folder."""
    is_own = part.is_dir() and any(is_own_json(part / name) for name in (STARTED, MADE))
    if part.is_symlink() or not (is_own or not os.path.lexists(part) or (part.is_dir() and not any(part.iterdir()))):
        raise BadInputError(
            f"{part}: is in the way of a temporary folder, and is none of featkit's; remove it yourself"
        )
    shutil.rmtree(part, ignore_errors=True)


def _inputs(scene: Scene, seed: int) -> str:
    """A digest of the map, of the sizes of the photographs' files, and of the seed."""
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
