"""A painted room, rendered with exact rays of any camera: panoramas, fisheye lenses, several cameras on one rig."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from featkit.core.types import Pose
from featkit.geometry.poses import camera_centre, look_at, rotation_matrix

UP, HALF = np.array([0.0, 0.0, 1.0]), np.array([4.0, 3.0, 1.5])  # the room's half sizes, m
CENTRES = [(-1.5, -1.0, 0.0), (-0.5, -0.6, 0.2), (0.4, -0.2, -0.1), (1.1, 0.3, 0.1), (1.6, 0.9, 0.0), (0.2, 0.8, 0.2)]


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


def pinhole(width: int, height: int, focal: float) -> np.ndarray:
    """Rays of a camera without distortion, its principal point in the middle."""
    y, x = np.mgrid[0:height, 0:width] + 0.5 - np.array([height / 2, width / 2])[:, None, None]
    return np.stack([x / focal, y / focal, np.ones_like(x)], axis=-1)


def equidistant(width: int, height: int, focal: float) -> np.ndarray:
    """Rays of a fisheye lens: the distance from the centre is the focal length times the angle."""
    y, x = np.mgrid[0:height, 0:width] + 0.5 - np.array([height / 2, width / 2])[:, None, None]
    radius = np.maximum(np.hypot(x, y), 1e-9)
    angle = radius / focal
    return np.stack([np.sin(angle) * x / radius, np.sin(angle) * y / radius, np.cos(angle)], axis=-1)


def walk() -> dict[str, Pose]:
    """Walking through the room, looking ahead and a little to all sides."""
    looks = [(4.0, 1.0 + 0.5 * i - 1.5, -0.3 + 0.1 * i) for i in range(len(CENTRES))]
    return {
        f"{i}.jpg": look_at(np.array(c), np.array(to), UP) for i, (c, to) in enumerate(zip(CENTRES, looks, strict=True))
    }


def write(folder: Path, poses: dict[str, Pose], rays: np.ndarray, **metadata: Any) -> Path:
    painted = walls()
    for name, pose in poses.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(seen(painted, pose, rays).astype(np.uint8)).save(folder / name, quality=95, **metadata)
    return folder
