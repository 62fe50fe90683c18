"""An index of links to shards, and stores merged: what is refused, what stays."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from same_stores import assert_same

from featkit.core.config import Config
from featkit.core.errors import BadInputError
from featkit.core.types import Features
from featkit.io.features import append_features, open_features
from featkit.io.shards import merge_stores, write_index


class Made(Config):
    by: str = "test"


def features(seed: int) -> Features:
    generator = np.random.default_rng(seed)
    keypoints = generator.uniform(0, 99, (5, 2)).astype(np.float32)
    return Features(keypoints, generator.normal(size=(5, 8)).astype(np.float32), np.ones(5, np.float32), (100, 80))


def store(path: Path, names: list[str], by: str = "test") -> Path:
    with append_features(path, Made(by=by)) as made:
        for name in names:
            made.write(name, features(sum(name.encode())))
    return path


def test_an_index_has_the_items_of_all_shards(tmp_path: Path) -> None:
    whole = store(tmp_path / "whole.h5", ["a.jpg", "b/c.jpg", "b/d.jpg"])
    shards = [store(tmp_path / "0.h5", ["b/d.jpg", "a.jpg"]), store(tmp_path / "1.h5", ["b/c.jpg"])]
    assert write_index(tmp_path / "index.h5", shards) == 3
    assert_same(whole, tmp_path / "index.h5")
    assert merge_stores([tmp_path / "index.h5"], tmp_path / "merged.h5") == 3
    for shard in shards:
        shard.unlink()
    assert_same(whole, tmp_path / "merged.h5")


def test_an_index_can_have_some_of_the_items(tmp_path: Path) -> None:
    write_index(tmp_path / "index.h5", [store(tmp_path / "0.h5", ["a", "b", "c"])], {"a", "c"})
    with open_features(tmp_path / "index.h5") as found:
        assert found.names() == ["a", "c"]


def test_what_is_added_to_an_index_replaces_and_goes_beside(tmp_path: Path) -> None:
    index = tmp_path / "index.h5"
    write_index(index, [store(tmp_path / "0.h5", ["a", "b"])])
    with append_features(tmp_path / "1.h5", Made()) as made:
        made.write("b", features(77))
        made.write("c", features(78))
    write_index(index, [tmp_path / "1.h5"])
    with open_features(index) as found:
        assert found.names() == ["a", "b", "c"]
        np.testing.assert_array_equal(found.read("b").keypoints, features(77).keypoints)


def test_an_index_takes_items_of_its_own_too(tmp_path: Path) -> None:
    index = tmp_path / "index.h5"
    write_index(index, [store(tmp_path / "0.h5", ["a", "b"])])
    store(index, ["c", "b"])
    (tmp_path / "0.h5").rename(tmp_path / "away.h5")
    with open_features(index) as found:
        assert found.names() == ["a", "b", "c"]
        assert len(found.read("b")) == 5
        with pytest.raises(BadInputError, match=r"0\.h5.*missing"):
            found.read("a")


def test_items_that_are_cut_short_are_not_linked(tmp_path: Path) -> None:
    shard = store(tmp_path / "0.h5", ["a", "b"])
    with h5py.File(shard, "r+") as file:
        del file["a"].attrs["complete"]
    assert write_index(tmp_path / "index.h5", [shard]) == 1


def test_what_is_refused(tmp_path: Path) -> None:
    first = store(tmp_path / "0.h5", ["a", "b"])
    twice = store(tmp_path / "1.h5", ["b"])
    other = store(tmp_path / "2.h5", ["c"], by="another")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x/keypoints"] = np.zeros((1, 2))
    for wrong, words in (
        (twice, r"1\.h5: has 'b', like .*0\.h5"),
        (other, "another fingerprint"),
        (tmp_path / "foreign.h5", "another program"),
        (tmp_path / "none.h5", "no such file"),
    ):
        for link in (True, False):
            with pytest.raises(BadInputError, match=words):
                merge_stores([first, wrong], tmp_path / "out.h5", link=link)
        assert not (tmp_path / "out.h5").exists()
    with pytest.raises(BadInputError, match="exists already"):
        merge_stores([first], twice)
    with pytest.raises(BadInputError, match="one of the stores"):
        merge_stores([first], first, overwrite=True)


@pytest.mark.parametrize("link", [False, True])
def test_a_merge_that_is_refused_leaves_the_old_output(tmp_path: Path, link: bool) -> None:
    first, other = store(tmp_path / "0.h5", ["a"]), store(tmp_path / "2.h5", ["c"], by="another")
    out = store(tmp_path / "out.h5", ["old"])
    before = out.read_bytes()
    for wrong in (other, tmp_path / "none.h5"):
        with pytest.raises(BadInputError):
            merge_stores([first, wrong], out, link=link, overwrite=True)
        assert out.read_bytes() == before
    assert merge_stores([first], out, link=link, overwrite=True) == 1
    with open_features(out) as merged:
        assert merged.names() == ["a"]
