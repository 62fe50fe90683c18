"""Which images of Aachen Day-Night are matched: the published lists, parted into pairs of the map and of queries."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from featkit.data.aachen import AachenFiles
from featkit.errors import BadInputError
from featkit.store.features import open_features
from featkit.store.pairs import read_pairs
from featkit.types import Pair

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairLists:
    """Files of pairs; None: there is none, and the pairs are made. One file may hold both kinds."""

    database: Path | None
    queries: Path | None


def published_lists(
    files: AachenFiles, queries: str, database_pairs: Path | None = None, query_pairs: Path | None = None
) -> PairLists:
    """The lists that belong to a choice of queries; a file that is given goes first.

    "night": those of the local-feature challenge, else hloc's. "day-night": hloc's, as the challenge has no day.
    """
    challenge = files.challenge_pairs if queries == "night" else None
    if challenge is None and queries == "night" and not (database_pairs and query_pairs):
        LOGGER.warning(
            "%s: the challenge's list of pairs is not here; others are matched than in the papers", files.root
        )
    return PairLists(database_pairs or challenge or files.database_pairs, query_pairs or challenge or files.query_pairs)


def with_features(pairs: Sequence[Pair], features: Path, second: Path | None = None) -> list[Pair]:
    """Pairs whose images have features (second: where those of the second name are): broken images are passed over.

    Raises BadInputError when none is left.
    """
    with open_features(features) as store0, open_features(second or features) as store1:
        known0, known1 = set(store0.names()), set(store1.names())
    kept = [pair for pair in pairs if pair.name0 in known0 and pair.name1 in known1]
    if not kept:
        raise BadInputError(f"{features}: not one of {len(pairs)} pairs has features; can the photographs be read?")
    return kept


def database_pairs(path: Path, mapped: Collection[str]) -> list[Pair]:
    """Pairs of a list whose images are both of the map. Raises BadInputError when there is none."""
    found = [pair for pair in read_pairs(path) if pair.name0 in mapped and pair.name1 in mapped]
    if not found:
        raise BadInputError(f"{path}: no pair of images of the reference model; is it the list of another version?")
    return found


def query_pairs(path: Path, queries: Collection[str], mapped: Collection[str]) -> list[Pair]:
    """Pairs (query, image of the map) of a list, whichever of the two it names first, best first as in the file.

    Raises BadInputError when there is none.
    """
    found = []
    for pair in read_pairs(path):
        if pair.name0 in queries and pair.name1 in mapped:
            found.append(pair)
        elif pair.name1 in queries and pair.name0 in mapped:
            found.append(Pair(pair.name1, pair.name0))
    if not found:
        raise BadInputError(f"{path}: no pair of a query and an image of the map; is it the list of another version?")
    without = len(set(queries) - {pair.name0 for pair in found})
    if without:
        LOGGER.warning("%s: no pair for %d of %d queries", path, without, len(queries))
    return found
