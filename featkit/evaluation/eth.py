"""The ETH local-feature benchmark: any features into COLMAP's incremental mapper, by featkit's own stages.

    PREDICTIONS/SCENE/METHOD-FINGERPRINT/features.h5
        matches-FINGERPRINT/matches.h5
            map-FINGERPRINT/pairs.txt, database.db, sparse/

Each folder is named after all that decides what is in it, so that nothing is made twice and nothing stale is measured.
What is measured on a map is further down.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from featkit.core.config import Config, Count, Degrees, Seed, digest, merge, named_config
from featkit.core.errors import BadInputError, EmptyResultError
from featkit.core.log import timed
from featkit.core.registry import Method, class_of, resolve
from featkit.core.types import Pose
from featkit.engine import stages
from featkit.engine.plan import LOCAL, EngineConfig
from featkit.evaluation.eth_scenes import EthScene, MapPoseErrors, map_pose_errors
from featkit.evaluation.metrics import error_auc
from featkit.evaluation.predictions import Predictions, predict
from featkit.features.base import Extractor
from featkit.features.stage import ExtractConfig, extraction
from featkit.io.atomic import read_stamp
from featkit.io.features import open_features
from featkit.io.lists import read_pairs
from featkit.mapping import stage as map_stage
from featkit.mapping.align import MIN_COMMON, PoseErrors, compare_with_truth
from featkit.mapping.cameras import CameraConfig, to_pose
from featkit.mapping.database import count_verified
from featkit.mapping.export import DenseConfig, count_dense_points, dense_is_possible
from featkit.mapping.model import MapStatistics, Model, largest_first, map_statistics, read_model
from featkit.mapping.stage import MapConfig
from featkit.mapping.verify import Verifier, build_database
from featkit.matching.stage import Matcher
from featkit.pairing import stage as pairing
from featkit.pairing.base import Pairing
from featkit.pairing.stage import AutoConfig

LOGGER = logging.getLogger(__name__)
POSE_THRESHOLDS_DEG = (1.0, 3.0, 5.0, 10.0)


class EthConfig(Config):
    """Everything that decides a map, and what is measured on it."""

    extractors: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """By extractor (sift, patches, scfeat): what differs from the configurations of features. Others stay as they
    are."""
    matched_by: str = "mutual"
    """A matcher by its name in configs/. The benchmark: mutual nearest neighbours, ratio 0.8 (there on one side)."""
    matching: dict[str, Any] = Field(default_factory=dict)
    """What differs from the matcher's configuration."""
    paired_by: str = "auto"
    """auto, exhaustive, retrieval, or another pairing by its name in configs/."""
    auto: AutoConfig = AutoConfig(exhaustive_up_to=1999)
    """What "auto" means. The benchmark: all pairs below 2000 images."""
    retrieved: Count = 100
    """Most similar images that each one is paired with by retrieval (the benchmark: 100 by a vocabulary tree)."""
    known_cameras: bool = True
    """Take the camera of a scene's camera.txt and leave it as it is, as the reference rows do. False: `map.camera`."""
    map: MapConfig = MapConfig()
    """Cameras without camera.txt, verification (both the benchmark's: 15 matches, then inliers), mapping."""
    dense: DenseConfig | None = DenseConfig()
    """Dense points where pycolmap has CUDA; null: none."""
    pose_thresholds_deg: tuple[Degrees, ...] = POSE_THRESHOLDS_DEG
    """Of the area under the curve of pose errors over pairs of images, where the truth is known."""
    seed: Seed = 0
    """Of pairing by retrieval; verification and mapping have their own in `map`."""


