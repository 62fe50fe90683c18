"""The stages that can be cut into shards: extraction and matching here, the others beside."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from featkit.config import Config
from featkit.errors import BadInputError, NothingCameOutError
from featkit.features import extract
from featkit.features.extract import ExtractConfig, ExtractJob
from featkit.images.masks import masks_of
from featkit.matching import match
from featkit.store.links import write_index
from featkit.types import Pair


class ExtractTask(Config):
    """Features of images. Items: their names, relative to `images`."""

    unit: ClassVar[str] = "images"
    items_per_shard: ClassVar[int] = 64
    suffix: ClassVar[str] = ".h5"
    linked: ClassVar[bool] = True
    stage: Literal["extract"] = "extract"
    config: ExtractConfig
    images: Path
    device: str = "auto"

    def work(self, items: list[str], output: Path) -> None:
        """See `engine.base.Task`. A shard of images that cannot be used, where that is allowed, is an empty store."""
        job = ExtractJob.resolve(self.config, device=self.device)
        masks = {} if self.config.masks is None else masks_of(self.config.masks, items)
        with contextlib.suppress(NothingCameOutError):
            extract.run(job, self.images, output, items, masks=masks)

    def join(self, shards: list[Path], output: Path) -> None:
        """See `engine.base.Task`."""
        write_index(output, shards)


class MatchTask(Config):
    """Matches of pairs. Items: two names each. settings: all fields of the matcher's configuration."""

    unit: ClassVar[str] = "pairs"
    items_per_shard: ClassVar[int] = 512
    suffix: ClassVar[str] = ".h5"
    linked: ClassVar[bool] = True
    stage: Literal["match"] = "match"
    matcher: str
    settings: dict[str, Any] = Field(default_factory=dict)
    features: Path
    device: str = "auto"

    def work(self, items: list[list[str]], output: Path) -> None:
        """See `engine.base.Task`."""
        matcher, config = match.resolve(self.matcher, self.settings, self.device)
        match.match_pairs(matcher, config, self.features, [Pair(*item) for item in items], output)

    def join(self, shards: list[Path], output: Path) -> None:
        """See `engine.base.Task`."""
        write_index(output, shards)


def task_type(stage: str) -> type[Config]:
    """The class behind a stage's name. Raises BadInputError."""
    from featkit.engine.describe_task import DescribeTask
    from featkit.engine.verify_task import VerifyTask

    types: dict[str, type[Config]] = {
        "extract": ExtractTask,
        "describe": DescribeTask,
        "match": MatchTask,
        "verify": VerifyTask,
    }
    if stage not in types:
        raise BadInputError(f"a plan of the stage {stage!r}; this featkit has {', '.join(types)}")
    return types[stage]
