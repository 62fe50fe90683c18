"""A common intensity range for all 16-bit files in a folder, which is mapped to black and white.

A 16-bit file that uses only 12 or 14 bits, or the narrow range of a thermal camera, is nearly black when divided by
256; if every file were stretched individually, the same surface would have a different brightness in each.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from featkit.core.log import progress
from featkit.core.runtime import usable_cores
from featkit.images.read import BY_PILLOW, DEEP_MODE, UNREADABLE, decoded, open_header

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


def is_deep(path: Path) -> bool:
    """Whether a file has more than 8 bits per sample, from its header."""
    if path.suffix.lower() not in DEEP_SUFFIXES:
        return False
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        if head.startswith(PNG):
            return head[PNG_DEPTH_AT : PNG_DEPTH_AT + 1] == b"\x10"
        if found := PNM.match(head):
            return int(found[1]) > 255
        with open_header(path) as header:
            if header.format in BY_PILLOW:
                return header.mode.startswith(DEEP_MODE)
            if header.format != "TIFF":
                return False
            bits = header.tag_v2.get(BITS_PER_SAMPLE, 1)  # type: ignore[attr-defined]
            return max(bits if isinstance(bits, tuple) else (bits,)) > 8
    except UNREADABLE:
        return False


def found_range(images: Path, names: Sequence[str]) -> tuple[float, float] | None:
    """The values mapped to black and white in all files of more than 8 bits.

    The smallest and largest values in a sample of the files, without the outliers of each. None if there are no such
    files, or if they use half of their range or more. Files that cannot be read are skipped here; decoding them reports
    the error.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:
        deep = [
            name
            for name, is_deep_file in zip(names, pool.map(lambda n: is_deep(images / n), names), strict=True)
            if is_deep_file
        ]
        if not deep:
            return None
        sampled = np.unique(np.linspace(0, len(deep) - 1, SAMPLED_FILES).round().astype(int))
        ends = []
        with progress("intensities", len(sampled), "images") as advance:
            for file_range in pool.map(lambda place: _value_range(images / deep[place]), sampled):
                ends += [] if file_range is None else [file_range]
                advance(1)
    if not ends:
        return None
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if not low < high or high - low >= WIDE:
        return None
    LOGGER.info(
        "extract: %d photographs of 16 bits use %g to %g; this range is mapped to black and white in all of them"
        " (decode.intensity_range)",
        *(len(deep), low, high),
    )
    return low, high


def _value_range(path: Path) -> tuple[float, float] | None:
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
    low, high = np.percentile(sample, [OUTLIERS_PERCENT, 100 - OUTLIERS_PERCENT])
    return float(np.floor(low)), float(np.ceil(high))
