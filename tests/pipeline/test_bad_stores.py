"""Foreign, damaged and huge HDF5 files with the real commands; the table is in docs/robustness.md."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from in_process import refused, results, run

from featkit.core.config import Config
from featkit.core.types import Features, Pair
from featkit.io.features import append_features, open_features
from featkit.io.matches import open_matches


class ByHand(Config):
    """Configuration of the features of these tests."""

    source: str = "by hand"


def unit_rows(rng: np.random.Generator, count: int, length: int = 16) -> np.ndarray:
    rows = rng.standard_normal((count, length)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def features_of(descriptors: np.ndarray, rng: np.random.Generator) -> Features:
    count = len(descriptors)
    keypoints = rng.uniform(0, 500, (count, 2)).astype(np.float32)
    return Features(keypoints, descriptors, np.ones(count, np.float32), (500, 500))


def written(path: Path, features: dict[str, Features]) -> Path:
    with append_features(path, ByHand()) as store:
        for name, one in features.items():
            store.write(name, one)
    return path


def listed(path: Path, *pairs: tuple[str, str]) -> Path:
    path.write_text("".join(f"{a} {b}\n" for a, b in pairs))
    return path


def test_nan_descriptors_match_nothing(tmp_path: Path) -> None:
    """They match nothing, other matches do not change, and retrieval of their image works."""
    rng = np.random.default_rng(0)
    rows = unit_rows(rng, 40)
    whole = {"a.jpg": features_of(rows, rng), "b.jpg": features_of(rows[::-1].copy(), rng)}
    broken = rows.copy()
    broken[7, 3], broken[9] = np.nan, np.inf
    pairs = listed(tmp_path / "pairs.txt", ("a.jpg", "b.jpg"))
    found = []
    for number, first in enumerate((rows, broken)):
        named = {**whole, "a.jpg": features_of(first, np.random.default_rng(1))}
        features = written(tmp_path / f"{number}.h5", named)
        output = tmp_path / f"{number}_matches.h5"
        results("match", features, pairs, "-o", output, "--matcher", "mutual-nn")
        with open_matches(output) as store:
            found.append(store.read(Pair("a.jpg", "b.jpg")).matches0)
    assert found[0].tolist() == list(range(39, -1, -1))
    assert found[1][[7, 9]].tolist() == [-1, -1]
    others = np.delete(np.arange(40), [7, 9])
    np.testing.assert_array_equal(found[0][others], found[1][others])
    ran = run("pairs", tmp_path / "1.h5", "-o", tmp_path / "p.txt", "--method", "retrieval", "-q")
    assert ran.exit_code in (0, 3), ran.output
    assert "unexpected" not in ran.stderr


def test_a_features_file_by_hloc(tmp_path: Path) -> None:
    """float16 keypoints and no `complete`: paired, matched and mapped from, but nothing is added to it."""
    rng = np.random.default_rng(0)
    rows = unit_rows(rng, 60)
    path = tmp_path / "hloc.h5"
    with h5py.File(path, "w", libver="latest") as file:
        for name in ("a.jpg", "b.jpg"):
            group = file.create_group(name)
            group.create_dataset("keypoints", data=rng.uniform(0, 500, (60, 2)).astype(np.float16))
            group.create_dataset("descriptors", data=rows.T.astype(np.float16))
            group.create_dataset("scores", data=np.ones(60, np.float16))
            group.create_dataset("image_size", data=np.array([500, 500]))
    assert results("pairs", path, "-o", tmp_path / "pairs.txt", "--method", "exhaustive")["pairs"] == 1
    assert results("match", path, tmp_path / "pairs.txt", "-o", tmp_path / "m.h5")["matches"] == 60
    (tmp_path / "images").mkdir()
    cv_image = np.random.default_rng(0).integers(0, 255, (60, 80), np.uint8)
    import cv2

    cv2.imwrite(str(tmp_path / "images" / "a.jpg"), cv_image)
    before = path.read_bytes()
    ran = run("extract", tmp_path / "images", "-o", path, "-q", "--workers", 1)
    refused(ran, 3, "hloc.h5", "another program", "--out")
    assert path.read_bytes() == before


def test_a_foreign_hdf5_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "weather.h5", "w") as file:
        file["temperature/monday"] = np.arange(5)
    pairs = listed(tmp_path / "pairs.txt", ("a.jpg", "b.jpg"))
    ran = run("match", tmp_path / "weather.h5", pairs, "-o", tmp_path / "m.h5", "-q")
    refused(ran, 3, "'a.jpg'", "no features in", "weather.h5")
    refused(run("pairs", tmp_path / "weather.h5", "-o", tmp_path / "p.txt", "-q"), 3, "weather.h5", "two images")
    assert not (tmp_path / "m.h5").exists()


def test_more_than_32767_keypoints(tmp_path: Path) -> None:
    """Indices beyond 32,767 in both columns, from features.h5 to matches.h5."""
    rng = np.random.default_rng(0)
    many, few = unit_rows(rng, 40_000), 500
    last = many[-few:].copy()
    features = {"few.jpg": features_of(last, rng), "many.jpg": features_of(many, rng), "z.jpg": features_of(last, rng)}
    path = written(tmp_path / "f.h5", features)
    pairs = listed(tmp_path / "pairs.txt", ("few.jpg", "many.jpg"), ("many.jpg", "z.jpg"))
    assert results("match", path, pairs, "-o", tmp_path / "m.h5", "--matcher", "mutual-nn")["matches"] == 2 * few
    with open_matches(tmp_path / "m.h5") as store:
        forth = store.read(Pair("few.jpg", "many.jpg")).as_index_pairs()
        back = store.read(Pair("many.jpg", "z.jpg")).as_index_pairs()
    assert forth.tolist() == [[i, 40_000 - few + i] for i in range(few)]
    assert back.tolist() == [[40_000 - few + i, i] for i in range(few)]


def test_features_of_other_images_are_refused(mapped_scene: Any, tmp_path: Path) -> None:
    """A map's features must have its image names, numbers of keypoints, and keypoint positions."""
    whole = mapped_scene.output / "features.h5"
    queries = mapped_scene.folder / "queries"
    with open_features(whole) as store:
        names = store.names()
        items = {name: store.read(name) for name in names}
    asked = ("localize", mapped_scene.folder, "--queries", queries, "--workers", 1, "-q")
    rng = np.random.default_rng(0)
    others = {
        "named": {f"other_{name}": one for name, one in items.items()},
        "fewer": {name: one.select(np.arange(len(one) - 1)) for name, one in items.items()},
        "elsewhere": {name: one.select(rng.permutation(len(one))) for name, one in items.items()},
    }
    for kind, features in others.items():
        path = Path(shutil.copy(whole, tmp_path / f"{kind}.h5"))
        with h5py.File(path, "r+") as file:
            for name in names:
                del file[name]
        with h5py.File(path, "r+") as file:
            from featkit.io.features import FeatureStore

            for name, one in features.items():
                FeatureStore(path, file).write(name, one)
        ran = run(*asked, "-o", tmp_path / kind, "--features", path)
        refused(ran, 3, f"{kind}.h5", names[0])
        assert not (tmp_path / kind / "poses.txt").exists()


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_a_truncated_model_is_refused(name: str, mapped_copy: Any, tmp_path: Path) -> None:
    file = mapped_copy.output / "sparse" / "0" / f"{name}.bin"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(run("info", mapped_copy.output / "sparse" / "0", "-q"), 3, f"{name}.bin", "cut off")
    asked = ("localize", mapped_copy.folder, "--queries", mapped_copy.folder / "queries", "-o", tmp_path, "-q")
    refused(run(*asked, "--workers", 1), 3, f"{name}.bin", "cut off")
    images = mapped_copy.folder / "images"
    reference = ("--reference", mapped_copy.output / "sparse" / "0", "--out", tmp_path / "map", "-q")
    refused(run("reconstruct", images, *reference), 3, f"{name}.bin", "cut off")
