"""`featkit verify` with features and matches of other programs: same database, same index checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pycolmap
import pytest
from in_process import refused, results, run
from synthetic_scene import PARAMS, Written, write_scene

from featkit.io.features import open_features
from featkit.io.matches import open_matches

CAMERA = ("--camera-model", "PINHOLE", "--camera-params", ",".join(map(str, PARAMS)), "--camera-mode", "single")
Matches0 = dict[tuple[str, str], np.ndarray]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Eight images with exact matches, as featkit writes them. Never written to."""
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def matches(scene: Written) -> Matches0:
    with open_matches(scene.matches) as store:
        return {(pair.name0, pair.name1): store.read(pair).matches0 for pair in store.pairs()}


@pytest.fixture(scope="module")
def features(scene: Written, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same keypoints in hloc's layout for detector-free matchers: no descriptors, no sizes."""
    path = tmp_path_factory.mktemp("hloc") / "features.h5"
    with open_features(scene.features) as store, h5py.File(path, "w", libver="latest") as file:
        for name in store.names():
            file.create_group(name)["keypoints"] = store.keypoints(name)
    return path


def as_hloc(path: Path, matches: Matches0) -> Path:
    with h5py.File(path, "w", libver="latest") as file:
        for names, matches0 in matches.items():
            group = file.create_group("/".join(name.replace("/", "-") for name in names))
            group["matches0"] = matches0.astype(np.int16)
            group["matching_scores0"] = (matches0 >= 0).astype(np.float16)
    return path


def as_text(path: Path, matches: Matches0) -> Path:
    """Write matches for COLMAP's matches_importer, with swapped names in every other pair."""
    blocks = []
    for number, ((name0, name1), matches0) in enumerate(matches.items()):
        rows = [(index, match) for index, match in enumerate(matches0.tolist()) if match >= 0]
        if number % 2:
            name0, name1, rows = name1, name0, [(match, index) for index, match in rows]
        blocks.append("\n".join([f"{name0} {name1}", *(f"{a} {b}" for a, b in rows)]))
    path.write_text("# of another program\n\n" + "\n\n\n".join(blocks) + "\n")
    return path


def verified(path: Path) -> dict[tuple[str, str], list[list[int]]]:
    """Inlier matches of every pair, sorted."""
    with pycolmap.Database.open(str(path)) as database:
        names = {image.image_id: image.name for image in database.read_all_images()}
        ids, geometries = database.read_two_view_geometries()
        pairs = [pycolmap.pair_id_to_image_pair(pair_id) for pair_id in ids]
        return {
            (names[a], names[b]): sorted(geometry.inlier_matches.tolist())
            for (a, b), geometry in zip(pairs, geometries, strict=True)
        }


def verify(scene: Written, features: Path, matches: Path, out: Path, *options: object) -> dict[str, Any]:
    return results("verify", scene.images, features, scene.pairs, matches, "--out", out, *CAMERA, *options)


@pytest.mark.parametrize("write", [as_hloc, as_text])
def test_database_equals_that_of_featkits_own_files(
    scene: Written, features: Path, matches: Matches0, tmp_path: Path, write: Callable[[Path, Matches0], Path]
) -> None:
    own = verify(scene, scene.features, scene.matches, tmp_path / "own.db")
    path = tmp_path / ("matches.h5" if write is as_hloc else "matches.txt")
    theirs = verify(scene, features, write(path, matches), tmp_path / "theirs.db")
    assert {**own, "out": ""} == {**theirs, "out": ""}
    assert own["verified_pairs"] == len(matches) == 28
    assert verified(tmp_path / "own.db") == verified(tmp_path / "theirs.db")
    planned = verify(scene, features, path, tmp_path / "shards.db", "--engine", "plan", "--shards", 2)
    results("run", planned["plan"])
    verify(scene, features, path, tmp_path / "shards.db")
    assert verified(tmp_path / "own.db") == verified(tmp_path / "shards.db")


@pytest.mark.parametrize("write", [as_hloc, as_text])
def test_changed_matches_are_verified_again(
    scene: Written, features: Path, matches: Matches0, tmp_path: Path, write: Callable[[Path, Matches0], Path]
) -> None:
    """Files of other programs have no stamp, so their matches are compared."""
    path, out = tmp_path / ("m.h5" if write is as_hloc else "m.txt"), tmp_path / "database.db"
    first = verify(scene, features, write(path, matches), out)
    ask = ("verify", scene.images, features, scene.pairs, path, "--out", out, *CAMERA)
    again = run(*ask)
    assert again.exit_code == 0, again.output
    assert "database: done already" in again.stderr
    fewer = {names: np.where(np.arange(len(m)) % 2, m, -1) for names, m in matches.items()}
    write(path, fewer)
    second = verify(scene, features, path, out)
    assert 0.3 * first["inlier_matches"] < second["inlier_matches"] < 0.7 * first["inlier_matches"]


def test_indices_beyond_the_keypoints_are_refused(
    scene: Written, features: Path, matches: Matches0, tmp_path: Path
) -> None:
    """For either image, in one run and in shards."""
    (names, matches0), *_ = matches.items()
    with open_features(features) as store:
        counts = [store.count(name) for name in names]
    row = int(np.flatnonzero(matches0 >= 0)[0])
    beyond, longer = matches0.copy(), np.append(matches0, 0).astype(np.int32)
    beyond[row] = counts[1]
    ask = ("verify", scene.images, features, scene.pairs)
    for number, wrong in enumerate((beyond, longer)):
        files = [write(tmp_path / f"{number}{end}", {**matches, names: wrong}) for write, end in WRITERS]
        for file in files:
            end = ("--out", tmp_path / f"{file.name}.db", *CAMERA, "-q")
            refused(run(*ask, file, *end), 3, file.name, *names, "do not fit", f"{counts[0]:,} and {counts[1]:,}")
            assert not (tmp_path / f"{file.name}.db").exists()


WRITERS = ((as_hloc, ".h5"), (as_text, ".txt"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.png 1.png\n0 1\n2 x\n", ("m.txt:3", "indices of two keypoints")),
        ("0.png 1.png\n0 -1\n", ("m.txt:2", "indices of two keypoints")),
        ("0.png 1.png\n0 99999999999\n", ("m.txt:2", "indices of two keypoints")),
        ("0.png 1.png\n0 1\n2.png 3.png\n1 2\n", ("m.txt:3", "indices of two keypoints")),
        ("0.png\n0 1\n", ("m.txt:1", "two image names")),
        ("0.png 1.png\n0 1\n\n1.png 0.png\n0 1\n", ("m.txt:4", "twice")),
        ("0.png 0.png\n0 1\n", ("m.txt:1", "one image")),
        ("0.png 1.png\n0 1\n0 2\n", ("m.txt", "'0.png' has two matches in '1.png'")),
        ("\n\n", ("m.txt", "no matches")),
        ("0.png 1.png\n0 1\n", ("m.txt", "no matches of '0.png' and '2.png'")),
    ],
)
def test_invalid_match_list_is_refused(
    scene: Written, features: Path, tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "m.txt"
    path.write_text(text)
    ask = ("verify", scene.images, features, scene.pairs, path, "--out", tmp_path / "d.db", *CAMERA, "-q")
    refused(run(*ask), 3, *words)


def test_a_pair_without_a_match_and_names_with_spaces(tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    path.write_text("a b.jpg\tc.jpg\n\nd.jpg e.jpg\n3 0\n1 2\n")
    with open_matches(path) as store:
        first, second = store.pairs()
        assert (first.name0, first.name1, second.name0) == ("a b.jpg", "c.jpg", "d.jpg")
        assert store.read(first).count == 0
        assert store.read(second).as_index_pairs().tolist() == [[1, 2], [3, 0]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda group: group["keypoints"].__setitem__((slice(2), 0), np.nan), "2 of its"),
        (lambda group: group["keypoints"].__setitem__((0, 1), np.inf), "1 of its"),
        (lambda group: group["keypoints"].attrs.__setitem__("uncertainty", np.nan), "an uncertainty of nan px"),
        (lambda group: group["keypoints"].attrs.__setitem__("uncertainty", -3.0), "an uncertainty of -3.0 px"),
    ],
)
def test_keypoints_that_are_none_are_refused(
    change: Callable[[h5py.Group], None], words: str, scene: Written, features: Path, matches: Matches0, tmp_path: Path
) -> None:
    """NaN would reach COLMAP's RANSAC, and no match is within NaN px of an epipolar line."""
    path, name = tmp_path / "features.h5", next(iter(matches))[0]
    path.write_bytes(features.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file[name])
    listed = as_text(tmp_path / "matches.txt", matches)
    command = ("verify", scene.images, path, scene.pairs, listed, "--out", tmp_path / "a.db", *CAMERA, "-q")
    refused(run(*command), 3, name, words)
