"""Synthetic patches: views of random textures, small enough to train on in a second."""

from __future__ import annotations

import cv2
import numpy as np

from featkit.data.patch_set import PatchSet


def textured_patches(classes: int, views: int = 3, seed: int = 0, side: int = 64, scenes: int = 2) -> PatchSet:
    """Views of `classes` random textures, slightly rotated, scaled, shifted and dimmed, with noise."""
    rng = np.random.default_rng(seed)
    patches = np.empty((classes * views, side, side), np.uint8)
    middle = side * 0.75
    for c in range(classes):
        texture = cv2.resize(
            rng.random((9, 9)).astype(np.float32), (int(side * 1.5),) * 2, interpolation=cv2.INTER_CUBIC
        )
        for v in range(views):
            turn = cv2.getRotationMatrix2D((middle, middle), rng.uniform(-8, 8), rng.uniform(0.9, 1.1))
            turn[:, 2] += rng.uniform(-2, 2, 2) - side * 0.25
            seen = cv2.warpAffine(texture, turn, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            noisy = seen * rng.uniform(0.6, 1.0) * 255 + rng.normal(0, 6, seen.shape)
            patches[c * views + v] = np.clip(noisy, 0, 255)
    labels = np.repeat(np.arange(classes), views)
    return PatchSet("textures", patches, labels, labels % scenes, tuple(f"scene{i}" for i in range(scenes)))
