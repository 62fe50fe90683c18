"""Metadata of photographs: camera, lens, focal length and GPS position from EXIF."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featkit.core.errors import BadInputError, UsageError
from featkit.core.log import progress
from featkit.geometry.poses import Geodetic, is_on_earth
from featkit.images.read import UNREADABLE, open_header, size_in_file
from featkit.io.lists import read_gps_csv, respelled

# ----------------------------------------------------------------------------------------------------------------------
# The focal length in a photograph's EXIF, in pixels of its file.
#
# Source: EXIF 2.32, tags 0x920A FocalLength, 0xA405 FocalLengthIn35mmFilm, 0xA20E FocalPlaneXResolution (sensor pixels
# per unit), 0xA210 its unit, 0xA002 and 0xA003 the image size when the camera wrote it.


EXIF_IFD = 0x8769
FOCAL_MM, FOCAL_35MM = 0x920A, 0xA405
PLANE_RESOLUTION, PLANE_UNIT = 0xA20E, 0xA210
WRITTEN_SIZE = (0xA002, 0xA003)
UNIT_MM = {1: 25.4, 2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # 1, no unit, is used for inches; 4 and 5 are non-standard
FILM_DIAGONAL_MM = math.hypot(36.0, 24.0)
SANE = (0.1, 10.0)  # plausible focal length over the longer side (COLMAP's limits)


def focal_length_px(path: Path, size: tuple[int, int], sensor_width_mm: float | None = None) -> float | None:
    """Focal length in pixels of a file of `size` (width, height); None if its EXIF does not have it.

    From, in this order: the 35 mm equivalent (by the diagonal); the focal length and the focal plane resolution, also
    for photographs that were resized later; the focal length and sensor_width_mm, the sensor's longer side.
    """
    tags = _exif_tags(path)
    longer = max(size)
    focal_mm = _positive_number(tags.get(FOCAL_MM))
    focal_px = None
    if film_mm := _positive_number(tags.get(FOCAL_35MM)):
        focal_px = film_mm / FILM_DIAGONAL_MM * math.hypot(*size)
    elif focal_mm and (resolution := _positive_number(tags.get(PLANE_RESOLUTION))):
        unit = UNIT_MM.get(int(_positive_number(tags.get(PLANE_UNIT)) or 2), 25.4)
        written_side = max(_positive_number(tags.get(tag)) or 0.0 for tag in WRITTEN_SIZE) or longer
        focal_px = focal_mm * resolution / unit * longer / written_side
    elif focal_mm and sensor_width_mm:
        focal_px = focal_mm / sensor_width_mm * longer
    return focal_px if focal_px is not None and SANE[0] <= focal_px / longer <= SANE[1] else None


def _exif_tags(path: Path) -> dict[int, Any]:
    try:
        with open_header(path) as image:
            return dict(_read_exif(image).get_ifd(EXIF_IFD))
    except UNREADABLE:
        return {}


def _read_exif(header: Image.Image) -> Image.Exif:
    """EXIF of an opened file. For PNG only that before the pixels, as Pillow would decode the image to find more."""
    return Image.Image.getexif(header) if header.format == "PNG" else header.getexif()


def _positive_number(value: Any) -> float | None:
    """A tag's value as a positive number; None for anything else (a division by zero, text, several values)."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None


# ----------------------------------------------------------------------------------------------------------------------
# Camera and lens, and whether the photograph is a spherical panorama.
#
# Source: EXIF 2.32 (Make, Model, LensModel), and Google's "Photo Sphere XMP Metadata", GPano:ProjectionType.


MAKER, CAMERA_NAME, LENS_NAME = 0x010F, 0x0110, 0xA434
CROPPED, FULL = b"CroppedAreaImage", b"FullPano"
AREA = re.compile(rb"GPano:(CroppedAreaImage|FullPano)(Width|Height)Pixels\s*(?:=\s*[\"']|>)\s*(\d{1,9})(?!\d)")
EQUIRECTANGULAR = re.compile(rb"GPano:ProjectionType\s*(=\s*[\"']|>)\s*equirectangular", re.IGNORECASE)
WHOLE_SPHERE = 2.0  # width over height of a panorama of 360 by 180 degrees
SAME_RATIO = 0.01  # relative tolerance, for files scaled to whole pixels


@dataclass(frozen=True)
class Lens:
    """camera: maker and model. lens: its name. focal_mm: focal length. Empty or None if not in EXIF."""

    camera: str = ""
    lens: str = ""
    focal_mm: float | None = None

    def __str__(self) -> str:
        focal = "" if self.focal_mm is None else f"{self.focal_mm:g} mm"
        return " ".join(part for part in (self.camera, self.lens, focal) if part) or "no EXIF"


@dataclass(frozen=True)
class Taken:
    """size: width, height as stored. is_panorama: whether its metadata (GPano) mark it as a spherical panorama.

    is_part: whether they say that the picture is only a part of the panorama.
    """

    size: tuple[int, int]
    lens: Lens
    is_panorama: bool
    is_part: bool = False


def is_whole_sphere(size: tuple[int, int]) -> bool:
    """Whether an image (width, height) has the shape of a panorama of 360 by 180 degrees."""
    return abs(size[0] / size[1] - WHOLE_SPHERE) <= SAME_RATIO * WHOLE_SPHERE


