"""HDF5 files that lie: about where their numbers are, how many there are, and how their groups hang together."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featkit.core.config import Config
from featkit.core.errors import BadInputError
from featkit.core.types import Features, Pair
from featkit.io.features import append_features, open_features, read_global_descriptors
from featkit.io.foreign_arrays import h5_shape, read_h5
from featkit.io.matches import open_matches, pair_key
from featkit.io.shards import merge_stores, write_index


class Made(Config):
    by: str = "test"


def hloc(path: Path, change: Callable[[h5py.Group], None] = lambda group: None) -> Path:
    """A features file in hloc's layout with one image, a.jpg, of three keypoints."""
    with h5py.File(path, "w") as file:
        group = file.create_group("a.jpg")
        group["keypoints"] = np.ones((3, 2), np.float32)
        group["descriptors"] = np.ones((8, 3), np.float32)
        group["scores"] = np.ones(3, np.float32)
        group["image_size"] = np.array([100, 80])
        change(group)
    return path


def replaced(name: str, *arguments: Any, **options: Any) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        del group[name]
        group.create_dataset(name, *arguments, **options)

    return change


def read(path: Path) -> Features:
    with open_features(path) as store:
        return store.read("a.jpg")


def refused(call: Callable[[], Any], words: str, path: Path) -> None:
    """In a second thread, as what waits for a pipe never comes back."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits"
    assert caught, "taken as if nothing were wrong"
    assert isinstance(caught[0], BadInputError), repr(caught[0])
    assert str(path) in str(caught[0])
    assert words in str(caught[0]), str(caught[0])
    assert "\n" not in str(caught[0])


def test_an_honest_file_is_read(tmp_path: Path) -> None:
    assert len(read(hloc(tmp_path / "f.h5"))) == 3
    squeezed = replaced("scores", data=np.ones(3, np.float32), compression="gzip")
    assert read(hloc(tmp_path / "g.h5", squeezed)).scores.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replaced("descriptors", (128, 8_000_000), "f4"), "announces 4,096,000,000 bytes"),
        (replaced("descriptors", (128, 8_000_000), "f4", chunks=(128, 100), compression="gzip"), "of which 0 are"),
        (replaced("keypoints", (1 << 40, 2), "f4", chunks=(64, 2)), "announces"),
        (replaced("keypoints", (4, 2), "f4", chunks=(1 << 28, 2), maxshape=(None, 2)), "announces 2,147,483,648"),
        (replaced("descriptors", data=np.ones((2, 4, 3), np.float32)), "the shape (2, 4, 3), but needs 2 axes"),
        (replaced("descriptors", data=np.full((8, 3), b"x", "S4")), "holds |S4, not"),
        (replaced("descriptors", data=np.full((8, 3), "x", h5py.string_dtype())), "holds object, not"),
        (replaced("keypoints", data=np.ones(6, np.float32)), "the shape (6,), but needs 2 axes"),
        (replaced("keypoints", data=np.ones((3, 4), np.float32)), "keypoints of 4 numbers"),
        (replaced("keypoints", data=np.ones((3, 2), np.complex64)), "holds complex64"),
        (replaced("image_size", data=np.array([np.inf, 80])), "a.jpg"),
        (replaced("scores", data=np.ones(4, np.float32)), "another number of keypoints"),
    ],
)
def test_arrays_that_are_not_what_they_should_be(
    tmp_path: Path, change: Callable[[h5py.Group], None], words: str
) -> None:
    path = hloc(tmp_path / "f.h5", change)
    assert path.stat().st_size < 200_000
    refused(lambda: read(path), words, path)


def test_numbers_in_other_files(tmp_path: Path) -> None:
    """Bytes of a system file would become descriptors; a pipe would be waited for."""
    secret, pipe = tmp_path / "secret", tmp_path / "pipe"
    secret.write_bytes(bytes(range(96)))
    os.mkfifo(pipe)
    for number, elsewhere in enumerate((secret, pipe)):
        external = replaced("descriptors", (8, 3), "f4", external=[(str(elsewhere), 0, h5py.h5f.UNLIMITED)])
        path = hloc(tmp_path / f"{number}.h5", external)
        refused(lambda path=path: read(path), "in other files", path)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["d"] = np.ones((8, 3), np.float32)

    def virtual(group: h5py.Group) -> None:
        del group["descriptors"]
        layout = h5py.VirtualLayout((8, 3), "f4")
        layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "d", (8, 3))
        group.create_virtual_dataset("descriptors", layout)

    path = hloc(tmp_path / "virtual.h5", virtual)
    refused(lambda: read(path), "in other files", path)


@pytest.mark.parametrize("kind", ["external", "soft"])
@pytest.mark.parametrize("place", ["item", "array"])
def test_links_are_not_followed(tmp_path: Path, kind: str, place: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    other = hloc(tmp_path / "other.h5")
    target = str(tmp_path / "pipe") if place == "item" else str(other)

    def change(group: h5py.Group) -> None:
        link = h5py.ExternalLink(target, "/a.jpg") if kind == "external" else h5py.SoftLink("/b.jpg")
        if place == "item":
            group.file.move("a.jpg", "b.jpg")
            group.file["a.jpg"] = link
        else:
            group.move("scores", "scores2")
            group["scores"] = h5py.SoftLink("/a.jpg/scores2") if kind == "soft" else link

    path = hloc(tmp_path / "f.h5", change)
    refused(lambda: read(path), "which is not followed", path)
    if place == "item":
        with open_features(path) as store:
            refused(store.names, "which is not followed", path)


def test_the_file_itself_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.h5")
    refused(lambda: read(tmp_path / "f.h5"), "a pipe", tmp_path / "f.h5")
    refused(lambda: read_h5(tmp_path / "f.h5", ["depth"]), "a pipe", tmp_path / "f.h5")
    assert h5_shape(tmp_path / "f.h5", "depth") is None


def diamonds(path: Path, links: str) -> Path:
    """Forty groups in a chain, each with two names in the one before: 2^40 paths."""
    with h5py.File(path, "w") as file:
        groups = [file.create_group(f"all/{number}") for number in range(40)] if links == "soft" else [file]
        for number in range(40):
            if links == "soft":
                for name in "xy":
                    groups[number][name] = h5py.SoftLink(f"/all/{number + 1}")
            else:
                groups.append(groups[-1].create_group("x"))
                groups[-2]["y"] = groups[-1]
    return path


@pytest.mark.parametrize("links", ["hard", "soft"])
def test_more_paths_than_can_be_counted(tmp_path: Path, links: str) -> None:
    path = diamonds(tmp_path / "f.h5", links)
    assert path.stat().st_size < 200_000
    with open_features(path) as store:
        refused(store.names, "two names" if links == "hard" else "which is not followed", path)


def test_an_index_leads_to_its_shards_and_no_further(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("0.h5", "1.h5"):
        with append_features(tmp_path / name, Made()) as store:
            store.write(f"{name}.jpg", Features(np.ones((3, 2)), np.ones((3, 8)), np.ones(3), (9, 9)))
    index = tmp_path / "index.h5"
    write_index(index, [tmp_path / "0.h5", tmp_path / "1.h5"])
    with open_features(index) as store:
        assert [len(store.read(name)) for name in store.names()] == [3, 3]
    with h5py.File(tmp_path / "0.h5", "r+") as shard:  # the shard leads on, to a pipe
        del shard["0.h5.jpg"]
        shard["0.h5.jpg"] = h5py.ExternalLink(str(tmp_path / "pipe"), "/x")
    with open_features(index) as store:
        refused(lambda: store.read("0.h5.jpg"), "0.h5.jpg", index)
        assert len(store.read("1.h5.jpg")) == 3
    with h5py.File(index, "r+") as file:
        del file["1.h5.jpg"]
        file["1.h5.jpg"] = h5py.ExternalLink("pipe", "/x")
    with open_features(index) as store:
        refused(lambda: store.read("1.h5.jpg"), "pipe", tmp_path)


def test_merging_does_not_copy_what_lies_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(96))
    with append_features(tmp_path / "f.h5", Made()) as store:
        store.write("a.jpg", Features(np.ones((3, 2)), np.ones((3, 8)), np.ones(3), (9, 9)))
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["a.jpg"].create_dataset("more", (3, 8), "f4", external=[(str(tmp_path / "secret"), 0, 96)])
    refused(lambda: merge_stores([tmp_path / "f.h5"], tmp_path / "all.h5"), "in other files", tmp_path / "f.h5")
    assert not (tmp_path / "all.h5").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([0, 1 << 40]), "beyond any keypoint"),
        (np.array([0.5, 1.5]), "holds float64, not whole numbers"),
        (np.array([b"a", b"b"]), "holds |S1"),
    ],
)
def test_matches_that_are_none(tmp_path: Path, value: np.ndarray, words: str) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_group(pair_key(Pair("a.jpg", "b.jpg")))["matches0"] = value
    with open_matches(tmp_path / "m.h5") as store:
        refused(lambda: store.read(Pair("a.jpg", "b.jpg")), words, tmp_path / "m.h5")


def test_arrays_of_other_programs(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "depth.h5", "w") as file:
        file.create_dataset("depth", (1 << 16, 1 << 14), "f8", chunks=(64, 64))
        file["small"] = np.ones((2, 3))
        file["text"] = "x"
    path = tmp_path / "depth.h5"
    refused(lambda: read_h5(path, ["depth"]), "announces", path)
    refused(lambda: read_h5(path, ["text"]), "not", path)
    assert h5_shape(path, "depth") is None
    assert read_h5(path, ["small"])["small"].shape == (2, 3)
    with h5py.File(tmp_path / "global.h5", "w") as file:
        file.create_group("a.jpg").create_dataset("global_descriptor", (1 << 30,), "f4")
    refused(lambda: read_global_descriptors([tmp_path / "global.h5"], ["a.jpg"]), "announces", tmp_path / "global.h5")
