"""Where a photograph was taken, from its EXIF. Source: EXIF 2.32, section 4.6.6 (tags of the GPS directory)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from featkit.errors import BadInputError
from featkit.geometry.wgs84 import Geodetic, is_on_earth
from featkit.images.decode import open_header

GPS_DIRECTORY = 0x8825
LATITUDE_REF, LATITUDE, LONGITUDE_REF, LONGITUDE, ALTITUDE_REF, ALTITUDE = range(1, 7)
BELOW_SEA = 1  # values of ALTITUDE_REF: 0 above the sea, 1 below it; 2 and 3 the same for the ellipsoid (EXIF 3.0)
BELOW_ELLIPSOID = 3
UNREADABLE = (OSError, UnidentifiedImageError, ValueError, SyntaxError, TypeError, KeyError, struct.error)


def exif_position(path: Path) -> Geodetic | None:
    """The position in a photograph's EXIF; None when it has none, or one that is impossible.

    Latitude and longitude that are both exactly 0 are what cameras write without a fix, and count as none; so does a
    file that is no image (whoever decodes it says so). Raises BadInputError for a file that is not there.
    """
    try:
        with open_header(path) as header:
            # Pillow decodes a whole PNG in search of late metadata; EXIF lies before the pixels where it is of use.
            exif = Image.Image.getexif(header) if header.format == "PNG" else header.getexif()
            return position_of(exif.get_ifd(GPS_DIRECTORY))
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such image; its EXIF was to say where it was taken") from None
    except UNREADABLE:
        return None


def position_of(tags: Mapping[int, Any]) -> Geodetic | None:
    """The position in a GPS directory, tag by tag; None when it holds none."""
    latitude = _degrees(tags.get(LATITUDE), tags.get(LATITUDE_REF), "NS")
    longitude = _degrees(tags.get(LONGITUDE), tags.get(LONGITUDE_REF), "EW")
    if latitude is None or longitude is None or not is_on_earth(latitude, longitude):
        return None
    if latitude == 0 and longitude == 0:
        return None
    return Geodetic(latitude, longitude, _altitude(tags.get(ALTITUDE), tags.get(ALTITUDE_REF)))


def _degrees(parts: Any, reference: Any, signs: str) -> float | None:
    """Degrees, minutes and seconds as one number; None for anything else. signs: letters of plus and of minus."""
    letter = str(reference or "").strip("\0 ").upper()[:1]
    if parts is None or letter not in signs or not letter:
        return None
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if len(numbers) != 3 or not np.all(np.isfinite(numbers)):
        return None
    value = numbers[0] + numbers[1] / 60 + numbers[2] / 3600
    return -value if letter == signs[1] else value


def _altitude(value: Any, reference: Any) -> float | None:
    if value is None:
        return None
    if isinstance(reference, bytes):
        reference = reference[0] if reference else 0
    try:
        metres = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if not np.isfinite(metres):
        return None
    return -metres if reference in (BELOW_SEA, BELOW_ELLIPSOID) else metres
