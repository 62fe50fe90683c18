"""Mean matching accuracy (MMA): the share of matches whose reprojection error is at most a threshold.

The error of a match is the distance, in pixels of image N, between the keypoint of image 1 mapped by the true
homography and the keypoint it is matched with (D2-Net, Dusmanu et al., CVPR 2019; SCFeat, section IV-B). A pair without
matches has accuracy 0 at every threshold. MMAScore is SCFeat's eq. 24.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from featkit.geometry.homography import apply_homography
from featkit.types import Matches

SCORE_AT_0, SCORE_SLOPE = 2.0, 0.1  # of eq. 24: the weight of threshold t px is 2 - 0.1 t
THRESHOLDS_PX = tuple(float(t) for t in range(1, 11))


def reprojection_errors(
    keypoints0: Float[np.ndarray, "n0 2"],
    keypoints1: Float[np.ndarray, "n1 2"],
    matches: Matches,
    homography: Float[np.ndarray, "3 3"],
) -> Float[np.ndarray, " m"]:
    """Error of every match in pixels of image 1; infinite where the homography maps a point behind the camera.

    homography: image 0 -> image 1.
    """
    index = matches.as_index_pairs()
    mapped = apply_homography(homography, keypoints0[index[:, 0]].astype(np.float64))
    errors = np.linalg.norm(mapped - keypoints1[index[:, 1]], axis=1)
    return np.where(np.isnan(errors), np.inf, errors)


def accuracy(errors: Float[np.ndarray, " m"], thresholds_px: Sequence[float] = THRESHOLDS_PX) -> np.ndarray:
    """Share of the errors up to each threshold, float64; all 0 when there is no match."""
    if len(errors) == 0:
        return np.zeros(len(thresholds_px))
    return (errors[None] <= np.asarray(thresholds_px)[:, None]).mean(axis=1)


def mma_score(curve: Float[np.ndarray, " t"], thresholds_px: Sequence[float] = THRESHOLDS_PX) -> float:
    """Eq. 24: mean of MMA over the thresholds, weighted by 2 - 0.1 t."""
    weights = SCORE_AT_0 - SCORE_SLOPE * np.asarray(thresholds_px)
    return float(np.sum(weights * curve) / np.sum(weights))
