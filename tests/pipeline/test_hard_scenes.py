"""Scenes that are hard to map: photographs from a tripod, unrelated photographs. No success without a result."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from featkit.core.config import make
from featkit.core.types import Pose
from featkit.demo.render import render
from featkit.demo.scene import RenderedConfig, intrinsics, surfaces
from featkit.geometry.poses import look_at
from featkit.io.lists import format_poses

CONFIG = make(RenderedConfig, {"width": 480, "height": 360, "texel_m": 0.02, "supersampling": 1})
UP = np.array([0.0, 0.0, 1.0])
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def photograph() -> Callable[[Path, Sequence[Pose]], Path]:
    world = surfaces(CONFIG)

    def write(folder: Path, poses: Sequence[Pose]) -> Path:
        folder.mkdir()
        for number, pose in enumerate(poses):
            image = render(world, intrinsics(CONFIG), pose, CONFIG.supersampling)
            cv2.imwrite(str(folder / f"{number}.png"), np.clip(np.rint(image), 0, 255).astype(np.uint8))
        return folder

    return write


def seen_from(centre: Sequence[float], angle_deg: float = 0.0) -> Pose:
    forward = np.array([np.sin(np.radians(angle_deg)), np.cos(np.radians(angle_deg)), 0.0])
    return look_at(np.array(centre, float), np.array(centre, float) + forward, UP)


@pytest.mark.parametrize("mapper", ["incremental", "global"])
def test_photographs_from_one_position(mapper: str, photograph: Any, featkit_command: Command, tmp_path: Path) -> None:
    """The map is either refused with the reason or reported as unreliable, whatever the mapper returns."""
    images = photograph(tmp_path / "images", [seen_from((0, -7, 1.6), angle) for angle in (-15, -9, -3, 3, 9, 15)])
    done = featkit_command("reconstruct", images, "-o", tmp_path / "out", "--mapper", mapper, "--workers", 1)
    assert done.code == 4, done.err
    assert "the camera only rotated" in done.err.splitlines()[-1]
    assert not (tmp_path / "out" / "sparse").exists()


def test_photographs_without_a_reference_pose_are_reported(
    photograph: Any, featkit_command: Command, tmp_path: Path
) -> None:
    poses = [seen_from((x, -7, 1.6), -2 * x) for x in (-1.5, -0.5, 0.5, 1.5)]
    images = photograph(tmp_path / "images", poses)
    known = {f"{number}.png": pose for number, pose in enumerate(poses[:3])}
    (tmp_path / "poses.txt").write_text(format_poses(known))
    camera = intrinsics(CONFIG)
    given = ("--camera-model", "PINHOLE", "--camera-params", ",".join(map(str, camera.params)))
    done = featkit_command(
        "reconstruct", images, "-o", tmp_path / "out", "--reference", tmp_path / "poses.txt", *given, "--workers", 1
    )
    assert done.code == 0, done.err
    assert "photographs without a pose in the reference are not in the map (1): 3.png" in done.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["registered"], metrics["images"], metrics["unregistered"]) == (3, 4, ["3.png"])


def test_a_map_of_few_photographs_is_reported(photograph: Any, featkit_command: Command, tmp_path: Path) -> None:
    around = [seen_from((x, -7, 1.6), -2 * x) for x in (-1.5, -0.75, 0, 0.75, 1.5)]
    images = photograph(tmp_path / "images", around)
    other = np.random.default_rng(0).integers(0, 255, (2, 360, 480), dtype=np.uint8)
    for number, noise in enumerate(other):
        cv2.imwrite(str(images / f"elsewhere{number}.png"), cv2.GaussianBlur(noise, (0, 0), 2))
    out = tmp_path / "out"
    done = featkit_command("reconstruct", images, "-o", out, "--workers", 1)
    assert done.code == 0, done.err
    message = "2 of 7 photographs are not in the map: elsewhere0.png, elsewhere1.png"
    metrics = json.loads((out / "metrics.json").read_text())
    assert message in done.err
    assert message in metrics["warnings"][0]
    assert message in (out / "report.html").read_text()
    assert metrics["unregistered"] == ["elsewhere0.png", "elsewhere1.png"]
    before = {name: (out / name).read_bytes() for name in ("metrics.json", "report.html")}
    again = featkit_command("reconstruct", images, "-o", out, "--workers", 1)
    assert again.code == 0
    assert message in again.err
    assert {name: (out / name).read_bytes() for name in before} == before, "the record of the run that did the work"
    asked = featkit_command("reconstruct", images, "-o", out, "--workers", 1, "--min-registered", 0.9)
    assert asked.code == 4
    assert "5 of 7 photographs are in the map" in asked.err.splitlines()[-1]
