"""A video -> sharp frames that overlap as much as a map needs, with their times.

The video is decoded twice. First every frame is looked at in a small copy: how sharp it is, and how the image has moved
since the frames before (`motion`). Frames are chosen by these numbers alone, and the second time the chosen ones are
written. No pictures are kept in between, so a video may be of any length.

    frame_000000.jpg, frame_000037.jpg, ...   numbers of frames in the video, so names sort by time
    frames.csv                                name,time_s,frame,sharpness,overlap
    frames.json                               what made them; only files that it lists are replaced
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from featkit.core.config import Config, Count, PositiveShare, differences
from featkit.core.errors import BadInputError, EmptyResultError, blaming, refuse_pipe
from featkit.core.log import progress
from featkit.images.listing import SUFFIXES
from featkit.images.motion import Follower, Motion, MotionConfig, sharpness_of
from featkit.io.artifact import part_of, place_files, refuse_foreign, scratch, write_bytes, write_text
from featkit.io.atomic import FOREIGN, is_stamped, read_stamp, stamped_files

LOGGER = logging.getLogger(__name__)
LIST, STAMP = "frames.csv", "frames.json"
WRITTEN = re.compile(r"frame_\d{6,}\.(jpg|png)")
COLUMNS = ("name", "time_s", "frame", "sharpness", "overlap")
COUNTED = ("frames", "read", "duration_s", "is_cut_off")  # of frames.json, fields of Frames
COUNTS = TypeAdapter(tuple[int, int, float, bool])
HALVINGS = 12  # of the range in which a smaller overlap or rate is looked for
STILL = SUFFIXES - {".gif", ".webp", ".avif"}  # names of files that hold one picture
RATE_AND_COUNT = (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT)
HEAD = 1 << 12  # bytes, among which every video has a zero
BLOCK = 1 << 20  # bytes hashed at a time
REMEDY = "convert it (ffmpeg -i VIDEO -c:v libx264 new.mp4), or give another"


class FramesConfig(Config):
    """Which frames of a video are kept."""

    overlap: float = Field(0.8, ge=0.05, le=0.98)
    """Share of the picture that a frame has in common with the one kept before."""
    search: PositiveShare = 0.25
    """Frames compete for sharpness while their overlap differs from the target by less than this share of the step,
    1 - overlap: at 0.8 those from 0.75 to 0.85."""
    blurred_below: PositiveShare = 0.5
    """Where all of those are less than this share as sharp as one after half a step, that one is kept."""
    fps: float | None = Field(None, gt=0, le=1000)
    """Frames kept for each second of video, in place of an overlap. None: by overlap."""
    max_frames: Count | None = None
    """Keep at most this many frames, evenly over the way, with less overlap. None: any number."""
    resize_max: int | None = Field(None, ge=16, le=2**16)
    """Longer side of the written frames, px; smaller ones keep their size. None: the video's size."""
    image_format: Literal["jpg", "png"] = "jpg"
    """File format of the frames."""
    jpeg_quality: int = Field(95, ge=1, le=100)
    """JPEG quality, 1 to 100."""
    motion: MotionConfig = MotionConfig()
    """How frames are followed from one to the next."""

    @model_validator(mode="after")
    def _check_one_way(self) -> FramesConfig:
        if self.fps is not None and self.overlap != type(self).model_fields["overlap"].default:
            raise ValueError("overlap and fps: frames are kept by one of them; leave out the other")
        return self


@dataclass(frozen=True)
class VideoFrames:
    """Frames of a video. out: their folder; read: frames that were decoded; duration_s: time of the last one."""

    out: Path
    frames: int
    read: int
    duration_s: float
    is_cut_off: bool


def run(config: FramesConfig, video: Path, output: Path, *, overwrite: bool = False) -> VideoFrames:
    """Write sharp frames of a video, and their list, into a folder; other files in it stay.

    Done work is skipped when frames.json says that the same configuration and video made it and all its frames are
    there. overwrite: also make them anew then, or in place of another video's or configuration's. Raises BadInputError
    for what is no video, for such frames of others, or for files of these names that featkit did not make;
    EmptyResultError; NotWritableError.
    """
    _check_is_video(video)
    stamp = output / STAMP
    inputs = _sha256_of_video(video)
    _check_output(output)
    if not overwrite and (done := _read_finished(output, config, inputs)) is not None:
        LOGGER.info("frames: %s is done already", output)
        return done
    with scratch(part_of(output)) as new:
        found = survey(video, config)
        chosen = choose_frames(found, config)
        if not chosen:
            raise EmptyResultError(f"{video}: nothing in it has enough texture to follow; --fps takes frames by time")
        _log_choice(video, found, chosen, config)
        names = _write_frames(video, found, chosen, new, config)
        write_text(new / LIST, _csv_text(found, chosen, names), owned=True)
        counts = {"frames": len(chosen), "read": len(found.times), "duration_s": float(found.times[-1])}
        place_files(
            new, output, overwrite=True, stamp=stamp, only=True, kind="frames", fingerprint=config.fingerprint(),
            inputs=inputs, config=config.result_fields(), is_cut_off=found.is_cut_off, **counts,
        )  # fmt: skip
    return VideoFrames(output, len(chosen), len(found.times), float(found.times[-1]), found.is_cut_off)


