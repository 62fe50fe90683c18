"""Photographs small: decoded at a fraction of their size where the format allows it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from featkit.core.errors import BadInputError
from featkit.geometry.pixels import compose, resize_affine
from featkit.images.read import (
    DecodeConfig,
    DecodedImage,
    decode,
    read_file,
    read_header,
    stored_from_upright,
    upright,
)

Longer = Annotated[int, Field(ge=16, le=2**16)]
"""Longer side of a picture, px."""
REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
"""By how much a JPEG decoder can divide the size, on its own."""


def thumbnail(path: Path, side: int, intensity_range: tuple[float, float] | None = None) -> DecodedImage:
    """A photograph in RGB, upright, its longer side at most `side` px. Raises BadInputError.

    intensity_range: what is black and white in a file of more than 8 bits (`DecodeConfig`).
    """
    config = DecodeConfig(resize_max=side, min_alpha=0, intensity_range=intensity_range)
    data = read_file(path)
    header = read_header(path, data, config)
    divisor = next((d for d in REDUCED if max(header.size) >= d * side), 1)
    if header.form not in {"JPEG", "MPO"} or divisor == 1:
        return decode(path, config, colour=True)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), REDUCED[divisor] | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise BadInputError(f"{path}: cannot be decoded as an image; remove or replace it")
    scale = side / max(header.size)
    size = (max(1, round(header.size[0] * scale)), max(1, round(header.size[1] * scale)))
    small = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), size, interpolation=cv2.INTER_AREA)
    stored_from_pixels = compose(resize_affine(size, header.size), stored_from_upright(size, header.orientation))
    return DecodedImage(
        upright(small, header.orientation), header.size, stored_from_pixels, orientation=header.orientation
    )


def jpeg(pixels: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
    """RGB pixels as a JPEG. quality: 1 to 100."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    is_encoded, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), flags)
    if not is_encoded:
        raise ValueError("the picture cannot be encoded")
    return encoded.tobytes()
