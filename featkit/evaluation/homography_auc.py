"""Homography estimation: a homography from the matches, and how far it carries the corners of image 1 from the truth.

Error of a pair: mean distance, over the four corner pixels of image 1, between their true and their estimated place in
image N (SuperPoint, DeTone et al. 2018; AUC as SuperGlue and LoFTR report it).
"""

from __future__ import annotations

from typing import Annotated, Literal

import cv2
import numpy as np
from jaxtyping import Float
from pydantic import Field

from featkit.config import Config
from featkit.geometry.homography import apply_homography

FEWEST = 4  # matches that a homography takes


class HomographyConfig(Config):
    """How a homography is estimated and judged; OpenCV does the first."""

    estimator: Literal["magsac", "ransac"] = "magsac"
    """magsac: USAC with MAGSAC++'s score and local optimisation; ransac: OpenCV's plain RANSAC with its refinement.
    Both draw uniformly. The estimator moves results, so numbers compare only under the same one."""
    max_error_px: float = Field(3.0, gt=0)
    """Largest error of an inlier, in pixels of image N; 3 in SuperGlue's and LoFTR's evaluations."""
    confidence: float = Field(0.9999, gt=0, lt=1)
    """Probability of a draw without outliers, after which drawing ends."""
    max_iterations: int = Field(10_000, ge=1)
    """Draws at most. At 10 % inliers the confidence would take 92,000; OpenCV's own default is 2,000."""
    seed: int = 0
    """Of magsac's draws. OpenCV's plain RANSAC has one fixed seed of its own."""
    thresholds_px: tuple[float, ...] = (1.0, 3.0, 5.0)
    """Of the AUC, in pixels of image N."""
    correct_within_px: tuple[Annotated[float, Field(gt=0)], ...] = (10.0,)
    """Errors up to which a homography counts as found, in pixels of image N, for the share of pairs that have one.
    SuperPoint takes 1, 3 and 5 on HPatches at 480 x 640; 10 suits whole photographs of extreme viewpoints (EVD)."""


def estimate_homography(
    points0: Float[np.ndarray, "m 2"], points1: Float[np.ndarray, "m 2"], config: HomographyConfig
) -> Float[np.ndarray, "3 3"] | None:
    """Homography that maps matching points 0 -> 1, None when there is none. The same points give the same matrix."""
    if len(points0) < FEWEST:
        return None
    first, second = (np.ascontiguousarray(points, np.float64) for points in (points0, points1))
    try:
        if config.estimator == "magsac":
            found, _ = cv2.findHomography(first, second, _usac(config))
        else:
            found, _ = cv2.findHomography(
                first, second, cv2.RANSAC, config.max_error_px, None, config.max_iterations, config.confidence
            )
    except cv2.error:  # all points on one line, or in one place
        return None
    return found if found is not None and np.isfinite(found).all() and found[2, 2] != 0 else None


def _usac(config: HomographyConfig) -> cv2.UsacParams:
    params = cv2.UsacParams()
    params.score = cv2.SCORE_METHOD_MAGSAC
    params.loMethod = cv2.LOCAL_OPTIM_SIGMA
    params.final_polisher = cv2.MAGSAC
    params.sampler = cv2.SAMPLING_UNIFORM
    params.isParallel = False  # threads would draw in any order
    params.randomGeneratorState = config.seed
    params.threshold = config.max_error_px
    params.confidence = config.confidence
    params.maxIterations = config.max_iterations
    return params


def corner_error(
    estimated: Float[np.ndarray, "3 3"] | None, truth: Float[np.ndarray, "3 3"], image_size: tuple[int, int]
) -> float:
    """Mean error in pixels over the corners of image 1, infinite without an estimate.

    image_size: width, height of image 1. Corners are the centres of its corner pixels.
    """
    if estimated is None:
        return float("inf")
    right, bottom = image_size[0] - 1.0, image_size[1] - 1.0
    corners = np.array([[0.0, 0.0], [right, 0.0], [right, bottom], [0.0, bottom]])
    errors = np.linalg.norm(apply_homography(estimated, corners) - apply_homography(truth, corners), axis=1)
    return float(errors.mean()) if np.isfinite(errors).all() else float("inf")
