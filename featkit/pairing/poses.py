"""Each image with the ones whose cameras stand nearest to it and look the same way, in a model that exists already.

Peer: hloc's pairs_from_poses. It compares whole rotations; here only viewing directions count, since a camera that is
turned about its axis still sees the same things.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from featkit.config import Config, Runtime
from featkit.geometry.poses import camera_centre, rotation_matrix
from featkit.mapping.model_parts import poses_of_model
from featkit.pairing.base import Sources
from featkit.pairing.nearest import nearest
from featkit.pairing.retrieval import each_once
from featkit.pairing.sources import known_names, model_folder, warn_of_missing
from featkit.store.features import FeatureStore
from featkit.store.stamp import digest
from featkit.types import Pair, Pose


class PosesConfig(Config):
    """How many neighbours each image is matched with, and which cameras count as neighbours."""

    num_matched: int = Field(default=20, ge=1)
    """Nearest images that each one is paired with (as many as by retrieval)."""
    max_angle_deg: float = Field(default=30.0, gt=0, le=180)
    """Between viewing directions, degrees (hloc: 30, of the whole rotation)."""
    max_distance: float | None = Field(default=None, gt=0)
    """Between camera centres, in the model's unit; None: any."""
    model: Runtime[Path | None] = None
    """Folder of a COLMAP model, or of a mapped scene; None: the one that the command was given."""


class ByPoses:
    """The nearest cameras of a model that look the same way."""

    Config = PosesConfig
    needs_features = False
    scratch_folder: Path | None = None

    def __init__(self, config: PosesConfig, device: str = "auto"):
        self.config = config
        self.sources = Sources()
        self._read: tuple[list[str], dict[str, Pose]] | None = None

    def digest(self, names: list[str]) -> str:
        """See `ReadsSources.digest`: of the poses of these images."""
        poses = self._poses(names)
        return digest(*(f"{name} {pose.qvec.tolist()} {pose.tvec.tolist()}" for name, pose in poses.items()))

    def pairs(self, names: list[str], features: FeatureStore | None, generator: np.random.Generator) -> list[Pair]:
        """See `Pairing.pairs`; ordered by the image asked for, its nearest first. Images without a pose are in no pair.

        Raises UsageError without a model, BadInputError when the model has none of the images.
        """
        poses = self._poses(names)
        warn_of_missing(names, poses)
        listed = list(poses)
        centres = np.array([camera_centre(pose) for pose in poses.values()])
        axes = np.array([rotation_matrix(pose.qvec)[2] for pose in poses.values()])  # +z of the cameras, in the world
        best = nearest(centres, self.config.num_matched, self.config.max_distance, axes, self.config.max_angle_deg)
        return [Pair(listed[a], listed[b]) for a, b in each_once(best).tolist()]

    def _poses(self, names: list[str]) -> dict[str, Pose]:
        """Poses of the names that have one, in their order; read once."""
        if self._read is None or self._read[0] != names:
            model = model_folder(self.config.model, self.sources, "poses")
            poses = poses_of_model(model)
            self._read = list(names), {name: poses[name] for name in known_names(names, poses, model)}
        return self._read[1]
