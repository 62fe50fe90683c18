"""matches.h5 in hloc's layout: a group per pair with matches0 (int32, -1 = none) and matching_scores0.

hloc's key of a pair replaces "/" by "-" in both names and joins them with "/", so `a/b-c` and `a-b/c` share a key.
Such names cannot be used together; every group also has both names as attributes.

COLMAP's text of matches is read as well.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Int32

from featkit.core.config import Config
from featkit.core.errors import BadInputError
from featkit.core.types import Matches, Pair
from featkit.io import h5
from featkit.io.atomic import read_lines
from featkit.io.features import FeatureStore
from featkit.io.h5 import attribute
from featkit.io.h5_items import MAX_ROWS, array_of, find_item, has, linked_items, refuse_missing, refuse_too_large
from featkit.io.journal import DAMAGE, explains_damage


def pair_key(pair: Pair) -> str:
    """hloc's group name of a pair."""
    return f"{pair.name0.replace('/', '-')}/{pair.name1.replace('/', '-')}"


def refuse_key_collisions(names: Iterable[str]) -> None:
    """Raise BadInputError if two different image names would share a key."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.replace("/", "-"), name)
        if other != name:
            raise BadInputError(f"image names {other!r} and {name!r} conflict in a matches file; rename one")


class MatchStore:
    """One open matches.h5. Get one from `open_matches` or `append_matches`."""

    holds = "matches"

    def __init__(self, path: Path, file: h5py.File, features: tuple[FeatureStore, FeatureStore] | None = None):
        """features: stores of the first and second images of pairs, against which matches are checked when read."""
        self.path = path
        self._file = file
        self._features = features
        self._digests: tuple[dict[str, str], dict[str, str]] = ({}, {})
        self._counts: tuple[dict[str, int], dict[str, int]] = ({}, {})

    def has(self, pair: Pair, digests: tuple[str, str]) -> bool:
        """Whether there are complete matches of a pair, in this order, made from features with these digests."""
        try:
            group = find_item(self._file, pair_key(pair))
            if not h5.is_whole(group):
                return False
            stored = [attribute(group, name) for name in ("name0", "name1", "features0", "features1")]
            return bool(stored == [pair.name0, pair.name1, *digests])
        except DAMAGE:
            return False

    @explains_damage
    def pairs(self) -> list[Pair]:
        """All pairs with complete matches, sorted. Names are taken from the attributes that featkit writes."""
        in_this_file = (item for _, item in h5.groups(self._file, "matches0", whole=True))
        keys = (key for key in linked_items(self._file) if h5.is_complete(self._file, key))
        linked = (self._group(key) for key in keys)
        with_names = (item for item in chain(in_this_file, linked) if "name0" in item.attrs)
        return sorted(Pair(str(attribute(item, "name0")), str(attribute(item, "name1"))) for item in with_names)

    @explains_damage
    def read(self, pair: Pair) -> Matches:
        """Matches of a pair, stored in either order of names. Raises BadInputError."""
        for stored, swapped in ((pair, False), (Pair(pair.name1, pair.name0), True)):
            key = pair_key(stored)
            refuse_missing(self._file, key)
            if find_item(self._file, key) is not None and self._has_names(key, stored):
                self._refuse_other_features(key, pair, swapped)
                matches = self._read(key)
                self._refuse_wrong_indices(matches, pair, swapped)
                return self._invert(matches, key) if swapped else matches
        raise BadInputError(f"{self.path}: no matches of {pair.name0!r} and {pair.name1!r}; match them first")

    @explains_damage
    def read_key(self, key: str) -> Matches:
        """Matches of the group of that name, as stored. Raises BadInputError."""
        return self._read(key)

    def write(self, pair: Pair, matches: Matches, digests: tuple[str, str], keypoints1: int = 0) -> None:
        """Write the matches of a pair as a transaction.

        digests: of the features of image 0 and image 1. keypoints1: number of keypoints of image 1.
        """
        datasets = {
            "matches0": matches.matches0.astype(np.int32, copy=False),
            "matching_scores0": matches.scores0.astype(np.float32, copy=False),
        }
        attributes = {
            "name0": pair.name0,
            "name1": pair.name1,
            "features0": digests[0],
            "features1": digests[1],
            "keypoints1": keypoints1,
        }
        h5.write_item(self._file, pair_key(pair), datasets, attributes)

    @explains_damage
    def attributes(self) -> dict:
        """Root attributes of the file: kind, format, fingerprint, config, versions."""
        return h5.root_attributes(self._file)

    def identity(self, pairs: Iterable[Pair]) -> str:
        """What tells these matches from others of the same features: the fingerprint of what made the file.

        Of another program's file, which has none, 16 hex digits of the matches themselves.
        """
        attributes = self.attributes()
        if "format" in attributes:
            return str(attributes.get("fingerprint"))
        hashed = hashlib.sha256()
        for pair in pairs:
            hashed.update(np.ascontiguousarray(self.read(pair).matches0, dtype=np.int32).tobytes() + b"|")
        return hashed.hexdigest()[:16]

    def _read(self, key: str) -> Matches:
        group = self._group(key)
        stored = array_of(group, "matches0", kinds="iu").reshape(-1)
        limits = np.iinfo(np.int32)
        if stored.size and not (limits.min <= stored.min() and stored.max() <= limits.max):
            raise BadInputError(f"{self.path}: {key!r} has an index of {stored.max():,}, beyond any keypoint")
        matches0 = stored.astype(np.int32, copy=False)
        scores0 = np.zeros(len(matches0), np.float32)
        if has(group, "matching_scores0"):
            scores0 = array_of(group, "matching_scores0").astype(np.float32, copy=False).reshape(-1)
        if len(scores0) != len(matches0):
            raise BadInputError(f"{self.path}: {key!r} has {len(matches0)} matches but {len(scores0)} scores")
        return Matches(matches0, scores0)

    def _group(self, key: str) -> h5py.Group:
        if not isinstance(group := find_item(self._file, key), h5py.Group):
            raise BadInputError(f"{self.path}: no matches of {key!r}")
        return group

    def refuse_others(self, pairs: Iterable[Pair]) -> None:
        """Raise BadInputError for matches made from other features than this store's. Missing pairs are ignored."""
        for pair in pairs:
            for stored, swapped in ((pair, False), (Pair(pair.name1, pair.name0), True)):
                key = pair_key(stored)
                if find_item(self._file, key) is not None and self._has_names(key, stored):
                    self._refuse_other_features(key, pair, swapped)

    def _refuse_other_features(self, key: str, pair: Pair, swapped: bool) -> None:
        """Compares the digests that featkit writes; hloc writes none."""
        if self._features is None:
            return
        stored = [str(attribute(self._group(key), name, "")) for name in ("features0", "features1")]
        for side, (name, digest) in enumerate(
            zip((pair.name0, pair.name1), reversed(stored) if swapped else stored, strict=True)
        ):
            if digest and digest != self._cached_digest(side, name):
                raise BadInputError(
                    f"{self.path}: the matches of {pair.name0!r} and {pair.name1!r} were made from other features of"
                    f" {name!r} than those in {self._features[side].path}; match again, or give the original features"
                )

    def _refuse_wrong_indices(self, matches: Matches, pair: Pair, swapped: bool) -> None:
        """Refuse indices beyond an image's keypoints, which would crash native code or match something else."""
        rows, largest = len(matches.matches0), int(matches.matches0.max(initial=-1))
        names = (pair.name1, pair.name0) if swapped else (pair.name0, pair.name1)
        counts = (rows, MAX_ROWS)
        if self._features is not None:
            sides = (1, 0) if swapped else (0, 1)
            counts = (self._cached_count(sides[0], names[0]), self._cached_count(sides[1], names[1]))
        if largest >= counts[1] or rows != counts[0]:
            raise BadInputError(
                f"{self.path}: the matches of {names[0]!r} and {names[1]!r} do not fit their {counts[0]:,} and"
                f" {counts[1]:,} keypoints ({rows:,} rows, indices up to {largest:,}); match these features again"
            )

    def _cached_digest(self, side: int, name: str) -> str:
        assert self._features is not None
        if name not in self._digests[side]:
            self._digests[side][name] = self._features[side].digest(name)
        return self._digests[side][name]

    def _cached_count(self, side: int, name: str) -> int:
        assert self._features is not None
        if name not in self._counts[side]:
            self._counts[side][name] = self._features[side].count(name)
        return self._counts[side][name]

    def _has_names(self, key: str, pair: Pair) -> bool:
        """Whether a group has these names, not others with the same key; for hloc's files this is assumed."""
        group = self._group(key)
        return Pair(attribute(group, "name0", pair.name0), attribute(group, "name1", pair.name1)) == pair

    def _invert(self, matches: Matches, key: str) -> Matches:
        """Matches from image 1 to image 0. For hloc's files, without a keypoint count, rows end at the last match."""
        forward = matches.as_index_pairs()
        size = int(forward[:, 1].max()) + 1 if len(forward) else 0
        size = max(size, int(attribute(self._group(key), "keypoints1", 0)))
        refuse_too_large((size,), 1, f"{self.path}: {key!r}")
        back, scores = np.full(size, -1, np.int32), np.zeros(size, np.float32)
        back[forward[:, 1]] = forward[:, 0]
        scores[forward[:, 1]] = matches.scores0[forward[:, 0]]
        return Matches(back, scores)


