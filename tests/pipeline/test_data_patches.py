"""The commands `featkit data patches` and `featkit data pack`: from a map to a training file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featkit.data.patch_pack import read_patch_data, read_test_pairs
from featkit.data.phototour import read_phototour

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def patches(mapped_scene: Any, featkit_command: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("patches") / "courtyard"
    return out, featkit_command("data", "patches", mapped_scene.folder, "--out", out, "--licence", "CC0", "--json")


def test_patches_from_a_map(patches: tuple[Path, Any]) -> None:
    out, ran = patches
    assert ran.code == 0, ran.err
    summary = ran.json()
    patch_set = read_phototour(out)
    assert summary["patches"] == len(patch_set) > 500
    assert summary["scenes"]["scene"]["patches_matched"] > 200
    assert summary["licences"] == {"scene": "CC0"}
    assert "detect scene" in ran.err
    assert "cut scene" in ran.err


def test_pack_of_patches(patches: tuple[Path, Any], tmp_path: Path, featkit_command: Command) -> None:
    out, _ = patches
    ran = featkit_command("data", "pack", out, "--out", tmp_path / "p.zip", "--max-mb", 0.3)
    assert ran.code == 0, ran.err
    assert "mean compression error" in ran.out
    assert (tmp_path / "p.zip").stat().st_size <= 0.3e6
    packed, pairs = read_patch_data(tmp_path / "p.zip"), read_test_pairs(tmp_path / "p.zip")
    assert 100 < len(packed) <= len(read_phototour(out))
    np.testing.assert_array_equal(packed.classes[pairs.index0] == packed.classes[pairs.index1], pairs.match)


def test_patches_by_geometry_with_given_keypoints(mapped_scene: Any, tmp_path: Path, featkit_command: Command) -> None:
    out, features = tmp_path / "geometry", mapped_scene.output / "features.h5"
    arguments = ("data", "patches", mapped_scene.folder, "--out", out, "--source", "geometry", "--keypoints", features)
    ran = featkit_command(*arguments, "--json")
    assert ran.code == 0, ran.err
    counts = ran.json()["scenes"]["scene"]
    assert counts["patches"] == len(read_phototour(out)) > 300
    assert 0 < counts["patches_projected"] < counts["patches"]
    shown = featkit_command(*arguments, "--overwrite")
    assert f"{counts['patches_projected']:,} at jittered projections" in shown.out


def test_patches_by_homographies(mapped_scene: Any, tmp_path: Path, featkit_command: Command) -> None:
    out = tmp_path / "warped"
    arguments = ("data", "patches", mapped_scene.folder, "--out", out, "--source", "homographies")
    ran = featkit_command(*arguments, "--set", "homographies.keypoints=40", "--set", "detector.kind=opencv-dog")
    assert ran.code == 0, ran.err
    assert "views of" in ran.out
    assert len(read_phototour(out)) > 200
    wrong = featkit_command(*arguments, "--keypoints", mapped_scene.output / "features.h5", "--overwrite")
    assert wrong.code == 2
    assert "detector.kind" in wrong.err


def test_usage_errors(patches: tuple[Path, Any], mapped_scene: Any, tmp_path: Path, featkit_here: Command) -> None:
    out, _ = patches
    wrong = {
        ("patches", tmp_path, "--out", tmp_path / "x"): (3, "no COLMAP model"),
        ("patches", mapped_scene.folder, "--out", out): (3, "--overwrite"),
        ("patches", mapped_scene.folder, "--out", tmp_path / "x", "--source", "stars"): (2, "homographies"),
        ("patches", mapped_scene.folder, "--out", tmp_path / "x", "--keypoints", out, "--keypoints", out): (
            2,
            "2 files for 1 scenes",
        ),
        ("patches", mapped_scene.folder, mapped_scene.folder, "--out", tmp_path / "x"): (2, "two scenes are named"),
        ("patches", mapped_scene.folder, "--out", tmp_path / "x", "--set", "classes.scale=1"): (2, "unknown key"),
        ("pack", tmp_path, "--out", tmp_path / "p.zip"): (3, "no patches0000.bmp"),
        ("pack", out, "--out", tmp_path / "p.zip", "--side", 60): (2, "multiple of 8"),
    }
    for arguments, (code, says) in wrong.items():
        ran = featkit_here("data", *arguments)
        assert (ran.code, says in ran.err) == (code, True), (arguments, ran.err)
    assert list(tmp_path.iterdir()) == []
