"""Fixtures of all tests: real photographs if available, a rendered scene with its map, and the command line."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # let commands write bytecode, so that they start as fast as for a user
SHELL = {"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}


LONG_FILES = (
    "pipeline/test_torchrun.py",
    "contract/test_extractors.py",
    "pipeline/test_scfeat_flow.py",
    "crash/test_training_killed.py",
    "pipeline/test_rendered_flow.py",
)
FOLDERS = ("crash", "pipeline", "browser", "contract", "golden", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, small ones last: with `-n 2 --dist loadfile` both workers then end at about the same time."""

    def rank(item: pytest.Item) -> tuple[int, int]:
        path = item.path.relative_to(ROOT / "tests")
        long = LONG_FILES.index(path.as_posix()) if path.as_posix() in LONG_FILES else len(LONG_FILES)
        return long, FOLDERS.index(path.parts[0]) if path.parts[0] in FOLDERS else len(FOLDERS)

    items.sort(key=rank)


@dataclass(frozen=True)
class CommandResult:
    """Result of a command; seconds: its wall time."""

    code: int
    out: str
    err: str
    seconds: float

    def json(self) -> dict[str, Any]:
        """The json object on stdout."""
        return json.loads(self.out)


@dataclass(frozen=True)
class MappedScene:
    """A rendered scene (images/, queries/, truth/) with its map in featkit/, and the options that made the map."""

    folder: Path
    rendered: Any  # featkit.demo.scene.RenderedScene
    options: tuple[str, ...]
    ran: CommandResult

    @property
    def output(self) -> Path:
        return self.folder / "featkit"


def run_featkit(*arguments: object, cwd: Path, timeout_s: float = 240.0) -> CommandResult:
    """Run `python -m featkit ...` in a separate process."""
    started = time.monotonic()
    command = [sys.executable, "-m", "featkit", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, env={**os.environ, **SHELL}, check=False
    )
    return CommandResult(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real photographs; the test is skipped if it does not exist."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real photographs (../shared/data)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def featkit_command(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CommandResult]:
    """`featkit_command("info", path)` runs the command line in a separate process, outside the repository."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(*arguments: object, cwd: Path | None = None, timeout_s: float = 240.0) -> CommandResult:
        return run_featkit(*arguments, cwd=cwd or elsewhere, timeout_s=timeout_s)

    return run


@pytest.fixture
def featkit_here(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CommandResult]:
    """Like `featkit_command`, but in the test's process: for the many commands that end before doing any work."""
    from in_process import run as run_here

    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: object) -> CommandResult:
        started = time.monotonic()
        done = run_here(*arguments)
        return CommandResult(done.exit_code, done.stdout, done.stderr, time.monotonic() - started)

    return run


@pytest.fixture(autouse=True, scope="session")
def _empty_weights_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hides the user's fetched weights from the tests and from the commands they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATKIT_WEIGHTS", str(tmp_path_factory.mktemp("fetched-weights")))
        yield


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every network connection fail."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was used")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    """Removes featkit's log handler, which a command run in this process installs on a stream that ends with the test.

    Before the test too, because fixtures of a module may have run commands.
    """
    _remove_handlers()
    yield
    _remove_handlers()


def _remove_handlers() -> None:
    logger = logging.getLogger("featkit")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def small_rendered(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Six map images and two queries of 400 x 300 px, with exact ground truth. Read-only: see `rendered_copy`."""
    from featkit.demo.scene import RenderedConfig, render_scene

    config = RenderedConfig(width=400, height=300, num_map=6, num_queries=2, texel_m=0.012)
    return render_scene(config, tmp_path_factory.mktemp("rendered"))


@pytest.fixture
def rendered_copy(small_rendered: Any, tmp_path: Path) -> Path:
    """A writable copy of the rendered scene: images/, queries/, truth/."""
    return Path(shutil.copytree(small_rendered.images.parent, tmp_path / "scene"))


@pytest.fixture(scope="session")
def mapped_scene(
    small_rendered: Any, featkit_command: Callable[..., CommandResult], tmp_path_factory: pytest.TempPathFactory
) -> MappedScene:
    """The rendered scene, mapped by `featkit reconstruct` with its true camera. Read-only: see `mapped_copy`."""
    folder = tmp_path_factory.mktemp("mapped") / "scene"
    shutil.copytree(small_rendered.images.parent, folder)
    params = ",".join(map(str, small_rendered.intrinsics.params))
    options = (
        "--camera-model", "PINHOLE", "--camera-params", params, "--camera-mode", "single", "--fix-intrinsics",
        "--max-keypoints", "1500",
    )  # fmt: skip
    ran = featkit_command(
        "reconstruct", folder, *options, "--truth", folder / "truth" / "poses.txt", "--json", "--quiet"
    )
    assert ran.code == 0, ran.err
    return MappedScene(folder, small_rendered, options, ran)


@pytest.fixture
def mapped_copy(mapped_scene: MappedScene, tmp_path: Path) -> MappedScene:
    """A writable copy of the mapped scene."""
    folder = Path(shutil.copytree(mapped_scene.folder, tmp_path / "scene"))
    return MappedScene(folder, mapped_scene.rendered, mapped_scene.options, mapped_scene.ran)
