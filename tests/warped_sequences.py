"""Sequences of images of one continuous texture under exact homographies, in HPatches' or the Oxford layout."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import map_coordinates

SIZE = (200, 160)  # px
GRIDS_PX = (4.0, 9.0)  # spacing of the noise that the texture interpolates


def homographies(seed: int, count: int = 5, strength: float = 1.0) -> np.ndarray:
    """Random rotation, zoom and slant around the middle, image 1 -> N, with pixel centres at integers."""
    rng = np.random.default_rng(seed)
    centre = np.array([[1, 0, SIZE[0] / 2 - 0.5], [0, 1, SIZE[1] / 2 - 0.5], [0, 0, 1]])
    found = []
    for _ in range(count):
        angle, zoom = strength * rng.uniform(-0.3, 0.3), 1 + strength * rng.uniform(0.1, 0.6)
        turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        moved = np.eye(3)
        moved[:2, :2] = turn + strength * rng.uniform(-0.05, 0.05, (2, 2))
        moved[:2, 2] = strength * rng.uniform(-6, 6, 2)
        moved[2, :2] = strength * rng.uniform(-4e-4, 4e-4, 2)
        whole = centre @ moved @ np.linalg.inv(centre)
        found.append(whole / whole[2, 2])
    return np.array(found)


def warped(seed: int, homography: np.ndarray) -> np.ndarray:
    """The texture's image (h, w) uint8: pixel x shows the point that the homography maps to x."""
    x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    places = np.stack([x.ravel(), y.ravel(), np.ones(x.size)]).astype(float)
    places = np.linalg.inv(homography) @ places
    places = places[:2] / places[2] + 60  # the texture continues outside image 1
    total = np.zeros(x.size)
    for number, spacing in enumerate(GRIDS_PX):
        grid = np.random.default_rng([seed, number]).standard_normal([int((side + 120) / spacing) + 8 for side in SIZE])
        total += map_coordinates(grid, places / spacing, order=3, mode="mirror")
    return np.clip(128 + 40 * total, 0, 255).astype(np.uint8).reshape(x.shape)


def write_sequence(
    root: Path, name: str, seed: int = 0, oxford: bool = True, strength: float = 1.0, images: int = 6
) -> np.ndarray:
    """Write images and the homographies from the first to the others; returns the homographies."""
    folder = root / name
    folder.mkdir(parents=True)
    truth = homographies(seed, images - 1, strength)
    for number, homography in enumerate([np.eye(3), *truth], start=1):
        path = folder / (f"img{number}.png" if oxford else f"{number}.ppm")
        assert cv2.imwrite(str(path), cv2.cvtColor(warped(seed, homography), cv2.COLOR_GRAY2BGR))
        if number > 1:
            text = "\n".join(" ".join(f"{value:.12g}" for value in row) for row in homography)
            (folder / (f"H1to{number}p" if oxford else f"H_1_{number}")).write_text(text + "\n")
    return truth


def write_tiny(root: Path, name: str, oxford: bool = True, images: int = 6) -> Path:
    """A sequence for reading only: images of 6 x 4 px, with identity homographies."""
    folder = root / name
    folder.mkdir(parents=True)
    for number in range(1, images + 1):
        path = folder / (f"img{number}.png" if oxford else f"{number}.ppm")
        cv2.imwrite(str(path), np.full((4, 6, 3), 20 * number, np.uint8))
        if number > 1:
            (folder / (f"H1to{number}p" if oxford else f"H_1_{number}")).write_text("1 0 0\n0 1 0\n0 0 1\n")
    return folder
