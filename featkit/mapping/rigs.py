"""Camera rigs: read from a file in COLMAP's format or found from folders; relative poses given or estimated.

A rig is a reference camera and others fixed to it; a frame is the photographs they took at the same time. Names of a
camera's photographs start with its prefix, and the rest of the name is equal within a frame: cam0/0001.jpg,
cam1/0001.jpg.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from featkit.core.config import Config, Degrees, Number, Share, make
from featkit.core.errors import BadInputError, UsageError
from featkit.core.types import Pose
from featkit.images.exif import some_names
from featkit.images.listing import natural_key
from featkit.images.read import stored_size
from featkit.io.atomic import read_json
from featkit.io.camera_models import camera_fault, camera_models
from featkit.io.lists import Intrinsics

LOGGER = logging.getLogger(__name__)
FOLDERS = "folders"
"""Value of `--rig` for sibling folders with equal names, instead of a file."""
RIG_KEY = "rig_config"
"""Key in metrics.json: a map's rigs in COLMAP's format, so that metrics.json can be used as a rig file."""
STAMP_DIGITS = 10
"""Names of at least this many digits are time stamps: seconds since 1970 have ten."""


class RigConfig(Config):
    """Cameras on rigs."""

    refine: bool = False
    """Let the mapper refine given relative poses of a rig's cameras too; estimated ones are always refined."""
    max_time_share: Share = 0.25
    """Maximum difference of the time stamps in a frame, as a fraction of the reference camera's median interval."""
    max_turn_deg: Degrees = 5.0
    """Maximum median deviation of a camera's rotation relative to its rig over the frames it is estimated from,
    degrees. If it is larger, the cameras are not on one rig.
    """
    max_shift: Share = 0.1
    """Maximum median deviation of a camera's position relative to its rig, as a fraction of the median distance of the
    rig from the centre of its path.
    """


@dataclass(frozen=True)
class RigCamera:
    """A camera of a rig. prefix: start of its photographs' names. cam_from_rig: None for the reference, or if unknown.

    intrinsics: COLMAP's model and its parameters, if the file gives them.
    """

    prefix: str
    cam_from_rig: Pose | None = None
    intrinsics: tuple[str, tuple[float, ...]] | None = None


@dataclass(frozen=True)
class Rig:
    """A rig, whose first camera is the reference. frames: photographs of each frame, by index of the camera."""

    cameras: tuple[RigCamera, ...]
    frames: tuple[Mapping[int, str], ...]

    @property
    def is_known(self) -> bool:
        """Whether the relative poses of all cameras are given."""
        return all(camera.cam_from_rig is not None for camera in self.cameras[1:])


def read_rigs(given: str, names: Sequence[str], config: RigConfig) -> tuple[Rig, ...]:
    """The rigs of a scene. given: a rig file, the metrics.json of a map with rigs, or "folders".

    names: the photographs. Reports photographs that are on no rig, and incomplete frames. Raises BadInputError.
    """
    if given == FOLDERS:
        rigs, where = _rigs_from_folders(names, config), "--rig folders"
    else:
        rigs, where = _read_rig_file(Path(given), names, config), given
    taken = {name for rig in rigs for frame in rig.frames for name in frame.values()}
    outside = [name for name in names if name not in taken]
    if outside:
        LOGGER.warning("rig: %d photographs are on no rig: %s", len(outside), some_names(outside))
    for number, rig in enumerate(rigs):
        prefixes = ", ".join(camera.prefix for camera in rig.cameras)
        gaps = [frame for frame in rig.frames if len(frame) < len(rig.cameras)]
        if len(rig.cameras) > 1 and not any(len(frame) > 1 for frame in rig.frames):
            raise BadInputError(
                f"{where}: no two cameras of the rig ({prefixes}) have photographs of the same time: names after the"
                f" prefix must be equal, or close time stamps; one name is {next(iter(rig.frames[0].values()))!r}"
            )
        LOGGER.info("rig: %d cameras (%s), %d frames", len(rig.cameras), prefixes, len(rig.frames))
        if gaps:
            first = [next(iter(frame.values())) for frame in gaps]
            LOGGER.warning(
                "rig %d: %d of %d frames are incomplete, such as those of %s",
                *(number + 1, len(gaps), len(rig.frames), some_names(first)),
            )
    return rigs


