"""Mapping and localization in small versions of real scenes with known cameras."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featkit.geometry.poses import camera_centre, rotation_angle_deg, rotation_matrix
from featkit.io.lists import read_camera, read_poses
from featkit.mapping.cameras import to_pose
from featkit.mapping.model import read_model

Command = Callable[..., Any]


@pytest.mark.parametrize(
    ("name", "images", "rotation_deg"),
    # Herz-Jesu's cameras stand nearly on one line: the turn about it is what the alignment knows least.
    [("fountain-P11", 11, 0.1), ("Herz-Jesu-P8", 8, 0.4)],
)
def test_a_scene_with_surveyed_cameras(
    name: str, images: int, rotation_deg: float, shared_data: Path, featkit_command: Command, tmp_path: Path
) -> None:
    scene = shared_data / "eth" / name
    camera = read_camera(scene / "camera.txt")  # of the full files: keypoints are given in their pixels
    ran = featkit_command(
        "reconstruct", scene, "--out", tmp_path / "out", "--resize-max", 768, "--max-keypoints", 1500,
        "--camera-mode", "single", "--camera-model", camera.model,
        "--camera-params", ",".join(map(str, camera.params)), "--fix-intrinsics",
        "--truth", scene / "poses.txt", "--json", "-q",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    metrics = ran.json()
    assert metrics["registered"] == metrics["images"] == images
    assert len(metrics["models"]) == 1
    assert metrics["points"] > 1000
    assert metrics["truth"]["cameras"] == images
    assert metrics["truth"]["centre_mean"] < 0.010  # metres
    assert metrics["truth"]["centre_max"] < 0.015
    assert metrics["truth"]["rotation_deg_max"] < rotation_deg


def test_held_out_photographs_are_localized(shared_data: Path, featkit_command: Command, tmp_path: Path) -> None:
    castle = shared_data / "posed" / "castle-P19"
    lines = [line for line in (castle / "poses.txt").read_text().splitlines() if line and line[0] != "#"]
    left_out = {line.split()[0] for line in lines[1::4]}
    known = tmp_path / "known"
    queries = tmp_path / "queries"
    known.mkdir()
    queries.mkdir()
    (known / "poses.txt").write_text("\n".join(line for line in lines if line.split()[0] not in left_out) + "\n")
    shutil.copy(castle / "camera.txt", known)
    for name in left_out:
        shutil.copy(castle / "images" / name, queries)
    ran = featkit_command(
        "reconstruct", castle, "--out", tmp_path / "out", "--reference", known / "poses.txt", "--pairs", "sequential",
        "--resize-max", 640, "--max-keypoints", 1500, "--truth", castle / "poses.txt", "--json", "-q",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert (ran.json()["registered"], ran.json()["images"]) == (len(lines) - len(left_out), len(lines))
    assert set(ran.json()["unregistered"]) == left_out
    assert ran.json()["truth"]["centre_max"] < 1e-6
    model = read_model(tmp_path / "out" / "sparse" / "0")
    truth = read_poses(known / "poses.txt")
    for image in model.images.values():
        pose = to_pose(image.cam_from_world())
        np.testing.assert_allclose(camera_centre(pose), camera_centre(truth[image.name]), atol=1e-6)
        assert rotation_angle_deg(rotation_matrix(pose.qvec), rotation_matrix(truth[image.name].qvec)) < 1e-5

    ran = featkit_command(
        "localize", tmp_path / "out", "--queries", queries, "--truth", castle / "poses.txt", "--num", 5, "--json", "-q"
    )
    assert ran.code == 0, ran.err
    assert ran.json()["queries"] == ran.json()["localized"] == ran.json()["judged"] == len(left_out) == 5
    assert ran.json()["recall"]["0.25 m, 2 deg"] == 1.0
    assert ran.json()["median_m"] < 0.1
    found = json.loads((tmp_path / "out" / "localize" / "poses.json").read_text())
    assert all(result["inliers"] >= 30 for result in found["results"])


def test_internet_photographs_from_ten_cameras(shared_data: Path, featkit_command: Command, tmp_path: Path) -> None:
    """Without ground truth: one model must have (nearly) all photographs, with plausible focal lengths."""
    ran = featkit_command(
        "reconstruct", shared_data / "sacre_coeur", "--out", tmp_path, "--resize-max", 800, "--max-keypoints", 4000,
        "--json", "-q",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    metrics = ran.json()
    assert metrics["images"] == 10
    assert metrics["registered"] >= 9
    assert len(metrics["models"]) == 1
    assert metrics["points"] > 500
    assert metrics["reprojection_px"] < 1.5
    model = read_model(tmp_path / "sparse" / "0")
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        assert 0.5 < camera.mean_focal_length() / max(camera.width, camera.height) < 4
