"""The match stage: features.h5 + pairs.txt -> matches.h5. A thread prefetches features; resumable at any moment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Protocol

from featkit.core.config import Config
from featkit.core.errors import BadInputError, UsageError
from featkit.core.log import progress
from featkit.core.registry import Method
from featkit.core.types import Features, Matches, Pair
from featkit.io.features import FeatureStore, open_features
from featkit.io.lists import Spelling, read_pairs
from featkit.io.matches import MatchStore, append_matches, refuse_key_collisions

LOGGER = logging.getLogger(__name__)
CACHED_IMAGES = 64  # features kept in memory; pairs are usually sorted by their first image
CACHED_KEYPOINTS = 1 << 21  # in all of these images: 1 GB with 128 numbers each
DEFAULT_BATCH = 32


def run(
    method: Method[Matcher],
    features: Path,
    pairs: Path | list[Pair],
    output: Path,
    *,
    query_features: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Match all pairs that `output` does not contain yet, and return `output`. pairs: a file, or a list.

    query_features: features of the first image of each pair, if they are not in `features`.
    Raises BadInputError if a pair names an image without features, or if `output` was made from other features or
    with another configuration.
    """
    with _open_job(method, features, pairs, output, query_features, overwrite) as job:
        if len(job.todo) < job.total:
            LOGGER.info("match: %d of %d pairs are done already", job.total - len(job.todo), job.total)
        cached = max(2, min(CACHED_IMAGES, CACHED_KEYPOINTS // max(1, job.most_keypoints)))
        size = min(int(getattr(method.own, "batch_size", DEFAULT_BATCH)), cached // 2)
        with progress("match", len(job.todo), "pairs") as advance:
            for batch, loaded in _read_ahead(job.todo, job.store0, job.store1, size, cached):
                for pair, pair_features, pair_matches in zip(
                    batch, loaded, _match_batch(method.built, batch, loaded), strict=True
                ):
                    job.matches.write(pair, pair_matches, job.digests(pair), len(pair_features[1]))
                advance(len(batch))
    return output


def waiting(
    method: Method[Matcher], features: Path, pairs: Path, output: Path, overwrite: bool
) -> tuple[list[Pair], int]:
    """The pairs that `run` would match, and the number of all pairs; `output` is created if it does not exist.

    Raises as `run` does.
    """
    with _open_job(method, features, pairs, output, None, overwrite) as job:
        return job.todo, job.total


@dataclass(frozen=True)
class _MatchJob:
    """The stores of a run, digests of the features of a pair, the unmatched pairs, and the number of all pairs.

    most_keypoints: of one image.
    """

    store0: FeatureStore
    store1: FeatureStore
    matches: MatchStore
    digests: Callable[[Pair], tuple[str, str]]
    todo: list[Pair]
    total: int
    most_keypoints: int


@contextmanager
def _open_job(
    method: Method[Matcher],
    features: Path,
    pairs: Path | list[Pair],
    output: Path,
    query_features: Path | None,
    overwrite: bool,
) -> Iterator[_MatchJob]:
    where = pairs if isinstance(pairs, Path) else "pairs"
    with ExitStack() as stack:
        store1 = stack.enter_context(open_features(features))
        store0 = stack.enter_context(open_features(query_features)) if query_features else store1
        spelled = (Spelling(store0.names), Spelling(store1.names))
        all_pairs = read_pairs(pairs, query_features is not None, spelled) if isinstance(pairs, Path) else pairs
        most_keypoints = _check_features(all_pairs, store0, store1, where)
        origin = str(store1.attributes().get("fingerprint", "foreign"))
        weights = _weights_of_stores(method, store0, store1)
        matches = stack.enter_context(append_matches(output, method.config, origin, overwrite, weights))
        digest0, digest1 = lru_cache(None)(store0.digest), lru_cache(None)(store1.digest)

        def digests(pair: Pair) -> tuple[str, str]:
            return digest0(pair.name0), digest1(pair.name1)

        todo = [pair for pair in all_pairs if not matches.has(pair, digests(pair))]
        yield _MatchJob(store0, store1, matches, digests, todo, len(all_pairs), most_keypoints)


def _weights_of_stores(method: Method[Matcher], store0: FeatureStore, store1: FeatureStore) -> str:
    try:
        sha256s = {weights_for(method.built, store.extractor) for store in (store0, store1)}
    except UsageError as error:
        raise UsageError(f"{store1.path}: {error}") from None
    if len(sha256s) > 1:
        raise BadInputError(
            f"{store0.path}: features of {store0.extractor}, but {store1.path}: {store1.extractor}; extract both the"
            " same way"
        )
    return sha256s.pop()


def _match_batch(matcher: Matcher, batch: list[Pair], loaded: list[tuple[Features, Features]]) -> list:
    try:
        return matcher.match(loaded)
    except BadInputError as error:
        raise BadInputError(f"{batch[0].name0!r}, {batch[0].name1!r}: {error}; extract both with one method") from None


def _check_features(pairs: list[Pair], store0: FeatureStore, store1: FeatureStore, where: Path | str) -> int:
    """The largest number of keypoints of an image. Raises BadInputError for images without features, or with too many.

    Only headers are read.
    """
    known0 = set(store0.names())
    known1 = known0 if store1 is store0 else set(store1.names())
    for missing, store in (
        (sorted({p.name0 for p in pairs} - known0), store0),
        (sorted({p.name1 for p in pairs} - known1), store1),
    ):
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise BadInputError(f"{where}: {missing[0]!r}{more} has no features in {store.path}; extract it first")
    refuse_key_collisions(sorted({name for pair in pairs for name in (pair.name0, pair.name1)}))
    used0, used1 = ({pair.name0 for pair in pairs}, {pair.name1 for pair in pairs})
    used = {(store0, name) for name in used0} | {(store1, name) for name in used1}
    return max((store.count(name) for store, name in sorted(used, key=lambda item: item[1])), default=0)


def _read_ahead(
    pairs: list[Pair], store0: FeatureStore, store1: FeatureStore, size: int, cached: int
) -> Iterator[tuple[list[Pair], list[tuple[Features, Features]]]]:
    """Batches of pairs with their features; the next batch is read while one is processed."""

    @lru_cache(maxsize=cached)
    def load(second: bool, name: str) -> Features:
        return (store1 if second else store0).read(name)

    is_one_store = store0 is store1

    def load_batch(batch: list[Pair]) -> list[tuple[Features, Features]]:
        return [(load(is_one_store, pair.name0), load(True, pair.name1)) for pair in batch]

    batches = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        next_batch = reader.submit(load_batch, batches[0]) if batches else None
        for index, batch in enumerate(batches):
            assert next_batch is not None
            loaded = next_batch.result()
            if index + 1 < len(batches):
                next_batch = reader.submit(load_batch, batches[index + 1])
            yield batch, loaded


# ----------------------------------------------------------------------------------------------------------------------
# The interface of matchers. tests/contract/ checks every registered matcher against it.


class Matcher(Protocol):
    """Features x Features -> Matches.

    A subclass declares `Config` and is built as `cls(config, device)`. The matches of a pair do not depend on the
    other pairs of a batch, nor on its size.
    """

    Config: ClassVar[type[Config]]

    def match(self, batch: list[tuple[Features, Features]]) -> list[Matches]:
        """Matches of each pair: `matches0` int32 of length n0, `scores0` float32. Empty features match nothing.

        Raises BadInputError if the descriptors of a pair have different lengths.
        """
        ...


class LearnedMatcher(Matcher, Protocol):
    """A matcher with weights for each kind of features, which uses keypoint positions: `Features.as_seen`."""

    def weights_for(self, extractor: str) -> str:
        """SHA-256 of the weights for the features of an extractor (`Features.extractor`).

        Raises UsageError if there are none for them, BadInputError if they are not installed.
        """
        ...


def weights_for(matcher: Matcher, extractor: str) -> str:
    """`LearnedMatcher.weights_for`; "" for a matcher without weights."""
    method = getattr(matcher, "weights_for", None)
    return "" if method is None else str(method(extractor))
