"""Metrics of the ETH benchmark for a map, and errors against ground-truth cameras.

Only the largest model, by registered images, is measured. Its centres and rotations are compared with the truth after
one similarity alignment; relative poses need none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from featkit.core.config import digest
from featkit.core.errors import BadInputError
from featkit.core.types import Pose
from featkit.evaluation.benchmark import Predictions, plain
from featkit.evaluation.eth_scenes import EthScene
from featkit.evaluation.metrics import error_auc
from featkit.geometry.epipolar import SAME_PLACE
from featkit.geometry.poses import camera_centre, rotation_matrix
from featkit.io.atomic import read_stamp
from featkit.io.features import open_features
from featkit.mapping.align import MIN_COMMON, PoseErrors, compare_with_truth
from featkit.mapping.cameras import to_pose
from featkit.mapping.database import count_verified
from featkit.mapping.export import DenseConfig, count_dense_points, dense_is_possible
from featkit.mapping.model import MapStatistics, Model, largest_first, map_statistics, read_model

NOTHING = MapStatistics(0, 0, 0, 0, math.nan, math.nan, math.nan)


# ----------------------------------------------------------------------------------------------------------------------
# Relative pose errors of a map over all image pairs, in degrees; they need no alignment.
#
# The error of a pair is the larger of two angles: between the estimated and the true relative rotation, and between the
# estimated and the true direction of the relative translation, in the second camera's frame (Jin et al., IJCV 2021,
# "Image Matching across Wide Baselines"; here with the sign of the translation, which a map determines). A pair with
# an unregistered image has an infinite error.


@dataclass(frozen=True)
class MapPoseErrors:
    """names: images with a true pose, sorted. index: pairs of them. error_deg: infinite if one is not registered."""

    names: tuple[str, ...]
    index: Int[np.ndarray, "p 2"]
    error_deg: Float[np.ndarray, " p"]

    @property
    def failed(self) -> int:
        """Number of pairs with an unregistered image."""
        return int(np.isinf(self.error_deg).sum())


def map_pose_errors(found: Mapping[str, Pose], truth: Mapping[str, Pose]) -> MapPoseErrors:
    """Errors of all pairs of images with a true pose. found, truth: world-to-camera poses by name, in any two frames.

    If two true centres coincide, only the rotation is compared. If only the estimated centres coincide, the pair
    fails.
    """
    names = tuple(sorted(truth))
    true, estimated = _Cameras.of(names, truth), _Cameras.of(names, found)
    pairs = [np.zeros((0, 2), np.int64)]
    errors = [np.zeros(0)]
    for first in range(len(names)):  # one row of pairs at a time
        others = np.arange(first + 1, len(names))
        rotation = _rotation_angles_deg(
            true.relative_rotations(first, others), estimated.relative_rotations(first, others)
        )
        true_direction, has_baseline = true.directions(first, others)
        estimated_direction, is_defined = estimated.directions(first, others)
        direction = np.where(is_defined, _angles_deg(true_direction, estimated_direction), np.inf)
        error = np.where(has_baseline, np.fmax(rotation, direction), rotation)
        error[~(estimated.known[first] & estimated.known[others])] = np.inf
        pairs.append(np.stack([np.full(len(others), first), others], axis=1))
        errors.append(error)
    return MapPoseErrors(names, np.concatenate(pairs), np.concatenate(errors))


@dataclass(frozen=True)
class _Cameras:
    """World-to-camera rotations and centres; unknown cameras are at the origin."""

    rotations: Float[np.ndarray, "n 3 3"]
    centres: Float[np.ndarray, "n 3"]
    known: Bool[np.ndarray, " n"]

    @staticmethod
    def of(names: tuple[str, ...], poses: Mapping[str, Pose]) -> _Cameras:
        rotations, centres = np.tile(np.eye(3), (len(names), 1, 1)), np.zeros((len(names), 3))
        for row, name in enumerate(names):
            if name in poses:
                rotations[row], centres[row] = rotation_matrix(poses[name].qvec), camera_centre(poses[name])
        return _Cameras(rotations, centres, np.array([name in poses for name in names], dtype=bool))

    def relative_rotations(self, first: int, others: Int[np.ndarray, " k"]) -> Float[np.ndarray, "k 3 3"]:
        """From camera `first` to each of the others."""
        return self.rotations[others] @ self.rotations[first].T

    def directions(
        self, first: int, others: Int[np.ndarray, " k"]
    ) -> tuple[Float[np.ndarray, "k 3"], Bool[np.ndarray, " k"]]:
        """Relative translations in the frames of the others, and which are long enough to have a direction."""
        baselines = self.centres[first] - self.centres[others]
        sizes = np.linalg.norm(self.centres[others], axis=1) + np.linalg.norm(self.centres[first])
        has_direction = np.linalg.norm(baselines, axis=1) > SAME_PLACE * sizes
        return np.einsum("kij,kj->ki", self.rotations[others], baselines), has_direction


def _rotation_angles_deg(a: Float[np.ndarray, "k 3 3"], b: Float[np.ndarray, "k 3 3"]) -> Float[np.ndarray, " k"]:
    """Degrees; exact down to rounding for small angles, as `geometry.poses.rotation_angle_deg`."""
    relative = np.swapaxes(a, 1, 2) @ b
    vee = np.stack([relative[:, i, j] - relative[:, j, i] for i, j in ((2, 1), (0, 2), (1, 0))], axis=1)
    return np.degrees(np.arctan2(np.linalg.norm(vee, axis=1), np.trace(relative, axis1=1, axis2=2) - 1.0))


def _angles_deg(a: Float[np.ndarray, "k 3"], b: Float[np.ndarray, "k 3"]) -> Float[np.ndarray, " k"]:
    """Degrees between vectors, 0 to 180."""
    across = np.linalg.norm(np.cross(a, b), axis=1)
    return np.degrees(np.arctan2(across, np.einsum("ki,ki->k", a, b)))


# ----------------------------------------------------------------------------------------------------------------------
# A map and its metrics.


@dataclass(frozen=True)
class SceneMap:
    """A scene mapped with a method.

    camera: its origin, in words. pairs_by: how pairs were chosen. pairs: their number. database: None if no pair was
    verified. sparse: None if mapping failed, for the given `reason`.
    """

    scene: EthScene
    predictions: Predictions
    folder: Path
    camera: str
    pairs_by: str
    pairs: int
    database: Path | None = None
    sparse: Path | None = None
    reason: str = ""


@dataclass(frozen=True)
class SceneScore:
    """A table row. keypoints: mean per image. inlier_pairs, inlier_matches: over all verified pairs. dense_points: None
    if not computed. cameras: errors after one similarity, metres and degrees; None without truth or with fewer than
    three cameras. pose_errors: None without truth; pose_auc: in [0, 1], one per threshold."""

    map: SceneMap
    model: Path | None
    models: int
    keypoints: float
    statistics: MapStatistics
    inlier_pairs: int
    inlier_matches: int
    dense_points: int | None
    cameras: PoseErrors | None
    pose_errors: MapPoseErrors | None
    pose_auc: tuple[float, ...] | None

    @property
    def name(self) -> str:
        return self.map.predictions.method.name

    @property
    def scene(self) -> EthScene:
        return self.map.scene

    def as_json(self) -> dict[str, Any]:
        """Json values; None for what was not measured."""
        return {
            "scene": self.scene.name,
            **self.map.predictions.method.described(),
            "map": str(self.map.folder),
            "models": self.models,
            "camera": self.map.camera,
            "pairs_by": self.map.pairs_by,
            "pairs": self.map.pairs,
            "keypoints_per_image": round(self.keypoints, 1),
            **plain(asdict(self.statistics)),
            "inlier_pairs": self.inlier_pairs,
            "inlier_matches": self.inlier_matches,
            "dense_points": self.dense_points,
            **self._truth_metrics(),
            "reason": self.map.reason or None,
            "seconds": {stage: round(value, 3) for stage, value in self.map.predictions.seconds.items()},
        }

    def _truth_metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = dict.fromkeys(
            ("centre_error_mm_mean", "centre_error_mm_max", "rotation_error_deg_mean", "rotation_error_deg_max")
        )
        metrics |= {"pose_auc": None, "pose_pairs": 0, "pose_pairs_failed": 0, "per_image": {}, "pair_errors_deg": []}
        if self.cameras is not None:
            per_image = zip(
                self.cameras.names, self.cameras.centre.tolist(), self.cameras.rotation_deg.tolist(), strict=True
            )
            metrics |= {
                "centre_error_mm_mean": 1e3 * float(np.mean(self.cameras.centre)),
                "centre_error_mm_max": 1e3 * float(np.max(self.cameras.centre)),
                "rotation_error_deg_mean": float(np.mean(self.cameras.rotation_deg)),
                "rotation_error_deg_max": float(np.max(self.cameras.rotation_deg)),
                "per_image": {n: {"centre_mm": 1e3 * c, "rotation_deg": r} for n, c, r in per_image},
            }
        if self.pose_errors is not None and self.pose_auc is not None:
            names, errors = self.pose_errors.names, self.pose_errors.error_deg.tolist()
            metrics |= {
                "pose_auc": plain(self.pose_auc),
                "pose_pairs": len(errors),
                "pose_pairs_failed": self.pose_errors.failed,
                "pair_errors_deg": [
                    [names[a], names[b], plain(error)]
                    for (a, b), error in zip(self.pose_errors.index.tolist(), errors, strict=True)
                ],
            }
        return metrics


def measure(mapped: SceneMap, dense: DenseConfig | None, thresholds_deg: Sequence[float]) -> SceneScore:
    """Measure a map; a failed one gives a row of zeros. Raises BadInputError."""
    largest, model_folder, models = _largest_model(mapped.sparse)
    images = len(mapped.scene.names)
    statistics = NOTHING if largest is None else map_statistics(largest, images)
    verified = (0, 0) if mapped.database is None else count_verified(mapped.database)
    errors = None
    auc = None
    if mapped.scene.truth is not None:
        errors = map_pose_errors(registered_poses(largest), mapped.scene.truth)
        auc = error_auc(errors.error_deg, thresholds_deg)
    return SceneScore(
        map=mapped,
        model=model_folder,
        models=models,
        keypoints=_mean_keypoints(mapped),
        statistics=MapStatistics(**{**asdict(statistics), "images": images}),
        inlier_pairs=verified[0],
        inlier_matches=verified[1],
        dense_points=_dense_points(mapped, model_folder, dense),
        cameras=_camera_errors(largest, mapped.scene.truth),
        pose_errors=errors,
        pose_auc=auc,
    )


def registered_poses(model: Model | None) -> dict[str, Pose]:
    """World-to-camera poses of the registered images, by name; none without a model."""
    images = [] if model is None else [image for image in model.images.values() if image.has_pose]
    return {image.name: to_pose(image.cam_from_world()) for image in images}


def _largest_model(sparse: Path | None) -> tuple[Model | None, Path | None, int]:
    """The largest model, its folder, and the number of models."""
    folders = [] if sparse is None else [path for path in sorted(sparse.iterdir()) if path.is_dir()]
    if not folders:
        return None, None, 0
    models = [read_model(folder) for folder in folders]
    best = largest_first(models)[0]
    return best, folders[next(i for i, model in enumerate(models) if model is best)], len(models)


def _mean_keypoints(mapped: SceneMap) -> float:
    with open_features(mapped.predictions.features) as store:
        return float(np.mean([store.count(name) for name in mapped.scene.names if store.has(name)]))


def _camera_errors(model: Model | None, truth: dict[str, Pose] | None) -> PoseErrors | None:
    if model is None or truth is None or len(registered_poses(model).keys() & truth.keys()) < MIN_COMMON:
        return None
    try:
        return compare_with_truth(model, truth)
    except BadInputError:  # collinear centres: the similarity is not unique
        return None


def _dense_points(mapped: SceneMap, model: Path | None, dense: DenseConfig | None) -> int | None:
    if model is None or mapped.sparse is None or dense is None or not dense_is_possible():
        return None
    made_by = read_stamp(mapped.sparse.with_name(f"{mapped.sparse.name}.json")) or {}
    inputs = digest(str(made_by.get("fingerprint")), str(made_by.get("inputs")))
    return count_dense_points(dense, mapped.scene.images, model, mapped.folder / "dense", inputs)
