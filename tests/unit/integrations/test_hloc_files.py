"""The file layout, both ways: what hloc would read of featkit's files, and featkit of hloc's.

hloc's side is written and read here by hand with h5py, as its own code does; nothing of featkit's stores is used there.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from featkit.core.config import Config
from featkit.core.registry import Method
from featkit.core.types import Features, Pair
from featkit.io.features import append_features, open_features
from featkit.io.matches import append_matches, open_matches
from featkit.matching import stage as match
from featkit.matching.mutual import MutualConfig, MutualMatcher

NAMES = ["db/a.jpg", "db/b-2.jpg", "query/night/c.jpg"]
PAIRS = [("db/a.jpg", "db/b-2.jpg"), ("query/night/c.jpg", "db/a.jpg")]


@pytest.fixture
def drawn() -> dict[str, Features]:
    """Descriptors that are noisy copies of each other, so that many match, in another order."""
    rng = np.random.default_rng(5)
    base = rng.normal(size=(60, 32))
    drawn = {}
    for name in NAMES:
        rows = base[rng.permutation(60)[:45]] + 0.05 * rng.normal(size=(45, 32))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        xy = rng.uniform(0, 4000, (45, 2)).astype(np.float32)
        drawn[name] = Features(
            xy, rows.astype(np.float16), rng.random(45, np.float32), (4000, 3000), uncertainty_px=1.5
        )
    return drawn


def written_by_hloc(path: Path, drawn: dict[str, Features], half: bool = True) -> Path:
    with h5py.File(path, "a", libver="latest") as file:
        for name, features in drawn.items():
            group = file.create_group(name)
            number = np.float16 if half else np.float32
            group.create_dataset("keypoints", data=features.keypoints.astype(number))
            group.create_dataset("descriptors", data=features.descriptors.T.astype(number))
            group.create_dataset("scores", data=features.scores.astype(number))
            group.create_dataset("image_size", data=np.array(features.image_size))
            group["keypoints"].attrs["uncertainty"] = features.uncertainty_px
    return path


def names_as_hloc_lists(path: Path) -> set[str]:
    """The parent of every dataset."""
    names = set()
    with h5py.File(path, "r", libver="latest") as file:
        file.visititems(lambda name, item: names.add(item.parent.name[1:]) if isinstance(item, h5py.Dataset) else None)
    return names


def matched_as_hloc(features: Path, name0: str, name1: str) -> tuple[np.ndarray, np.ndarray]:
    """Mutual nearest neighbours of what hloc's dataset reads: every dataset of a group as float."""
    with h5py.File(features, "r") as file:
        read = [{k: v.__array__().astype(np.float32) for k, v in file[name].items()} for name in (name0, name1)]
    similar = read[0]["descriptors"].T @ read[1]["descriptors"]
    best, back = similar.argmax(1), similar.argmax(0)
    found = np.where(back[best] == np.arange(len(best)), best, -1)
    return found, np.where(found >= 0, similar.max(1), 0)


def matches_as_hloc_reads(path: Path, name0: str, name1: str) -> np.ndarray:
    """Index pairs (first image, second image), stored in either order."""
    with h5py.File(path, "r", libver="latest") as file:
        for a, b, swapped in ((name0, name1, False), (name1, name0, True)):
            key = a.replace("/", "-") + "/" + b.replace("/", "-")
            if key in file:
                matches = file[key]["matches0"].__array__()
                assert len(file[key]["matching_scores0"].__array__()) == len(matches)
                index = np.where(matches != -1)[0]
                pairs = np.stack([index, matches[index]], -1)
                return pairs[:, ::-1] if swapped else pairs
    raise AssertionError(f"no pair {name0} {name1}")


def pairs_file(folder: Path) -> Path:
    (folder / "pairs.txt").write_text("".join(f"{a} {b}\n" for a, b in PAIRS))
    return folder / "pairs.txt"


def matcher() -> Method[MutualMatcher]:
    return Method("mutual-nn", MutualMatcher, MutualConfig(ratio=None), "cpu")


