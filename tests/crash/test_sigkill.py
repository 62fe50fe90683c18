"""SIGKILL at any moment: what was done stays, the rest is done by the next run, and nothing tells the two apart."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featkit.io.h5 import reading

psutil = pytest.importorskip("psutil", reason="psutil is not installed")
Command = Callable[..., Any]
KILLS = 8
WORKER_GRACE_S = 15.0  # a worker looks for its parent every half second, when it gets its turn


def start(arguments: list[object], cwd: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "featkit", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def state_of(path: Path | None) -> tuple[int, int]:
    """Size and time of change of a file; (0, 0) while there is none."""
    if path is None or not path.exists():
        return 0, 0
    return path.stat().st_size, path.stat().st_mtime_ns


@dataclass(frozen=True)
class Undisturbed:
    """How long a whole run takes: until its output appears (start-up), and until it grows for the last time."""

    first_s: float
    last_s: float


def undisturbed(arguments: list[object], output: Path, cwd: Path) -> Undisturbed:
    started, first, last, size = time.monotonic(), None, 0.0, 0
    process = start(arguments, cwd)
    while process.poll() is None:
        if output.exists() and output.stat().st_size != size:
            size, last = output.stat().st_size, time.monotonic() - started
            first = first or last
        time.sleep(0.005)
    assert process.returncode == 0
    assert first is not None
    return Undisturbed(first, last)


def kill_after(arguments: list[object], seconds: float, cwd: Path, grown: Path | None = None) -> int:
    """Run, kill after that long (since `grown` was written to by this run, if given), see that all worker processes
    end too; the return code."""
    before = state_of(grown)
    process = start(arguments, cwd)
    while grown is not None and process.poll() is None and state_of(grown) == before:
        time.sleep(0.002)
    try:
        process.wait(seconds)
        return process.returncode
    except subprocess.TimeoutExpired:
        pass
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=WORKER_GRACE_S)
    for child in alive:
        child.kill()
    assert not alive, f"worker processes went on after their parent was killed: {alive}"
    return process.returncode


def kill_when(arguments: list[object], appears: Path, delay_s: float, cwd: Path) -> int:
    """Run, kill a moment after a path appeared; the return code."""
    process = start(arguments, cwd)
    while process.poll() is None and not appears.exists():
        time.sleep(0.002)
    time.sleep(delay_s)
    process.kill()
    return process.wait()


def snapshot(path: Path) -> dict[str, Any]:
    """Every group, dataset and attribute of a file, bit by bit."""
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        attributes = {key: (np.asarray(v).dtype.kind, np.asarray(v).tolist()) for key, v in item.attrs.items()}
        value = (str(item.dtype), item.shape, item[()].tobytes()) if isinstance(item, h5py.Dataset) else None
        found[name] = (attributes, value)

    with reading(path) as file:  # which undoes what a killed writer began
        visit("/", file)
        file.visititems(visit)
    return found


def complete_items(path: Path) -> int:
    """Whole items of a file that a killed process left; it must open, or not exist yet."""
    if not path.exists():
        return 0
    return sum("complete" in attributes for attributes, _ in snapshot(path).values())


def kill_often(arguments: list[object], output: Path, cwd: Path, timing: Undisturbed, seed: int) -> None:
    """Kill KILLS runs of the same command at random moments, each soon enough that some work is left for the next."""
    moments = random.Random(seed)
    share = (timing.last_s - timing.first_s) / (5 * KILLS)  # a run may be much faster than the one that was timed
    landed, before = 0, 0
    for number in range(KILLS):
        if number < 2:  # before any output, most likely
            code = kill_after(arguments, moments.uniform(0.3, 0.8) * timing.first_s, cwd)
        else:
            code = kill_after(arguments, moments.uniform(0, share), cwd, grown=output)
        assert code in (0, -signal.SIGKILL)
        landed += code == -signal.SIGKILL
        now = complete_items(output)
        assert now >= before, "work that was done is lost"
        before = now
    assert landed >= KILLS - 2


@pytest.fixture(scope="module")
def tiles(small_rendered: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen small photographs in two folders: the scene's, cut into parts."""
    import cv2

    folder = tmp_path_factory.mktemp("tiles")
    paths = sorted(small_rendered.images.iterdir())[:4]
    for number, path in enumerate(paths):
        image = cv2.imread(str(path))
        for part in range(4):
            x, y = 100 * (part % 2), 75 * (part // 2)
            name = folder / f"part{number % 2}" / f"{number}_{part}.png"
            name.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(name), image[y : y + 225, x : x + 300])
    return folder


@pytest.fixture(scope="module")
def whole(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Undisturbed, Undisturbed]:
    """features.h5, pairs.txt and matches.h5 of an undisturbed run, and how long it took."""
    from featkit.pairing import stage

    folder = tmp_path_factory.mktemp("whole")
    extracting = undisturbed(extract_arguments(tiles, folder), folder / "features.h5", folder)
    stage.run("exhaustive", folder / "features.h5", folder / "pairs.txt")
    matching = undisturbed(match_arguments(folder, folder), folder / "matches.h5", folder)
    return folder, extracting, matching


def extract_arguments(images: Path, folder: Path) -> list[object]:
    return ["extract", images, "--out", folder / "features.h5", "--workers", 2, "--max-keypoints", 800]


def match_arguments(inputs: Path, folder: Path) -> list[object]:
    files = (inputs / "features.h5", inputs / "pairs.txt")
    return ["match", *files, "--out", folder / "matches.h5", "--batch-size", 2]