def _read_finished(output: Path, config: FramesConfig, inputs: str) -> VideoFrames | None:
    """What is there already, whole. Raises BadInputError for frames of another video or configuration."""
    stamp = read_stamp(output / STAMP)
    if stamp is None:
        return None
    if not is_stamped(output / STAMP, config, inputs):
        changes = differences(json.dumps(stamp.get("config", {})), config)
        what = f"by another configuration ({changes})" if stamp.get("inputs") == inputs else "of another video"
        raise BadInputError(f"{output}: holds frames {what}; --overwrite replaces them, or choose another --out")
    files = stamped_files(output / STAMP)
    if not files or not all((output / name).is_file() for name in files):
        return None  # a run was killed here
    try:
        return VideoFrames(output, *COUNTS.validate_python([stamp.get(name) for name in COUNTED]))
    except ValidationError:
        return None  # changed by hand


def _check_output(output: Path) -> None:
    """Raise BadInputError for files of the names to write that featkit did not make, or for a file in the place."""
    if output.exists() and not output.is_dir():
        raise BadInputError(f"{output}: is a file; give a folder for the frames with --out")
    refuse_foreign(output / STAMP, output / LIST)
    listed_files = stamped_files(output / STAMP)
    for path in sorted(output.glob("frame_*")):
        if WRITTEN.fullmatch(path.name) and path.name not in listed_files:
            raise BadInputError(f"{path}: {FOREIGN}")


# ----------------------------------------------------------------------------------------------------------------------
# Decoding. OpenCV turns the frames as the video's metadata say (phones).


def _check_is_video(video: Path) -> None:
    """Raise BadInputError for what cannot be a video, with what it is."""
    if video.is_dir():
        raise BadInputError(f"{video}: is a folder; give one video file")
    with blaming(video, "a video", REMEDY):
        refuse_pipe(video)
        with video.open("rb") as file:
            head = file.read(HEAD)
    if not head:
        raise BadInputError(f"{video}: is an empty file, not a video")
    if video.suffix.lower() in STILL:
        raise BadInputError(f"{video}: is a photograph, not a video; put it among the images as it is")
    if b"\0" not in head:  # also playlists, which would have other files read
        raise BadInputError(f"{video}: is a text file, not a video")


def _sha256_of_video(video: Path) -> str:
    """sha256 of the file, in hex."""
    hashed = hashlib.sha256()
    with blaming(video, "a video", REMEDY), video.open("rb") as file:
        while block := file.read(BLOCK):
            hashed.update(block)
    return hashed.hexdigest()


