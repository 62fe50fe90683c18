"""What every estimator of relative pose takes and gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from featkit.config import Config
from featkit.evaluation.pose_error import RelativePose

FEWEST = 5  # matches that an essential matrix takes (Nistér 2004)


@dataclass(frozen=True)
class RayMatches:
    """Matches of two calibrated views, lens distortion taken out.

    points0, points1: where the rays of the matching keypoints meet the planes at depth 1; finite. focal_px: mean focal
    lengths of both cameras, in the pixels that an estimator's threshold is counted in.
    """

    points0: Float[np.ndarray, "m 2"]
    points1: Float[np.ndarray, "m 2"]
    focal_px: tuple[float, float]

    def __len__(self) -> int:
        return len(self.points0)


@dataclass(frozen=True)
class EstimatedPose:
    """A pose, its translation of any length, and the matches that agree with it."""

    pose: RelativePose
    inlier: Bool[np.ndarray, " m"]


class PoseEstimator(Config):
    """An estimator is its configuration. The same matches and the same seed give the same pose."""

    def estimate(self, matches: RayMatches, seed: int) -> EstimatedPose | None:
        """The pose of camera 1 as seen from camera 0; None where there is none."""
        raise NotImplementedError
