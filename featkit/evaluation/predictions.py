"""What a benchmark measures, kept apart from its metrics: features.h5 and matches.h5, made by featkit's own stages.

PREDICTIONS/NAME-FINGERPRINT/features.h5 holds the features of every image; the fingerprint is that of the configuration
and of the weights, so that another configuration never meets the features of this one. Matches lie in
MATCHER-FINGERPRINT/ beside it. Images are read where they lie. Both stages go on where they were, and make anew what
belongs to an image that has changed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featkit.core.config import Config
from featkit.core.log import timed
from featkit.core.types import Pair
from featkit.engine import stages
from featkit.engine.plan import LOCAL, EngineConfig
from featkit.features.stage import ExtractJob
from featkit.io.atomic import digest
from featkit.io.lists import write_pairs
from featkit.matching import stage as matching
from featkit.matching.stage import Matcher


@dataclass(frozen=True)
class Method:
    """Features that are measured. name: of its row. engine: where they are extracted, and matched."""

    name: str
    job: ExtractJob
    engine: EngineConfig = LOCAL

    @property
    def fingerprint(self) -> str:
        """Of everything that decides the features."""
        return digest(self.job.config.canonical_json(), self.job.extractor.weights_sha256)

    @property
    def file_name(self) -> str:
        """The name, which may be a path, as part of a folder's name."""
        return _file_name(self.name)

    def described(self) -> dict[str, Any]:
        """Configuration and weights, as plain values."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "config": self.job.config.result_fields(),
            "weights_sha256": self.job.extractor.weights_sha256,
        }


@dataclass(frozen=True)
class MatchRule:
    """How features are matched. name: a configuration's."""

    name: str
    matcher: Matcher
    config: Config

    @staticmethod
    def resolve(name: str, changes: dict[str, Any] | None = None, device: str = "auto") -> MatchRule:
        """Raises UsageError for an unknown name or field."""
        return MatchRule(name, *matching.resolve(name, changes, device))


@dataclass(frozen=True)
class Predictions:
    """Where the features of a method lie, and the matches if there are any. seconds: of the stages, in this run."""

    method: Method
    features: Path
    matches: Path | None
    seconds: dict[str, float]


def predict(
    method: Method,
    images: Path,
    names: Sequence[str],
    folder: Path,
    rule: MatchRule | None = None,
    pairs: Sequence[Pair] = (),
    overwrite: bool = False,
) -> Predictions:
    """Extract the features of some images of a folder, and match pairs of them; what is there already is kept.

    folder: of all predictions. Raises BadInputError for an image that cannot be read.
    """
    place = folder / f"{method.file_name}-{method.fingerprint}"
    features, matches = place / "features.h5", None
    seconds: dict[str, float] = {}
    with timed("extract", seconds):
        stages.extract(method.engine, method.job, images, features, list(names), overwrite)
    if rule is not None:
        matches = place / f"{_file_name(rule.name)}-{rule.config.fingerprint()}" / "matches.h5"
        listed = write_pairs(matches.with_name("pairs.txt"), pairs)
        with timed("match", seconds):
            stages.match(
                method.engine, rule.name, rule.matcher, rule.config, features, listed, matches,
                device=method.job.device, overwrite=overwrite,
            )  # fmt: skip
    return Predictions(method, features, matches, seconds)


def _file_name(name: str) -> str:
    """A method's name, which may be a path, as part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "_", Path(name).stem if name.endswith((".yaml", ".yml")) else name).strip("._") or "x"
