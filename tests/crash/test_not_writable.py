"""A full disk, a folder that cannot be written to, a file in use: one line, exit 5, nothing half-visible."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
from textures import textured_patches

from featkit.core.config import Config
from featkit.data.phototour import write_phototour
from featkit.io.artifact import locked
from featkit.io.features import append_features

Command = Callable[..., Any]
SIZE = 48 << 20  # bytes of the small disk


def refused(ran: Any, *words: str) -> None:
    """One line on stderr, exit 5."""
    assert ran.code == 5, ran.err
    lines = ran.err.splitlines()
    assert len(lines) == 1, ran.err
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of its own, in memory; skipped where nothing may be mounted."""
    folder = tmp_path_factory.mktemp("disk")
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mounting, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `mount`")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here ({done.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(disk: Path, left: int) -> Path:
    """Leave so many bytes free, in whole pages; the file that fills it."""
    ballast = disk / "ballast"
    free = shutil.disk_usage(disk).free
    with ballast.open("wb") as file:
        for _ in range((free - left) // 4096):
            file.write(bytes(4096))
    return ballast


MAP = ("sparse", "sparse.json", "metrics.json", "report.html")
MADE = {  # what the stage is to make, of a mapped scene's outputs; and the bytes that are left for it
    "extract": (("features.h5",), 200_000),
    "pairs": (("pairs.txt", "pairs.json"), 0),
    "match": (("matches.h5",), 90_000),
    "verify": (("database.db", "database.json", *MAP), 100_000),
    "map": (MAP, 40_000),
    "localize": (("localize",), 0),
}


def commands(scene: Any, output: Path) -> dict[str, list[object]]:
    mapping: list[object] = ["reconstruct", scene.folder, "--out", output, *scene.options, "--workers", 1]
    features = output / "features.h5"
    return {
        "extract": ["extract", scene.folder / "images", "-o", features, "--max-keypoints", 1500, "--workers", 1],
        "pairs": ["pairs", features, "-o", output / "pairs.txt", "--method", "exhaustive"],
        "match": ["match", features, output / "pairs.txt", "-o", output / "matches.h5"],
        "verify": mapping,
        "map": mapping,
        "localize": ["localize", output, "--queries", scene.folder / "queries", "-o", output / "localize"],
    }


@pytest.mark.parametrize("stage", MADE)
def test_a_full_disk(stage: str, disk: Path, mapped_scene: Any, featkit_command: Command) -> None:
    output = disk / "map"
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(mapped_scene.output, output)
    made, left = MADE[stage]
    for name in made:
        path = output / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    ballast = fill(disk, left)
    command = [*commands(mapped_scene, output)[stage], "-q"]
    try:
        refused(featkit_command(*command), "space" if stage not in ("pairs", "localize") else "")
        for name in made:
            path = output / name
            if path.suffix == ".h5" and path.exists():
                with h5py.File(path) as file:  # it opens, and what is in it is whole
                    groups = [item for item in file.values() if "complete" not in item.attrs]
                    assert all(isinstance(item, h5py.Group) for item in groups)
            elif name != "localize":
                assert not path.exists(), f"{name} is visible"
        assert not (output / "localize" / "poses.txt").exists()
    finally:
        ballast.unlink()
    again = featkit_command(*command)
    assert again.code == 0, again.err
    assert [str(path) for path in output.rglob(".*")] == []
    if stage in ("verify", "map"):
        for name in ("cameras.bin", "images.bin", "points3D.bin"):
            ours, theirs = (folder / "sparse" / "0" / name for folder in (output, mapped_scene.output))
            assert ours.read_bytes() == theirs.read_bytes(), name


def test_a_training_on_a_full_disk(disk: Path, featkit_command: Command, tmp_path: Path) -> None:
    shutil.rmtree(disk / "map", ignore_errors=True)
    patches = tmp_path / "patches"
    write_phototour(patches, textured_patches(30, views=2))
    command = ["train", "patch", "--data", patches, "--out", disk / "run", "--steps", 2, "--batch-size", 2]
    ballast = fill(disk, 200_000)
    try:
        refused(featkit_command(*command, "--device", "cpu", "-q"), "checkpoint.pt", "no space left")
    finally:
        ballast.unlink()
    assert [path.name for path in (disk / "run").iterdir() if "checkpoint" in path.name] == []
    shutil.rmtree(disk / "run")


def test_a_limit_of_file_sizes(mapped_scene: Any, tmp_path: Path) -> None:
    """`ulimit -f`: the store stays readable."""
    output = tmp_path / "f.h5"
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        "from featkit.cli.main import main; main()"
    )
    arguments = ["extract", mapped_scene.folder / "images", "-o", output, "--workers", 1, "--max-keypoints", 500, "-q"]
    command = [sys.executable, "-c", script, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert ran.returncode == 5, ran.stderr
    assert ran.stderr.splitlines() == [
        f"featkit: {output}: the file would be larger than allowed (ulimit -f); raise it and run the same command again"
    ]
    with h5py.File(output) as file:
        assert 0 < len(file) < 6
        assert all(item.attrs["complete"] == 1 for item in file.values())


def test_a_disk_that_is_read_only(disk: Path, mapped_scene: Any, featkit_command: Command) -> None:
    """Permissions would not stop root; this stops everybody."""
    output = disk / "map"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    remount = ["mount", "-o", "remount,{}", str(disk)]
    subprocess.run([word.format("ro") for word in remount], check=True)
    try:
        images = mapped_scene.folder / "images"
        whole = mapped_scene.output
        asked: dict[str, list[object]] = {
            "features.h5": ["extract", images, "-o", output / "features.h5", "--workers", 1],
            "pairs.txt": ["pairs", images, "-o", output / "pairs.txt"],
            "matches.h5": ["match", whole / "features.h5", whole / "pairs.txt", "-o", output / "matches.h5"],
            "map": ["reconstruct", images, "--out", output, "--workers", 1],
        }
        for name, command in asked.items():
            refused(featkit_command(*command, "-q"), name, "choose another")
        assert list(output.iterdir()) == []
    finally:
        subprocess.run([word.format("rw") for word in remount], check=True)


class Held(Config):
    """Another run's configuration."""


def test_two_runs_on_one_output(mapped_copy: Any, featkit_command: Command, tmp_path: Path) -> None:
    """The second one says so and leaves everything as it is; a database is locked as a store is."""
    images = mapped_copy.folder / "images"
    with append_features(tmp_path / "f.h5", Held()):
        refused(featkit_command("extract", images, "-o", tmp_path / "f.h5", "-q"), "f.h5", "in use by another process")
    command = ["reconstruct", mapped_copy.folder, *mapped_copy.options, "-q"]
    database = mapped_copy.output / "database.db"
    before = database.read_bytes()
    for output in (database, mapped_copy.output / "sparse"):
        with locked(output):
            refused(featkit_command(*command), output.name, "in use by another process")
    assert database.read_bytes() == before
    assert featkit_command(*command).code == 0
    assert not list(mapped_copy.output.glob(".*.lock"))
