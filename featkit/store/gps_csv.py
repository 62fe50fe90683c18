"""Positions by image from a csv: `name,lat,lon[,alt]` a line; degrees, and metres.

A first line of column names is recognised (exiftool's `SourceFile,GPSLatitude,GPSLongitude,GPSAltitude` of
`exiftool -n -csv` too) and decides the order of the columns; others are passed over then.
"""

from __future__ import annotations

import csv
from pathlib import Path

from featkit.errors import BadInputError
from featkit.geometry.wgs84 import Geodetic, is_on_earth
from featkit.store.text import read_lines

COLUMNS = {
    "name": ("name", "image", "image_name", "file", "filename", "file_name", "sourcefile"),
    "lat": ("lat", "latitude", "gpslatitude"),
    "lon": ("lon", "lng", "long", "longitude", "gpslongitude"),
    "alt": ("alt", "altitude", "gpsaltitude", "elevation", "height"),
}
EXPECTED = "`name,lat,lon` or `name,lat,lon,alt` expected (degrees north and east, metres)"


def read_gps_csv(path: Path) -> dict[str, Geodetic]:
    """Positions by image name. An image with empty coordinates has none. Raises BadInputError."""
    places: dict[str, int] | None = None
    positions: dict[str, Geodetic] = {}
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        fields = [field.strip() for field in _fields(line, where)]
        if places is None:
            places = _header(fields)
            if places is not None:
                continue
            places = {"name": 0, "lat": 1, "lon": 2, "alt": 3}
            if len(fields) not in (3, 4):
                raise BadInputError(f"{where}: {EXPECTED}")
        name, position = _row(fields, places, where)
        if name in positions:
            raise BadInputError(f"{where}: {name!r} has a position already")
        if position is not None:
            positions[name] = position
    if not positions:
        raise BadInputError(f"{path}: no positions in it; {EXPECTED}")
    return positions


def _fields(line: str, where: str) -> list[str]:
    try:
        return next(csv.reader([line], skipinitialspace=True, strict=True))
    except (csv.Error, StopIteration):
        raise BadInputError(f"{where}: not a line of comma-separated values; {EXPECTED}") from None


def _header(fields: list[str]) -> dict[str, int] | None:
    """Which column is which, when the line names name, latitude and longitude."""
    lowered = [field.lower() for field in fields]
    places = {key: next((lowered.index(n) for n in names if n in lowered), -1) for key, names in COLUMNS.items()}
    return places if min(places["name"], places["lat"], places["lon"]) >= 0 else None


def _row(fields: list[str], places: dict[str, int], where: str) -> tuple[str, Geodetic | None]:
    needed = max(places["name"], places["lat"], places["lon"])
    if len(fields) <= needed or not fields[places["name"]]:
        raise BadInputError(f"{where}: {EXPECTED}")
    name = fields[places["name"]].removeprefix("./")
    latitude, longitude = _number(fields[places["lat"]], where), _number(fields[places["lon"]], where)
    altitude = _number(fields[places["alt"]], where) if 0 <= places["alt"] < len(fields) else None
    if latitude is None and longitude is None:
        return name, None
    if latitude is None or longitude is None:
        raise BadInputError(f"{where}: {name!r} has one coordinate without the other")
    if not is_on_earth(latitude, longitude):
        raise BadInputError(f"{where}: latitude {latitude:g}, longitude {longitude:g} is no place on earth; {EXPECTED}")
    return name, Geodetic(latitude, longitude, altitude)


def _number(field: str, where: str) -> float | None:
    """None for an empty field. Raises BadInputError for one that is no finite number."""
    if not field:
        return None
    try:
        value = float(field)
    except ValueError:
        raise BadInputError(f"{where}: {field!r} is no number; {EXPECTED}") from None
    if not abs(value) < float("inf"):
        raise BadInputError(f"{where}: {field!r} is not finite")
    return value
