"""`featkit doctor`: exit code 0 if the main job runs, else 4 and the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featkit.cli import doctor as look

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def examined(featkit_command: Callable[..., Any]) -> Any:
    return featkit_command("doctor", "--json", "-q")


def test_main_job_succeeds(examined: Any) -> None:
    assert examined.code == 0, examined.out + examined.err
    message = examined.json()
    assert message["works"] is True
    assert message["main_job"]["registered"] == 4
    assert message["main_job"]["points"] > 50
    assert message["main_job"]["centre_max_m"] < 0.05
    findings = {(item["group"], item["name"]): item for item in message["findings"]}
    for name in look.NEEDED:
        assert findings["versions", name]["state"] in ("ok", "note"), findings["versions", name]
    import torch

    assert findings["versions", "torch"]["found"].startswith(torch.__version__.partition("+")[0])
    assert {("machine", "cores"), ("machine", "GPU"), ("room", "disk here"), ("room", "stores")} <= findings.keys()
    assert {("extras", name) for name in look.EXTRAS} <= findings.keys()
    assert all(item["advice"] for item in message["findings"] if item["state"] in ("missing", "wrong"))


def test_no_files_are_left_behind(featkit_command: Callable[..., Any], tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    assert look.disk_space(tmp_path)[-1].state == "ok"
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("module", ["pycolmap", "plotly"])
def test_a_library_that_cannot_be_imported(module: str, tmp_path: Path) -> None:
    """The doctor reports a broken library, how to install it, and exits with 4."""
    (tmp_path / f"{module}.py").write_text("raise ImportError('libsomething.so.7: cannot open shared object file')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "featkit", "doctor"]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode == 4, ran.stdout + ran.stderr
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("featkit: the main job does not run here: ")
    assert f"{module}: " in last
    assert "libsomething.so.7" in last
    assert "pip install" in last
    assert "Traceback" not in ran.stderr
    assert "main job" in ran.stdout


def test_findings_about_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"pycolmap": "4.2.1", "opencv-python": "4.10", "opencv-python-headless": "4.10"}
    monkeypatch.setattr(look, "_version", installed.get)
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
    names = [finding.name for finding in look.known_problems()]
    assert names == ["pycolmap 4.2.1", "opencv-python", "HDF5_USE_FILE_LOCKING"]
    installed |= {"pycolmap": "5.0"}
    (untested, *_) = look.known_problems()
    assert "not tested" in untested.found
    assert "4.2.1" in untested.advice
    absent = look._library("nothing-of-that-name", "nothing_of_that_name", "tests", ">=1,<2")
    assert (absent.state, absent.advice) == ("wrong", 'pip install "nothing-of-that-name>=1,<2"')
    monkeypatch.setattr(look, "_version", lambda name: "0.9")
    assert look._library("h5py", "h5py", "stores", ">=3.10").state == "note"
    assert look._library("h5py", "h5py", "stores", "<3").state == "ok"


def test_findings_about_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(look, "DISK_GIB", 1e9)
    assert [finding.state for finding in look.disk_space(tmp_path)] == ["note", "note", "ok"]
    states = [finding.state for finding in look.disk_space(tmp_path / "nowhere")]
    assert states == ["wrong", "note", "note"]
    assert look._memory_gib() is None or 0 <= look._memory_gib()[1] <= look._memory_gib()[0]
