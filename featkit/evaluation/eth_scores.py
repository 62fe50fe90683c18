"""What the ETH benchmark reports of a map, and what true cameras add to it.

The largest model counts: the one with most registered images. Its centres and rotations are compared with true ones
after one similarity; relative poses need none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featkit.errors import BadInputError, NothingCameOutError
from featkit.evaluation.error_auc import error_auc
from featkit.evaluation.eth_benchmark import EthBenchmark, EthConfig, SceneMap
from featkit.evaluation.eth_scenes import EthScene
from featkit.evaluation.map_pose_errors import MapPoseErrors, map_pose_errors
from featkit.evaluation.predictions import Method
from featkit.mapping.align import MIN_COMMON, PoseErrors, compare_with_truth
from featkit.mapping.database import count_verified
from featkit.mapping.dense import count_dense_points, dense_is_possible
from featkit.mapping.model import Model, largest_first, read_model
from featkit.mapping.statistics import MapStatistics, map_statistics
from featkit.mapping.verify import to_pose
from featkit.store.features import open_features
from featkit.store.stamp import digest, read_stamp
from featkit.types import Pose

LOGGER = logging.getLogger(__name__)
NOTHING = MapStatistics(0, 0, 0, 0, math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class SceneScore:
    """A row. keypoints: mean per image. inlier_pairs, inlier_matches: of all verified pairs. dense_points: None unless
    they were computed. cameras: errors after one similarity, metres and degrees, None without truth (or a map of three
    cameras). pose_errors: None without truth; pose_auc: in [0, 1], one per threshold."""

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
        """Plain values; None where there is nothing to say."""
        return {
            "scene": self.scene.name,
            **self.map.predictions.method.described(),
            "map": str(self.map.folder),
            "models": self.models,
            "camera": self.map.camera,
            "pairs_by": self.map.pairs_by,
            "pairs": self.map.pairs,
            "keypoints_per_image": round(self.keypoints, 1),
            **{name: _plain(value) for name, value in asdict(self.statistics).items()},
            "inlier_pairs": self.inlier_pairs,
            "inlier_matches": self.inlier_matches,
            "dense_points": self.dense_points,
            **self._truth_as_json(),
            "reason": self.map.reason or None,
            "seconds": {stage: round(value, 3) for stage, value in self.map.predictions.seconds.items()},
        }

    def _truth_as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = dict.fromkeys(
            ("centre_error_mm_mean", "centre_error_mm_max", "rotation_error_deg_mean", "rotation_error_deg_max")
        )
        found |= {"pose_auc": None, "pose_pairs": 0, "pose_pairs_failed": 0, "per_image": {}, "pair_errors_deg": []}
        if self.cameras is not None:
            each = zip(
                self.cameras.names, self.cameras.centre.tolist(), self.cameras.rotation_deg.tolist(), strict=True
            )
            found |= {
                "centre_error_mm_mean": 1e3 * float(np.mean(self.cameras.centre)),
                "centre_error_mm_max": 1e3 * float(np.max(self.cameras.centre)),
                "rotation_error_deg_mean": float(np.mean(self.cameras.rotation_deg)),
                "rotation_error_deg_max": float(np.max(self.cameras.rotation_deg)),
                "per_image": {n: {"centre_mm": 1e3 * c, "rotation_deg": r} for n, c, r in each},
            }
        if self.pose_errors is not None and self.pose_auc is not None:
            names, errors = self.pose_errors.names, self.pose_errors.error_deg.tolist()
            found |= {
                "pose_auc": [round(value, 6) for value in self.pose_auc],
                "pose_pairs": len(errors),
                "pose_pairs_failed": self.pose_errors.failed,
                "pair_errors_deg": [
                    [names[a], names[b], _plain(round(error, 6))]
                    for (a, b), error in zip(self.pose_errors.index.tolist(), errors, strict=True)
                ],
            }
        return found


def _plain(value: float) -> float | None:
    """json has no number for infinity or for nothing."""
    return value if math.isfinite(value) else None


def evaluate_eth(
    benchmark: EthBenchmark,
    scenes: Sequence[EthScene],
    methods: Sequence[Method],
    folder: Path,
    overwrite: bool = False,
) -> list[SceneScore]:
    """All scenes with all methods. folder: of all predictions.

    Raises NothingCameOutError when no image of any scene is in a map, and what `EthBenchmark.map_scene` raises.
    """
    scores = []
    for scene in scenes:
        for method in methods:
            scores.append(measure(benchmark.map_scene(scene, method, folder, overwrite), benchmark.config))
            LOGGER.info(
                "%s, %s: %d of %d images",
                scene.name, method.name, scores[-1].statistics.registered, len(scene.names),
            )  # fmt: skip
    if all(score.model is None for score in scores):
        raise NothingCameOutError(scores[0].map.reason)
    return scores


def measure(mapped: SceneMap, config: EthConfig) -> SceneScore:
    """Everything the benchmark reports of a map; where nothing came out, a row of zeros. Raises BadInputError."""
    largest, place, models = _largest(mapped.sparse)
    images = len(mapped.scene.names)
    statistics = NOTHING if largest is None else map_statistics(largest, images)
    verified = (0, 0) if mapped.database is None else count_verified(mapped.database)
    errors = None
    auc = None
    if mapped.scene.truth is not None:
        errors = map_pose_errors(found_poses(largest), mapped.scene.truth)
        auc = error_auc(errors.error_deg, config.pose_thresholds_deg)
    return SceneScore(
        map=mapped,
        model=place,
        models=models,
        keypoints=_mean_keypoints(mapped),
        statistics=MapStatistics(**{**asdict(statistics), "images": images}),
        inlier_pairs=verified[0],
        inlier_matches=verified[1],
        dense_points=_dense_points(mapped, place, config),
        cameras=_camera_errors(largest, mapped.scene.truth),
        pose_errors=errors,
        pose_auc=auc,
    )


def found_poses(model: Model | None) -> dict[str, Pose]:
    """World-to-camera poses of the registered images, by name; none without a model."""
    images = [] if model is None else [image for image in model.images.values() if image.has_pose]
    return {image.name: to_pose(image.cam_from_world()) for image in images}


def _largest(sparse: Path | None) -> tuple[Model | None, Path | None, int]:
    """The largest model, its folder, and how many models there are."""
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
    if model is None or truth is None or len(found_poses(model).keys() & truth.keys()) < MIN_COMMON:
        return None
    try:
        return compare_with_truth(model, truth)
    except BadInputError:  # centres on one line: no similarity is the best one
        return None


def _dense_points(mapped: SceneMap, model: Path | None, config: EthConfig) -> int | None:
    if model is None or mapped.sparse is None or config.dense is None or not dense_is_possible():
        return None
    made_by = read_stamp(mapped.sparse.with_name(f"{mapped.sparse.name}.json")) or {}
    inputs = digest(str(made_by.get("fingerprint")), str(made_by.get("inputs")))
    return count_dense_points(config.dense, mapped.scene.images, model, mapped.folder / "dense", inputs)


def of_scene(scores: Sequence[SceneScore], scene: str) -> list[SceneScore]:
    """The rows of one scene."""
    return [score for score in scores if score.scene.name == scene]