def usable_rigs(rigs: Sequence[Rig], names: Collection[str]) -> tuple[Rig, ...]:
    """The rigs restricted to the photographs in `names`, without cameras that have no photograph left.

    Raises BadInputError if a rig's reference camera has no photograph left.
    """
    found = []
    for rig in rigs:
        frames = [{place: name for place, name in frame.items() if name in names} for frame in rig.frames]
        left = sorted({place for frame in frames for place in frame})
        if left[:1] != [0]:
            raise BadInputError(f"rig: no photograph of the reference camera {rig.cameras[0].prefix!r} can be used")
        place_of = {place: number for number, place in enumerate(left)}
        kept = tuple({place_of[place]: name for place, name in frame.items()} for frame in frames if frame)
        found.append(Rig(tuple(rig.cameras[place] for place in left), kept))
    return tuple(found)


def describe_rigs(rigs: Sequence[Rig]) -> str:
    """Everything about rigs that affects a result, in full precision, for a digest."""
    return repr(
        [
            (
                [
                    (camera.prefix, pose and (pose.qvec.tolist(), pose.tvec.tolist()), camera.intrinsics)
                    for camera, pose in ((one, one.cam_from_rig) for one in rig.cameras)
                ],
                [sorted(frame.items()) for frame in rig.frames],
            )
            for rig in rigs
        ]
    )


def in_order(rig: Rig) -> list[Mapping[int, str]]:
    """A rig's frames by time: the natural order of what follows the prefixes."""

    def time(frame: Mapping[int, str]) -> tuple[list[tuple[str, int]], str]:
        place = min(frame)
        [key] = names_by_frame(rig.cameras[place].prefix, [frame[place]])
        return natural_key(key)

    return sorted(rig.frames, key=time)


def shared_camera_keys(rigs: Sequence[Rig]) -> dict[str, str]:
    """The prefix of each photograph's rig camera, by photograph: photographs with equal prefixes share a camera."""
    return {name: rig.cameras[place].prefix for rig in rigs for frame in rig.frames for place, name in frame.items()}


def add_rig_intrinsics(
    rigs: Sequence[Rig], images: Path, listed: Mapping[str, Intrinsics] | None
) -> dict[str, Intrinsics] | None:
    """Known intrinsics by photograph: those listed, and those of the rig file. Raises BadInputError for conflicts."""
    found = dict(listed or {})
    for rig in rigs:
        for frame in rig.frames:
            for place, name in frame.items():
                camera = rig.cameras[place]
                if camera.intrinsics is None:
                    continue
                if name in found:
                    raise BadInputError(f"{name!r}: both the rig file and --intrinsics give its camera; leave out one")
                model, params = camera.intrinsics
                size = stored_size(images / name)
                if fault := camera_fault(camera_models()[model], size, params):
                    raise BadInputError(f"the rig file's camera for {camera.prefix!r} does not fit {name!r}: {fault}")
                found[name] = Intrinsics(model, *size, params)
    for prefix, names in _names_by_prefix(rigs).items():
        if len({found.get(name) for name in names}) > 1:
            raise BadInputError(
                f"--intrinsics: the photographs of {prefix!r} are from one camera of a rig, but their intrinsics differ"
                " or are missing; give all of them the same"
            )
    return found or None


