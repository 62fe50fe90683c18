"""Which map images each query is matched with: the most similar ones by VLAD, trained on the map alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featkit.errors import NothingCameOutError
from featkit.mapping.model import read_model
from featkit.mapping.scene import MapFiles
from featkit.retrieval.retrieve import retrieve
from featkit.retrieval.vlad import VladConfig
from featkit.store.features import open_features
from featkit.store.pairs import write_pairs


def pair_queries(
    query_features: Path,
    names: list[str],
    found: MapFiles,
    config: VladConfig,
    num: int,
    output: Path,
    generator: np.random.Generator,
    device: str = "auto",
) -> Path:
    """Write pairs (query, map image), best first; only registered images of the map are retrieved.

    Queries without features (images passed over) get no pair. Raises NothingCameOutError when there is not one pair.
    """
    registered = sorted(image.name for image in read_model(found.model).images.values() if image.has_pose)
    with open_features(query_features) as queries, open_features(found.features) as database:
        described = set(queries.names())
        usable = [name for name in names if name in described]
        pairs = retrieve(
            queries, usable, database, registered, config, num, generator, device=device, spill_folder=output.parent
        )
    if not pairs:
        raise NothingCameOutError(f"{query_features}: no query has a keypoint to retrieve map images with")
    return write_pairs(output, pairs, config)
