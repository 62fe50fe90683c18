"""Frames of videos of which every motion is known."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from short_videos import RATE, SIZE, cut_off, panned, texture, turned_by_phone, turning_cylinder, window, write_video

import featkit
from featkit.core.errors import BadInputError, EmptyResultError, UsageError
from featkit.images.listing import list_images
from featkit.images.motion import Motion, similarity
from featkit.images.video import FramesConfig, Survey, choose_frames, run, survey

COUNT = 60
BLURRED = {number for number in range(COUNT) if number % 3}  # two of three
LEFTS = np.cumsum(np.linspace(1.0, 6.0, COUNT)) - 1.0  # px that the camera has panned, ever faster


@pytest.fixture(scope="module")
def pan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("pan") / "pan.avi", panned(LEFTS, BLURRED))


@pytest.fixture(scope="module")
def found(pan: Path) -> Survey:
    return survey(pan, FramesConfig())


@pytest.fixture(scope="module")
def written(pan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pan's frames by default. Never written to."""
    folder = tmp_path_factory.mktemp("written") / "images"
    run(FramesConfig(), pan, folder)
    return folder


def listed(folder: Path) -> list[dict[str, Any]]:
    """The rows of frames.csv, which name the pictures in the folder and no others."""
    with (folder / "frames.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "time_s", "frame", "sharpness", "overlap"]
    assert [row["name"] for row in rows] == sorted(path.name for path in folder.glob("frame_*"))
    return rows


def kept(folder: Path) -> list[int]:
    return [int(row["frame"]) for row in listed(folder)]


def shared(first: int, second: int) -> float:
    """True overlap of two frames of the pan."""
    return max(0.0, 1 - abs(LEFTS[second] - LEFTS[first]) / SIZE[0])


@pytest.mark.parametrize("target", [0.8, 0.6])
def test_sharp_frames_near_the_target(found: Survey, target: float) -> None:
    frames = choose_frames(found, FramesConfig(overlap=target))
    assert not BLURRED & set(frames)
    step = 1 - target
    overlaps = [shared(*pair) for pair in itertools.pairwise(frames)]
    assert len(overlaps) >= 3
    assert all(target - step / 4 - 0.02 < one < target + step / 4 + 0.02 for one in overlaps[:-1])
    assert target - step / 4 - 0.02 < overlaps[-1] < target + step / 2 + 0.02  # sharp ones end before the target is met
    assert shared(0, frames[0]) > 1 - step / 4 - 0.02
    assert shared(frames[-1], COUNT - 1) > target - step / 4  # the end is seen


def test_times_overlaps_and_pictures_are_those_of_the_video(found: Survey, written: Path) -> None:
    rows = listed(written)
    assert kept(written) == choose_frames(found, FramesConfig())
    assert rows[0]["overlap"] == ""
    canvas = texture(int(LEFTS[-1]) + SIZE[0] + 8, SIZE[1])
    for before, row in zip([None, *rows], rows, strict=False):
        number = int(row["frame"])
        assert row["name"] == f"frame_{number:06d}.jpg"
        assert float(row["time_s"]) == pytest.approx(number / RATE, abs=1e-6)
        picture = cv2.imread(str(written / row["name"]))
        assert picture is not None
        assert np.abs(picture.astype(float) - window(canvas, LEFTS[number])).mean() < 4
        if before is not None:
            assert float(row["overlap"]) == pytest.approx(shared(int(before["frame"]), number), abs=0.02)
    assert list_images(written) == [row["name"] for row in rows]


def test_nothing_is_kept_while_the_camera_stands(tmp_path: Path) -> None:
    lefts = [*np.arange(0, 60, 3.0), *[60.0] * 40, *np.arange(60, 120, 3.0)]
    run(FramesConfig(), write_video(tmp_path / "v.avi", panned(lefts)), tmp_path / "images")
    frames = kept(tmp_path / "images")
    assert 3 <= len(frames) <= 5
    assert sum(20 <= frame < 60 for frame in frames) <= 1


def test_a_thing_that_turns_is_seen_from_all_sides(tmp_path: Path) -> None:
    """The picture as a whole does not move; a fifth of the surface is new after 36 degrees."""
    turns = np.arange(0, 240, 4.0)
    run(FramesConfig(), write_video(tmp_path / "v.avi", turning_cylinder(turns)), tmp_path / "images")
    steps = np.diff(turns[kept(tmp_path / "images")])
    assert 20 < np.median(steps) < 45
    assert steps.min() > 15
    assert steps.max() < 50


def test_zoom_and_rotation_lose_overlap() -> None:
    """In closed form; of two frames the one that shows less in common counts, in both directions."""
    for zoom in (2.0, 0.5):
        assert Motion(np.diag([zoom, zoom, 1.0])).overlap((100, 100)) == pytest.approx(0.25, abs=0.02)
    quarter = np.array([[0, -1, 99.0], [1, 0, 0], [0, 0, 1]])
    assert Motion(quarter).overlap((100, 100)) == pytest.approx(1.0)
    assert Motion(quarter, parallax=0.3).overlap((100, 100)) == pytest.approx(0.7)


def test_a_similarity_in_spite_of_outliers() -> None:
    rng = np.random.default_rng(3)
    points = rng.uniform(0, 200, (80, 2))
    turn = 1.1 * np.array([[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]])
    moved = points @ turn.T + [5.0, -3.0]
    moved[:12] += rng.uniform(-40, 40, (12, 2))
    found = similarity(points, moved)
    assert found[:2, :2] == pytest.approx(turn, abs=2e-3)
    assert found[:2, 2] == pytest.approx([5, -3], abs=0.5)


def test_motion_goes_on_after_frames_that_show_nothing(tmp_path: Path) -> None:
    lefts = np.arange(0, 180, 4.0)
    frames = [np.full_like(one, 90) if i in (7, 8, 21) else one for i, one in enumerate(panned(lefts))]
    run(FramesConfig(), write_video(tmp_path / "v.avi", frames), tmp_path / "images")
    assert not {7, 8, 21} & set(kept(tmp_path / "images"))
    rows = listed(tmp_path / "images")[1:]
    assert len(rows) >= 4
    assert all(0.72 < float(row["overlap"]) < 0.88 for row in rows)


def test_both_sides_of_a_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "featkit")
    frames = panned(np.arange(0, 80, 2.0)) + panned(np.arange(0, 80, 2.0), seed=5)
    run(FramesConfig(), write_video(tmp_path / "v.avi", frames), tmp_path / "images")
    rows = listed(tmp_path / "images")
    assert [row["overlap"] == "" for row in rows].count(True) == 2
    after = [int(row["frame"]) for row in rows if int(row["frame"]) >= 40]
    assert len(after) >= 2
    assert "cuts" in caplog.text