def _names_by_prefix(rigs: Sequence[Rig]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, prefix in shared_camera_keys(rigs).items():
        grouped.setdefault(prefix, []).append(name)
    return grouped


# ----------------------------------------------------------------------------------------------------------------------
# A rig file: COLMAP's rig_config.json (its documentation, "Rig Support"), quaternions w x y z.


class CameraEntry(Config):
    """One camera of a rig file."""

    image_prefix: str = Field(min_length=1)
    """Start of the names of the camera's photographs."""
    ref_sensor: bool = False
    """Whether it is the rig's reference camera; exactly one camera is."""
    cam_from_rig_rotation: tuple[Number, Number, Number, Number] | None = None
    """Quaternion w, x, y, z of the rotation from the reference camera's frame to its own; None if unknown."""
    cam_from_rig_translation: tuple[Number, Number, Number] | None = None
    """Translation from the reference camera's frame to its own, in map units; None if unknown."""
    camera_model_name: str | None = None
    """COLMAP camera model; requires camera_params."""
    camera_params: tuple[Number, ...] | None = None
    """Parameters of the camera model in COLMAP's order, px."""


class RigEntry(Config):
    """One rig of a rig file."""

    cameras: tuple[CameraEntry, ...] = Field(min_length=1)
    """The rig's cameras, in any order."""


def _read_rig_file(path: Path, names: Sequence[str], config: RigConfig) -> tuple[Rig, ...]:
    content = read_json(path, "a rig file", "write it as COLMAP's rig_config.json, or use --rig folders")
    if isinstance(content, dict):
        content = content.get(RIG_KEY)
    if not isinstance(content, list) or not content:
        raise BadInputError(f"{path}: a rig file is a list of rigs, each with `cameras`")
    rigs = [_parse_rig(entry, f"{path}: rig {number}") for number, entry in enumerate(content, start=1)]
    prefixes = [camera.prefix for cameras in rigs for camera in cameras]
    for prefix, count in Counter(prefixes).items():
        if count > 1:
            raise BadInputError(f"{path}: two cameras have the image_prefix {prefix!r}")
    under: dict[str, list[str]] = {prefix: [] for prefix in prefixes}
    for name in names:
        longest = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
        if longest is not None:
            under[longest].append(name)
    for prefix, own in under.items():
        if not own:
            raise BadInputError(
                f"{path}: no photograph's name starts with {prefix!r}; names are relative to their folder, such as"
                f" {names[0]!r}"
            )
    return tuple(
        Rig(cameras, find_frames([(one.prefix, under[one.prefix]) for one in cameras], config)) for cameras in rigs
    )


def _parse_rig(entry: Any, where: str) -> tuple[RigCamera, ...]:
    """Parse the cameras of one rig; the reference comes first."""
    try:
        cameras = make(RigEntry, entry if isinstance(entry, dict) else {"cameras": entry}, where).cameras
    except UsageError as error:
        raise BadInputError(str(error)) from None
    references = [one.image_prefix for one in cameras if one.ref_sensor]
    if len(references) != 1:
        found = f"has {len(references)} reference sensors ({', '.join(references)})" if references else "has none"
        raise BadInputError(f'{where} {found}; exactly one camera must have "ref_sensor": true')
    checked = [
        _parse_rig_camera(one, f"{where}: {one.image_prefix!r}")
        for one in sorted(cameras, key=lambda c: not c.ref_sensor)
    ]
    unknown = [one.prefix for one in checked[1:] if one.cam_from_rig is None]
    if 0 < len(unknown) < len(checked) - 1:
        raise BadInputError(
            f"{where} gives the poses of some cameras, but not of {', '.join(unknown)}; give all, or none to have"
            " them estimated"
        )
    return tuple(checked)


def _parse_rig_camera(entry: CameraEntry, where: str) -> RigCamera:
    rotation, translation = entry.cam_from_rig_rotation, entry.cam_from_rig_translation
    if (rotation is None) != (translation is None):
        raise BadInputError(f"{where} has only one of cam_from_rig_rotation and cam_from_rig_translation")
    if entry.ref_sensor and rotation is not None:
        raise BadInputError(f"{where} is the reference sensor, which must not have a cam_from_rig_rotation")
    pose = None
    if rotation is not None and translation is not None:
        length = float(np.linalg.norm(rotation))
        if not 0.5 < length < 2.0:
            raise BadInputError(f"{where}: cam_from_rig_rotation has length {length:.3g}, but a quaternion has 1")
        pose = Pose(np.array(rotation) / length, np.array(translation))
    name, params = entry.camera_model_name, entry.camera_params
    if (name is None) != (params is None):
        raise BadInputError(f"{where} has only one of camera_model_name and camera_params")
    if name is None or params is None:
        return RigCamera(entry.image_prefix, pose)
    model = camera_models().get(name)
    if model is None:
        raise BadInputError(f"{where}: no camera model {name!r}; there is {', '.join(camera_models())}")
    if len(params) != len(model.params):
        raise BadInputError(f"{where}: {name} takes {','.join(model.params)}, {len(params)} numbers are given")
    return RigCamera(entry.image_prefix, pose, (name, params))


# ----------------------------------------------------------------------------------------------------------------------
# Rigs found from folders, and frames found from names or time stamps.


def _rigs_from_folders(names: Sequence[str], config: RigConfig) -> tuple[Rig, ...]:
    """Rigs of sibling folders in which at least half of the photographs have a counterpart in another folder."""
    rigs = tuple(_sibling_rigs("", list(names), config))
    if not rigs:
        raise BadInputError(
            "--rig folders: no sibling folders have photographs with equal names or times, such as cam0/0001.jpg and"
            " cam1/0001.jpg; describe the rig in a rig.json"
        )
    return rigs


def _sibling_rigs(above: str, names: Sequence[str], config: RigConfig) -> Iterator[Rig]:
    below: dict[str, list[str]] = {}
    for name in names:
        folder, slash, _ = name[len(above) :].partition("/")
        if slash:
            below.setdefault(f"{above}{folder}/", []).append(name)
    folders = sorted(below, key=lambda folder: (-len(below[folder]), folder))  # the first is the reference
    frames = find_frames([(folder, below[folder]) for folder in folders], config)
    with_others = [sum(1 for frame in frames if place in frame and len(frame) > 1) for place in range(len(folders))]
    chosen = [
        folder for folder, count in zip(folders, with_others, strict=True) if 2 * count >= len(below[folder]) and count
    ]
    if len(chosen) > 1:
        chosen.sort(key=lambda folder: (-len(below[folder]), folder))
        yield Rig(
            tuple(RigCamera(folder) for folder in chosen),
            find_frames([(folder, below[folder]) for folder in chosen], config),
        )
    for folder in sorted(set(below) - set(chosen if len(chosen) > 1 else ())):
        yield from _sibling_rigs(folder, below[folder], config)


def find_frames(cameras: Sequence[tuple[str, Sequence[str]]], config: RigConfig) -> tuple[Mapping[int, str], ...]:
    """Frames of cameras given as prefixes and photographs; the first camera is the reference.

    Photographs of a frame have equal names, as cam0/0001.jpg and cam1/0001.jpg, or names that are equal without their
    folder's, as left/0001_left.jpg and right/0001_right.jpg, whichever finds more of them.
    """
    ways = [
        match_frames([names_by_frame(prefix, names, without) for prefix, names in cameras], config)
        for without in (False, True)
    ]
    return max(ways, key=lambda frames: sum(len(frame) for frame in frames if len(frame) > 1))


def names_by_frame(prefix: str, names: Sequence[str], without_folder: bool = True) -> dict[str, str]:
    """Image names by their frame key: the name after the prefix, without suffix.

    without_folder: also without the folder's name, where it is no part of a longer word: in left/0001_left.jpg, not in
    l/left_0001.jpg. A number, as in 1/0001.jpg, stays. Of several names with one key the first counts.
    """
    folder = os.path.basename(prefix.rstrip("/"))
    word = re.compile(rf"(?<![^\W\d_]){re.escape(folder)}(?![^\W\d_])")
    found: dict[str, str] = {}
    for name in names:
        path, _, last = name[len(prefix) :].rpartition("/")
        stem = last.rpartition(".")[0] or last
        rest = word.sub("", stem) if without_folder and folder and not folder.isdigit() else stem
        found.setdefault(f"{path}/{rest or stem}", name)
    return found


def match_frames(cameras: Sequence[Mapping[str, str]], config: RigConfig) -> tuple[Mapping[int, str], ...]:
    """Frames sorted by key. cameras: each camera's photographs by frame key; the first is the reference."""
    if not cameras:
        return ()
    aligned = [cameras[0], *(_match_by_time(cameras[0], other, config.max_time_share) for other in cameras[1:])]
    keys = sorted({key for keyed in aligned for key in keyed})
    return tuple({place: keyed[key] for place, keyed in enumerate(aligned) if key in keyed} for key in keys)


def _match_by_time(reference: Mapping[str, str], other: Mapping[str, str], max_share: float) -> Mapping[str, str]:
    """Another camera's photographs under the reference's keys, matched by nearest time if the keys are time stamps."""
    stamps = {key: int(key[1:]) for key in (*reference, *other) if key[1:].isascii() and key[1:].isdigit()}
    is_time = all(key in stamps and len(key) > STAMP_DIGITS for key in (*reference, *other))
    if not is_time or len(reference) < 2 or 2 * len(reference.keys() & other.keys()) >= len(other):
        return other
    times = np.array(sorted(stamps[key] for key in reference))
    key_of = {stamps[key]: key for key in reference}
    limit = max_share * float(np.median(np.diff(times)))
    best: dict[str, tuple[int, str]] = {}
    alone = {}
    for key, name in other.items():
        nearest = int(times[np.abs(times - stamps[key]).argmin()])
        distance, target = abs(nearest - stamps[key]), key_of[nearest]
        if distance > limit or (target in best and best[target][0] <= distance):
            alone[key] = name
            continue
        if target in best:
            alone[f"/{nearest}-{best[target][0]}"] = best[target][1]
        best[target] = (distance, name)
    return {**alone, **{key: name for key, (_, name) in best.items()}}
