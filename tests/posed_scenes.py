"""Posed pairs made up for tests: a cloud of points seen by cameras on an arc, photographs of smooth noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from featkit.data.posed_format import CameraTable, format_cameras, format_pairs
from featkit.geometry.poses import look_at, rotation_matrix

UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class MadeScene:
    """Where it lies, and its truth: K in COLMAP's pixels, and points that all cameras see."""

    folder: Path
    table: CameraTable
    points: np.ndarray

    def seen(self, image: int) -> np.ndarray:
        """featkit pixels of the points."""
        local = self.points @ self.table.rotations[image].T + self.table.translations[image]
        mapped = local @ self.table.intrinsics[image].T
        return mapped[:, :2] / mapped[:, 2:] - 0.5


def make_scene(
    root: Path, name: str = "a", images: int = 4, size: tuple[int, int] = (120, 90), seed: int = 0
) -> MadeScene:
    """Write ROOT/name/dense0/aligned with all pairs; every second photograph stands upright."""
    rng = np.random.default_rng(seed)
    folder = root / name / "dense0" / "aligned"
    (folder / "images").mkdir(parents=True)
    names, sizes, rows = [], [], []
    for number in range(images):
        angle = -0.5 + number / max(images - 1, 1)
        centre = np.array([6 * np.sin(angle), -6 * np.cos(angle), rng.uniform(-0.5, 0.5)])
        pose = look_at(centre, rng.normal(0, 0.05, 3), UP)
        width, height = size if number % 2 == 0 else size[::-1]
        focal = rng.uniform(0.9, 1.1) * max(size)
        intrinsics = np.array([[focal, 0, width / 2 + 1.25], [0, 1.02 * focal, height / 2], [0, 0, 1]])
        names.append(f"{number:03d}.png")
        sizes.append((width, height))
        rows.append((intrinsics, rotation_matrix(pose.qvec), pose.tvec))
        cv2.imwrite(str(folder / "images" / names[-1]), smooth_noise((height, width), rng))
    table = CameraTable(
        tuple(names), np.arange(images) + 1, np.array(sizes), *(np.stack(column) for column in zip(*rows, strict=True))
    )
    (folder / "img_cam.txt").write_text(format_cameras(table))
    pairs = [(a, b) for a in range(images) for b in range(a + 1, images)]
    (folder / "pairs.txt").write_text(format_pairs(pairs, names))
    return MadeScene(folder, table, rng.uniform(-1, 1, (100, 3)))


def smooth_noise(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A coloured picture whose colours change over some ten pixels."""
    noise = cv2.GaussianBlur(rng.normal(0, 1, (*shape, 3)).astype(np.float32), (0, 0), 4)
    return np.clip(128 + 60 * noise / noise.std(), 0, 255).astype(np.uint8)
