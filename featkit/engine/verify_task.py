"""Geometric verification in shards: each takes its images and pairs from the database that is being built."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from featkit.config import Config
from featkit.mapping.pair_shards import collect, verify_shard
from featkit.mapping.verify import VerifyConfig
from featkit.types import Pair


class VerifyTask(Config):
    """Two-view geometries of pairs. Items: two names each. database: with all images and keypoints, and their ids."""

    unit: ClassVar[str] = "pairs"
    items_per_shard: ClassVar[int] = 2048
    suffix: ClassVar[str] = ".db"
    linked: ClassVar[bool] = False
    stage: Literal["verify"] = "verify"
    config: VerifyConfig
    database: Path
    matches: Path

    def work(self, items: list[list[str]], output: Path) -> None:
        """See `engine.base.Task`. The shard is a COLMAP database of these images and pairs."""
        verify_shard(self.config, self.database, self.matches, [Pair(*item) for item in items], output)

    def join(self, shards: list[Path], output: Path) -> None:
        """Write the pairs of all shards into the database they were taken from."""
        collect(shards, output)