class TextMatches(MatchStore):
    """Matches in the text that COLMAP's matches_importer takes; all of them in memory.

        a.jpg b.jpg
        0 17
        3 5

    Two names (tab-separated if one has a space), a line per match with the indices of both keypoints from 0, and an
    empty line before the next pair.
    """

    def __init__(self, path: Path, features: tuple[FeatureStore, FeatureStore] | None = None):
        """Read the whole file. Raises BadInputError that names the line."""
        self.path, self._features = path, features
        self._counts = ({}, {})
        self._matches = read_match_list(path)

    def has(self, pair: Pair, digests: tuple[str, str]) -> bool:
        """No: the text does not say which features it was made of."""
        return False

    def pairs(self) -> list[Pair]:
        """All pairs of the file, sorted."""
        return sorted(self._matches)

    def attributes(self) -> dict:
        """Nothing: a text says nothing of itself."""
        return {}

    def refuse_others(self, pairs: Iterable[Pair]) -> None:
        """Nothing to compare; indices are checked when they are read."""

    def read(self, pair: Pair) -> Matches:
        """Matches of a pair, stored in either order of names. Raises BadInputError."""
        swapped = pair not in self._matches
        rows = self._matches.get(Pair(pair.name1, pair.name0) if swapped else pair)
        if rows is None:
            raise BadInputError(f"{self.path}: no matches of {pair.name0!r} and {pair.name1!r}; match them first")
        rows = rows[:, ::-1] if swapped else rows
        counts = rows.max(axis=0, initial=-1) + 1
        if self._features is not None:
            counts = [self._cached_count(side, name) for side, name in enumerate((pair.name0, pair.name1))]
        if (rows.max(axis=0, initial=-1) >= counts).any():
            raise BadInputError(
                f"{self.path}: the matches of {pair.name0!r} and {pair.name1!r} do not fit their {counts[0]:,} and"
                f" {counts[1]:,} keypoints (indices up to {rows.max():,}); they are of other features"
            )
        matches0, scores0 = np.full(counts[0], -1, np.int32), np.zeros(counts[0], np.float32)
        matches0[rows[:, 0]], scores0[rows[:, 0]] = rows[:, 1], 1.0
        return Matches(matches0, scores0)


