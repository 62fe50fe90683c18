"""Which map images each query is matched with: the most similar ones by VLAD, trained on the map alone."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from featkit.mapping.model import read_model
from featkit.mapping.scene import MapFiles
from featkit.retrieval.retrieve import retrieve
from featkit.retrieval.vlad import VladConfig
from featkit.store.artifact import artifact
from featkit.store.features import open_features
from featkit.store.pairs import read_pairs, write_pairs
from featkit.store.stamp import digest

LOGGER = logging.getLogger(__name__)


def pair_queries(
    query_features: Path,
    names: list[str],
    found: MapFiles,
    config: VladConfig,
    num: int,
    output: Path,
    seed: int,
    device: str = "auto",
) -> Path | None:
    """Write pairs (query, map image), best first, unless they are there; only registered images are retrieved.

    Queries without features (images passed over) get no pair. None when there is not one pair.
    """
    registered = sorted(image.name for image in read_model(found.model).images.values() if image.has_pose)
    with open_features(query_features) as queries, open_features(found.features) as database:
        usable = [name for name in names if queries.has(name)]
        inputs = digest(
            str(num),
            str(seed),
            *(f"{name} {queries.digest(name)}" for name in usable),
            *(f"{name} {database.digest(name)}" for name in registered),
        )
        if artifact(output, config, inputs).up_to_date:
            LOGGER.info("retrieve: done already")
            return output
        generator = np.random.default_rng(seed)
        pairs = retrieve(
            queries, usable, database, registered, config, num, generator, device=device, spill_folder=output.parent
        )
    if not pairs:
        return None
    return write_pairs(output, pairs, config, {"inputs": inputs, "method": "retrieval of map images"})


def given_pairs(pairs: Path, query_features: Path, output: Path) -> Path | None:
    """The pairs of a given file whose query could be read, written to `output`; None when there is not one.

    Raises BadInputError for a file that is no list of pairs.
    """
    with open_features(query_features) as queries:
        usable = [pair for pair in read_pairs(pairs, directed=True) if queries.has(pair.name0)]
    return write_pairs(output, usable) if usable else None
