"""One stretch for all 16-bit files of a folder: which of their values become black and white.

A file of 16 bits that uses 12 or 14 of them, or the narrow range of a thermal camera, is nearly black once it is
divided by 256; stretched by itself, the same surface would have another brightness in every photograph.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from featkit.core.log import progress
from featkit.core.runtime import usable_cores
from featkit.images.read import UNREADABLE, open_header

LOGGER = logging.getLogger(__name__)
PNG, PNG_DEPTH_AT = b"\x89PNG\r\n\x1a\n", 24
PNM = re.compile(rb"P[56](?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+(\d+)\s")
BITS_PER_SAMPLE = 258  # a TIFF tag
DEEP_SUFFIXES = {".png", ".tif", ".tiff", ".pgm", ".ppm", ".pnm"}
HEAD = 512  # bytes in which a PNG or PNM file says its depth
SAMPLED_FILES = 48  # spread over the folder
PIXEL_STEP = 3  # of rows and columns: a ninth of the pixels
OUTLIERS_PERCENT = 0.1  # of a file's pixels at either end: dead pixels, glints
WIDE = 1 << 15  # a folder that uses half of the 16 bits or more is left as it is


def is_deep(path: Path) -> bool:
    """Whether a file has more than 8 bits per sample, by its header."""
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
            if header.format != "TIFF":
                return False
            bits = header.tag_v2.get(BITS_PER_SAMPLE, 1)  # type: ignore[attr-defined]
            return max(bits if isinstance(bits, tuple) else (bits,)) > 8
    except UNREADABLE:
        return False


def found_range(images: Path, names: Sequence[str]) -> tuple[float, float] | None:
    """The values that become black and white in all files of more than 8 bits; None when they use most of their range.

    The smallest and largest over a sample of the files, without each one's outliers. Files that cannot be read are
    passed over: whoever decodes them says so.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:
        deep = [
            name for name, is_one in zip(names, pool.map(lambda n: is_deep(images / n), names), strict=True) if is_one
        ]
        if not deep:
            return None
        places = np.unique(np.linspace(0, len(deep) - 1, SAMPLED_FILES).round().astype(int))
        ends = []
        with progress("intensities", len(places), "images") as advance:
            for found in pool.map(lambda place: _ends(images / deep[place]), places):
                ends += [] if found is None else [found]
                advance(1)
    if not ends:
        return None
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if not low < high or high - low >= WIDE:
        return None
    LOGGER.info(
        "extract: %d photographs of 16 bits use %g to %g; one stretch of these to black and white for all"
        " (decode.intensity_range)",
        *(len(deep), low, high),
    )
    return low, high


def _ends(path: Path) -> tuple[float, float] | None:
    """Values that all but the outliers of a file lie between."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        pixels = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
    except (OSError, cv2.error):
        return None
    if pixels is None or pixels.dtype == np.uint8:
        return None
    seen = pixels[::PIXEL_STEP, ::PIXEL_STEP]
    seen = seen[np.isfinite(seen)]
    if not seen.size:
        return None
    low, high = np.percentile(seen, [OUTLIERS_PERCENT, 100 - OUTLIERS_PERCENT])
    return float(np.floor(low)), float(np.ceil(high))
