"""Which photographs have a position, from a csv or from their EXIF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featkit.errors import BadInputError, UsageError
from featkit.geometry.wgs84 import Geodetic
from featkit.images.gps import exif_position
from featkit.log import progress
from featkit.store.gps_csv import read_gps_csv

NAMED = 20  # names in a message; the others are counted


@dataclass(frozen=True)
class Located:
    """Positions by image name, and the names that have none, both in the order asked for. source: a file or folder."""

    positions: dict[str, Geodetic]
    without: list[str]
    source: Path


def locate(names: Sequence[str], images: Path | None, gps_file: Path | None) -> Located:
    """Positions of images: from the csv when one is given, else from the EXIF of the files in `images`.

    Raises UsageError without either, BadInputError when no image has a position or an image is not there.
    """
    if gps_file is not None:
        listed = read_gps_csv(gps_file)
        found = {name: listed[name] for name in names if name in listed}
        if not found:
            example = next(iter(listed))
            raise BadInputError(
                f"{gps_file}: none of its {len(listed)} names, such as {example!r}, is one of the {len(names)} images,"
                f" such as {names[0]!r}; names are relative to the folder of images"
            )
        return Located(found, [name for name in names if name not in found], gps_file)
    if images is None:
        raise UsageError("GPS positions: give the photographs' folder (--images) or a csv of positions (--gps-file)")
    found = {}
    with progress("gps", len(names), "images") as advance:
        for name in names:
            position = exif_position(images / name)
            if position is not None:
                found[name] = position
            advance(1)
    if not found:
        raise BadInputError(
            f"{images}: none of {len(names)} images has a GPS position in its EXIF; give --gps-file with name,lat,lon"
        )
    return Located(found, [name for name in names if name not in found], images)


def some_names(names: Sequence[str]) -> str:
    """Names for a message: all of up to 20, else the first ones and how many more."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
