"""HDF5 readers on files that were damaged at random, or hold anything under the names they look for."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featkit.core.config import Config
from featkit.core.errors import BadInputError, FeatkitError
from featkit.core.types import Features, Matches, Pair
from featkit.io.features import append_features, open_features, read_global_descriptors
from featkit.io.matches import append_matches, open_matches

pytestmark = pytest.mark.slow
CASES = settings(max_examples=700, deadline=None, suppress_health_check=list(HealthCheck))
DAMAGED = settings(CASES, max_examples=1500, derandomize=True)  # on rare damage HDF5 dies when it deletes an item
NAMES = ("a.jpg", "b/c.jpg")


class Made(Config):
    """What made the stores."""

    source: str = "test"


def features() -> Features:
    rng = np.random.default_rng(0)
    values = rng.random((6, 4), np.float32)
    return Features(values[:, :2].copy(), values, values[:, 0].copy(), (40, 30))


def read_all_features(path: Path) -> None:
    with open_features(path) as store:
        store.attributes()
        for name in {*store.names(), *NAMES}:
            with contextlib.suppress(BadInputError):
                store.read(name)
            for one in (store.keypoints, store.descriptors, store.count, store.image_size, store.digest, store.source):
                with contextlib.suppress(BadInputError):
                    one(name)
            with contextlib.suppress(BadInputError):
                store.uncertainty_px(name)
            store.has(name)


def read_all_matches(path: Path) -> None:
    with open_matches(path) as store:
        store.attributes()
        for pair in {*store.pairs(), Pair(*NAMES), Pair(*NAMES[::-1])}:
            store.has(pair, ("0", "1"))
            with contextlib.suppress(BadInputError):
                store.read(pair)


def append_to(path: Path) -> None:
    with append_features(path, Made()) as store:
        store.names()
        for name in NAMES:
            if not store.has(name):
                store.write(name, features(), "0")
                assert store.has(name)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("stores")
    with append_features(folder / "features", Made()) as store:
        for name in NAMES:
            store.write(name, features(), "0")
    with append_matches(folder / "matches", Made(), "f") as found:
        found.write(Pair(*NAMES), Matches(np.array([1, -1, 0], np.int32), np.ones(3, np.float32)), ("0", "1"), 3)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


DAMAGE = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)), max_size=6)


@pytest.mark.parametrize("kind", ["features", "matches"])
@DAMAGED
@given(damage=DAMAGE, kept=st.one_of(st.just(1.0), st.floats(0, 1)))
def test_a_damaged_store_is_read_or_bad_input(
    kind: str, stores: dict[str, bytes], tmp_path: Path, damage: list[tuple[float, bytes]], kept: float
) -> None:
    data = bytearray(stores[kind])
    for where, what in damage:
        start = int(where * len(data))
        data[start : start + len(what)] = what
    path = tmp_path / f"{kind}.h5"
    path.write_bytes(data[: int(kept * len(data))])
    with contextlib.suppress(FeatkitError):
        (read_all_features if kind == "features" else read_all_matches)(path)
    if kind == "features":
        with contextlib.suppress(FeatkitError):
            append_to(path)


VALUES = st.one_of(
    st.none(),
    st.integers(-5, 5),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=4),
    st.lists(st.floats(width=32), max_size=5).map(lambda v: np.array(v, np.float32)),
    st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda s: np.zeros(s, np.float16)),
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)).map(lambda s: np.zeros(s, np.int64)),
    st.lists(st.text(alphabet="ab", max_size=2), max_size=3).map(lambda v: np.array(v, dtype=object)),
)
FEATURE_PARTS = ("keypoints", "descriptors", "scores", "image_size", "scales", "oris", "complete", "digest", "source")
ROOT = ("kind", "format", "fingerprint", "config")


def put(group: Any, name: str, value: Any) -> None:
    """A dataset, a group for None; what HDF5 cannot hold is left out."""
    with contextlib.suppress(TypeError, ValueError, OSError):
        if value is None:
            group.create_group(name)
        elif isinstance(value, np.ndarray) and value.dtype == object:
            group.create_dataset(name, data=value, dtype=h5py.string_dtype())
        else:
            group.create_dataset(name, data=value)


def put_attribute(item: Any, name: str, value: Any) -> None:
    with contextlib.suppress(TypeError, ValueError, OSError, AttributeError):
        item.attrs[name] = "" if value is None else value


@CASES
@given(
    parts=st.dictionaries(st.sampled_from(FEATURE_PARTS), VALUES),
    attributes=st.dictionaries(st.sampled_from(("complete", "digest", "source", "uncertainty", "turns")), VALUES),
    root=st.dictionaries(st.sampled_from(ROOT), VALUES),
)
def test_anything_called_features(tmp_path: Path, parts: dict, attributes: dict, root: dict) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        for name in NAMES:
            group = file.create_group(name)
            for part, value in parts.items():
                put(group, part, value)
            for key, value in attributes.items():
                for item in (group, *group.values()):
                    put_attribute(item, key, value)
        for key, value in root.items():
            put_attribute(file, key, value)
    with contextlib.suppress(FeatkitError):
        read_all_features(path)
    with contextlib.suppress(FeatkitError):
        append_to(path)


@CASES
@given(
    parts=st.dictionaries(st.sampled_from(("matches0", "matching_scores0", "other")), VALUES),
    attributes=st.dictionaries(
        st.sampled_from(("complete", "name0", "name1", "features0", "features1", "keypoints1")), VALUES
    ),
    root=st.dictionaries(st.sampled_from(ROOT), VALUES),
)
def test_anything_called_matches(tmp_path: Path, parts: dict, attributes: dict, root: dict) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("a.jpg/b-c.jpg")
        for part, value in parts.items():
            put(group, part, value)
        for key, value in attributes.items():
            put_attribute(group, key, value)
        for key, value in root.items():
            put_attribute(file, key, value)
    with contextlib.suppress(FeatkitError):
        read_all_matches(path)


@CASES
@given(value=VALUES, other=VALUES)
def test_anything_called_global_descriptor(tmp_path: Path, value: Any, other: Any) -> None:
    path = tmp_path / "g.h5"
    with h5py.File(path, "w") as file:
        for name, one in zip(NAMES, (value, other), strict=True):
            put(file.create_group(name), "global_descriptor", one)
    with contextlib.suppress(FeatkitError):
        rows = read_global_descriptors([path], NAMES)
        assert np.isfinite(rows).all()
        assert rows.shape[0] == 2
