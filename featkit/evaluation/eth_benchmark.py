"""The ETH local-feature benchmark: any features into COLMAP's incremental mapper, by featkit's own stages.

    PREDICTIONS/SCENE/METHOD-FINGERPRINT/features.h5
        matches-FINGERPRINT/matches.h5
            map-FINGERPRINT/pairs.txt, database.db, sparse/

Each folder is named after all that decides what is in it, so that nothing is made twice and nothing stale is measured.
What is measured on a map is in `eth_scores`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from featkit.config import Config, merge, named_config
from featkit.engine import stages
from featkit.errors import NothingCameOutError
from featkit.evaluation.eth_scenes import EthScene
from featkit.evaluation.predictions import MatchRule, Method, Predictions, predict
from featkit.features.extract import ExtractConfig, ExtractJob
from featkit.log import timed
from featkit.mapping import reconstruct
from featkit.mapping.cameras import CameraConfig
from featkit.mapping.dense import DenseConfig
from featkit.mapping.reconstruct import MapConfig
from featkit.mapping.verified_database import build_database
from featkit.pairing import stage as pairing
from featkit.pairing.stage import AutoConfig
from featkit.registry import configured, resolve
from featkit.store.features import open_features
from featkit.store.pairs import read_pairs
from featkit.store.stamp import digest

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
    retrieved: int = Field(default=100, ge=1)
    """Most similar images that each one is paired with by retrieval (the benchmark: 100 by a vocabulary tree)."""
    known_cameras: bool = True
    """Take the camera of a scene's camera.txt and leave it as it is, as the reference rows do. False: `map.camera`."""
    map: MapConfig = MapConfig()
    """Cameras without camera.txt, verification (both the benchmark's: 15 matches, then inliers), mapping."""
    dense: DenseConfig | None = DenseConfig()
    """Dense points where pycolmap has CUDA; null: none."""
    pose_thresholds_deg: tuple[float, ...] = POSE_THRESHOLDS_DEG
    """Of the area under the curve of pose errors over pairs of images, where the truth is known."""
    seed: int = 0
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

    def __init__(self, config: EthConfig, device: str = "auto"):
        for name in config.extractors:
            resolve("extractor", name)  # a misspelt one would be passed over without a word
        if config.paired_by != "auto":
            configured("pairing", config.paired_by)  # better found before the work than after
        self.config = config
        self.device = device
        self.rule = MatchRule.resolve(config.matched_by, config.matching, device)

    def method(self, name: str, label: str | None = None, changes: dict[str, Any] | None = None, **job: Any) -> Method:
        """Features by name, under this setting. changes: fields that differ once more. job: of `ExtractConfig`.

        Raises UsageError for an unknown name or field.
        """
        extractor = str(named_config(name).get("extractor"))
        own = self.config.extractors.get(extractor, {})
        if self.config.extractors and not own:
            LOGGER.info("%s: the setting has nothing for %s; its own configuration is used", name, extractor)
        return Method(
            label or name,
            ExtractJob.resolve(ExtractConfig(features=name, **job), merge(own, changes or {}), self.device),
        )

    def map_scene(self, scene: EthScene, method: Method, folder: Path, overwrite: bool = False) -> SceneMap:
        """Features, pairs, matches, verification, map; what is done already is kept.

        folder: of all predictions. Raises BadInputError for images that cannot be read or do not fit the camera.
        """
        found = predict(method, scene.images, scene.names, folder / scene.name, overwrite=overwrite)
        pairs_by, chosen = self._pairing(len(scene.names))
        mapping, camera = self._mapping(scene)
        matched = found.features.parent / f"matches-{self.rule.config.fingerprint()}"
        parts = (mapping.fingerprint(), chosen[1].fingerprint(), pairs_by, str(self.config.seed))
        place = matched / f"map-{digest(*parts)}"
        seconds = dict(found.seconds)
        with open_features(found.features) as store:  # without the broken ones, where those are passed over
            names = [image for image in scene.names if store.has(image)]
        with timed("pairs", seconds):
            pairs = pairing.run(
                chosen, found.features, place / "pairs.txt",
                names=names, seed=self.config.seed, device=self.device, overwrite=overwrite,
            )  # fmt: skip
        with timed("match", seconds):
            matches = stages.match(
                method.engine, self.rule.name, self.rule.matcher, self.rule.config, found.features, pairs,
                matched / "matches.h5", device=self.device, overwrite=overwrite,
            )  # fmt: skip
        found = Predictions(method, found.features, matches, seconds)
        result = SceneMap(scene, found, place, camera, pairs_by, len(read_pairs(pairs)))
        return _mapped(mapping, result, pairs, names, overwrite)

    def _pairing(self, images: int) -> tuple[str, pairing.Method]:
        """Name and configuration of the pairing for that many images."""
        name = self.config.paired_by
        name = pairing.auto_method(images, self.config.auto) if name == "auto" else name
        cls = pairing.resolve(name, images)[0]
        changes = {"num_matched": self.config.retrieved} if "num_matched" in cls.Config.model_fields else None
        return name, pairing.resolve(name, images, changes=changes)

    def _mapping(self, scene: EthScene) -> tuple[MapConfig, str]:
        """Configuration of the map, and in words where its cameras are from."""
        mapping = self.config.map
        if scene.camera is not None and self.config.known_cameras:
            known = CameraConfig(model=scene.camera.model, params=scene.camera.params, mode="single", refine=False)
            return mapping.model_copy(update={"camera": known}), "camera.txt, fixed"
        origin = "EXIF or guessed" if mapping.camera.params is None else "given"
        return mapping, f"{mapping.camera.model}, {origin}, {'refined' if mapping.camera.refine else 'fixed'}"


def _mapped(mapping: MapConfig, found: SceneMap, pairs: Path, names: list[str], overwrite: bool) -> SceneMap:
    """Verification and map of matched images, as far as they come."""
    scene, predictions = found.scene, found.predictions
    assert predictions.matches is not None
    seconds = predictions.seconds
    database = None
    try:
        with timed("verify", seconds):
            database = build_database(
                reconstruct.database_config(mapping), scene.images, predictions.features, pairs, predictions.matches,
                found.folder / "database.db", names=names, overwrite=overwrite,
                verifier=stages.verifier(predictions.method.engine),
            )  # fmt: skip
        with timed("map", seconds):
            sparse = reconstruct.build_map(
                mapping, scene.images, database, found.folder / "sparse", overwrite=overwrite
            )
    except NothingCameOutError as error:
        LOGGER.warning("%s, %s: %s", scene.name, predictions.method.name, error)
        return replace(found, database=database, reason=str(error))
    return replace(found, database=database, sparse=sparse)
