"""Settings of Aachen Day-Night: how the map's images and the queries are extracted, matched and localized.

The pipeline that uses them is `pipelines/aachen.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from featkit.core.config import Config, Seed, digest, merge, named_config
from featkit.core.errors import BadInputError
from featkit.core.registry import Method, class_of, resolve
from featkit.core.types import Pose
from featkit.data.aachen import AachenFiles
from featkit.evaluation.metrics import LocalizationScore, score_localization
from featkit.features.base import Extractor
from featkit.features.stage import ExtractConfig, extraction, source_digest
from featkit.io.artifact import artifact
from featkit.io.lists import read_poses, write_pairs
from featkit.localization.stage import LocalizeConfig, by_file_name, file_name
from featkit.mapping.covisibility import CovisibleConfig, Tracks, covisible_pairs
from featkit.mapping.reference import Reference, read_light_reference, read_light_tracks, read_nvm, read_nvm_reference
from featkit.mapping.stage import MapConfig
from featkit.matching.stage import Matcher
from featkit.retrieval.vlad import VladConfig

LOGGER = logging.getLogger(__name__)


class Sides(Config):
    """What differs from the configuration of features, in images of the map and in queries."""

    database: dict[str, Any] = Field(default_factory=dict)
    """Of the map's images."""
    query: dict[str, Any] = Field(default_factory=dict)
    """Of the queries."""


class AachenConfig(Config):
    """Everything that decides the poses, beside the data and the features."""

    extractors: dict[str, Sides] = Field(default_factory=dict)
    """By extractor (sift, patches, scfeat). Others stay as they are."""
    matched_by: str = "mutual"
    """A matcher by its name in configs/. The challenge's own: "mutual-nn", without a ratio test."""
    matching: dict[str, Any] = Field(default_factory=dict)
    """What differs from the matcher's configuration."""
    covisible: CovisibleConfig = CovisibleConfig()
    """Which images of the map are matched where no list is given."""
    retrieval: VladConfig = VladConfig()
    """How images of the map are found for queries, where no list is given."""
    map: MapConfig = MapConfig()
    """Verification against the known poses, and triangulation. Cameras are never refined."""
    localize: LocalizeConfig = LocalizeConfig(num_retrieved=50)
    """Poses; images retrieved for each query where no list is given (hloc: 50)."""
    seed: Seed = 0
    """Of the clusters of retrieval."""


@dataclass(frozen=True)
class BothSides:
    """Features by one name, as the setting has them in images of the map and in queries."""

    name: str
    database: Method[Extractor]
    query: Method[Extractor]

    @property
    def fingerprint(self) -> str:
        return digest(self.database.fingerprint, self.query.fingerprint)

    def described(self) -> dict[str, Any]:
        """Both configurations, as plain values."""
        return {"name": self.name, "database": self.database.described(), "query": self.query.described()}


class AachenBenchmark:
    """Settings by name: `configs/aachen*.yaml`."""

    Config = AachenConfig

    def __init__(self, config: AachenConfig, device: str = "auto"):
        for name in config.extractors:
            class_of("extractor", name)  # a misspelt one would be passed over without a word
        self.config = config
        self.device = device
        self.matcher: Method[Matcher] = resolve("matcher", config.matched_by, config.matching, device).ready()

    def features(
        self, name: str, label: str | None = None, changes: dict[str, Any] | None = None, **reading: Any
    ) -> BothSides:
        """Features by name, under this setting. changes: fields that differ once more. reading: of `ExtractConfig`.

        Raises UsageError for an unknown name or field.
        """
        extractor = str(named_config(name, "extractor").get("extractor"))
        own = self.config.extractors.get(extractor, Sides())
        if self.config.extractors and extractor not in self.config.extractors:
            LOGGER.info("%s: the setting has nothing for %s; its own configuration is used", name, extractor)
        made = []
        for differs, broken in ((own.database, {}), (own.query, {"skip_broken": True})):
            stage = ExtractConfig(**{"features": name, **reading, **broken})
            method = extraction(stage, merge(differs, changes or {}), self.device)
            made.append(replace(method, name=label or name))
        return BothSides(label or name, *made)


def read_aachen_reference(files: AachenFiles) -> Reference:
    """Poses and cameras of the reference model, from the COLMAP model when it is there. Raises BadInputError."""
    if files.model is not None:
        return read_light_reference(files.model)
    assert files.nvm is not None
    assert files.intrinsics is not None
    return read_nvm_reference(files.nvm, files.intrinsics)


def read_aachen_tracks(files: AachenFiles) -> Tracks:
    """Which images of the reference model see each of its points. Raises BadInputError."""
    if files.model is not None:
        return read_light_tracks(files.model)
    assert files.nvm is not None
    tracks = read_nvm(files.nvm).tracks
    assert tracks is not None
    return tracks


def covisible_list(files: AachenFiles, config: CovisibleConfig, output: Path) -> Path:
    """Write the pairs of images of the reference model that share the most points, unless they are there."""
    sources = sorted(files.model.glob("*.bin")) if files.model is not None else [files.nvm]
    inputs = digest(*(f"{p.name} {source_digest(p)}" for p in sources if p is not None))
    if artifact(output, config, inputs).up_to_date:
        LOGGER.info("covisible pairs: done already")
        return output
    pairs = covisible_pairs(read_aachen_tracks(files), config.num_matched)
    if not pairs:
        raise BadInputError(f"{sources[0]}: the reference model has no points that two images see; give --db-pairs")
    return write_pairs(output, pairs, config, {"inputs": inputs, "method": "shared points of the reference model"})


def read_truth(path: Path, names: list[str]) -> dict[str, Pose]:
    """True poses by the queries' names, whether the file has those or the file names alone. Raises BadInputError."""
    poses = read_poses(path)
    known = by_file_name(names)
    return {known[file_name(name)]: pose for name, pose in poses.items() if name in names or name in known}


def score_conditions(
    poses: Mapping[str, Pose], truth: Mapping[str, Pose], conditions: Mapping[str, list[str]]
) -> dict[str, LocalizationScore]:
    """Recall by condition ("day", "night"); one without a true pose is left out."""
    return {
        condition: score_localization(poses, truth, names)
        for condition, names in conditions.items()
        if any(name in truth for name in names)
    }
