"""PoseLib's LO-RANSAC: five-point samples, local optimisation, a last refinement of the pose on its inliers."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from featkit.evaluation.pose_error import RelativePose
from featkit.evaluation.pose_estimators.base import FEWEST, EstimatedPose, PoseEstimator, RayMatches


class PoselibEstimator(PoseEstimator):
    """`poselib.estimate_relative_pose`; fields that are not here keep PoseLib's defaults."""

    max_error_px: float = Field(1.0, gt=0)
    """Largest Sampson error of an inlier, px: PoseLib's default, and glue-factory's for MegaDepth-1500 in its first
    version. Its present one tries 0.5 to 3 and reports the best, which chooses on the test set."""
    confidence: float = Field(0.9999, gt=0, lt=1)
    """Probability of a draw without outliers, after which drawing ends; PoseLib's default."""
    min_iterations: int = Field(1000, ge=1)
    """Draws at least; PoseLib's default."""
    max_iterations: int = Field(100_000, ge=1)
    """Draws at most; PoseLib's default, some 4 s for a pair of 2,000 matches without a solution. With 10,000, RootSIFT
    loses 7 points of AUC at 5 degrees on castle-P19, where many pairs have 10 to 20 % right matches."""

    def estimate(self, matches: RayMatches, seed: int) -> EstimatedPose | None:
        import poselib

        if len(matches) < FEWEST:
            return None
        both = (matches.points0, matches.points1)
        scaled = [points * focal for points, focal in zip(both, matches.focal_px, strict=True)]
        cameras = [
            {"model": "SIMPLE_PINHOLE", "width": 0, "height": 0, "params": [focal, 0.0, 0.0]}
            for focal in matches.focal_px
        ]
        options = {
            "max_epipolar_error": self.max_error_px,
            "success_prob": self.confidence,
            "min_iterations": min(self.min_iterations, self.max_iterations),
            "max_iterations": self.max_iterations,
            "seed": seed,
        }
        found, told = poselib.estimate_relative_pose(*scaled, *cameras, options)
        inlier = np.array(told["inliers"], dtype=bool)
        if inlier.sum() < FEWEST or not (np.isfinite(found.R).all() and np.isfinite(found.t).all()):
            return None
        return EstimatedPose(RelativePose(np.array(found.R), np.array(found.t)), inlier)
