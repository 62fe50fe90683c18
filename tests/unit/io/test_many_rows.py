"""Ten million keypoints or matches, real or only declared: refused with the number that fits, before they are read."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from in_process import refused, run

from featkit.core.errors import BadInputError
from featkit.core.types import Features, Pair
from featkit.features.stage import ExtractConfig
from featkit.io.features import append_features, open_features
from featkit.io.h5_items import MAX_ROWS
from featkit.io.matches import open_matches
from featkit.matching import nearest

MANY = 10**7
FITS = "1,048,576"


def declared(group: h5py.Group, name: str, shape: tuple[int, ...], kind: str = "f4") -> None:
    """An array that takes no space in the file."""
    group.create_dataset(name, shape, kind, chunks=tuple(min(size, 1000) for size in shape), compression="gzip")


def real(group: h5py.Group, name: str, shape: tuple[int, ...], kind: str = "f4") -> None:
    """An array with all of its numbers in the file."""
    group.create_dataset(name, shape, kind, data=np.zeros(shape, kind))


WAYS: dict[str, tuple[Callable, int, str]] = {
    "declared": (declared, MANY, "of which"),  # more than is in the file
    "real": (real, MAX_ROWS + 1, f"{FITS} an image fit into memory: keep only the best"),
}


def features_file(path: Path, way: str, dimension: int = 4) -> Path:
    """Two images of hloc's, the second with too many keypoints."""
    write, count, _ = WAYS[way]
    with h5py.File(path, "w") as file:
        for name, number in (("a.jpg", 3), ("b.jpg", count)):
            group = file.create_group(name)
            write(group, "keypoints", (number, 2))
            write(group, "descriptors", (dimension, number))
            write(group, "scores", (number,))
            group["image_size"] = np.array([640, 480])
    return path


@pytest.fixture
def little_memory() -> object:
    """What is allocated before the check fails here, and not the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("way", WAYS)
def test_commands_on_a_features_file(way: str, tmp_path: Path, little_memory: None) -> None:
    features, words = features_file(tmp_path / "f.h5", way), WAYS[way][2]
    (tmp_path / "pairs.txt").write_text("a.jpg b.jpg\n")
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "images" / name).write_bytes(b"")
    out = ("--out", tmp_path / "out.h5")
    refused(run("match", features, tmp_path / "pairs.txt", *out), 3, "b.jpg", words)
    refused(run("info", features), 3, "b.jpg", words)
    given = run("extract", tmp_path / "images", *out, "--features", "dog+hardnet", "--keypoints", features)
    refused(given, 3, "b.jpg", words)
    assert not (tmp_path / "out.h5").exists()


def test_every_array_of_an_item(tmp_path: Path, little_memory: None) -> None:
    """Scores, scales and angles of another number than the keypoints; descriptors of gigabytes."""
    for name in ("scores", "scales", "oris", "descriptors"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            for part, shape in (("keypoints", (3, 2)), ("descriptors", (2, 3)), ("scores", (3,)), ("scales", (3,))):
                if part != name:
                    real(file, f"a.jpg/{part}", shape)
            real(file, f"a.jpg/{name}", (2, MAX_ROWS + 1) if name == "descriptors" else (MAX_ROWS + 1,))
        with open_features(tmp_path / f"{name}.h5") as store, pytest.raises(BadInputError, match=FITS):
            store.read("a.jpg")


@pytest.mark.parametrize("way", WAYS)
def test_matches_in_hdf5(way: str, tmp_path: Path, little_memory: None) -> None:
    write, count, _ = WAYS[way]
    with h5py.File(tmp_path / "m.h5", "w") as file:
        write(file, "a.jpg/b.jpg/matches0", (count,), "i4")
        write(file, "a.jpg/c.jpg/matches0", (3,), "i4")
        write(file, "a.jpg/c.jpg/matching_scores0", (count,))
        file["a.jpg/d.jpg/matches0"] = np.array([0, 1, -1], np.int32)
        file["a.jpg/d.jpg"].attrs["keypoints1"] = 10**11
    with open_matches(tmp_path / "m.h5") as store:
        for other, expected in (("b.jpg", FITS), ("c.jpg", FITS), ("d.jpg", FITS)):
            with pytest.raises(BadInputError, match=expected):
                store.read(Pair(other, "a.jpg"))
    refused(run("info", tmp_path / "m.h5"), 3, FITS)


@pytest.mark.slow
def test_matches_in_text(tmp_path: Path, little_memory: None) -> None:
    path = tmp_path / "m.txt"
    path.write_text("a.jpg b.jpg\n0 1\n5 999999999\n\n")
    with pytest.raises(BadInputError, match=rf"'b.jpg' has 1,000,000,000 rows; {FITS}"), open_matches(path):
        pass
    path.write_text("a.jpg b.jpg\n" + "0 1\n" * (MAX_ROWS + 1))
    with pytest.raises(BadInputError, match=f"{MAX_ROWS + 2}: more than {FITS} matches"), open_matches(path):
        pass


def test_what_cannot_be_read_is_not_written(tmp_path: Path) -> None:
    count = MAX_ROWS + 1
    points = np.zeros((count, 2), np.float32)
    features = Features(points, np.zeros((count, 1), np.uint8), np.zeros(count, np.float32), (640, 480))
    with append_features(tmp_path / "f.h5", ExtractConfig()) as store, pytest.raises(BadInputError, match=FITS):
        store.write("a.jpg", features)


@pytest.mark.parametrize("bits", [False, True])
def test_tiles_of_many_columns_are_low(bits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their size does not grow with the number of keypoints, and the result is the same."""
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.standard_normal((count, 16)).astype(np.float32)) for count in (3000, 2000))
    a, b = (a.sign(), b.sign()) if bits else (a, b)
    rows0, rows1 = nearest.rows_of(a), nearest.rows_of(b)
    expected = nearest.nearest_two(rows0, rows1)
    sizes: list[int] = []
    empty = torch.empty

    def recorded(rows: int, columns: int, **options: object) -> torch.Tensor:
        sizes.append(rows * columns)
        return empty(rows, columns, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(nearest, "LARGEST_TILE", 100 * 2016)
    monkeypatch.setattr(torch, "empty", recorded)
    found = nearest.nearest_two(rows0, rows1)
    assert max(sizes) <= 100 * 2016
    assert torch.equal(found.index, expected.index)
    torch.testing.assert_close(found.best, expected.best)
    torch.testing.assert_close(found.second, expected.second)
