"""The README's commands and Python code, run as written in a folder with the files they use.

The only change: a training of two hours is one of two small steps.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from warped_sequences import write_sequence

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
LEAST = 7  # commands that the README has


def blocks(kind: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language == kind]


def commands() -> list[list[str]]:
    lines = [line.partition("#")[0].strip() for block in blocks("") for line in block.splitlines()]
    shorter = [line.replace("--budget 2h", "--steps 2 --batch-size 16") for line in lines]
    return [shlex.split(line)[1:] for line in shorter if line.startswith("featkit ")]


@pytest.fixture
def folder(small_rendered: Any, mapped_scene: Any, tmp_path: Path) -> Path:
    """scene/ and scene_c/ are photographs, scene_a/ and scene_b/ are mapped, data/ is a small benchmark."""
    shutil.copytree(small_rendered.images, tmp_path / "scene" / "images")
    shutil.copytree(small_rendered.images, tmp_path / "scene_c" / "images")
    shutil.copytree(mapped_scene.folder / "queries", tmp_path / "new_photographs")
    shutil.copyfile(tmp_path / "new_photographs" / "query_0001.jpg", tmp_path / "photograph.jpg")
    for name in ("scene_a", "scene_b"):
        shutil.copytree(mapped_scene.folder / "images", tmp_path / name / "images")
        shutil.copytree(mapped_scene.output, tmp_path / name / "featkit")
        (tmp_path / name / "licence.txt").write_text("rendered\n")
    write_sequence(tmp_path / "data" / "warped", "stone", seed=1)
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_readme(
    folder: Path, featkit_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    asked = commands()
    assert len(asked) >= LEAST
    for arguments in asked:
        if arguments != ["doctor"]:  # it has a test of its own, and maps a scene of its own
            done = featkit_here(*arguments)
            assert done.code == 0, (arguments, done.err)
    assert (folder / "scene" / "featkit" / "report.html").is_file()
    assert (folder / "scene" / "featkit" / "localize" / "poses.txt").is_file()
    assert (folder / "scene_c" / "featkit" / "sparse" / "0").is_dir()
    assert (folder / "featkit-eval" / "report.html").is_file()
    (code,) = blocks("python")
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "6 of 6 images" in ran.stdout
    assert "Pose(" in ran.stdout
