"""matches.h5: int32, either order of names, hloc's keys and their collisions."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from featkit.core.config import Config
from featkit.core.errors import BadInputError
from featkit.core.types import Features, Matches, Pair
from featkit.io.features import append_features, open_features
from featkit.io.matches import append_matches, open_matches, pair_key, refuse_key_collisions


class Made(Config):
    ratio: float = 0.8


def matches(n0: int, n1: int, seed: int = 0) -> Matches:
    """A random one-to-one assignment of half of the keypoints."""
    rng = np.random.default_rng(seed)
    count = min(n0, n1) // 2
    matches0, scores0 = np.full(n0, -1, np.int32), np.zeros(n0, np.float32)
    index0 = rng.choice(n0, count, replace=False)
    matches0[index0] = rng.choice(n1, count, replace=False)
    scores0[index0] = rng.uniform(0.5, 1, count)
    return Matches(matches0, scores0)


PAIRS = [Pair("a.jpg", "b.jpg"), Pair("dir/a b.jpg", "dir/ünï.jpg"), Pair("x/y/z.jpg", "a.jpg")]


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "matches.h5"
    with append_matches(path, Made(), "origin") as store:
        for index, pair in enumerate(PAIRS):
            store.write(pair, matches(30, 40, index), (30, 40))
    with open_matches(path) as store:
        assert store.pairs() == sorted(PAIRS)
        assert store.attributes()["features_fingerprint"] == "origin"
        for index, pair in enumerate(PAIRS):
            read, written = store.read(pair), matches(30, 40, index)
            assert np.array_equal(read.matches0, written.matches0)
            assert np.array_equal(read.scores0, written.scores0)
            assert (read.matches0.dtype, read.scores0.dtype) == (np.int32, np.float32)


def test_the_layout_is_hlocs(tmp_path: Path) -> None:
    path = tmp_path / "matches.h5"
    with append_matches(path, Made(), "") as store:
        store.write(Pair("db/a.jpg", "q/b.jpg"), matches(4, 4), (4, 4))
    with h5py.File(path, "r") as file:
        group = file["db-a.jpg/q-b.jpg"]
        assert group["matches0"].dtype == np.int32
        assert group["matches0"].shape == (4,)
        assert group["matching_scores0"].shape == (4,)
        assert (group.attrs["name0"], group.attrs["name1"], group.attrs["complete"]) == (b"db/a.jpg", b"q/b.jpg", 1)


def test_more_keypoints_than_int16_holds(tmp_path: Path) -> None:
    """hloc casts to int16, which wraps beyond 32,767."""
    n = 45_000
    found = Matches(np.arange(n, dtype=np.int64)[::-1].copy(), np.ones(n, np.float64))
    with append_matches(tmp_path / "m.h5", Made(), "") as store:
        store.write(PAIRS[0], found, (n, n))
        assert np.array_equal(store.read(PAIRS[0]).matches0, found.matches0)
        assert np.array_equal(store.read(Pair("b.jpg", "a.jpg")).matches0, np.arange(n)[::-1])


def test_swapped_read(tmp_path: Path) -> None:
    written = matches(30, 41, 3)
    with append_matches(tmp_path / "m.h5", Made(), "") as store:
        store.write(Pair("a", "b"), written, ("", ""), 41)
        swapped = store.read(Pair("b", "a"))
    assert len(swapped.matches0) == len(swapped.scores0) == 41, "one entry for every keypoint of image 0"
    assert swapped.count == written.count
    forward = {tuple(row) for row in written.as_index_pairs().tolist()}
    assert {(j, i) for i, j in swapped.as_index_pairs().tolist()} == forward
    for i, j in forward:
        assert swapped.scores0[j] == written.scores0[i]


def test_swapped_read_without_a_match(tmp_path: Path) -> None:
    with append_matches(tmp_path / "m.h5", Made(), "") as store:
        store.write(Pair("a", "b"), Matches(np.full(3, -1, np.int32), np.zeros(3, np.float32)), (3, 4))
        assert store.read(Pair("b", "a")).count == 0
        with pytest.raises(BadInputError, match="no matches of 'a' and 'c'"):
            store.read(Pair("a", "c"))


def test_has_is_of_these_names_and_counts(tmp_path: Path) -> None:
    with append_matches(tmp_path / "m.h5", Made(), "") as store:
        store.write(Pair("a/b", "c"), matches(5, 6), (5, 6))
        assert store.has(Pair("a/b", "c"), (5, 6))
        assert not store.has(Pair("a/b", "c"), (5, 7)), "image 1 was extracted again"
        assert not store.has(Pair("a/b", "c"), (4, 6))
        assert not store.has(Pair("a-b", "c"), (5, 6)), "the same key, another image"
        assert not store.has(Pair("c", "a/b"), (6, 5))
        del store._file["a-b/c"].attrs["complete"]
        assert not store.has(Pair("a/b", "c"), (5, 6))
        assert store.pairs() == []


def test_key_collisions_are_refused_with_both_names() -> None:
    assert pair_key(Pair("a/b-c", "x")) == pair_key(Pair("a-b/c", "x"))
    with pytest.raises(BadInputError, match=r"'a/b-c' and 'a-b/c'"):
        refuse_key_collisions(["z", "a/b-c", "a-b/c"])
    refuse_key_collisions(["a/b", "a/c", "b-c", "a/b"])


def test_a_colliding_pair_in_the_file_is_not_taken_for_this_one(tmp_path: Path) -> None:
    with append_matches(tmp_path / "m.h5", Made(), "") as store:
        store.write(Pair("a/b-c", "x"), matches(5, 5), (5, 5))
        with pytest.raises(BadInputError):
            store.read(Pair("a-b/c", "x"))


def test_other_features_or_matcher_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with append_matches(path, Made(), "one"):
        pass
    with (
        pytest.raises(BadInputError, match=r"another features fingerprint \(one -> two\)"),
        append_matches(path, Made(), "two"),
    ):
        pass
    with pytest.raises(BadInputError, match=r"ratio: 0\.8 -> 0\.9"), append_matches(path, Made(ratio=0.9), "one"):
        pass
    with append_matches(path, Made(ratio=0.9), "two", overwrite=True) as store:
        assert store.pairs() == []


def test_reads_a_file_of_hloc(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["a-b.jpg/c.jpg/matches0"] = np.array([1, -1, 0], np.int16)
        file["a-b.jpg/c.jpg/matching_scores0"] = np.array([0.5, 0, 0.25], np.float16)
        file["x/y/matches0"] = np.array([0], np.int16)
        file["bad/y/matching_scores0"] = np.zeros(3)
    with open_matches(tmp_path / "m.h5") as store:
        read = store.read(Pair("a/b.jpg", "c.jpg"))
        assert read.matches0.tolist() == [1, -1, 0]
        assert read.scores0.tolist() == [0.5, 0, 0.25]
        assert store.read(Pair("c.jpg", "a/b.jpg")).matches0.tolist() == [2, 0]
        assert store.read(Pair("x", "y")).scores0.tolist() == [0]
        with pytest.raises(BadInputError, match="'matches0' of 'bad/y' is missing, or not an array"):
            store.read(Pair("bad", "y"))


def test_not_matches(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.attrs["kind"] = "features"
    with pytest.raises(BadInputError, match="holds features"), open_matches(tmp_path / "f.h5"):
        pass


def features_of(path: Path, counts: dict[str, int], seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    with append_features(path, Made()) as store:
        for name, n in counts.items():
            values = rng.random((n, 2), np.float32), rng.random((n, 8), np.float32), np.ones(n, np.float32)
            store.write(name, Features(*values, image_size=(64, 48)))
    return path


@pytest.mark.parametrize("pair", [Pair("a.jpg", "b.jpg"), Pair("b.jpg", "a.jpg")], ids=["stored order", "swapped"])
def test_matches_of_other_features_are_refused(tmp_path: Path, pair: Pair) -> None:
    """Nothing but the digests tells features of equal numbers apart."""
    own = features_of(tmp_path / "own.h5", {"a.jpg": 4, "b.jpg": 5})
    other = features_of(tmp_path / "other.h5", {"a.jpg": 4, "b.jpg": 5}, seed=1)
    with open_features(own) as store, append_matches(tmp_path / "matches.h5", Made(), "f") as matches:
        digests = (store.digest("a.jpg"), store.digest("b.jpg"))
        matches.write(Pair("a.jpg", "b.jpg"), Matches(np.array([4, -1, 0, 1]), np.ones(4)), digests, 5)
    with open_features(own) as store, open_matches(tmp_path / "matches.h5", store) as matches:
        assert matches.read(pair).count == 3
        matches.refuse_others([pair, Pair("a.jpg", "missing.jpg")])
    with open_features(other) as store, open_matches(tmp_path / "matches.h5", store) as matches:
        for read in (matches.read, lambda pair: matches.refuse_others([pair])):
            with pytest.raises(
                BadInputError, match=r"were made from other features of '[ab]\.jpg' than those in .*other\.h5"
            ):
                read(pair)


@pytest.mark.parametrize("pair", [Pair("a.jpg", "b.jpg"), Pair("b.jpg", "a.jpg")], ids=["stored order", "swapped"])
@pytest.mark.parametrize("matches0", [[0, 10**9, -1, -1], [5, -1, -1, -1], [0, -1, -1], [0, -1, -1, -1, 1]])
def test_matches_that_do_not_fit_the_keypoints_are_refused(tmp_path: Path, matches0: list[int], pair: Pair) -> None:
    """As in a file of hloc's, which has no digests."""
    own = features_of(tmp_path / "own.h5", {"a.jpg": 4, "b.jpg": 5})
    with h5py.File(tmp_path / "matches.h5", "w") as file:
        file["a.jpg/b.jpg/matches0"] = np.array(matches0, np.int32)
    with (
        open_features(own) as store,
        open_matches(tmp_path / "matches.h5", store) as matches,
        pytest.raises(BadInputError, match=r"'a\.jpg' and 'b\.jpg' do not fit their 4 and 5 keypoints"),
    ):
        matches.read(pair)


def test_an_index_beyond_any_image_is_refused_without_features(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "matches.h5", "w") as file:
        file["a.jpg/b.jpg/matches0"] = np.array([0, 10**9], np.int32)
    with open_matches(tmp_path / "matches.h5") as matches, pytest.raises(BadInputError, match="up to 1,000,000,000"):
        matches.read(Pair("b.jpg", "a.jpg"))
