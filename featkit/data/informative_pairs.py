"""AdaSample: the positive of a pair is drawn by its distance from the anchor.

p_i is proportional to d(x_i, x_0)^(lambda / L_avg), the pair's weight to 1 / d(x_i, x_0); d is the angle between
descriptors or their Euclidean distance, L_avg a moving average of the loss. Source: AdaSample, eq. 13 and 15.
descriptors (n, k, d): of n classes the anchor (first) and k - 1 candidates.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor


def distances_from_anchor(
    descriptors: Float[Tensor, "n k d"], distance: Literal["angular", "euclidean"]
) -> Float[Tensor, "n c"]:
    """Of every candidate from its anchor: radians, or Euclidean; descriptors have unit length. c = k - 1."""
    if distance == "euclidean":
        return (descriptors[:, 1:] - descriptors[:, :1]).norm(dim=2)
    cosine = (descriptors[:, 1:] * descriptors[:, :1]).sum(dim=2)
    return torch.arccos(cosine.clamp(-1.0, 1.0))


def choose_positives(
    distances: Float[Tensor, "n c"], exponent: float, chance: Float[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """The candidate of every class, drawn with p proportional to distance^exponent (eq. 13).

    exponent: lambda / L_avg; 0 draws uniformly, infinity takes the most distant ("Hardpos").
    chance: uniform in [0, 1), what the draw is made with.
    """
    if math.isinf(exponent):
        return distances.argmax(dim=1)
    probability = torch.softmax(exponent * _log(distances), dim=1).double() if exponent else _uniform(distances)
    reached = probability.cumsum(dim=1)
    return (reached[:, :-1] <= chance[:, None].double() * reached[:, -1:]).sum(dim=1)


def pair_weights(distances: Float[Tensor, " n"], exponent: float, smallest: float) -> Float[Tensor, " n"] | None:
    """1 / distance of the chosen positives (eq. 13, up to a factor); None for exponent 0, which is random sampling.

    smallest: in the same unit; a positive nearer than that counts as that far.
    """
    return None if exponent == 0 else 1.0 / distances.clamp(min=smallest)


def _log(distances: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    return distances.clamp(min=torch.finfo(distances.dtype).tiny).log()


def _uniform(distances: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    return torch.full_like(distances, 1.0 / distances.shape[1], dtype=torch.float64)
