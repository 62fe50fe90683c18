"""Synthetic posed pairs: a point cloud seen by cameras on an arc, with images of smooth noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from featkit.data.posed_format import CameraTable, format_cameras, posed_pairs_text
from featkit.data.tracks import SceneTracks
from featkit.geometry.poses import look_at, rotation_matrix

UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class MadeScene:
    """Its folder, and its ground truth: K in COLMAP pixels, and points that all cameras see."""

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
    """Write ROOT/name/dense0/aligned with all pairs; every second image is in portrait format."""
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
    (folder / "pairs.txt").write_text(posed_pairs_text(pairs, names))
    return MadeScene(folder, table, rng.uniform(-1, 1, (100, 3)))


def smooth_noise(shape: tuple[int, int], rng: np.random.Generator, sigma_px: float = 4.0) -> np.ndarray:
    """A colour image that varies over a few sigma."""
    noise = cv2.GaussianBlur(rng.normal(0, 1, (*shape, 3)).astype(np.float32), (0, 0), sigma_px)
    return np.clip(128 + 60 * noise / noise.std(), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class RadialLens:
    """A camera with one coefficient of radial distortion, written as simply as possible. centre: featkit pixels."""

    focal: float
    centre: tuple[float, float]
    k1: float = 0.0

    def project(self, points: np.ndarray) -> np.ndarray:
        pixels = np.full((len(points), 2), np.nan)
        ahead = points[:, 2] > 0
        plane = points[ahead, :2] / points[ahead, 2:]
        square = (plane**2).sum(axis=1, keepdims=True)
        seen = self.focal * plane * (1 + self.k1 * square) + self.centre
        seen[(1 + 3 * self.k1 * square[:, 0]) <= 0] = np.nan  # beyond the fold
        pixels[ahead] = seen
        return pixels

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        seen = (pixels - self.centre) / self.focal
        distorted = np.linalg.norm(seen, axis=1, keepdims=True)
        radius = distorted.copy()
        for _ in range(50):  # Newton on  r (1 + k1 r^2) = distorted r
            radius -= (radius * (1 + self.k1 * radius**2) - distorted) / (1 + 3 * self.k1 * radius**2)
        plane = seen * radius / np.maximum(distorted, 1e-12)
        return np.concatenate([plane, np.ones((len(plane), 1))], axis=1)


def tracks_of(
    name: str,
    points: np.ndarray,
    lenses: dict[str, RadialLens],
    poses: list[tuple[np.ndarray, np.ndarray]],
    size: tuple[int, int],
) -> SceneTracks:
    """A map in which every image observes all points visible in it."""
    seen = []
    for lens, (rotation, translation) in zip(lenses.values(), poses, strict=True):
        xy = lens.project(points @ rotation.T + translation)
        seen.append(
            (np.nan_to_num(xy, nan=-9) >= 0).all(axis=1) & (np.nan_to_num(xy) <= np.array(size) - 1).all(axis=1)
        )
    which, images = np.nonzero(np.array(seen).T)
    return SceneTracks(
        name=name,
        image_names=tuple(lenses),
        image_sizes=np.tile(size, (len(lenses), 1)),
        rotations=np.stack([rotation for rotation, _ in poses]),
        translations=np.stack([translation for _, translation in poses]),
        projectors=tuple(lenses.values()),
        points=points,
        observed_points=which,
        observed_images=images,
        observed_xy=np.zeros((len(which), 2)),
    )
