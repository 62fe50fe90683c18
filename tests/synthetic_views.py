"""Two cameras that see random points, with exact geometry in float64, for tests of losses on posed pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from featkit.geometry.poses import rotation_matrix


@dataclass(frozen=True)
class SyntheticViews:
    """points0[i] and points1[i] (pixels) see the same point; x1^T fundamental x0 = 0, of Frobenius norm 1."""

    points0: np.ndarray
    points1: np.ndarray
    fundamental: np.ndarray
    size: tuple[int, int]

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """points0, points1, fundamental as a batch of one pair."""
        return tuple(torch.from_numpy(v)[None] for v in (self.points0, self.points1, self.fundamental))  # type: ignore[return-value]


def two_views(seed: int, count: int = 40, size: tuple[int, int] = (64, 48)) -> SyntheticViews:
    """`count` points visible in both images, from cameras next to each other with some rotation."""
    rng = np.random.default_rng(seed)
    k0, k1 = (
        np.array([[f, 0, size[0] / 2 - 0.5], [0, f, size[1] / 2 - 0.5], [0, 0, 1]])
        for f in size[0] * rng.uniform(0.9, 1.2, 2)
    )
    rotation = rotation_matrix(np.array([1.0, *rng.uniform(-0.12, 0.12, 3)]))
    translation = np.array([*rng.uniform(-0.8, 0.8, 2), rng.uniform(-0.3, 0.3)])
    world = np.stack([rng.uniform(-1.5, 1.5, 4000), rng.uniform(-1.2, 1.2, 4000), rng.uniform(2.5, 6, 4000)], axis=1)
    seen0, seen1 = world @ k0.T, (world @ rotation.T + translation) @ k1.T
    points0, points1 = seen0[:, :2] / seen0[:, 2:], seen1[:, :2] / seen1[:, 2:]
    shown = np.all([(p >= 0).all(1) & (p <= np.array(size) - 1).all(1) for p in (points0, points1)], axis=0)
    x, y, z = translation
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    fundamental = np.linalg.inv(k1).T @ cross @ rotation @ np.linalg.inv(k0)
    chosen = np.flatnonzero(shown)[:count]
    assert len(chosen) == count
    return SyntheticViews(points0[chosen], points1[chosen], fundamental / np.linalg.norm(fundamental), size)