def taken_with(path: Path) -> Taken | None:
    """Camera, lens and panorama metadata of a photograph; None for a file that cannot be read."""
    try:
        with open_header(path) as header:
            size = size_in_file(header)
            metadata = header.info.get("xmp", b"")
            metadata = metadata.encode() if isinstance(metadata, str) else metadata
            is_panorama = isinstance(metadata, bytes) and EQUIRECTANGULAR.search(metadata) is not None
            return Taken(size, _read_lens(header), is_panorama, is_panorama and _is_part(metadata))
    except UNREADABLE:
        return None


def _is_part(metadata: bytes) -> bool:
    """Whether GPano's area is smaller than its whole panorama; False where it does not say, or contradicts itself."""
    sides: dict[tuple[bytes, bytes], int] = {(part, side): int(value) for part, side, value in AREA.findall(metadata)}
    pairs = [(sides.get((CROPPED, side), 0), sides.get((FULL, side), 0)) for side in (b"Width", b"Height")]
    return any(0 < cropped < full for cropped, full in pairs)


def _read_lens(header: Image.Image) -> Lens:
    try:
        exif = _read_exif(header)
        tags = exif.get_ifd(EXIF_IFD)
    except (*UNREADABLE, ZeroDivisionError):
        return Lens()
    maker, camera, lens = (
        _clean_text(value) for value in (exif.get(MAKER), exif.get(CAMERA_NAME), tags.get(LENS_NAME))
    )
    camera = camera if camera.startswith(maker) else f"{maker} {camera}".strip()
    focal = _positive_number(tags.get(FOCAL_MM)) or _positive_number(tags.get(FOCAL_35MM))
    return Lens(camera, lens, None if focal is None else round(focal, 2))


def _clean_text(value: Any) -> str:
    """An EXIF string as one line without padding; empty for anything else."""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split()) if isinstance(value, str) else ""


# ----------------------------------------------------------------------------------------------------------------------
# The GPS position in a photograph's EXIF. Source: EXIF 2.32, section 4.6.6 (tags of the GPS directory).


GPS_DIRECTORY = 0x8825
LATITUDE_REF, LATITUDE, LONGITUDE_REF, LONGITUDE, ALTITUDE_REF, ALTITUDE = range(1, 7)
BELOW_SEA = 1  # values of ALTITUDE_REF: 0 above sea level, 1 below; 2 and 3 the same for the ellipsoid (EXIF 3.0)
BELOW_ELLIPSOID = 3


def exif_position(path: Path) -> Geodetic | None:
    """The position in a photograph's EXIF; None if it has none, or an invalid one.

    Latitude and longitude of exactly 0, which cameras write without a GPS fix, also give None, as does a file that is
    not an image (decoding it reports the error). Raises BadInputError for a missing file.
    """
    try:
        with open_header(path) as header:
            return position_of(_read_exif(header).get_ifd(GPS_DIRECTORY))
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such image; its EXIF is needed for the GPS position") from None
    except UNREADABLE:
        return None


def position_of(tags: Mapping[int, Any]) -> Geodetic | None:
    """The position in the tags of a GPS directory; None if there is none."""
    latitude = _decimal_degrees(tags.get(LATITUDE), tags.get(LATITUDE_REF), "NS")
    longitude = _decimal_degrees(tags.get(LONGITUDE), tags.get(LONGITUDE_REF), "EW")
    if latitude is None or longitude is None or not is_on_earth(latitude, longitude):
        return None
    if latitude == 0 and longitude == 0:
        return None
    return Geodetic(latitude, longitude, _signed_altitude(tags.get(ALTITUDE), tags.get(ALTITUDE_REF)))


def _decimal_degrees(parts: Any, reference: Any, signs: str) -> float | None:
    """Degrees, minutes and seconds as one number; None for anything else. signs: the letters for plus and minus."""
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


def _signed_altitude(value: Any, reference: Any) -> float | None:
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


# ----------------------------------------------------------------------------------------------------------------------
# Which photographs have a position, from a csv or from their EXIF.


NAMED = 20  # names listed in a message; the others are only counted


@dataclass(frozen=True)
class Located:
    """Positions by image name, and names without a position, in the requested order. source: a file or folder."""

    positions: dict[str, Geodetic]
    without: list[str]
    source: Path


def locate(names: Sequence[str], images: Path | None, gps_file: Path | None) -> Located:
    """Positions of images: from the csv if it is given, otherwise from the EXIF of the files in `images`.

    Raises UsageError without either, BadInputError if no image has a position or an image is missing.
    """
    if gps_file is not None:
        listed = respelled(read_gps_csv(gps_file), lambda: names)
        positions = {name: listed[name] for name in names if name in listed}
        if not positions:
            example = next(iter(listed))
            raise BadInputError(
                f"{gps_file}: none of its {len(listed)} names, such as {example!r}, is one of the {len(names)} images,"
                f" such as {names[0]!r}; names are relative to the folder of images"
            )
        return Located(positions, [name for name in names if name not in positions], gps_file)
    if images is None:
        raise UsageError("GPS positions: give the photographs' folder (--images) or a csv of positions (--gps-file)")
    positions = {}
    with progress("gps", len(names), "images") as advance:
        for name in names:
            position = exif_position(images / name)
            if position is not None:
                positions[name] = position
            advance(1)
    if not positions:
        raise BadInputError(
            f"{images}: none of {len(names)} images has a GPS position in its EXIF; give --gps-file with name,lat,lon"
        )
    return Located(positions, [name for name in names if name not in positions], images)


def some_names(names: Sequence[str]) -> str:
    """Names for a message: at most the first 20, and the number of others."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
