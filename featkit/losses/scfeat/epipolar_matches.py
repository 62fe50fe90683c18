"""Which pairs of keypoints agree with the camera poses: both points near the line of the other.

    E_1(y_j, x_i) = dist(y_j, F x_i)  in image 1       E_0(x_i, y_j) = dist(x_i, F^T y_j)  in image 0     (eq. 16, 17)
    P_m = (E_1 < epsilon) & (E_0^T < epsilon),  epsilon = 2 px                                           (eq. 18)

Sun, Zhu, Ji: Shared Coupling-bridge for Weakly Supervised Local Feature Learning, III-D (2).
Shapes: points (b, n, 2) and (b, m, 2) in pixels -> (b, n, m). No gradients.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from featkit.geometry.epipolar_lines import distances_to_lines, epipolar_lines


@torch.no_grad()
def two_way_distances(
    points0: Float[Tensor, "b n 2"], points1: Float[Tensor, "b m 2"], fundamental01: Float[Tensor, "b 3 3"]
) -> tuple[Float[Tensor, "b n m"], Float[Tensor, "b n m"]]:
    """Of every pair the distance from a line in image 0 (eq. 17) and in image 1 (eq. 16), in pixels."""
    with torch.autocast(points0.device.type, enabled=False):
        in_image1 = distances_to_lines(points1, epipolar_lines(points0, fundamental01))
        in_image0 = distances_to_lines(points0, epipolar_lines(points1, fundamental01.mT)).mT
    return in_image0, in_image1


def match_matrix(
    points0: Float[Tensor, "b n 2"],
    points1: Float[Tensor, "b m 2"],
    fundamental01: Float[Tensor, "b 3 3"],
    epsilon_px: float,
) -> Bool[Tensor, "b n m"]:
    """P_m above: nearer than epsilon_px in both images."""
    in_image0, in_image1 = two_way_distances(points0, points1, fundamental01)
    return (in_image0 < epsilon_px) & (in_image1 < epsilon_px)
