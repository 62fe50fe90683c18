"""features.h5: what is written comes back, what is half written does not count, and hloc's files are read."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from featkit.core.config import Config, Runtime
from featkit.core.errors import BadInputError
from featkit.core.types import Features
from featkit.io import h5
from featkit.io.features import append_features, open_features


class Made(Config):
    threshold: float = 0.5
    workers: Runtime[int] = 1


def features(n: int = 5, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    return Features(
        keypoints=rng.uniform(0, 4000, (n, 2)).astype(np.float32),
        descriptors=rng.normal(size=(n, 8)).astype(np.float16),
        scores=rng.uniform(size=n).astype(np.float32),
        image_size=(4000, 3000),
        scales=rng.uniform(1, 9, n).astype(np.float32),
        oris=rng.uniform(-3, 3, n).astype(np.float32),
        uncertainty_px=1.7,
    )


def assert_same(a: Features, b: Features) -> None:
    for name in ("keypoints", "descriptors", "scores", "scales", "oris"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        rounding = 1e-6 if name == "oris" else 0  # degrees in the file, radians here
        assert np.abs(x - y).max(initial=0) <= rounding, name
    assert (a.image_size, a.uncertainty_px) == (b.image_size, b.uncertainty_px)


NAMES = ["a.jpg", "nested/deep/b.jpg", "with space/my photo.jpg", "ünïcödé/图.png", "a-b/c.jpg", "#1.jpg"]


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "features.h5"
    with append_features(path, Made(), "sha") as store:
        for index, name in enumerate(NAMES):
            store.write(name, features(index, index), source=f"{100 + index}")
    with open_features(path) as store:
        assert store.names() == sorted(NAMES)
        for index, name in enumerate(NAMES):
            assert_same(store.read(name), features(index, index))
            assert store.has(name)
            assert store.count(name) == index
            assert store.source(name) == f"{100 + index}"
            assert store.image_size(name) == (4000, 3000)
            assert store.uncertainty_px(name) == 1.7
            assert np.array_equal(store.keypoints(name), features(index, index).keypoints)
            assert np.array_equal(store.descriptors(name), features(index, index).descriptors)
        attributes = store.attributes()
    assert attributes["kind"] == "features"
    assert attributes["fingerprint"] == Made().fingerprint()
    assert attributes["config"] == {"threshold": 0.5}
    assert attributes["weights_sha256"] == "sha"


def test_the_layout_is_hlocs(tmp_path: Path) -> None:
    """hloc reads `file[name]["keypoints"].__array__()`, `["descriptors"]` D x N and `["image_size"]`."""
    path = tmp_path / "features.h5"
    made = features(4)
    with append_features(path, Made()) as store:
        store.write("dir/a.jpg", made)
    with h5py.File(path, "r") as file:
        group = file["dir/a.jpg"]
        assert made.oris is not None
        assert group["oris"][()] == pytest.approx(np.rad2deg(made.oris), rel=1e-5)
        assert group["keypoints"].shape == (4, 2)
        assert group["keypoints"].dtype == np.float32
        assert group["descriptors"].shape == (8, 4)
        assert group["descriptors"].dtype == np.float16
        assert np.array_equal(group["descriptors"][()], made.descriptors.T)
        assert group["scores"].shape == (4,)
        assert group["image_size"][()].tolist() == [4000, 3000]
        assert group["keypoints"].attrs["uncertainty"] == 1.7
        assert group.attrs["complete"] == 1


def test_reads_a_file_of_hloc(tmp_path: Path) -> None:
    path = tmp_path / "hloc.h5"
    keypoints = np.array([[1.5, 2.25], [3, 4]], np.float16)
    with h5py.File(path, "w") as file:
        group = file.create_group("db/a.jpg")
        group["keypoints"] = keypoints
        group["descriptors"] = np.ones((256, 2), np.float16)
        file.create_group("db/b.jpg")["keypoints"] = np.zeros((0, 2), np.float16)
    with open_features(path) as store:
        assert store.names() == ["db/a.jpg", "db/b.jpg"]
        read = store.read("db/a.jpg")
        assert read.keypoints.dtype == np.float32
        assert np.array_equal(read.keypoints, keypoints.astype(np.float32))
        assert read.descriptors.shape == (2, 256)
        assert read.scores.tolist() == [1, 1]
        assert (read.image_size, read.uncertainty_px, read.scales) == ((0, 0), 1.0, None)
        assert not store.has("db/a.jpg"), "nothing says that it is whole"
        with pytest.raises(BadInputError, match=r"'descriptors' of 'db/b\.jpg' is missing"):
            store.read("db/b.jpg")
        with pytest.raises(BadInputError, match="no features of image 'none'"):
            store.read("none")


@pytest.mark.parametrize("ours", [False, True])
def test_bytes_of_another_program_are_values_not_bits(tmp_path: Path, ours: bool) -> None:
    path = tmp_path / "features.h5"
    stored = np.arange(24, dtype=np.uint8).reshape(8, 3)
    with h5py.File(path, "w") as file:
        group = file.create_group("a.jpg")
        group["keypoints"], group["descriptors"] = np.zeros((3, 2), np.float32), stored
        if ours:
            file.attrs["format"], group.attrs["complete"] = h5.FORMAT_VERSION, 1
            file.attrs["kind"] = "features"
    with open_features(path) as store:
        found = store.read("a.jpg").descriptors
        assert found.dtype == (np.uint8 if ours else np.float32)
        assert np.array_equal(found, stored.T)
        assert np.array_equal(store.descriptors("a.jpg"), found)


def test_an_interrupted_write_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`complete` is written last: an error at any earlier step leaves an item that is written anew."""
    path = tmp_path / "features.h5"
    plain = h5py.Group.create_dataset

    def interrupted(self: h5py.Group, name: str, *args: object, **more: object) -> h5py.Dataset:
        if name == "scales":
            raise KeyboardInterrupt
        return plain(self, name, *args, **more)

    with append_features(path, Made()) as store:
        store.write("whole.jpg", features())
        monkeypatch.setattr(h5py.Group, "create_dataset", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.write("half.jpg", features())
        monkeypatch.undo()
        assert not store.has("half.jpg")
    with append_features(path, Made()) as store:
        assert store.names() == ["whole.jpg"]
        store.write("half.jpg", features(3, 9))
    with open_features(path) as store:
        assert store.names() == ["half.jpg", "whole.jpg"]
        assert_same(store.read("half.jpg"), features(3, 9))


def test_complete_is_the_last_thing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    attribute, dataset = h5py.AttributeManager.__setitem__, h5py.Group.create_dataset

    def set_attribute(self: h5py.AttributeManager, name: str, value: object) -> None:
        attribute(self, name, value)
        written.append(name)

    def create_dataset(self: h5py.Group, name: str, **data: object) -> h5py.Dataset:
        written.append(name)
        return dataset(self, name, **data)

    with append_features(tmp_path / "features.h5", Made()) as store:
        monkeypatch.setattr(h5py.AttributeManager, "__setitem__", set_attribute)
        monkeypatch.setattr(h5py.Group, "create_dataset", create_dataset)
        store.write("a.jpg", features())
    assert {"keypoints", "image_size", "uncertainty"} < set(written)
    assert written[-1] == h5.COMPLETE


def test_written_again_is_replaced(tmp_path: Path) -> None:
    with append_features(tmp_path / "f.h5", Made()) as store:
        store.write("a.jpg", features(9, 1))
        store.write("a.jpg", features(2, 2))
        assert_same(store.read("a.jpg"), features(2, 2))


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with append_features(path, Made()) as store:
        store.write("a.jpg", features())
    with (
        pytest.raises(BadInputError, match=r"another configuration \(threshold: 0\.5 -> 0\.7\)"),
        append_features(path, Made(threshold=0.7)),
    ):
        pass
    with pytest.raises(BadInputError, match="another weights sha256"), append_features(path, Made(), "other"):
        pass
    with append_features(path, Made(workers=7)) as store:
        assert store.has("a.jpg")
    with append_features(path, Made(threshold=0.7), overwrite=True) as store:
        assert store.names() == []


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file["something"] = 1
    with pytest.raises(BadInputError, match="written by another program"), append_features(path, Made()):
        pass
    with h5py.File(path, "r") as file:
        assert list(file) == ["something"], "left as it was"
    with h5.appending(tmp_path / "m.h5", "matches", Made(), {}, False):
        pass
    with pytest.raises(BadInputError, match="holds matches"), open_features(tmp_path / "m.h5"):
        pass
    with pytest.raises(BadInputError, match="holds matches"), append_features(tmp_path / "m.h5", Made()):
        pass


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.95])
def test_a_cut_off_file(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "f.h5"
    with append_features(path, Made()) as store:
        for index in range(5):
            store.write(f"{index}.jpg", features(200, index))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(BadInputError, match="not a complete HDF5 file"), open_features(path):
        pass
    if kept:
        with pytest.raises(BadInputError, match="not a complete HDF5 file"), append_features(path, Made()):
            pass


def test_paths_that_are_no_store(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"), open_features(tmp_path / "none.h5"):
        pass
    with pytest.raises(BadInputError, match="is a folder"), open_features(tmp_path):
        pass
    (tmp_path / "text.h5").write_text("not hdf5")
    with pytest.raises(BadInputError, match="not a complete HDF5 file"), open_features(tmp_path / "text.h5"):
        pass


def test_damaged_items(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with append_features(path, Made()) as store:
        store.write("a.jpg", features())
        store.write("b.jpg", features())
        store.write("c.jpg", features())
        del store._file["a.jpg/descriptors"]
        del store._file["b.jpg/descriptors"]
        store._file["b.jpg/descriptors"] = np.zeros((8, 3), np.float16)
        del store._file["c.jpg/image_size"]
        store._file["c.jpg/image_size"] = np.zeros(5)
    with open_features(path) as store:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            with pytest.raises(BadInputError, match=repr(name)):
                store.read(name)


def test_what_made_them_and_what_it_saw(tmp_path: Path) -> None:
    """The extractor is known by the configuration, the resized image by its affine map."""

    class Stage(Config):
        extractor: dict[str, str]

    affine = np.array([[0.0, -2.0, 7.5], [2.0, 0.0, 0.5]])
    names = {
        "aliked-n32": {"extractor": "aliked", "network": "aliked-n32"},
        "rootsift": {"extractor": "sift", "normalization": "l1_root"},
        "sift": {"extractor": "sift", "normalization": "l2"},
        "disk": {"extractor": "disk"},
    }
    for name, own in names.items():
        path = tmp_path / f"{name}.h5"
        with append_features(path, Stage(extractor=own)) as store:
            store.write("plain.jpg", features())
            store.write("turned.jpg", replace(features(), from_seen=affine))
        with open_features(path) as store:
            assert store.extractor == name
            assert store.read("plain.jpg").extractor == name
            assert store.read("plain.jpg").from_seen is None
            assert np.array_equal(store.read("turned.jpg").from_seen, affine)
    with append_features(tmp_path / "x.h5", Made()) as store:
        assert store.extractor == ""
