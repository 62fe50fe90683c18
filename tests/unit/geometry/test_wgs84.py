"""Geodetic coordinates against COLMAP's, and by what is known of a few places."""

import numpy as np
import pycolmap
import pytest

from featkit.geometry.poses import Geodetic, ecef, enu, is_on_earth, middle

RNG = np.random.default_rng(5)
PLACES = [
    Geodetic(*row)
    for row in np.stack([RNG.uniform(-90, 90, 50), RNG.uniform(-180, 180, 50), RNG.uniform(-400, 9000, 50)], 1)
]
TABLE = [[p.latitude_deg, p.longitude_deg, p.altitude_m] for p in PLACES]


def test_as_colmap() -> None:
    transform = pycolmap.GPSTransform(pycolmap.GPSTransformEllipsoid.WGS84)
    assert ecef(PLACES) == pytest.approx(np.array(transform.ellipsoid_to_ecef(TABLE)), abs=1e-6)
    origin = PLACES[7]
    theirs = np.array(transform.ellipsoid_to_enu(TABLE, origin.latitude_deg, origin.longitude_deg, origin.altitude_m))
    assert enu(PLACES, origin) == pytest.approx(theirs, abs=1e-6)


def test_known_places() -> None:
    assert ecef([Geodetic(0, 0)])[0] == pytest.approx([6378137, 0, 0])
    assert ecef([Geodetic(90, 17)])[0] == pytest.approx([0, 0, 6356752.3142], abs=1e-4)  # the polar radius
    origin = Geodetic(47.0, 8.0, 400.0)
    (east, north, up) = enu(
        [Geodetic(47.0, 8.0001, 400), Geodetic(47.0001, 8.0, 400), Geodetic(47.0, 8.0, 410)], origin
    )
    assert east == pytest.approx([7.606, 0, 0], abs=1e-3)  # cos(47 degrees) of 11.1 m, on a slightly larger circle
    assert north == pytest.approx([0, 11.1178, 0], abs=1e-4)  # of radius 6,369,620 m + 400 m
    assert up == pytest.approx([0, 0, 10], abs=1e-9)


def test_unknown_altitudes_count_as_zero() -> None:
    assert ecef([Geodetic(10, 20)]) == pytest.approx(ecef([Geodetic(10, 20, 0.0)]))


def test_middle() -> None:
    assert middle([Geodetic(1, 10, 5), Geodetic(2, 12, None), Geodetic(9, 11, 7)]) == Geodetic(2, 11, 6)
    assert middle([Geodetic(1, 2)]).altitude_m is None
    beside_the_date_line = middle([Geodetic(0, 179.9), Geodetic(0, -179.9), Geodetic(0, -179.8)])
    assert beside_the_date_line.longitude_deg == pytest.approx(-179.9)


@pytest.mark.parametrize(("latitude", "longitude"), [(91, 0), (0, -181), (float("nan"), 0), (0, float("inf"))])
def test_no_places(latitude: float, longitude: float) -> None:
    assert not is_on_earth(latitude, longitude)
    assert is_on_earth(-90, 180)
