"""How far two descriptors are apart: Euclidean for real values, Hamming for packed bits (uint8)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped

BITS_SET = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)  # of every byte
PAIRS_AT_ONCE = 65536  # 64 MiB of differences for 128 values


def pair_distances(first: Shaped[np.ndarray, "n d"], second: Shaped[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Distance of row i of the one to row i of the other."""
    if first.dtype == np.uint8:
        return BITS_SET[first ^ second].sum(axis=1, dtype=np.int64).astype(np.float64)
    difference = np.subtract(first, second, dtype=np.float64)
    return np.sqrt(np.einsum("nd,nd->n", difference, difference))


def indexed_distances(
    descriptors: Shaped[np.ndarray, "m d"], index0: np.ndarray, index1: np.ndarray
) -> Float[np.ndarray, " n"]:
    """Distances of pairs of rows of one table, without a copy of all of them."""
    parts = [
        pair_distances(
            descriptors[index0[start : start + PAIRS_AT_ONCE]], descriptors[index1[start : start + PAIRS_AT_ONCE]]
        )
        for start in range(0, len(index0), PAIRS_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def distance_matrix(first: Shaped[np.ndarray, "n d"], second: Shaped[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Distances of all rows to all rows, in float64."""
    if first.dtype == np.uint8:  # Hamming = (bits - x . y) / 2 for x, y in {-1, 1}; exact in float32
        x, y = (1 - 2 * np.unpackbits(bits, axis=1).astype(np.float32) for bits in (first, second))
        return ((x.shape[1] - x @ y.T) / 2).astype(np.float64)
    a, b = first.astype(np.float64), second.astype(np.float64)
    squared = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2 * (a @ b.T)
    return np.sqrt(np.maximum(squared, 0, out=squared), out=squared)
