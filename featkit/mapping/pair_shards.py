"""Pairs verified apart from the database they belong to, and brought back to it.

A shard is a database of its own with the cameras, images and keypoints that its pairs need, under the same ids:
pycolmap verifies it as it would the whole, pair by pair with the same seed, and what comes out is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pycolmap

from featkit.errors import BadInputError
from featkit.mapping import database as db
from featkit.mapping import verify
from featkit.mapping.verify import VerifyConfig
from featkit.store.matches import open_matches
from featkit.types import Pair


def verify_shard(config: VerifyConfig, database: Path, matches: Path, pairs: Sequence[Pair], output: Path) -> None:
    """Verify some pairs of a database into a new one. database: with cameras, images and keypoints; only read.

    Raises BadInputError when it is missing or `matches` lacks a pair.
    """
    if not database.is_file():
        raise BadInputError(f"{database}: no such database; plan the verification again")
    with (
        pycolmap.Database.open(str(database)) as whole,
        pycolmap.Database.open(str(output)) as shard,
        open_matches(matches) as found,
    ):
        db.copy_images(whole, shard, sorted({name for pair in pairs for name in (pair.name0, pair.name1)}))
        db.write_matches(shard, found, pairs)
    verify.by_ransac(output, config)


def collect(shards: Sequence[Path], database: Path) -> None:
    """Write matches and two-view geometries of shards into a database that has their images; a transaction a shard."""
    with pycolmap.Database.open(str(database)) as whole:
        for path in shards:
            with pycolmap.Database.open(str(path)) as shard, pycolmap.DatabaseTransaction(whole):
                _collect(shard, whole)


def _collect(shard: pycolmap.Database, whole: pycolmap.Database) -> None:
    for pair_id, matches in zip(*shard.read_all_matches(), strict=True):
        ids = pycolmap.pair_id_to_image_pair(pair_id)
        if not whole.exists_matches(*ids):
            whole.write_matches(*ids, matches)
        if shard.exists_two_view_geometry(*ids) and not whole.exists_two_view_geometry(*ids):
            whole.write_two_view_geometry(*ids, shard.read_two_view_geometry(*ids))
