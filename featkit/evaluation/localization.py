"""Recall of localization: the share of queries within a distance and an angle of their true poses.

Thresholds of the long-term visual localization benchmark (Sattler et al., CVPR 2018, section 4). A query without a
pose counts as wrong at every threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featkit.errors import BadInputError
from featkit.geometry.poses import camera_centre, rotation_angle_deg, rotation_matrix
from featkit.types import Pose

THRESHOLDS = ((0.25, 2.0), (0.5, 5.0), (5.0, 10.0))  # metres, degrees


@dataclass(frozen=True)
class LocalizationScore:
    """recall: share in [0, 1] per threshold (metres, degrees). Medians are over localized queries, NaN without one."""

    queries: int
    localized: int
    thresholds: tuple[tuple[float, float], ...]
    recall: tuple[float, ...]
    median_m: float
    median_deg: float
    errors: dict[str, tuple[float, float]]
    """Per localized query: centre error (unit of the truth), rotation error (degrees)."""


def score_localization(
    poses: Mapping[str, Pose],
    truth: Mapping[str, Pose],
    queries: Sequence[str],
    thresholds: Sequence[tuple[float, float]] = THRESHOLDS,
) -> LocalizationScore:
    """Score estimated poses of `queries`; those without a true pose are left out of the count.

    Raises BadInputError when not one query has a true pose.
    """
    judged = [name for name in queries if name in truth]
    if not judged:
        raise BadInputError("the truth names none of the queries; names are relative to the folder of the queries")
    errors = {name: pose_error(poses[name], truth[name]) for name in judged if name in poses}
    recall = tuple(
        sum(centre <= metres and angle <= degrees for centre, angle in errors.values()) / len(judged)
        for metres, degrees in thresholds
    )
    table = np.array(list(errors.values())).reshape(-1, 2)
    median = np.median(table, axis=0) if len(table) else np.full(2, np.nan)
    return LocalizationScore(
        len(judged), len(errors), tuple(thresholds), recall, float(median[0]), float(median[1]), errors
    )


def pose_error(pose: Pose, truth: Pose) -> tuple[float, float]:
    """Distance of the camera centres, and angle between the rotations in degrees."""
    distance = float(np.linalg.norm(camera_centre(pose) - camera_centre(truth)))
    return distance, rotation_angle_deg(rotation_matrix(pose.qvec), rotation_matrix(truth.qvec))
