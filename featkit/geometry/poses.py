"""Rotations, camera poses, and positions on the earth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from featkit.core.types import Pose

# ----------------------------------------------------------------------------------------------------------------------
# Rotations and world-to-camera poses as numpy arrays. Quaternions are (w, x, y, z).


def rotation_matrix(qvec: Float[np.ndarray, "4"]) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix of a quaternion (w, x, y, z) of any non-zero length."""
    w, x, y, z = np.asarray(qvec, dtype=np.float64) / np.linalg.norm(qvec)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4"]:
    """Unit quaternion (w, x, y, z), w >= 0, of a rotation matrix (eigenvector method of Bar-Itzhack 2000)."""
    r = np.asarray(rotation, dtype=np.float64)
    k = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], 0, 0, 0],
            [r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], 0, 0],
            [r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1], 0],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], np.trace(r)],
        ]
    )
    vectors = np.linalg.eigh(k / 3.0, UPLO="L")[1]
    x, y, z, w = vectors[:, -1]
    q = np.array([w, x, y, z])
    return -q if w < 0 else q


def camera_centre(pose: Pose) -> Float[np.ndarray, "3"]:
    """Camera centre in world units: -R^T t."""
    return -rotation_matrix(pose.qvec).T @ np.asarray(pose.tvec, dtype=np.float64)


def rotation_angle_deg(a: Float[np.ndarray, "3 3"], b: Float[np.ndarray, "3 3"]) -> float:
    """Angle of the rotation that takes `a` to `b`, in degrees; exact down to rounding for small angles."""
    relative = a.T @ b
    vee = np.array([relative[2, 1] - relative[1, 2], relative[0, 2] - relative[2, 0], relative[1, 0] - relative[0, 1]])
    return float(np.degrees(np.arctan2(np.linalg.norm(vee), np.trace(relative) - 1.0)))


def facing(rays: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3 3"]:
    """Rotations that take unit directions to the z axis."""
    helpers = np.where(np.abs(rays[:, :1]) < 0.5, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    x = np.cross(helpers, rays)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return np.stack([x, np.cross(rays, x), rays], axis=1)


def look_at(centre: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"], up: Float[np.ndarray, "3"]) -> Pose:
    """World-to-camera pose of a camera at `centre` that looks at `target` (x right, y down, z forward)."""
    forward = np.asarray(target, dtype=np.float64) - centre
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, up)
    right = right / np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return Pose(qvec=quaternion(rotation), tvec=-rotation @ np.asarray(centre, dtype=np.float64))


# ----------------------------------------------------------------------------------------------------------------------
# Positions on the earth, as GPS gives them, in metres: earth-centred (ECEF) and local east, north, up (ENU).
#
# Source: WGS 84, NIMA TR8350.2 (2000): the ellipsoid's constants in table 3.1, geodetic to rectangular in equation
# 4-14.


SEMI_MAJOR_M = 6_378_137.0
FLATTENING = 1 / 298.257223563
ECCENTRICITY_SQUARED = FLATTENING * (2 - FLATTENING)


@dataclass(frozen=True)
class Geodetic:
    """Latitude (north) and longitude (east) in degrees; altitude in metres, None if unknown.

    Cameras record altitude above sea level or above the ellipsoid; the two are not distinguished here.
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
    """East, north and up in metres from `origin`: x and y are in its horizontal plane, z points to its zenith."""
    latitude, longitude = np.radians([origin.latitude_deg, origin.longitude_deg])
    east = [-np.sin(longitude), np.cos(longitude), 0.0]
    north = [-np.sin(latitude) * np.cos(longitude), -np.sin(latitude) * np.sin(longitude), np.cos(latitude)]
    up = [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)]
    return (ecef(positions) - ecef([origin])) @ np.array([east, north, up]).T


def middle(positions: Sequence[Geodetic]) -> Geodetic:
    """Median latitude, longitude and altitude, rounded to 1e-7 degrees (about 1 cm) and to millimetres.

    Longitudes are taken relative to the first, so that positions on both sides of 180 degrees are close.
    """
    first = positions[0].longitude_deg
    offsets = [(p.longitude_deg - first + 180.0) % 360.0 - 180.0 for p in positions]
    longitude = (first + float(np.median(offsets)) + 180.0) % 360.0 - 180.0
    altitudes = [p.altitude_m for p in positions if p.altitude_m is not None]
    return Geodetic(
        round(float(np.median([p.latitude_deg for p in positions])), 7),
        round(longitude, 7),
        round(float(np.median(altitudes)), 3) if altitudes else None,
    )


def is_on_earth(latitude_deg: float, longitude_deg: float) -> bool:
    """Whether the numbers are finite and within +-90 and +-180 degrees."""
    return abs(latitude_deg) <= 90 and abs(longitude_deg) <= 180  # False for NaN too
