"""Positions in EXIF as cameras write them, and everything that is none."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from geotagged import photograph
from PIL import Image

from featkit.core.errors import BadInputError, UsageError
from featkit.geometry.poses import Geodetic
from featkit.images.exif import exif_position, locate, position_of, some_names

NORTH = {1: "N", 2: (47.0, 30.0, 36.0), 3: "E", 4: (8.0, 15.0, 0.0), 6: 400.0}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("place", [(47.51, 8.25, 400.5), (-33.8688, -151.2093, -12.25), (0.5, 0.0, None)])
def test_what_was_written(tmp_path: Path, suffix: str, place: tuple[float, float, float | None]) -> None:
    found = exif_position(photograph(tmp_path / f"a{suffix}", place))
    assert found is not None
    assert (found.latitude_deg, found.longitude_deg) == pytest.approx(place[:2], abs=1e-8)
    assert found.altitude_m == (None if place[2] is None else pytest.approx(place[2]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, Geodetic(47.51, 8.25, 400.0)),
        ({1: "S"}, Geodetic(-47.51, 8.25, 400.0)),
        ({3: "w\0"}, Geodetic(47.51, -8.25, 400.0)),
        ({5: b"\0"}, Geodetic(47.51, 8.25, 400.0)),
        ({5: b"\1"}, Geodetic(47.51, 8.25, -400.0)),
        ({5: 1}, Geodetic(47.51, 8.25, -400.0)),
        ({5: b"\3"}, Geodetic(47.51, 8.25, -400.0)),
        ({5: b""}, Geodetic(47.51, 8.25, 400.0)),
        ({6: float("nan")}, Geodetic(47.51, 8.25)),
        ({6: None}, Geodetic(47.51, 8.25)),
        ({6: "high"}, Geodetic(47.51, 8.25)),
        ({1: None}, None),
        ({1: "E"}, None),
        ({2: None}, None),
        ({2: (47.0, 30.0)}, None),
        ({2: 47.5}, None),
        ({2: (float("nan"), 0.0, 0.0)}, None),
        ({2: (97.0, 0.0, 0.0)}, None),
        ({2: (0.0, 0.0, 0.0), 4: (0.0, 0.0, 0.0)}, None),
    ],
)
def test_tags(change: dict[int, Any], expected: Geodetic | None) -> None:
    found = position_of(NORTH | change)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert (found.latitude_deg, found.longitude_deg) == pytest.approx((expected.latitude_deg, expected.longitude_deg))
    assert found.altitude_m == expected.altitude_m


def test_files_without(tmp_path: Path) -> None:
    assert exif_position(photograph(tmp_path / "plain.jpg")) is None
    (tmp_path / "letter.jpg").write_text("Dear Sir or Madam")
    assert exif_position(tmp_path / "letter.jpg") is None
    whole = photograph(tmp_path / "whole.jpg", (1.0, 2.0)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[:60])
    assert exif_position(tmp_path / "cut.jpg") is None
    with pytest.raises(BadInputError, match="no such image"):
        exif_position(tmp_path / "nowhere.jpg")


def test_pixels_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [photograph(tmp_path / f"a{suffix}", (1.5, 2.5)) for suffix in (".png", ".jpg")]
    paths.append(photograph(tmp_path / "without.png"))

    def load(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    found = [exif_position(path) for path in paths]
    assert [position is not None for position in found] == [True, True, False]


def test_locate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photograph(tmp_path / "im/sub dir/a.jpg", (1.0, 2.0, 3.0))
    photograph(tmp_path / "im/b.jpg")
    names = ["b.jpg", "sub dir/a.jpg"]
    with caplog.at_level(logging.WARNING, "featkit"):
        by_exif = locate(names, tmp_path / "im", None)
    assert list(by_exif.positions) == ["sub dir/a.jpg"]
    assert by_exif.without == ["b.jpg"]
    (tmp_path / "gps.csv").write_text("b.jpg,4,5\nelsewhere.jpg,6,7\n")
    by_csv = locate(names, tmp_path / "im", tmp_path / "gps.csv")
    assert by_csv.positions == {"b.jpg": Geodetic(4, 5)}
    assert by_csv.without == ["sub dir/a.jpg"]
    with pytest.raises(BadInputError, match="none of its 2 names, such as 'b\\.jpg', is one of the 1 images"):
        locate(["c.jpg"], None, tmp_path / "gps.csv")
    with pytest.raises(BadInputError, match="none of 1 images has a GPS position"):
        locate(["b.jpg"], tmp_path / "im", None)
    with pytest.raises(UsageError, match="--gps-file"):
        locate(names, None, None)


def test_names_in_a_message() -> None:
    assert some_names(["a", "b"]) == "a, b"
    assert some_names([str(i) for i in range(23)]).endswith("18, 19 and 3 more")
