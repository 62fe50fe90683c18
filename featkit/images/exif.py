"""The focal length that a photograph says of itself, in pixels of its file.

Source: EXIF 2.32, tags 0x920A FocalLength, 0xA405 FocalLengthIn35mmFilm, 0xA20E FocalPlaneXResolution (sensor pixels
per unit), 0xA210 its unit, 0xA002 and 0xA003 the size that the camera wrote.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

EXIF_IFD = 0x8769
FOCAL_MM, FOCAL_35MM = 0x920A, 0xA405
PLANE_RESOLUTION, PLANE_UNIT = 0xA20E, 0xA210
WRITTEN_SIZE = (0xA002, 0xA003)
UNIT_MM = {1: 25.4, 2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # 1, no unit, is written for inches; 4 and 5 are by custom
FILM_DIAGONAL_MM = math.hypot(36.0, 24.0)
SANE = (0.1, 10.0)  # focal length over the longer side; anything else is no focal length (COLMAP's bounds)


def focal_length_px(path: Path, size: tuple[int, int], sensor_width_mm: float | None = None) -> float | None:
    """Focal length in pixels of a file of `size` (width, height); None when its EXIF does not tell.

    In this order: the equivalent to 35 mm film (by the diagonal); the focal length with the resolution of the focal
    plane, also of a photograph that was scaled since; the focal length with sensor_width_mm, the sensor's longer side.
    """
    tags = _exif(path)
    longer = max(size)
    focal_mm = _positive(tags.get(FOCAL_MM))
    found = None
    if film_mm := _positive(tags.get(FOCAL_35MM)):
        found = film_mm / FILM_DIAGONAL_MM * math.hypot(*size)
    elif focal_mm and (resolution := _positive(tags.get(PLANE_RESOLUTION))):
        unit = UNIT_MM.get(int(_positive(tags.get(PLANE_UNIT)) or 2), 25.4)
        written = max(_positive(tags.get(tag)) or 0.0 for tag in WRITTEN_SIZE) or longer
        found = focal_mm * resolution / unit * longer / written
    elif focal_mm and sensor_width_mm:
        found = focal_mm / sensor_width_mm * longer
    return found if found is not None and SANE[0] <= found / longer <= SANE[1] else None


def _exif(path: Path) -> dict[int, Any]:
    try:
        with Image.open(path) as image:
            return dict(image.getexif().get_ifd(EXIF_IFD))
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, TypeError, KeyError, struct.error):
        return {}


def _positive(value: Any) -> float | None:
    """A tag's value as a number above zero, None for anything else (a fraction over zero, text, several values)."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None