def test_by_time(found: Survey) -> None:
    frames = choose_frames(found, FramesConfig(fps=5))
    assert [frame // 5 for frame in frames] == list(range(COUNT // 5))  # of each fifth of a second
    assert not BLURRED & set(frames)
    assert choose_frames(found, FramesConfig(fps=1000)) == list(range(COUNT))


@pytest.mark.parametrize("fps", [None, 12.0])
def test_at_most_so_many_evenly(found: Survey, fps: float | None) -> None:
    frames = choose_frames(found, FramesConfig(max_frames=4, fps=fps))
    assert 3 <= len(frames) <= 4
    ways = np.diff(frames if fps else LEFTS[frames])
    assert ways.max() < 2.2 * ways.min()


def test_at_most_so_many_of_more_shots() -> None:
    cuts = Survey(np.arange(10) / RATE, np.ones(10), np.arange(10), [Motion(np.eye(3))] * 10, SIZE)
    assert choose_frames(cuts, FramesConfig()) == list(range(10))
    assert choose_frames(cuts, FramesConfig(max_frames=4)) == [0, 3, 6, 9]


def test_a_phones_rotation_is_applied(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", panned(np.arange(0, 40, 2.0)))
    run(FramesConfig(image_format="png"), video, tmp_path / "lying")
    turned_by_phone(video)
    run(FramesConfig(image_format="png"), video, tmp_path / "upright")
    first, turned = (sorted((tmp_path / name).glob("*.png"))[0] for name in ("lying", "upright"))
    assert first.name == turned.name
    lying, upright = cv2.imread(str(first)), cv2.imread(str(turned))
    assert lying is not None
    assert upright is not None
    assert np.array_equal(upright, cv2.rotate(lying, cv2.ROTATE_90_CLOCKWISE))


def test_smaller_frames(pan: Path, tmp_path: Path) -> None:
    run(FramesConfig(resize_max=80, max_frames=2), pan, tmp_path / "images")
    shapes = {cv2.imread(str(path)).shape for path in (tmp_path / "images").glob("*.jpg")}  # type: ignore[union-attr]
    assert shapes == {(56, 80, 3)}


# ----------------------------------------------------------------------------------------------------------------------
# What is no video, or half of one.


def test_a_file_that_is_cut_off_gives_what_it_has(
    pan: Path, written: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut = cut_off(Path(shutil.copy(pan, tmp_path)), 0.7)
    half = run(FramesConfig(), cut, tmp_path / "half")
    assert half.is_cut_off
    assert COUNT // 2 < half.read < 5 * COUNT // 6
    assert f"{half.read} of {COUNT} frames can be read" in caplog.text
    frames = kept(tmp_path / "half")
    assert frames[:-1] == kept(written)[: len(frames) - 1]
    assert len(frames) >= 3
    last = [(folder / f"frame_{frames[-2]:06d}.jpg").read_bytes() for folder in (written, tmp_path / "half")]
    assert last[0] == last[1]


def test_what_is_no_video(tmp_path: Path, featkit_command: Callable[..., Any]) -> None:
    whole = write_video(tmp_path / "v.mp4", panned(np.arange(0, 40, 2.0)))
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nv.mp4\n")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    cv2.imwrite(str(tmp_path / "photo.jpg"), texture(64, 48))
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, words in (
        (tmp_path / "nowhere.mp4", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "text.mp4", "a text file, not a video"),
        (tmp_path / "list.mp4", "a text file, not a video"),
        (tmp_path / "empty.mp4", "an empty file"),
        (tmp_path / "noise.mp4", "cannot be decoded|can be decoded"),
        (tmp_path / "photo.jpg", "a photograph"),
        (cut_off(whole, 0.6), "cut off before its index"),
        (tmp_path / "pipe.mp4", "a pipe or a device"),
        (Path("/dev/zero"), "a pipe or a device"),
    ):
        with pytest.raises(BadInputError, match=words) as error:
            run(FramesConfig(), path, tmp_path / "out")
        assert str(error.value).startswith(str(path))
    assert not (tmp_path / "out").exists()
    ran = featkit_command("frames", cut_off(whole, 0.6), "-o", tmp_path / "out")
    assert ran.code == 3
    assert ran.err.count("\n") == 1  # nothing of the decoder's own


def test_nothing_to_follow(tmp_path: Path) -> None:
    grey = write_video(tmp_path / "v.avi", [np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)] * 30)
    with pytest.raises(EmptyResultError, match="texture"):
        run(FramesConfig(), grey, tmp_path / "out")
    assert run(FramesConfig(fps=5), grey, tmp_path / "out").frames == 6


# ----------------------------------------------------------------------------------------------------------------------
# What is in the folder already.


def test_done_is_not_done_again(pan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "featkit")
    out = tmp_path / "images"
    first = run(FramesConfig(max_frames=3), pan, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(FramesConfig(max_frames=3), pan, out) == first
    assert "is done already" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    (out / listed(out)[1]["name"]).unlink()  # as after a killed run
    assert run(FramesConfig(max_frames=3), pan, out) == first
    assert len(listed(out)) == first.frames
    assert (out / "frames.csv").stat().st_mtime_ns != before[out / "frames.csv"]
    before[out / "frames.csv"] = (out / "frames.csv").stat().st_mtime_ns
    assert run(FramesConfig(max_frames=3), pan, out, overwrite=True) == first
    assert (out / "frames.csv").stat().st_mtime_ns != before[out / "frames.csv"]


def test_other_frames_take_the_place_of_the_old_ones_and_of_nothing_else(pan: Path, tmp_path: Path) -> None:
    out = tmp_path / "images"
    run(FramesConfig(fps=5), pan, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    other = Path(shutil.copy(pan, tmp_path / "other.avi"))
    with other.open("ab") as file:
        file.write(b"more")
    for video, config, words in (
        (pan, FramesConfig(), "configuration .fps: 5.0 -> None"),
        (other, FramesConfig(fps=5), "video"),
    ):
        with pytest.raises(BadInputError, match=f"another {words}.*--overwrite"):
            run(config, video, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "mine.jpg").write_bytes(b"a photograph")
    run(FramesConfig(max_frames=3), pan, out, overwrite=True)
    assert len(listed(out)) <= 3  # and no other frame is there
    assert (out / "mine.jpg").read_bytes() == b"a photograph"
    name = listed(out)[0]["name"]
    (out / name).write_bytes(b"painted over")
    with pytest.raises(BadInputError, match="was not made by featkit"):
        run(FramesConfig(fps=1000), pan, out, overwrite=True)
    assert (out / name).read_bytes() == b"painted over"


def test_frames_of_others_stay(pan: Path, tmp_path: Path) -> None:
    for name in ("frame_000009.jpg", "frames.csv", "frames.json"):
        out = tmp_path / name.partition(".")[0]
        out.mkdir(exist_ok=True)
        (out / name).write_bytes(b"mine")
        with pytest.raises(BadInputError, match="was not made by featkit"):
            run(FramesConfig(), pan, out, overwrite=True)
        assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [(name, b"mine")]
        (out / name).unlink()
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(BadInputError, match="is a file"):
        run(FramesConfig(), pan, tmp_path / "file")


def test_command_and_function(pan: Path, tmp_path: Path, featkit_here: Callable[..., Any]) -> None:
    ran = featkit_here("frames", pan, "--out", tmp_path / "a", "--overlap", 0.7, "--json", "-q")
    assert ran.code == 0, ran.err
    done = featkit.frames(str(pan), str(tmp_path / "a"), overlap=0.7)
    assert ran.json() == {
        "out": str(tmp_path / "a"), "frames": done.frames, "read": COUNT, "duration_s": (COUNT - 1) / RATE,
        "is_cut_off": False,
    }  # fmt: skip
    assert "times in frames.csv" in featkit_here("frames", pan, "-o", tmp_path / "a", "--overlap", 0.7).out
    with pytest.raises(UsageError, match="--max-frames"):
        featkit.frames(pan, tmp_path / "c", max_frames=0)
    with pytest.raises(UsageError, match=r"frames are kept by one of them; leave out the other$"):
        featkit.frames(pan, tmp_path / "c", overlap=0.7, fps=5)


def test_one_frame_that_was_asked_for_is_no_warning(
    pan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "featkit"):
        assert run(FramesConfig(max_frames=1), pan, tmp_path / "a").frames == 1
    assert "hardly moves" not in caplog.text


@pytest.mark.parametrize("change", [{"files": 5}, {"files": None}, {"frames": None}, {"is_cut_off": [1]}])
def test_a_list_of_frames_changed_by_hand_is_made_again(change: dict[str, Any], tmp_path: Path) -> None:
    video, out = write_video(tmp_path / "v.avi", panned(np.arange(0, 60, 4.0))), tmp_path / "out"
    whole = run(FramesConfig(), video, out)
    stamp = json.loads((out / "frames.json").read_text())
    if "files" in change:  # frames that are in no list are somebody's
        for path in out.glob("frame_*"):
            path.unlink()
        (out / "frames.csv").unlink()
    (out / "frames.json").write_text(json.dumps(stamp | change))
    assert run(FramesConfig(), video, out) == whole
    assert len(listed(out)) == whole.frames


def test_the_current_folder_as_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, out = write_video(tmp_path / "v.avi", panned(np.arange(0, 60, 4.0))), tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    assert run(FramesConfig(), video, Path()).frames == len(listed(out))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