@contextmanager
def _open_video(video: Path) -> Iterator[cv2.VideoCapture]:
    """The video, from its first frame. Raises BadInputError."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg would print what it thinks of damaged files
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    capture = cv2.VideoCapture()
    try:
        with blaming(video, "a video that can be decoded", REMEDY):
            is_open = capture.open(str(video.absolute()), cv2.CAP_FFMPEG)
        if not is_open:
            why = "damaged, cut off before its index was written, or of an unknown kind"
            raise BadInputError(f"{video}: not a video that can be decoded ({why}); {REMEDY}")
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        yield capture
    finally:
        capture.release()
        cv2.utils.logging.setLogLevel(level)


def _fit(image: UInt8[np.ndarray, "h w 3"], longest: int | None) -> UInt8[np.ndarray, "H W 3"]:
    """The image with its longer side at most so long."""
    height, width = image.shape[:2]
    if longest is None or max(height, width) <= longest:
        return image
    scale = longest / max(height, width)
    return cv2.resize(
        image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )


# ----------------------------------------------------------------------------------------------------------------------
# Every frame looked at: time, sharpness, motion.


@dataclass(frozen=True)
class Survey:
    """What is known of every frame.

    times: seconds from the start. sharpness: variance of the Laplacian, grey levels squared. shots: runs of frames that
    hold together by known motion; -1: a frame in none. places: motions since the first frame of the shot. size: width
    and height of the small copies. is_cut_off: the file ends before it should.
    """

    times: Float[np.ndarray, " n"]
    sharpness: Float[np.ndarray, " n"]
    shots: Int[np.ndarray, " n"]
    places: Sequence[Motion]
    size: tuple[int, int]
    is_cut_off: bool = False

    def hold(self, first: int, second: int) -> bool:
        """Whether the motion between two frames is known."""
        return bool(self.shots[first] == self.shots[second] >= 0)

    def overlap(self, first: int, second: int) -> float:
        """Share of the picture that two frames have in common, of the one that has less; 0 in different shots."""
        if not self.hold(first, second):
            return 0.0
        return self.places[second].since(self.places[first]).overlap(self.size)


def survey(video: Path, config: FramesConfig) -> Survey:
    """Look at every frame of a video. Raises BadInputError when not one can be decoded."""
    motion_config = config.motion
    times, sharpness, shots, places = [], [], [], []
    with _open_video(video) as capture:
        fps, announced = (max(0.0, float(np.nan_to_num(capture.get(what)))) for what in RATE_AND_COUNT)
        follower = Follower(motion_config, max(1, round(motion_config.max_lost_s * (fps or 25))))
        with progress("look at frames", int(announced), "frames") as advance:
            while capture.grab():
                is_whole, image = capture.retrieve()
                if not is_whole:
                    break
                small = cv2.cvtColor(_fit(image, motion_config.small_px), cv2.COLOR_BGR2GRAY)
                shot_and_place = follower.add(small)
                times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
                sharpness.append(sharpness_of(small))
                shots.append(shot_and_place[0])
                places.append(shot_and_place[1])
                advance(1)
    if not times:
        raise BadInputError(f"{video}: not one frame of it can be decoded; {REMEDY}")
    seconds = _increasing_times(np.array(times), fps, video)
    is_cut_off = bool(len(times) < announced and fps > 0 and seconds[-1] < (announced - 2) / fps)
    count = len(times) - 1 if is_cut_off and len(times) > 1 else len(times)  # the last may be half a picture
    if is_cut_off:
        LOGGER.warning("%s: the file is cut off: %d of %d frames can be read, up to %.1f s; they are used",
                       video, count, announced, seconds[count - 1])  # fmt: skip
    size = (small.shape[1], small.shape[0])
    sharp, shot = (np.array(column)[:count] for column in (sharpness, shots))
    return Survey(seconds[:count], sharp, shot, places[:count], size, is_cut_off)


def _increasing_times(times: Float[np.ndarray, " n"], fps: float, video: Path) -> Float[np.ndarray, " n"]:
    """The times of frames, by their numbers where the file has none that grow. Raises BadInputError."""
    if np.isfinite(times).all() and (np.diff(times) > 0).all():
        return times
    if not fps:
        raise BadInputError(f"{video}: has neither times of frames nor a rate; {REMEDY}")
    LOGGER.warning("%s: its frames have no times that grow; they are counted at %g frames/s", video, fps)
    return np.arange(len(times)) / fps


# ----------------------------------------------------------------------------------------------------------------------
# Frames chosen by what is known of them.


def choose_frames(found: Survey, config: FramesConfig) -> list[int]:
    """Numbers of the frames to keep, in order."""
    if config.fps is not None:
        return _limit_count(config.max_frames, lambda share: by_time(found, config, share * float(config.fps or 0)))
    return _limit_count(config.max_frames, lambda share: frames_by_overlap(found, config, share * config.overlap))


def _limit_count(number: int | None, chosen_at: Callable[[float], list[int]]) -> list[int]:
    """What is chosen at about the largest share of the rate or overlap that chooses at most so many."""
    best = chosen_at(1.0)
    if number is None or len(best) <= number:
        return best
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        share = (low + high) / 2
        chosen = chosen_at(share)
        if len(chosen) <= number:
            low, best = share, chosen
        else:
            high = share
    if low == 0:  # more shots than frames are wanted
        best = chosen
    return [best[i] for i in np.linspace(0, len(best) - 1, min(number, len(best))).round().astype(int)]


def by_time(found: Survey, config: FramesConfig, fps: float) -> list[int]:
    """The sharpest frame from the middle half of each 1 / fps seconds, or from all of it if those are blurred."""
    slot_positions = (found.times - found.times[0]) * fps + 1e-9
    slots = np.floor(slot_positions).astype(np.int64)
    central = np.abs(slot_positions - slots - 0.5) <= 0.25
    frames_of_slots = np.split(np.arange(len(slots)), np.flatnonzero(np.diff(slots)) + 1)
    return [
        _sharpest_or_fallback(found, config, frames[central[frames]].tolist(), frames.tolist())
        for frames in frames_of_slots
    ]


def frames_by_overlap(found: Survey, config: FramesConfig, target: float) -> list[int]:
    """Frames that overlap the one before by about the target: the sharpest of those within `search` of the step."""
    in_shots = np.flatnonzero(found.shots >= 0)
    chosen = []
    for frames in np.split(in_shots, np.flatnonzero(np.diff(found.shots[in_shots])) + 1) if len(in_shots) else []:
        shot = frames.tolist()
        kept: int | None = _first_of_shot(found, shot, 1 - config.search * (1 - target))
        while kept is not None:
            chosen.append(kept)
            kept = _next_frame(found, shot[shot.index(kept) + 1 :], kept, config, target)
    return chosen


def _first_of_shot(found: Survey, shot: list[int], least: float) -> int:
    """The sharpest of the frames at a shot's begin that show nearly what its first one does."""
    similar = itertools.takewhile(lambda frame: found.overlap(shot[0], frame) >= least, shot)
    return _sharpest(found, list(similar))


