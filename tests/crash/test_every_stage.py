"""SIGKILL at random moments of every stage. What is visible at any time is what an undisturbed run made, bit by bit."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from preloaded import Preloaded
from short_videos import panned, write_video
from textures import textured_patches
from warped_sequences import write_sequence

from featkit.data.phototour import write_phototour
from featkit.io.h5 import reading

KILLS = 4  # of every stage
ATTEMPTS = 5 * KILLS  # a run may be done before its moment comes
TIMES = ("seconds", "peak_memory_mb", "peak_worker_memory_mb", "patches_per_s", "wait_share")
UNCOMPARED = {".html", ".pt", ".jpg"}  # times of day and of work stand in them


@dataclass(frozen=True)
class Stage:
    """A command run in a scene's folder. removed: what an earlier stage left and this one is to make."""

    arguments: tuple[object, ...]
    output: str = "out"
    removed: tuple[str, ...] = ()


SMALL = ("--workers", 1, "--max-keypoints", 300)
SETTINGS = ("save_every=2", "log_every=1", "held_out.pairs=10", "patches_on=host")
SHORT = ("--steps", 12, "--batch-size", 2, *(word for setting in SETTINGS for word in ("--set", setting)))
MAP = ("sparse", "sparse.json", "metrics.json", "report.html")
DATABASE = ("database.db", "database.json")
CAMERA = ("--camera-mode", "single", "--max-keypoints", 1500, "--workers", 1)
STAGES = {
    "frames": Stage(("frames", "walk.avi", "-o", "out", "--set", "image_format=png")),
    "extract": Stage(("extract", "images", "-o", "out/features.h5", *SMALL)),
    "pairs": Stage(("pairs", "featkit/features.h5", "-o", "out/pairs.txt", "--method", "retrieval", "--num", 2)),
    "match": Stage(("match", "featkit/features.h5", "featkit/pairs.txt", "-o", "out/matches.h5", "--batch-size", 1)),
    "verify": Stage(("reconstruct", "."), "featkit", (*DATABASE, *MAP)),
    "map": Stage(("reconstruct", "."), "featkit", MAP),
    "localize": Stage(("localize", ".", "--queries", "queries", "-o", "out", "--workers", 1)),
    "eval": Stage(("eval", "hpatches", "--root", "sequences", "--out", "out", *SMALL)),
    "train": Stage(("train", "patch", "--data", "patches", "--out", "out", "--config", "hynet", *SHORT)),
}


@pytest.fixture(scope="module")
def featkit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preloaded]:
    made = Preloaded(tmp_path_factory.mktemp("preloaded"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def scene(mapped_scene: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mapped scene, with sequences and patches beside it. Never written to."""
    folder = tmp_path_factory.mktemp("stages") / "scene"
    shutil.copytree(mapped_scene.folder, folder)
    write_sequence(folder / "sequences", "stone", seed=1)
    write_video(folder / "walk.avi", panned(np.arange(0, 120, 3.0)))
    write_phototour(folder / "patches", textured_patches(30, views=2))
    return folder


def arguments_of(stage: Stage, mapped_scene: Any) -> list[object]:
    more = mapped_scene.options if stage.arguments[0] == "reconstruct" else ()
    return [*stage.arguments, *more, "-q", "--device", "cpu"]


def begun(scene: Path, folder: Path, stage: Stage) -> Path:
    """A copy of the scene from which the stage starts."""
    shutil.copytree(scene, folder)
    for name in stage.removed:
        path = folder / "featkit" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def content(path: Path) -> Any:
    """What a file says: items of a store, rows of a database, values without times, or bytes."""
    if path.suffix == ".h5":
        return items(path)
    if path.suffix == ".db":
        return rows(path)
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    return path.read_bytes()


def items(path: Path) -> dict[str, Any]:
    """Every group of a store that is whole, and the root's attributes, bit by bit."""
    found: dict[str, Any] = {}

    def plain(attributes: Any) -> dict[str, Any]:
        return {key: (np.asarray(value).dtype.kind, np.asarray(value).tolist()) for key, value in attributes.items()}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and item.attrs.get("complete") == 1:
            data = {key: (d.dtype.str, d.shape, d[()].tobytes(), plain(d.attrs)) for key, d in item.items()}
            found[name] = (plain(item.attrs), data)

    with reading(path) as file:  # which undoes what a killed writer began
        found["/"] = plain(file.attrs)
        file.visititems(visit)
    return found


def rows(path: Path) -> dict[str, list[Any]]:
    """Every row of every table of COLMAP's database, which must be sound; of a copy, with the journal beside it."""
    with tempfile.TemporaryDirectory() as folder:
        for one in path.parent.glob(f"{path.name}*"):
            shutil.copy(one, folder)
        with contextlib.closing(sqlite3.connect(Path(folder) / path.name)) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {name: sorted(database.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in names}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def visible(folder: Path) -> dict[str, Path]:
    """Files that a user would take for results."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {
        str(name): folder / name
        for name in found
        if not any(part.startswith(".") or part == "tensorboard" for part in name.parts)
        and name.suffix not in UNCOMPARED
        and not name.name.endswith(("-wal", "-shm"))  # SQLite's own, beside a database that is open
    }


def check_no_lie(killed: Path, whole: Path) -> None:
    """Everything visible is as in the undisturbed run; stores and lists of rows may have less."""
    expected = visible(whole)
    for name, path in visible(killed).items():
        assert name in expected, f"{name}: the undisturbed run has no such file"
        if path.suffix == ".csv":  # a row is appended after each step
            continue
        found, right = content(path), content(expected[name])
        if path.suffix == ".h5":
            assert found.items() <= right.items(), f"{name}: an item that is not whole passes for one"
        else:
            assert found == right, f"{name}: neither absent nor whole"
    for part in killed.rglob(".*.db.part"):
        rows(part)


@pytest.mark.parametrize("name", STAGES)
def test_killed_at_random_moments(
    name: str, featkit: Preloaded, scene: Path, mapped_scene: Any, tmp_path: Path
) -> None:
    stage, moments = STAGES[name], random.Random(f"kill {name}")
    arguments = arguments_of(stage, mapped_scene)
    whole = begun(scene, tmp_path / "whole", stage)
    started = time.monotonic()
    assert featkit.run(arguments, whole) == 0, featkit.errors
    longest_s = time.monotonic() - started

    killed, landed, lost = begun(scene, tmp_path / "killed", stage), 0, 0
    for _ in range(ATTEMPTS):
        code = featkit.run(arguments, killed, kill_after_s=moments.uniform(0.02, 0.9) * longest_s)
        assert code in (0, -9), featkit.errors
        check_no_lie(killed / stage.output, whole / stage.output)
        landed += code == -9
        if landed == KILLS:
            break
        if code == 0:  # nothing is left to kill: from the beginning
            shutil.rmtree(killed)
            begun(scene, killed, stage)
            longest_s *= 0.8
    assert landed == KILLS
    assert featkit.run(arguments, killed) == 0, featkit.errors
    check_no_lie(killed / stage.output, whole / stage.output)
    ours, theirs = visible(killed / stage.output), visible(whole / stage.output)
    assert ours.keys() == theirs.keys()
    lost = [n for n in ours if ours[n].suffix == ".h5" and content(ours[n]) != content(theirs[n])]
    assert lost == []
    left = [str(path) for path in (killed / stage.output).rglob(".*")]
    assert left == [], "leftovers of killed runs"
