"""360-degree panoramas, and fisheye photographs without parameters: a painted room, rendered with exact rays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featkit.core.types import Pose
from featkit.geometry.poses import camera_centre
from featkit.io.lists import read_poses, write_poses
from featkit.mapping.align import similarity_to_truth, transform_pose
from featkit.mapping.model import read_model
from tests.geotagged import GPANO
from tests.painted_room import equidistant, sphere, walk, write

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def poses() -> dict[str, Pose]:
    return walk()


def centre_errors(found: dict[str, Pose], model: Path, truth: dict[str, Pose]) -> np.ndarray:
    moved = similarity_to_truth(read_model(model), truth)
    assert moved is not None
    return np.array(
        [
            np.linalg.norm(camera_centre(transform_pose(pose, moved)) - camera_centre(truth[name]))
            for name, pose in found.items()
        ]
    )


def test_panoramas_are_mapped_and_localized(poses: dict[str, Pose], featkit_command: Command, tmp_path: Path) -> None:
    """Recognised by metadata only. The truth is the origin of the rendered rays."""
    known = {name: pose for name, pose in poses.items() if name != "2.jpg"}
    write(tmp_path / "scene" / "images", known, sphere(800), xmp=GPANO)
    write(tmp_path / "queries", {"2.jpg": poses["2.jpg"]}, sphere(800), xmp=GPANO)
    write_poses(tmp_path / "truth.txt", poses)
    made = featkit_command(
        "reconstruct", tmp_path / "scene", "--truth", tmp_path / "truth.txt", "--max-keypoints", 900, "--json"
    )
    assert made.code == 0, made.err
    assert "5 of 5 photographs are panoramas (GPano): EQUIRECTANGULAR" in made.err
    model = read_model(tmp_path / "scene" / "featkit" / "sparse" / "0")
    assert {camera.model_name for camera in model.cameras.values()} == {"EQUIRECTANGULAR"}
    assert made.json()["registered"] == 5
    assert made.json()["truth"]["centre_mean"] < 0.01
    located = featkit_command(
        "localize", tmp_path / "scene", "--queries", tmp_path / "queries", "--truth", tmp_path / "truth.txt", "--json"
    )
    assert located.code == 0, located.err
    assert located.json()["localized"] == 1
    assert located.json()["errors"]["2.jpg"]["m"] < 0.02
    assert located.json()["uncertain"] == {}
    exported = featkit_command("export", tmp_path / "scene", "--format", "nerfstudio", "-o", tmp_path / "export")
    assert exported.code == 3
    assert "EQUIRECTANGULAR camera, which nerfstudio does not support" in exported.err
    assert "--undistort" not in exported.err
    for options in (("nerfstudio", "--undistort"), ("gaussian-splatting",), ("dense",)):
        exported = featkit_command("export", tmp_path / "scene", "-o", tmp_path / "export", "--format", *options)
        assert exported.code == 3
        assert "is a panorama, which no pinhole camera can show" in exported.err


def test_a_fisheye_lens_without_parameters(poses: dict[str, Pose], featkit_command: Command, tmp_path: Path) -> None:
    """The focal length is a tenth shorter than the guess."""
    images = write(tmp_path / "images", poses, equidistant(640, 480, 640 / np.pi * 0.9))
    write_poses(tmp_path / "truth.txt", poses)
    made = featkit_command(
        "reconstruct", images, "-o", tmp_path / "out", "--camera-model", "OPENCV_FISHEYE", "--camera-mode", "single",
        "--truth", tmp_path / "truth.txt", "--max-keypoints", 900, "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert made.json()["registered"] == 6
    assert made.json()["truth"]["centre_mean"] < 0.02
    [camera] = read_model(tmp_path / "out" / "sparse" / "0").cameras.values()
    assert camera.params[0] == pytest.approx(640 / np.pi * 0.9, rel=0.02)
    queries = write(tmp_path / "queries", {"2.jpg": poses["2.jpg"]}, equidistant(600, 450, 600 / np.pi * 0.9))
    located = featkit_command(
        "localize", tmp_path / "out", "--queries", queries, "--camera-model", "OPENCV_FISHEYE", "--json"
    )
    assert located.code == 0, located.err
    [query] = json.loads((tmp_path / "out" / "localize" / "poses.json").read_text())["results"]
    assert query["intrinsics_source"] == "guess"
    assert query["camera"][3] == pytest.approx(600 / np.pi * 0.9, rel=0.03)
    found = read_poses(tmp_path / "out" / "localize" / "poses.txt")
    assert centre_errors(found, tmp_path / "out" / "sparse" / "0", poses).max() < 0.05