def test_killed_extraction(tiles: Path, whole: Any, featkit_command: Command, tmp_path: Path) -> None:
    undisturbed_folder, timing, _ = whole
    arguments, output = extract_arguments(tiles, tmp_path), tmp_path / "features.h5"
    kill_often(arguments, output, tmp_path, timing, seed=1)
    assert complete_items(output) < 16, "all was done before the last kill: nothing was left to resume"
    done = featkit_command(*arguments)
    assert done.code == 0, done.err
    assert snapshot(output) == snapshot(undisturbed_folder / "features.h5")


def test_killed_matching(whole: Any, featkit_command: Command, tmp_path: Path) -> None:
    undisturbed_folder, _, timing = whole
    arguments, output = match_arguments(undisturbed_folder, tmp_path), tmp_path / "matches.h5"
    kill_often(arguments, output, tmp_path, timing, seed=2)
    assert complete_items(output) < 120, "all was done before the last kill: nothing was left to resume"
    done = featkit_command(*arguments)
    assert done.code == 0, done.err
    assert snapshot(output) == snapshot(undisturbed_folder / "matches.h5")


def test_killed_reconstruction(mapped_copy: Any, mapped_scene: Any, featkit_command: Command) -> None:
    """From matches to the report, killed at its four steps; then the map is the one of the undisturbed run."""
    output = mapped_copy.output
    for name in ("sparse.json", "database.db", "database.json", "metrics.json", "report.html"):
        (output / name).unlink()
    shutil.rmtree(output / "sparse")
    arguments: list[object] = ["reconstruct", mapped_copy.folder, *mapped_copy.options]
    moments = random.Random(3)
    for name in (".database.db.part", "database.db", ".sparse.work", "sparse"):
        assert kill_when(arguments, output / name, moments.uniform(0, 0.1), output.parent.parent) == -signal.SIGKILL
        assert not (output / "metrics.json").exists()
    done = featkit_command(*arguments, "--json", "-q")
    assert done.code == 0, done.err
    assert done.json()["registered"] == 6
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        ours, theirs = (scene.output / "sparse" / "0" / name for scene in (mapped_copy, mapped_scene))
        assert ours.read_bytes() == theirs.read_bytes(), name
    left = [path.name for path in output.iterdir() if path.name.startswith(".")]
    assert left == [], "leftovers of killed runs"


WRITER = """
import os, signal, sys
import h5py, numpy as np
from pathlib import Path
from featkit.features.stage import ExtractConfig
from featkit.io.features import append_features
from featkit.core.types import Features

path, fatal, before = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "before"
plain, count = h5py.File.flush, 0

def flush(file):
    global count
    count += 1
    if count == fatal and before:
        os.kill(os.getpid(), signal.SIGKILL)
    plain(file)
    if count == fatal:
        os.kill(os.getpid(), signal.SIGKILL)

h5py.File.flush = flush
with append_features(path, ExtractConfig()) as store:
    for number in range(4):
        name = f"folder/{number}.jpg"
        if not store.has(name):
            rng = np.random.default_rng(number)
            points = rng.random((9, 2)).astype(np.float32)
            store.write(name, Features(points, rng.random((9, 4), np.float32), points[:, 0].copy(), (40, 30)), 7)
"""


@pytest.mark.parametrize("before", ["before", "after"])
def test_killed_at_every_flush(before: str, tmp_path: Path) -> None:
    """The moments that a clock seldom meets: right before and right after each time the file is brought to disk."""

    def write(path: Path, fatal: int) -> int:
        return subprocess.run([sys.executable, "-c", WRITER, str(path), str(fatal), before], check=False).returncode

    assert write(tmp_path / "whole.h5", 0) == 0
    expected = snapshot(tmp_path / "whole.h5")
    for fatal in range(1, 6):  # of the new store, and of each item
        path = tmp_path / f"{before}{fatal}.h5"
        assert write(path, fatal) == -signal.SIGKILL
        assert complete_items(path) == max(fatal - (2 if before == "before" else 1), 0)
        assert write(path, 0) == 0, f"cannot go on after a kill {before} flush {fatal}"
        assert snapshot(path) == expected
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


class Recorder(io.BytesIO):
    """A file in memory that remembers every write, so that a kill between any two of them can be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[bytes] = []

    def write(self, data: Any) -> int:
        written = super().write(data)
        self.states.append(self.getvalue())
        return written


def test_killed_inside_a_flush(tmp_path: Path) -> None:
    """HDF5 writes a flush in pieces. After any of them the next run goes on, and ends with the same file."""
    from featkit.core.types import Features
    from featkit.features.stage import ExtractConfig
    from featkit.io import h5
    from featkit.io.features import FeatureStore, append_features, open_features

    def item(number: int) -> Features:
        values = np.random.default_rng(number).random((9, 4), np.float32)
        return Features(values[:, :2].copy(), values, values[:, 0].copy(), (40, 30))

    def write_missing(store: FeatureStore) -> int:
        missing = [n for n in range(12) if not store.has(f"folder/{n:02d}.jpg")]
        for number in missing:
            store.write(f"folder/{number:02d}.jpg", item(number), 7)
        return len(missing)

    config, memory = ExtractConfig(), Recorder()
    with h5py.File(memory, "w") as file:
        h5._write_root(file, "features", config, {"weights_sha256": ""})
        created = len(memory.states)
        assert write_missing(FeatureStore(tmp_path, file)) == 12
    path = tmp_path / "f.h5"
    path.write_bytes(memory.getvalue())
    expected = snapshot(path)
    made_anew = []
    for state in (*memory.states[created::3], memory.states[-1]):
        path.write_bytes(state)
        with append_features(path, config) as store:
            made_anew.append(write_missing(store))
        assert snapshot(path) == expected
        with open_features(path) as store:
            assert len(store.names()) == 12
    assert min(made_anew) == 0
    assert len(made_anew) > 50
