"""Lists of positions: GPS as csv, camera centres as text."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featkit.core.errors import BadInputError
from featkit.geometry.poses import Geodetic
from featkit.io.lists import read_gps_csv, read_references

A = Geodetic(47.5, -8.25)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg,47.5,-8.25\n", {"a.jpg": A}),
        ("# by hand\n\na.jpg, 47.5, -8.25, 400\n", {"a.jpg": Geodetic(47.5, -8.25, 400.0)}),
        ("name,lat,lon\na.jpg,47.5,-8.25\n", {"a.jpg": A}),
        ("Longitude,Image,Latitude\n-8.25,a.jpg,47.5\n", {"a.jpg": A}),
        ("SourceFile,GPSLatitude,GPSLongitude,GPSAltitude\n./a.jpg,47.5,-8.25,\nb.jpg,,,\n", {"a.jpg": A}),
        ("name,lat,lon,time,alt\na.jpg,47.5,-8.25,12:00,9\n", {"a.jpg": Geodetic(47.5, -8.25, 9.0)}),
        ('"a, b.jpg",47.5,-8.25\nc/d e.jpg,1,2\n', {"a, b.jpg": A, "c/d e.jpg": Geodetic(1, 2)}),
        ("\ufeffa.jpg,47.5,-8.25\r\n", {"a.jpg": A}),
    ],
)
def test_csv(tmp_path: Path, text: str, expected: dict[str, Geodetic]) -> None:
    path = tmp_path / "gps.csv"
    path.write_bytes(text.encode())
    assert read_gps_csv(path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no positions"),
        ("name,lat,lon\n", "no positions"),
        ("a.jpg,,\n", "no positions"),
        ("a.jpg,1\n", ":1: .*expected"),
        ("a.jpg,1,2,3,4\n", ":1: .*expected"),
        ("a.jpg 1 2\n", ":1: .*expected"),
        ("a.jpg,1,2\nb.jpg,1\n", ":2: .*expected"),
        (",1,2\n", ":1: .*expected"),
        ("a.jpg,north,2\n", "'north' is not a number"),
        ("a.jpg,1,inf\n", "not finite"),
        ("a.jpg,nan,1\n", "not finite"),
        ("a.jpg,95,2\n", "is not on earth"),
        ("a.jpg,1,\n", "one coordinate"),
        ("a.jpg,1,2\na.jpg,1,2\n", ":2: 'a.jpg' already has a position"),
        ('"a.jpg,1,2\n', "comma-separated"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "gps.csv"
    path.write_text(text)
    with pytest.raises(BadInputError, match=message):
        read_gps_csv(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=80), st.text('a.,"\n-1e9#\tnlo', max_size=40).map(str.encode)))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(data)
    for read in (read_gps_csv, read_references):
        with contextlib.suppress(BadInputError):
            assert read(path)


def test_references(tmp_path: Path) -> None:
    path = tmp_path / "refs.txt"
    path.write_text("# surveyed\na b.jpg 1 -2.5 3e2\nc.jpg\t4\t5\t6\n")
    found = read_references(path)
    assert list(found) == ["a b.jpg", "c.jpg"]
    assert np.array(list(found.values())).tolist() == [[1, -2.5, 300], [4, 5, 6]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no positions"),
        ("a.jpg 1 2\n", ":1: expected `name x y z`"),
        ("a.jpg 1 2 z\n", ":1: expected numbers"),
        ("a.jpg 1 2 nan\n", ":1: .*not finite"),
        ("a.jpg 1 2 3\na.jpg 1 2 3\n", ":2: 'a.jpg' already has a position"),
    ],
)
def test_bad_references(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "refs.txt"
    path.write_text(text)
    with pytest.raises(BadInputError, match=message):
        read_references(path)
