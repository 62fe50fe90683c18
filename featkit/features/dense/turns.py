"""Descriptors of an image turned by quarters, for photographs that are not all upright.

A network that has learned from upright photographs bears turns of some 45 degrees. With the descriptors of the image
turned by 0, 90, 180 and 270 degrees side by side, the matcher can compare any two images nearly upright
(`matching/turns.py`). The paper does nothing about rotation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def turned(points: Float[Tensor, "n 2"], shape: tuple[int, int], quarters: int) -> Float[Tensor, "n 2"]:
    """Where points of an image lie in `np.rot90(image, quarters)`. shape: height and width of the image."""
    height, width = shape
    for _ in range(quarters):
        points = torch.stack([points[:, 1], width - 1 - points[:, 0]], dim=1)
        height, width = width, height
    return points


def side_by_side(rows: Sequence[Float[np.ndarray, "n d"]]) -> Float[np.ndarray, "n k*d"]:
    """Unit rows of k turns -> unit rows, float16."""
    return (np.concatenate(rows, axis=1) / len(rows) ** 0.5).astype(np.float16)
