"""Retrieval by global descriptors from files in hloc's layout, written here by hand, against a slow reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import h5py
import in_process
import numpy as np
import pytest

from featkit.core.config import Config
from featkit.core.errors import BadInputError, UsageError
from featkit.core.types import Features, Pair
from featkit.io.features import append_features, read_global_descriptors
from featkit.io.lists import read_pairs
from featkit.localization.queries import pair_queries_given
from featkit.mapping.scene import MapFiles
from featkit.pairing.by_retrieval import retrieval_by_global_descriptors
from featkit.retrieval import retrieve
from featkit.retrieval.retrieve import most_similar_rows, retrieve_given

MAP = [f"db/cam {i}/{i}.jpg" for i in range(7)]
QUERIES = [f"query/{i}.jpg" for i in range(4)]


@pytest.fixture
def vectors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    drawn = rng.normal(size=(11, 24)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return dict(zip(MAP + QUERIES, drawn, strict=True))


def written(path: Path, vectors: dict[str, np.ndarray], number: Any = np.float32) -> Path:
    with h5py.File(path, "w", libver="latest") as file:
        for name, vector in vectors.items():
            group = file.create_group(name)
            group.create_dataset("global_descriptor", data=vector.astype(number))
            group.create_dataset("image_size", data=np.array([640, 480]))
    return path


def by_loop(vectors: dict[str, np.ndarray], names: list[str], database: list[str], num: int) -> list[Pair]:
    found = []
    for name in names:
        others = [other for other in database if other != name]
        others.sort(key=lambda other: -float(np.dot(vectors[name].astype(float), vectors[other].astype(float))))
        found += [Pair(name, other) for other in others[:num]]
    return found


@pytest.mark.parametrize("number", [np.float32, np.float16, np.float64])
def test_the_most_similar_come_first(vectors: dict[str, np.ndarray], tmp_path: Path, number: Any) -> None:
    path = written(tmp_path / "g.h5", vectors, number)
    stored = {name: vector.astype(number) for name, vector in vectors.items()}
    assert retrieve_given([path], QUERIES, MAP, 3) == by_loop(stored, QUERIES, MAP, 3)
    assert retrieve_given([path], QUERIES, MAP[:2], 5) == by_loop(stored, QUERIES, MAP[:2], 5), "fewer than asked for"


def test_two_files_may_use_one_name(vectors: dict[str, np.ndarray], tmp_path: Path) -> None:
    """The database's file counts for the database, the queries' for the queries."""
    rng = np.random.default_rng(9)
    own = {**{name: vectors[name] for name in QUERIES}, MAP[3]: rng.normal(size=24).astype(np.float32)}
    database = written(tmp_path / "db.h5", {name: vectors[name] for name in MAP})
    queries = written(tmp_path / "q.h5", own)
    asked = [*QUERIES, MAP[3]]
    similar = np.stack([own[name] for name in asked]) @ np.stack([vectors[name] for name in MAP]).T
    expected = [Pair(asked[q], MAP[d]) for q in range(5) for d in np.argsort(-similar[q])[:2]]
    assert retrieve_given([database, queries], asked, MAP, 2) == expected


def test_blocks_and_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(-3, 4, (40, 6)).astype(np.float32)  # whole numbers: many ties
    whole = most_similar_rows(rows, rows, 7, not_itself=True)
    monkeypatch.setattr(retrieve, "BLOCK", 9)
    assert np.array_equal(most_similar_rows(rows, rows, 7, not_itself=True), whole)
    for index, row in enumerate(whole):
        ranked = sorted((j for j in range(40) if j != index), key=lambda j: (-float(rows[index] @ rows[j]), j))
        assert row.tolist() == ranked[:7]
    assert most_similar_rows(rows[:2], rows[:2], 3, not_itself=True).tolist() == [[1, -1, -1], [0, -1, -1]]


def test_errors_name_the_images(vectors: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = written(tmp_path / "g.h5", vectors)
    with pytest.raises(BadInputError, match=r"no global_descriptor of 'x', 'y', 'z' and 2 more \(5 of 6 images\)"):
        read_global_descriptors([path], ["x", "y", MAP[0], "z", "u", "v"])
    with pytest.raises(BadInputError, match="no such file"):
        read_global_descriptors([tmp_path / "none.h5"], MAP)
    with pytest.raises(UsageError, match="3 given"):
        retrieve_given([path] * 3, QUERIES, MAP, 3)
    other = written(tmp_path / "long.h5", {name: np.ones(30, np.float32) for name in QUERIES})
    with pytest.raises(UsageError, match="30 and 24 numbers"):
        retrieve_given([path, other], QUERIES, MAP, 3)
    mixed = written(tmp_path / "mixed.h5", {"a": np.ones(3), "b": np.ones(4)})
    with pytest.raises(BadInputError, match="'b' has a global_descriptor of 4 numbers, 'a' one of 3"):
        read_global_descriptors([mixed], ["a", "b"])
    broken = written(tmp_path / "broken.h5", {"a": np.array([1, np.nan])})
    with pytest.raises(BadInputError, match="'a' is not a row of finite numbers"):
        read_global_descriptors([broken], ["a"])
    local = tmp_path / "local.h5"
    with h5py.File(local, "w") as file:
        file["a/keypoints"] = np.zeros((3, 2))
        file["words/global_descriptor"] = "no numbers"
    with pytest.raises(BadInputError, match=r"local\.h5: no global_descriptor of 'a' \(1 of 1"):
        read_global_descriptors([local], ["a"])
    with pytest.raises(BadInputError, match="of 'words' holds object"):
        read_global_descriptors([local], ["words"])


def test_pairs_of_one_collection(vectors: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = written(tmp_path / "g.h5", vectors)
    found = retrieval_by_global_descriptors([path], {"num_matched": 2}).built.pairs(MAP, None, np.random.default_rng(0))
    expected = {pair.key() for pair in by_loop(vectors, MAP, MAP, 2)}
    assert {pair.key() for pair in found} == expected
    assert len(found) == len(expected)
    with pytest.raises(UsageError, match="num_match"):
        retrieval_by_global_descriptors([path], {"num_match": 2})


def test_the_pairs_verb(vectors: dict[str, np.ndarray], tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "pairs.txt"
    for name in MAP:
        (images / name).parent.mkdir(parents=True)
        cv2.imwrite(str(images / name), np.zeros((8, 8), np.uint8))
    half = [written(tmp_path / f"{i}.h5", {n: vectors[n] for n in MAP[i::2]}) for i in (0, 1)]
    words = ("pairs", images, "--out", out, "--num", 3, "--retrieval", half[0], "--retrieval", half[1])
    data = in_process.results(*words)
    assert (data["method"], data["images"]) == ("retrieval", 7)
    assert {p.key() for p in read_pairs(out)} == {p.key() for p in by_loop(vectors, MAP, MAP, 3)}
    changed = out.stat().st_mtime_ns
    in_process.results(*words)
    assert out.stat().st_mtime_ns == changed, "done already"
    moved = half[0].rename(tmp_path / "moved.h5")
    in_process.results(*words[:6], "--retrieval", moved, "--retrieval", half[1])
    assert out.stat().st_mtime_ns == changed, "the same descriptors from another place"
    vectors[MAP[0]] = -vectors[MAP[0]]
    written(moved, {n: vectors[n] for n in MAP[0::2]})
    in_process.results(*words[:6], "--retrieval", moved, "--retrieval", half[1])
    assert {p.key() for p in read_pairs(out)} == {p.key() for p in by_loop(vectors, MAP, MAP, 3)}
    in_process.refused(in_process.run(*words[:6], "--retrieval", half[1], "-q"), 3, "no global_descriptor of", "4 of 7")
    in_process.refused(in_process.run(*words, "--method", "exhaustive"), 2, "--method exhaustive")


def test_queries_against_a_map(vectors: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only registered images are retrieved, only readable queries ask, and what is done stays."""

    class Image:
        def __init__(self, name: str, has_pose: bool):
            self.name, self.has_pose = name, has_pose

    class Model:
        images = {i: Image(name, i != 2) for i, name in enumerate(MAP)}  # noqa: RUF012

    monkeypatch.setattr("featkit.localization.queries.read_model", lambda path: Model)
    features, out = tmp_path / "features.h5", tmp_path / "pairs.txt"
    one = Features(np.zeros((1, 2), np.float32), np.ones((1, 4), np.float32), np.ones(1, np.float32), (8, 8))
    with append_features(features, Config()) as store:
        for name in QUERIES[:3]:
            store.write(name, one)
    path = written(tmp_path / "g.h5", {name: vector for name, vector in vectors.items() if name != QUERIES[3]})
    found = MapFiles(tmp_path, tmp_path, features)
    arguments = ([path], features, QUERIES, found, 4, out)
    assert pair_queries_given(*arguments) == out
    registered = [name for name in MAP if name != MAP[2]]
    assert read_pairs(out, directed=True) == by_loop(vectors, QUERIES[:3], registered, 4)
    assert json.loads(out.with_suffix(".json").read_text())["config"]["num_retrieved"] == 4
    changed = out.stat().st_mtime_ns
    assert pair_queries_given(*arguments) == out
    assert out.stat().st_mtime_ns == changed
    assert pair_queries_given([path], features, QUERIES[3:], found, 4, tmp_path / "none.txt") is None
    written(path, {name: vectors[name] for name in MAP})
    with pytest.raises(BadInputError, match=r"of 'query/0\.jpg', 'query/1\.jpg', 'query/2\.jpg' \(3 of 3"):
        pair_queries_given(*arguments)