def test_hloc_reads_featkits_features(drawn: dict[str, Features], tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    with append_features(path, Config()) as store:
        for name, features in drawn.items():
            store.write(name, features)
    assert names_as_hloc_lists(path) == set(NAMES)
    with h5py.File(path, "r", libver="latest") as file:
        for name, features in drawn.items():
            keypoints = file[name]["keypoints"]
            assert np.array_equal(keypoints.__array__(), features.keypoints), "not rounded"
            assert keypoints.attrs["uncertainty"] == 1.5
            assert np.array_equal(file[name]["descriptors"].__array__(), features.descriptors.T)
            assert tuple(file[name]["image_size"]) == (4000, 3000)
            for values in file[name].values():  # hloc turns every dataset of a group into a tensor
                values.__array__().astype(np.float32)


def test_hloc_reads_featkits_matches(drawn: dict[str, Features], tmp_path: Path) -> None:
    features = written_by_hloc(tmp_path / "f.h5", drawn, half=False)
    made = match.run(matcher(), features, pairs_file(tmp_path), tmp_path / "m.h5")
    assert names_as_hloc_lists(made) == {"db-a.jpg/db-b-2.jpg", "query-night-c.jpg/db-a.jpg"}
    for name0, name1 in PAIRS:
        expected, _ = matched_as_hloc(features, name0, name1)
        pairs = np.stack([np.flatnonzero(expected >= 0), expected[expected >= 0]], -1)
        assert len(pairs) > 20
        assert np.array_equal(matches_as_hloc_reads(made, name0, name1), pairs)
        turned = matches_as_hloc_reads(made, name1, name0)
        assert np.array_equal(turned[:, ::-1], pairs)


@pytest.mark.parametrize("half", [True, False])
def test_featkit_reads_hlocs_features(drawn: dict[str, Features], tmp_path: Path, half: bool) -> None:
    path = written_by_hloc(tmp_path / "f.h5", drawn, half)
    number = np.float16 if half else np.float32
    with open_features(path) as store:
        assert store.names() == sorted(NAMES)
        for name, features in drawn.items():
            read = store.read(name)
            assert read.keypoints.dtype == np.float32
            assert np.array_equal(read.keypoints, features.keypoints.astype(number).astype(np.float32))
            assert np.array_equal(read.descriptors.astype(np.float16), features.descriptors)
            assert np.array_equal(read.scores, features.scores.astype(number))
            assert (read.image_size, read.uncertainty_px) == ((4000, 3000), 1.5)
    if half:
        rounded = np.abs(drawn[NAMES[0]].keypoints.astype(np.float16).astype(np.float32) - drawn[NAMES[0]].keypoints)
        assert rounded.max() > 0.25, "the loss is hloc's, and real"


def test_featkit_reads_hlocs_matches(drawn: dict[str, Features], tmp_path: Path) -> None:
    features = written_by_hloc(tmp_path / "f.h5", drawn)
    path = tmp_path / "m.h5"
    expected = {}
    with h5py.File(path, "a", libver="latest") as file:
        for name0, name1 in PAIRS:
            found, scores = matched_as_hloc(features, name0, name1)
            group = file.create_group(name0.replace("/", "-") + "/" + name1.replace("/", "-"))
            group.create_dataset("matches0", data=found.astype(np.int16))
            group.create_dataset("matching_scores0", data=scores.astype(np.float16))
            expected[name0, name1] = found, scores.astype(np.float16)
    ours = match.run(matcher(), features, pairs_file(tmp_path), tmp_path / "ours.h5")
    with open_matches(path) as theirs, open_matches(ours) as made:
        for names, (found, scores) in expected.items():
            read = theirs.read(Pair(*names))
            assert read.matches0.dtype == np.int32
            assert np.array_equal(read.matches0, found)
            assert np.array_equal(read.scores0, scores.astype(np.float32))
            assert np.array_equal(made.read(Pair(*names)).matches0, found), "both match the same file alike"
            back = theirs.read(Pair(*names[::-1]))
            assert {tuple(p) for p in back.as_index_pairs()[:, ::-1]} == {tuple(p) for p in read.as_index_pairs()}


def test_there_and_back(drawn: dict[str, Features], tmp_path: Path) -> None:
    """hloc's file -> featkit -> hloc: nothing is lost on the way, float16 and int16 included."""
    theirs = written_by_hloc(tmp_path / "theirs.h5", drawn)
    ours = tmp_path / "ours.h5"
    with open_features(theirs) as source, append_features(ours, Config()) as target:
        for name in source.names():
            target.write(name, source.read(name))
    with h5py.File(theirs, "r") as a, h5py.File(ours, "r") as b:
        for name in NAMES:
            for dataset in ("keypoints", "descriptors", "scores", "image_size"):
                assert np.array_equal(a[name][dataset][()], b[name][dataset][()]), dataset
    found = match.run(matcher(), theirs, pairs_file(tmp_path), tmp_path / "m.h5")
    with open_matches(found) as source, append_matches(tmp_path / "m2.h5", Config(), "") as target:
        for pair in source.pairs():
            target.write(pair, source.read(pair), ("", ""))
    for name0, name1 in PAIRS:
        both = [matches_as_hloc_reads(path, name0, name1) for path in (found, tmp_path / "m2.h5")]
        assert np.array_equal(*both)
