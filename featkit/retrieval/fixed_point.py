"""Vectors as whole numbers, short enough that a float32 matrix product of them is exact.

float32 holds every integer up to 2^24. When two integer vectors have norms of at most 2^12, each partial sum of
their dot product is at most 2^24 by Cauchy-Schwarz, so the product comes out the same in every order of summation:
whatever the block size, the number of threads, the library (faiss or torch) or the device. That is what makes
retrieval independent of the memory budget, and lets ties be real ties.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int16

DOT_NORM = 4096.0  # bound on a norm for exact dot products: DOT_NORM^2 = 2^24
DISTANCE_NORM = 2048.0  # bound on a norm for exact |x|^2 + |c|^2 - 2 x.c: at most 4 x 2^22 = 2^24


def to_fixed_point(vectors: Float[np.ndarray, "n d"], norm: float) -> Int16[np.ndarray, "n d"]:
    """Vectors of length at most 1 as integers; length 1 becomes just under `norm` (DOT_NORM or DISTANCE_NORM).

    Rounding moves an entry by at most 0.5, the whole vector by at most sqrt(d) / 2, which the scale leaves room for.
    At norm 4096 a cosine is off by about 1e-4.
    """
    margin = 0.5 * np.sqrt(vectors.shape[1]) + 1.0  # + 1: a unit vector is unit up to float32 rounding only
    return np.rint(vectors * (norm - margin)).astype(np.int16)