def read_match_list(path: Path) -> dict[Pair, Int32[np.ndarray, "m 2"]]:
    """Index pairs of each pair of images; see `TextMatches`. Raises BadInputError that names the line."""
    matches: dict[Pair, Int32[np.ndarray, "m 2"]] = {}
    pair: Pair | None = None
    rows = array("i")  # a file may have millions
    for number, line in chain(read_lines(path, empty=True), [(0, "")]):
        if pair is None and line:
            names = [name.strip() for name in (line.split("\t") if "\t" in line else line.split())]
            if len(names) != 2 or not all(names):
                raise BadInputError(f"{path}:{number}: two image names expected, and an empty line after each pair")
            pair, rows = Pair(*names), array("i")
            if pair in matches or Pair(pair.name1, pair.name0) in matches or pair.name0 == pair.name1:
                raise BadInputError(f"{path}:{number}: {pair.name0!r} and {pair.name1!r}: twice in it, or one image")
        elif line:
            indices = line.split()
            if len(indices) != 2 or not all(
                len(field) < 10 and field.isascii() and field.isdigit() for field in indices
            ):
                raise BadInputError(f"{path}:{number}: expected the indices of two keypoints, from 0")
            rows.extend(map(int, indices))
            if len(rows) > 2 * MAX_ROWS:
                raise BadInputError(f"{path}:{number}: more than {MAX_ROWS:,} matches of a pair, which fit into memory")
        elif pair is not None:
            matches[pair] = np.array(rows, np.int32).reshape(-1, 2)
            refuse_too_large(
                (int(matches[pair].max(initial=-1)) + 1,),
                1,
                f"{path}: by its indices, {pair.name0!r} or {pair.name1!r}",
            )
            if len(np.unique(matches[pair][:, 0])) < len(matches[pair]):
                raise BadInputError(
                    f"{path}: a keypoint of {pair.name0!r} has two matches in {pair.name1!r}; leave one"
                )
            pair = None
    if not matches:
        raise BadInputError(f"{path}: no matches in it")
    return matches


@contextmanager
def open_matches(
    path: Path, features: FeatureStore | None = None, second_features: FeatureStore | None = None
) -> Iterator[MatchStore]:
    """Open matches.h5, or a text of matches (.txt), for reading. Raises BadInputError.

    features: the features that were matched (second_features: those of the second images, if separate). Matches of
    other features, or with indices beyond the keypoints, are then refused when they are read.
    """
    both_stores = None if features is None else (features, second_features or features)
    if path.suffix == ".txt":
        yield TextMatches(path, both_stores)
        return
    with h5.reading(path) as file:
        if (kind := h5.store_kind(file, "matches")) != "matches":
            raise BadInputError(f"{path}: holds {kind}, not matches")
        yield MatchStore(path, file, both_stores)


@contextmanager
def append_matches(
    path: Path, config: Config, features_fingerprint: str, overwrite: bool = False, weights_sha256: str = ""
) -> Iterator[MatchStore]:
    """Open matches.h5 for adding pairs. Raises BadInputError if it was made with another configuration or features.

    weights_sha256: of the matcher's weights, "" if it has none.
    """
    extra = {"features_fingerprint": features_fingerprint}
    if weights_sha256:
        extra["weights_sha256"] = weights_sha256
    with h5.appending(path, "matches", config, extra, overwrite) as file:
        yield MatchStore(path, file)
