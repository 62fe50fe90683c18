"""The estimators that every pair is measured with. A new one is a file and a field here."""

from __future__ import annotations

from collections.abc import Iterator

from featkit.config import Config
from featkit.evaluation.pose_estimators.base import PoseEstimator
from featkit.evaluation.pose_estimators.essential import OpencvEstimator
from featkit.evaluation.pose_estimators.lo_ransac import PoselibEstimator


class PoseEstimators(Config):
    """By the names they have in tables."""

    poselib: PoselibEstimator = PoselibEstimator()
    opencv: OpencvEstimator = OpencvEstimator()

    def named(self) -> Iterator[tuple[str, PoseEstimator]]:
        """Names and estimators."""
        for name in type(self).model_fields:
            yield name, getattr(self, name)
