"""A common intensity range for all files of more than 8 bits in a folder, which is mapped to black and white.

A 16-bit file that uses only 12 or 14 bits, or the narrow range of a thermal camera, is nearly black when divided by
256; if every file were stretched individually, the same surface would have a different brightness in each.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featkit.core.errors import BadInputError, open_input
from featkit.core.log import progress
from featkit.core.runtime import usable_cores
from featkit.images import jpeg_2000
from featkit.images.read import UNREADABLE, DecodeConfig, decoded, open_header

LOGGER = logging.getLogger(__name__)
PNG, PNG_DEPTH_AT = b"\x89PNG\r\n\x1a\n", 24
PNM = re.compile(rb"P[56](?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+(\d+)\s")
BITS_PER_SAMPLE = 258  # a TIFF tag
DEEP_SUFFIXES = {".png", ".tif", ".tiff", ".pgm", ".ppm", ".pnm", ".jp2", ".j2k"}
HEAD = 512  # bytes at the beginning of a PNG or PNM file that contain its bit depth
SAMPLED_FILES = 48  # spread over the folder
PIXEL_STEP = 3  # step of rows and columns: uses a ninth of the pixels
OUTLIERS_PERCENT = 0.1  # percentage of a file's pixels ignored at either end: dead pixels, glints
WIDE = 1 << 15  # a folder that uses half of the 16-bit range or more is not stretched
DIGITS = 6  # significant digits of a range of floats


def is_deep(path: Path) -> bool:
    """Whether a file has more than 8 bits per sample, from its header."""
    if path.suffix.lower() not in DEEP_SUFFIXES:
        return False
    try:
        with open_input(path) as file:
            head = file.read(HEAD)
        if head.startswith(PNG):
            return head[PNG_DEPTH_AT : PNG_DEPTH_AT + 1] == b"\x10"
        if found := PNM.match(head):
            return int(found[1]) > 255
        with open_header(path) as header:
            if header.format == "JPEG2000":
                return max(jpeg_2000.depths(path.read_bytes()), default=0) > 8
            if header.format != "TIFF":
                return False
            bits = header.tag_v2.get(BITS_PER_SAMPLE, 1)  # type: ignore[attr-defined]
            return max(bits if isinstance(bits, tuple) else (bits,)) > 8
    except UNREADABLE:
        return False


class _Range(NamedTuple):
    """The smallest and largest value of a file, without outliers, and the type of its values."""

    low: float
    high: float
    kind: np.dtype


def found_range(paths: Sequence[Path]) -> tuple[float, float] | None:
    """The values mapped to black and white in all files of more than 8 bits.

    The smallest and largest values in a sample of the files, without the outliers of each. None if there are no such
    files, or if they have 16 bits and use half of that range or more. Files that cannot be read are skipped here;
    decoding them reports the error. Raises BadInputError for files of integers and files of floats, which have no
    common range.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:
        deep = [path for path, is_deep_file in zip(paths, pool.map(is_deep, paths), strict=True) if is_deep_file]
        if not deep:
            return None
        sampled = [deep[place] for place in np.unique(np.linspace(0, len(deep) - 1, SAMPLED_FILES).round().astype(int))]
        found: dict[Path, _Range] = {}
        with progress("intensities", len(sampled), "images") as advance:
            for path, file_range in zip(sampled, pool.map(_value_range, sampled), strict=True):
                found |= {} if file_range is None else {path: file_range}
                advance(1)
    if not found:
        return None
    _check_one_kind(found)
    low, high = min(each.low for each in found.values()), max(each.high for each in found.values())
    is_plain = all(each.kind == np.uint16 for each in found.values())
    if not low < high or (is_plain and high - low >= WIDE):
        return None
    LOGGER.info(
        "%d photographs of more than 8 bits use %g to %g; this range is mapped to black and white in all of them",
        *(len(deep), low, high),
    )
    return low, high


def common_decoding(paths: Sequence[Path], resize_max: int | None = None) -> DecodeConfig:
    """How all photographs of a folder or scene are decoded: files of more than 8 bits with one common range.

    resize_max: longer side, px. Raises BadInputError as `found_range`.
    """
    return DecodeConfig(resize_max=resize_max, intensity_range=found_range(paths))


def _check_one_kind(found: dict[Path, _Range]) -> None:
    """Raise BadInputError for files of integers and files of floats."""
    floats = [path for path, each in found.items() if each.kind.kind == "f"]
    if 0 < len(floats) < len(found):
        whole = next(path for path in found if path not in floats)
        raise BadInputError(
            f"{floats[0]}: has floats, {whole} integers, which have no common black and white; convert one of them,"
            " or set decode.intensity_range"
        )


def _value_range(path: Path) -> _Range | None:
    """The range of a file's values without outliers; None if it cannot be read or has 8 bits."""
    try:
        with open_header(path) as header:
            form = header.format
        pixels = decoded(path.read_bytes(), form, colour=False, any_depth=True)
    except UNREADABLE:
        return None
    if pixels is None or pixels.dtype == np.uint8:
        return None
    sample = pixels[::PIXEL_STEP, ::PIXEL_STEP]
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return None
    low, high = map(float, np.percentile(sample, [OUTLIERS_PERCENT, 100 - OUTLIERS_PERCENT]))
    if pixels.dtype.kind == "f":
        return _Range(float(f"{low:.{DIGITS}g}"), float(f"{high:.{DIGITS}g}"), pixels.dtype)
    return _Range(float(np.floor(low)), float(np.ceil(high)), pixels.dtype)