def _next_frame(found: Survey, later: list[int], kept: int, config: FramesConfig, target: float) -> int | None:
    """Which of the later frames of the shot to keep after `kept`; None: its image has not moved on enough."""
    step = 1 - target
    low, high, halfway = target - config.search * step, target + config.search * step, target + 0.5 * step
    candidates: list[int] = []
    earlier: list[int] = []
    for position, frame in enumerate(later):
        common = found.overlap(kept, frame)
        if common < low:
            if not candidates:  # nothing in between: rather too much overlap than too little
                return later[max(0, position - 1)]
            break
        if common <= high:
            candidates.append(frame)
        elif common <= halfway:
            earlier.append(frame)
    if not candidates:
        return None
    return _sharpest_or_fallback(found, config, candidates, earlier)


def _sharpest_or_fallback(found: Survey, config: FramesConfig, wanted: Sequence[int], others: Sequence[int]) -> int:
    """The sharpest of the wanted frames, unless it is blurred compared with the others' sharpest."""
    best = [_sharpest(found, frames) for frames in (wanted, others) if frames]
    return best[-1] if found.sharpness[best[0]] < config.blurred_below * found.sharpness[best[-1]] else best[0]


def _sharpest(found: Survey, frames: Sequence[int]) -> int:
    return int(frames[int(np.argmax(found.sharpness[np.asarray(frames)]))])


def _log_choice(video: Path, found: Survey, chosen: Sequence[int], config: FramesConfig) -> None:
    unknown: Bool[np.ndarray, " n"] = found.shots < 0
    if unknown.any():
        LOGGER.info("frames: the motion of %d of %d frames is unknown (blurred, dark)", unknown.sum(), len(unknown))
    if found.shots.max() > 0:
        LOGGER.warning("%s: cuts, or places too fast to follow: %d; frames on both sides may have nothing in common",
                       video, found.shots.max())  # fmt: skip
    if len(chosen) == 1 and config.max_frames != 1:
        LOGGER.warning("%s: the picture hardly moves; one frame shows all of it", video)


# ----------------------------------------------------------------------------------------------------------------------
# The chosen frames written.


def _write_frames(video: Path, found: Survey, chosen: Sequence[int], folder: Path, config: FramesConfig) -> list[str]:
    """Write the chosen frames into a folder; their names. Raises BadInputError where the video is another by now."""
    digits = max(6, len(str(len(found.times))))
    names = [f"frame_{index:0{digits}}.{config.image_format}" for index in chosen]
    options = [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality] if config.image_format == "jpg" else []
    name_of_frame = dict(zip(chosen, names, strict=True))
    with _open_video(video) as capture, progress("write frames", len(chosen), "frames") as advance:
        for index in range(chosen[-1] + 1):
            if not capture.grab():
                raise BadInputError(f"{video}: has fewer frames than a moment ago; run it again when it is whole")
            if index in name_of_frame:
                image = _fit(capture.retrieve()[1], config.resize_max)
                data = cv2.imencode(f".{config.image_format}", image, options)[1].tobytes()
                write_bytes(folder / name_of_frame[index], data, owned=True)
                advance(1)
    return names


def _csv_text(found: Survey, chosen: Sequence[int], names: Sequence[str]) -> str:
    """The text of frames.csv. overlap: with the frame before; empty where it is unknown."""
    text = io.StringIO()
    rows: Any = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for place, (index, name) in enumerate(zip(chosen, names, strict=True)):
        common = (
            f"{found.overlap(chosen[place - 1], index):.3f}" if place and found.hold(chosen[place - 1], index) else ""
        )
        rows.writerow((name, f"{found.times[index]:.6f}", index, f"{found.sharpness[index]:.1f}", common))
    return text.getvalue()
