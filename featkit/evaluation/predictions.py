"""What a benchmark measures, kept apart from its metrics: features.h5 and matches.h5, made by featkit's own stages.

PREDICTIONS/NAME-FINGERPRINT/features.h5 holds the features of every image; the fingerprint is that of the configuration
and of the weights, so that another configuration never meets the features of this one. Matches lie in
MATCHER-FINGERPRINT/ beside it. Images are read where they lie. Both stages go on where they were, and make anew what
belongs to an image that has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featkit.core.log import timed
from featkit.core.registry import Method
from featkit.core.types import Pair
from featkit.engine import stages
from featkit.engine.plan import LOCAL, EngineConfig
from featkit.features.base import Extractor
from featkit.io.lists import write_pairs
from featkit.matching.stage import Matcher


@dataclass(frozen=True)
class Predictions:
    """Where the features of a method lie, and the matches if there are any. seconds: of the stages, in this run."""

    method: Method[Extractor]
    features: Path
    matches: Path | None
    seconds: dict[str, float]


def predict(
    method: Method[Extractor],
    images: Path,
    names: Sequence[str],
    folder: Path,
    matcher: Method[Matcher] | None = None,
    pairs: Sequence[Pair] = (),
    *,
    overwrite: bool = False,
    engine: EngineConfig = LOCAL,
) -> Predictions:
    """Extract the features of some images of a folder, and match pairs of them; what is there already is kept.

    folder: of all predictions. Raises BadInputError for an image that cannot be read.
    """
    place = folder / f"{method.file_name}-{method.fingerprint}"
    features, matches = place / "features.h5", None
    seconds: dict[str, float] = {}
    with timed("extract", seconds):
        stages.extract(method, images, features, list(names), overwrite=overwrite, engine=engine)
    if matcher is not None:
        matches = place / f"{matcher.file_name}-{matcher.config.fingerprint()}" / "matches.h5"
        listed = write_pairs(matches.with_name("pairs.txt"), pairs)
        with timed("match", seconds):
            stages.match(matcher, features, listed, matches, overwrite=overwrite, engine=engine)
    return Predictions(method, features, matches, seconds)
