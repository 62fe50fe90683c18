"""A scene and a copy that is upright only by EXIF give the same map, with the same camera centres."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("turn_deg", [90, 180])
def test_photographs_rotated_by_exif(
    turn_deg: int, small_rendered: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    orientations = importlib.import_module("orientations")
    scene, work = tmp_path / "scene", tmp_path / "work"
    shutil.copytree(small_rendered.images, scene / "images")
    for name in ("camera.txt", "poses.txt"):
        shutil.copy(small_rendered.camera.parent / name, scene)
    work.mkdir()
    row = orientations.run_turn(scene, turn_deg, None, work)
    assert row["goal_met"], row
    assert (row["models"], row["registered"], row["images"]) == (1, 12, 12)
    assert row["between_copies_mm_max"] < 0.5
    assert row["turn_error_deg_max"] < 0.01
    assert row["centre_error_mm_max"] < 10
