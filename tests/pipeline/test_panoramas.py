"""Panoramas of 360 degrees, and fisheye photographs without parameters: a painted room, rendered with exact rays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from featkit.core.types import Pose
from featkit.geometry.poses import camera_centre, look_at, rotation_matrix
from featkit.io.lists import read_poses, write_poses
from featkit.mapping.align import similarity_to_truth, transform_pose
from featkit.mapping.model import read_model
from tests.geotagged import GPANO

UP, HALF = np.array([0.0, 0.0, 1.0]), np.array([4.0, 3.0, 1.5])  # the room's half sizes, m
CENTRES = [(-1.5, -1.0, 0.0), (-0.5, -0.6, 0.2), (0.4, -0.2, -0.1), (1.1, 0.3, 0.1), (1.6, 0.9, 0.0), (0.2, 0.8, 0.2)]
Command = Callable[..., Any]


def walls(seed: int = 0, side: int = 1024) -> list[np.ndarray]:
    """Six pictures of blots of all sizes."""
    rng = np.random.default_rng(seed)
    painted = []
    for _ in range(6):
        picture = np.zeros((side, side), np.float32)
        for cells in (8, 32, 128, 256):
            noise = rng.random((cells, cells), dtype=np.float32) - 0.5
            picture += cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
        painted.append(np.clip(128 + 90 * picture, 0, 255))
    return painted


def seen(painted: list[np.ndarray], pose: Pose, rays: np.ndarray) -> np.ndarray:
    """Grey values along rays (h, w, 3) of the camera's frame."""
    centre = camera_centre(pose)
    ahead = rays @ rotation_matrix(pose.qvec)
    with np.errstate(divide="ignore"):
        distance = (np.sign(ahead) * HALF - centre) / ahead
    axis = np.nanargmin(np.where(ahead == 0, np.inf, distance), axis=-1)
    hit = centre + ahead * np.take_along_axis(distance, axis[..., None], -1)
    image = np.zeros(rays.shape[:2], np.float32)
    for wall, texture in enumerate(painted):
        along = wall // 2
        across = [k for k in range(3) if k != along]
        on = (axis == along) & ((ahead[..., along] > 0) == (wall % 2 == 1))
        at = [(hit[..., k] / HALF[k] + 1) * 0.5 * (len(texture) - 1) for k in across]
        found = cv2.remap(texture, at[0].astype(np.float32), at[1].astype(np.float32), cv2.INTER_LINEAR)
        image[on] = found[on]
    return image


def sphere(width: int) -> np.ndarray:
    """Rays of a panorama: longitude along x, latitude along y, z ahead in its middle, y down."""
    y, x = np.mgrid[0 : width // 2, 0:width] + 0.5
    longitude, latitude = (x / width - 0.5) * 2 * np.pi, (y / (width // 2) - 0.5) * np.pi
    rays = [np.sin(longitude) * np.cos(latitude), np.sin(latitude), np.cos(longitude) * np.cos(latitude)]
    return np.stack(rays, axis=-1)


def equidistant(width: int, height: int, focal: float) -> np.ndarray:
    """Rays of a fisheye lens: the distance from the centre is the focal length times the angle."""
    y, x = np.mgrid[0:height, 0:width] + 0.5 - np.array([height / 2, width / 2])[:, None, None]
    radius = np.maximum(np.hypot(x, y), 1e-9)
    angle = radius / focal
    return np.stack([np.sin(angle) * x / radius, np.sin(angle) * y / radius, np.cos(angle)], axis=-1)


@pytest.fixture(scope="module")
def poses() -> dict[str, Pose]:
    """Walking through the room, looking ahead and a little to all sides."""
    looks = [(4.0, 1.0 + 0.5 * i - 1.5, -0.3 + 0.1 * i) for i in range(len(CENTRES))]
    return {
        f"{i}.jpg": look_at(np.array(c), np.array(to), UP) for i, (c, to) in enumerate(zip(CENTRES, looks, strict=True))
    }


def write(folder: Path, poses: dict[str, Pose], rays: np.ndarray, **metadata: Any) -> Path:
    folder.mkdir(parents=True)
    painted = walls()
    for name, pose in poses.items():
        Image.fromarray(seen(painted, pose, rays).astype(np.uint8)).save(folder / name, quality=95, **metadata)
    return folder


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
    """By their metadata alone. The truth: where the rays were cast from."""
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
    assert "EQUIRECTANGULAR camera, which nerfstudio cannot hold" in exported.err


def test_a_fisheye_lens_without_parameters(poses: dict[str, Pose], featkit_command: Command, tmp_path: Path) -> None:
    """A lens that is a tenth shorter than the guess."""
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
