"""OpenCV: an essential matrix by RANSAC, then of its four poses the one with most points in front of both cameras."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field

from featkit.evaluation.pose_error import RelativePose
from featkit.evaluation.pose_estimators.base import FEWEST, EstimatedPose, PoseEstimator, RayMatches

FAR = 1e9  # baselines: points up to this depth count as in front (SuperGlue, LoFTR)


class OpencvEstimator(PoseEstimator):
    """`cv2.findEssentialMat` and `cv2.recoverPose`: the protocol of SuperGlue and LoFTR."""

    method: Literal["ransac", "magsac"] = "ransac"
    """ransac: OpenCV's plain RANSAC, which published results on MegaDepth-1500 are made with. magsac: USAC with
    MAGSAC++'s score and local optimisation."""
    max_error_px: float = Field(0.5, gt=0)
    """Largest distance of an inlier from its epipolar line, px; LoFTR and glue-factory: 0.5, SuperGlue: 1."""
    confidence: float = Field(0.99999, gt=0, lt=1)
    """Probability of a draw without outliers, after which drawing ends (SuperGlue, LoFTR)."""
    max_iterations: int = Field(1000, ge=1)
    """Draws at most; OpenCV's default, which those protocols leave as it is."""

    def estimate(self, matches: RayMatches, seed: int) -> EstimatedPose | None:
        """Plain RANSAC takes no seed: OpenCV's own is fixed."""
        if len(matches) < FEWEST:
            return None
        focal = float(np.mean(matches.focal_px))
        points0, points1 = (np.ascontiguousarray(p, np.float64) for p in (matches.points0, matches.points1))
        try:
            if self.method == "ransac":
                found, mask = cv2.findEssentialMat(
                    points0,
                    points1,
                    np.eye(3),
                    method=cv2.RANSAC,
                    prob=self.confidence,
                    threshold=self.max_error_px / focal,
                    maxIters=self.max_iterations,
                )
            else:
                camera = np.diag([focal, focal, 1.0])
                found, mask = cv2.findEssentialMat(
                    focal * points0, focal * points1, camera, camera, np.zeros(4), np.zeros(4), self._usac(seed)
                )
            if found is None or mask is None or not np.isfinite(found).all():
                return None
            return _best_pose(found, mask, points0, points1)
        except cv2.error:  # points that no essential matrix can be computed from
            return None

    def _usac(self, seed: int) -> cv2.UsacParams:
        params = cv2.UsacParams()
        params.score = cv2.SCORE_METHOD_MAGSAC
        params.loMethod = cv2.LOCAL_OPTIM_SIGMA
        params.final_polisher = cv2.MAGSAC
        params.sampler = cv2.SAMPLING_UNIFORM
        params.isParallel = False  # threads would draw in any order
        params.randomGeneratorState = seed
        params.threshold = self.max_error_px
        params.confidence = self.confidence
        params.maxIterations = self.max_iterations
        return params


def _best_pose(
    candidates: Float[np.ndarray, "k 3"],
    mask: Bool[np.ndarray, "m 1"],
    points0: Float[np.ndarray, "m 2"],
    points1: Float[np.ndarray, "m 2"],
) -> EstimatedPose | None:
    """Of one or more essential matrices, one above the other, the pose with most inliers in front of both cameras."""
    best: EstimatedPose | None = None
    for essential in np.split(candidates, len(candidates) // 3):
        # OpenCV writes into the mask it is given.
        count, rotation, translation, inlier, _ = cv2.recoverPose(
            essential, points0, points1, np.eye(3), distanceThresh=FAR, mask=mask.copy()
        )
        usable = count >= FEWEST and np.isfinite(rotation).all() and np.isfinite(translation).all()
        if usable and (best is None or count > best.inlier.sum()):
            best = EstimatedPose(RelativePose(rotation, translation[:, 0]), inlier.ravel() > 0)
    return best
