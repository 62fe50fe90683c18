"""Which map images each query is matched with, by global descriptors that another program made (`--retrieval`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from featkit.config import Config
from featkit.mapping.model import read_model
from featkit.mapping.scene import MapFiles
from featkit.retrieval.given import check_files, retrieve_given
from featkit.store.artifact import artifact
from featkit.store.features import open_features
from featkit.store.global_descriptors import files_digest
from featkit.store.pairs import write_pairs
from featkit.store.stamp import digest

LOGGER = logging.getLogger(__name__)


class GivenQueriesConfig(Config):
    """What decides the pairs, beside the names."""

    content: str
    """16 hex digits of the files of descriptors."""
    num_retrieved: int


def pair_queries_given(
    files: Sequence[Path], query_features: Path, names: Sequence[str], found: MapFiles, num: int, output: Path
) -> Path | None:
    """Write pairs (query, map image), best first, unless they are there: `pair_queries` with a file's descriptors.

    files: one of all images, or the map's and the queries'. Queries without features get no pair; None when there is
    not one pair. Raises BadInputError, which names the images without a descriptor; UsageError for three files.
    """
    check_files(files)
    registered = sorted(image.name for image in read_model(found.model).images.values() if image.has_pose)
    with open_features(query_features) as queries:
        usable = [name for name in names if queries.has(name)]
    config = GivenQueriesConfig(content=files_digest(files), num_retrieved=num)
    inputs = digest(*usable, "", *registered)
    if artifact(output, config, inputs).up_to_date:
        LOGGER.info("retrieve: done already")
        return output
    pairs = retrieve_given(files, usable, registered, num)
    if not pairs:
        return None
    return write_pairs(output, pairs, config, {"inputs": inputs, "method": "retrieval by given descriptors"})
