"""Positions on the earth, as GPS gives them, in metres: earth-centred (ECEF) and local east, north, up (ENU).

Source: WGS 84, NIMA TR8350.2 (2000): the ellipsoid's constants in table 3.1, geodetic to rectangular in equation 4-14.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

SEMI_MAJOR_M = 6_378_137.0
FLATTENING = 1 / 298.257223563
ECCENTRICITY_SQUARED = FLATTENING * (2 - FLATTENING)


@dataclass(frozen=True)
class Geodetic:
    """Latitude (north) and longitude (east) in degrees; altitude in metres, None where it is not known.

    A camera writes its altitude above the sea or above the ellipsoid; which one is not told apart here.
    """

    latitude_deg: float
    longitude_deg: float
    altitude_m: float | None = None


def ecef(positions: Sequence[Geodetic]) -> Float[np.ndarray, "n 3"]:
    """Earth-centred, earth-fixed coordinates in metres; an unknown altitude counts as 0."""
    table = np.array([(p.latitude_deg, p.longitude_deg, p.altitude_m or 0.0) for p in positions]).reshape(-1, 3)
    latitude, longitude, altitude = np.radians(table[:, 0]), np.radians(table[:, 1]), table[:, 2]
    normal = SEMI_MAJOR_M / np.sqrt(1 - ECCENTRICITY_SQUARED * np.sin(latitude) ** 2)  # radius in the prime vertical
    across = (normal + altitude) * np.cos(latitude)
    along = (normal * (1 - ECCENTRICITY_SQUARED) + altitude) * np.sin(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), along], axis=1)


def enu(positions: Sequence[Geodetic], origin: Geodetic) -> Float[np.ndarray, "n 3"]:
    """East, north and up in metres, seen from `origin`: x and y lie in its horizon, z points to its zenith."""
    latitude, longitude = np.radians([origin.latitude_deg, origin.longitude_deg])
    east = [-np.sin(longitude), np.cos(longitude), 0.0]
    north = [-np.sin(latitude) * np.cos(longitude), -np.sin(latitude) * np.sin(longitude), np.cos(latitude)]
    up = [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)]
    return (ecef(positions) - ecef([origin])) @ np.array([east, north, up]).T


def middle(positions: Sequence[Geodetic]) -> Geodetic:
    """Median latitude, longitude and altitude, rounded to 1e-7 degrees (about 1 cm) and to millimetres.

    Longitudes are counted from the first one, so that positions on both sides of 180 degrees are beside each other.
    """
    first = positions[0].longitude_deg
    beside = [(p.longitude_deg - first + 180.0) % 360.0 - 180.0 for p in positions]
    longitude = (first + float(np.median(beside)) + 180.0) % 360.0 - 180.0
    altitudes = [p.altitude_m for p in positions if p.altitude_m is not None]
    return Geodetic(
        round(float(np.median([p.latitude_deg for p in positions])), 7),
        round(longitude, 7),
        round(float(np.median(altitudes)), 3) if altitudes else None,
    )


def is_on_earth(latitude_deg: float, longitude_deg: float) -> bool:
    """Whether the numbers are finite and within +-90 and +-180 degrees."""
    return abs(latitude_deg) <= 90 and abs(longitude_deg) <= 180  # False for NaN too
