"""The eight-point algorithm for one set at a time, by singular value decomposition: slow and simple."""

import numpy as np


def hartley_similarity(points: np.ndarray) -> np.ndarray:
    """The matrix that moves points to mean 0 and mean distance sqrt(2)."""
    mean = points.mean(0)
    scale = np.sqrt(2) / np.linalg.norm(points - mean, axis=1).mean()
    return np.array([[scale, 0, -scale * mean[0]], [0, scale, -scale * mean[1]], [0, 0, 1]])


def eight_point(points0: np.ndarray, points1: np.ndarray, normalise: bool = True) -> np.ndarray:
    """F of rank 2 and norm 1 of n >= 8 pairs of pixels."""
    moves = [hartley_similarity(p) if normalise else np.eye(3) for p in (points0, points1)]
    moved = [np.c_[p, np.ones(len(p))] @ move.T for p, move in zip((points0, points1), moves, strict=True)]
    equations = np.stack([np.outer(b, a).ravel() for a, b in zip(*moved, strict=True)])
    u, s, v = np.linalg.svd(np.linalg.svd(equations)[2][-1].reshape(3, 3))
    found = moves[1].T @ (u @ np.diag([s[0], s[1], 0]) @ v) @ moves[0]
    return found / np.linalg.norm(found)


def smooth_l1(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the entries, quadratic below 1."""
    gaps = np.abs(found - truth).ravel()
    return float(np.mean([g * g / 2 if g < 1 else g - 0.5 for g in gaps]))