@dataclass(frozen=True)
class SceneMap:
    """A scene mapped with a method.

    camera: where it is from, in words. pairs_by: how pairs were chosen; pairs: how many there are. database: None when
    no pair was verified; sparse: None when nothing came out, and `reason` says why.
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


class EthBenchmark:
    """Maps scenes; `configs/eth*.yaml` are its settings."""

    Config = EthConfig

    def __init__(self, config: EthConfig, device: str = "auto", engine: EngineConfig = LOCAL):
        for name in config.extractors:
            class_of("extractor", name)  # a misspelt one would be passed over without a word
        if config.paired_by != "auto":
            resolve("pairing", config.paired_by)  # better found before the work than after
        self.config = config
        self.device = device
        self.engine = engine
        self.matcher: Method[Matcher] = resolve("matcher", config.matched_by, config.matching, device).ready()

    def method(
        self, name: str, label: str | None = None, changes: dict[str, Any] | None = None, **reading: Any
    ) -> Method[Extractor]:
        """Features by name, under this setting. changes: fields that differ once more. reading: of `ExtractConfig`.

        Raises UsageError for an unknown name or field.
        """
        extractor = str(named_config(name, "extractor").get("extractor"))
        own = self.config.extractors.get(extractor, {})
        if self.config.extractors and not own:
            LOGGER.info("%s: the setting has nothing for %s; its own configuration is used", name, extractor)
        stage = ExtractConfig(features=name, **reading)
        return replace(extraction(stage, merge(own, changes or {}), self.device), name=label or name)

    def map_scene(self, scene: EthScene, method: Method[Extractor], folder: Path, overwrite: bool = False) -> SceneMap:
        """Features, pairs, matches, verification, map; what is done already is kept.

        folder: of all predictions. Raises BadInputError for images that cannot be read or do not fit the camera.
        """
        found = predict(method, scene.images, scene.names, folder / scene.name, overwrite=overwrite, engine=self.engine)
        chosen = self._pairing(len(scene.names))
        mapping, camera = self._mapping(scene)
        matched = found.features.parent / f"matches-{self.matcher.config.fingerprint()}"
        parts = (mapping.fingerprint(), chosen.config.fingerprint(), chosen.name, str(self.config.seed))
        place = matched / f"map-{digest(*parts)}"
        seconds = dict(found.seconds)
        with open_features(found.features) as store:  # without the broken ones, where those are passed over
            names = [image for image in scene.names if store.has(image)]
        with timed("pairs", seconds):
            pairs = pairing.run(
                chosen, found.features, place / "pairs.txt",
                names=names, seed=self.config.seed, overwrite=overwrite,
            )  # fmt: skip
        with timed("match", seconds):
            matches = stages.match(
                self.matcher, found.features, pairs, matched / "matches.h5", overwrite=overwrite, engine=self.engine
            )  # fmt: skip
        found = Predictions(method, found.features, matches, seconds)
        result = SceneMap(scene, found, place, camera, chosen.name, len(read_pairs(pairs)))
        return _mapped(mapping, result, pairs, names, overwrite, stages.verifier(self.engine))

    def _pairing(self, images: int) -> Method[Pairing]:
        """The pairing for that many images."""
        chosen = pairing.choose(self.config.paired_by, images, device=self.device, auto=self.config.auto)
        fewer = {"num_matched": self.config.retrieved} if "num_matched" in type(chosen.own).model_fields else None
        return resolve("pairing", chosen.name, fewer, self.device)

    def _mapping(self, scene: EthScene) -> tuple[MapConfig, str]:
        """Configuration of the map, and in words where its cameras are from."""
        mapping = self.config.map
        if scene.camera is not None and self.config.known_cameras:
            known = CameraConfig(model=scene.camera.model, params=scene.camera.params, mode="single", refine=False)
            return mapping.model_copy(update={"camera": known}), "camera.txt, fixed"
        origin = "EXIF or guessed" if mapping.camera.params is None else "given"
        return mapping, f"{mapping.camera.model}, {origin}, {'refined' if mapping.camera.refine else 'fixed'}"


def _mapped(
    mapping: MapConfig, found: SceneMap, pairs: Path, names: list[str], overwrite: bool, verifier: Verifier | None
) -> SceneMap:
    """Verification and map of matched images, as far as they come."""
    scene, predictions = found.scene, found.predictions
    assert predictions.matches is not None
    seconds = predictions.seconds
    database = None
    try:
        with timed("verify", seconds):
            database = build_database(
                map_stage.database_config(mapping), scene.images, predictions.features, pairs, predictions.matches,
                found.folder / "database.db", names=names, overwrite=overwrite,
                verifier=verifier,
            )  # fmt: skip
        with timed("map", seconds):
            sparse = map_stage.build_map(mapping, scene.images, database, found.folder / "sparse", overwrite=overwrite)
    except EmptyResultError as error:
        LOGGER.warning("%s, %s: %s", scene.name, predictions.method.name, error)
        return replace(found, database=database, reason=str(error))
    return replace(found, database=database, sparse=sparse)


# ----------------------------------------------------------------------------------------------------------------------
# What the ETH benchmark reports of a map, and what true cameras add to it.
#
# The largest model counts: the one with most registered images. Its centres and rotations are compared with true ones
# after one similarity; relative poses need none.


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
    methods: Sequence[Method[Extractor]],
    folder: Path,
    overwrite: bool = False,
) -> list[SceneScore]:
    """All scenes with all methods. folder: of all predictions.

    Raises EmptyResultError when no image of any scene is in a map, and what `EthBenchmark.map_scene` raises.
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
        raise EmptyResultError(scores[0].map.reason)
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
