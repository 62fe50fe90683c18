"""Texts in attributes: of a fixed length, any text, and those that older stores hold."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from killed_writes import NAMES, Made, assert_holds, features_of, written

from featkit.core.types import Matches, Pair
from featkit.io.features import append_features, features_digest, open_features
from featkit.io.h5 import attribute, copy_attributes, set_attribute
from featkit.io.matches import append_matches, open_matches

VALUES = [
    "",
    "a",
    "Größe 大",
    b"\xff.jpg".decode("utf-8", "surrogateescape"),
    "x" * 70_000,
    7,
    1.5,
    np.float32(0.1),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_what_is_set_is_read(value: object, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for _ in range(2):  # and set once more
            set_attribute(file, "name", value)
        copy = file.create_group("copy")
        copy_attributes(file, copy)
        assert attribute(copy, "name") == attribute(file, "name") == value
        assert isinstance(attribute(file, "name"), str) == isinstance(value, str)
        copy_attributes(file, file.create_group("none"), without=("name",))
        assert attribute(file["none"], "name", "missing") == "missing"


@pytest.mark.parametrize("value", ["ends with a zero\0", "zero \0 within"])
def test_a_zero_is_refused(value: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file, pytest.raises(ValueError, match="NULL"):
        set_attribute(file, "name", value)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=st.text())
def test_any_text(value: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return
        try:
            file.attrs["as h5py"] = value
        except ValueError:  # h5py holds no text with a zero in it
            return
        set_attribute(file, "name", value)
        assert attribute(file, "name") == attribute(file, "as h5py") == value


def test_no_store_has_a_heap(tmp_path: Path) -> None:
    """Where HDF5 keeps texts of any length; damaged, it may hang on one or die."""
    features = written(tmp_path / "features.h5", NAMES)
    with append_matches(tmp_path / "matches.h5", Made(), "f") as store:
        store.write(Pair("a.jpg", "b.jpg"), Matches(np.zeros(2, np.int32), np.ones(2, np.float32)), ("0", "1"), 2)
    for path in (features, tmp_path / "matches.h5"):
        assert b"GCOL" not in path.read_bytes()


def test_stores_with_texts_of_any_length_are_read_and_added_to(tmp_path: Path) -> None:
    """As featkit wrote them before."""
    path = written(tmp_path / "features.h5", NAMES[:3])
    with h5py.File(path, "r+") as file:
        as_before(file)
    with append_features(path, Made()) as store:
        store.write(NAMES[3], features_of(NAMES[3]))
        assert store.digest(NAMES[0]) == features_digest(features_of(NAMES[0]))
    assert_holds(path, NAMES[:4])
    with open_features(path) as store:
        assert store.attributes()["kind"] == "features"


def test_matches_with_texts_of_any_length(tmp_path: Path) -> None:
    path, pair = tmp_path / "matches.h5", Pair("a/1.jpg", "b.jpg")
    with append_matches(path, Made(), "f") as store:
        store.write(pair, Matches(np.zeros(2, np.int32), np.ones(2, np.float32)), ("0", "1"), 2)
    with h5py.File(path, "r+") as file:
        as_before(file)
    with open_matches(path) as store:
        assert store.pairs() == [pair]
        assert store.has(pair, ("0", "1"))
        assert not store.has(pair, ("0", "2"))
        assert len(store.read(pair).matches0) == 2


def as_before(file: h5py.File) -> None:
    """Turn all texts of a store into texts of any length."""
    items: list[h5py.HLObject] = [file]
    file.visititems(lambda _, item: items.append(item))
    changed = 0
    for item in items:
        for name, value in dict(item.attrs).items():
            if isinstance(value, bytes):
                item.attrs[name] = value.decode()
                changed += 1
    assert changed > 3
