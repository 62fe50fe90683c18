"""Photograph -> upright 8-bit pixels, and the way back to the pixels of the file.

Pillow reads the header (size, EXIF orientation) before anything is decoded; OpenCV decodes and resizes.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from featkit.config import Config
from featkit.errors import BadInputError
from featkit.geometry.pixels import COLMAP_ORIGIN, apply_affine, compose, resize_affine
from featkit.images.orientation import stored_from_upright, upright, with_tiff_tag_1
from featkit.types import Features

EXIF_ORIENTATION = 0x0112
IMAGE_WIDTH, IMAGE_LENGTH = 0x0100, 0x0101  # TIFF tags
ALPHA_MODES = {"RGBA", "LA", "PA", "RGBa", "La"}  # Pillow's
PNG_END = b"IEND\xaeB`\x82"  # the last chunk's name and checksum; some programs write more behind it
_PILLOW_LIMIT = threading.Lock()


class DecodeConfig(Config):
    """How a file becomes pixels."""

    resize_max: int | None = None
    """Longer side after resizing, px; smaller images keep their size. None: never resized."""
    max_megapixels: float = 250.0
    """A larger image is refused before it is decoded (one byte per pixel and channel would be needed)."""
    min_alpha: int = Field(default=1, ge=0, le=255)
    """Pixels less opaque than this, of 255, are masked; 0: the alpha channel does not matter."""


@dataclass(frozen=True)
class DecodedImage:
    """pixels: (h, w) or (h, w, 3) RGB, uint8, upright. stored_size: width, height of the file.

    stored_from_pixels: affine map of these pixels onto the file's pixels (centres at whole numbers in both).
    usable: of the file's pixels, those that may have keypoints (neither masked nor transparent); None: all.
    orientation: EXIF's, as the file has it.
    """

    pixels: UInt8[np.ndarray, "h w *c"]
    stored_size: tuple[int, int]
    stored_from_pixels: Float[np.ndarray, "2 3"]
    usable: Bool[np.ndarray, "stored_h stored_w"] | None = None
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width, height of `pixels`."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def pixels_from_file(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Points of the file's pixels in these pixels."""
        linear, offset = self.stored_from_pixels[:, :2], self.stored_from_pixels[:, 2]
        return (points - offset) @ np.linalg.inv(linear).T

    def features_in_file(self, features: Features) -> Features:
        """The same features in the pixels of the file: keypoints, scales, orientations, uncertainty mapped back.

        Those in a masked pixel are left out.
        """
        affine = self.stored_from_pixels
        linear = affine[:, :2]
        scale = float(np.sqrt(abs(np.linalg.det(linear))))
        mapped = replace(
            features,
            keypoints=apply_affine(affine, features.keypoints),
            image_size=self.stored_size,
            scales=None if features.scales is None else (features.scales * scale).astype(np.float32),
            oris=None if features.oris is None else _turn(linear, features.oris),
            uncertainty_px=features.uncertainty_px * scale,
        )
        return mapped if self.usable is None else mapped.select(_in_usable(self.usable, mapped.keypoints))


def _in_usable(usable: Bool[np.ndarray, "h w"], keypoints: Float[np.ndarray, "n 2"]) -> Int[np.ndarray, " m"]:
    """Indices of the keypoints whose pixel is usable."""
    columns, rows = np.floor(keypoints + np.float32(COLMAP_ORIGIN)).astype(np.int64).T
    height, width = usable.shape
    return np.flatnonzero(usable[rows.clip(0, height - 1), columns.clip(0, width - 1)])


def _turn(linear: Float[np.ndarray, "2 2"], oris: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    directions = np.stack([np.cos(oris), np.sin(oris)], axis=1) @ linear.T
    return np.arctan2(directions[:, 1], directions[:, 0]).astype(np.float32)


def decode(path: Path, config: DecodeConfig, colour: bool = False) -> DecodedImage:
    """Read one photograph. Raises BadInputError when it is missing, broken, cut off or too large."""
    data = read_file(path)
    header = read_header(path, data, config)
    stored_size, tag = header.size, header.orientation
    if header.form == "TIFF" and tag != 1:  # OpenCV's and Pillow's TIFF decoders turn the pixels unasked
        data = with_tiff_tag_1(data)
    usable = _opaque(data, config.min_alpha) if header.has_alpha and config.min_alpha > 0 else None
    flags = (cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE) | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is None or (pixels.shape[1], pixels.shape[0]) != stored_size:
        raise BadInputError(f"{path}: cannot be decoded as an image; remove or replace it")
    if colour:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    back = stored_from_upright(stored_size, tag)
    pixels = upright(pixels, tag)
    return _resized(DecodedImage(pixels, stored_size, back, usable, tag), config.resize_max)


def _opaque(data: bytes, min_alpha: int) -> Bool[np.ndarray, "h w"] | None:
    """Which pixels of a file with an alpha channel are opaque enough; None when all are, or Pillow cannot say."""
    try:
        with open_header(BytesIO(data)) as image:
            found = np.asarray(image.convert("RGBA").getchannel("A")) >= min_alpha
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, struct.error):
        return None
    return None if found.all() else found


def from_pixels(pixels: UInt8[np.ndarray, "h w *c"], config: DecodeConfig, colour: bool = False) -> DecodedImage:
    """A photograph in memory, grey or RGB and upright, as `decode` gives one from a file. Raises BadInputError.

    Grey values of colours are OpenCV's weights; a JPEG decoder has its own, which differ by rounding.
    """
    grey = pixels.ndim == 2
    if pixels.dtype != np.uint8 or pixels.size == 0 or not (grey or pixels.shape[2:] == (3,)):
        raise BadInputError(f"an image of shape {pixels.shape}, {pixels.dtype}: uint8 (h, w) or (h, w, 3) is needed")
    size = (pixels.shape[1], pixels.shape[0])
    _refuse_large(Path("image"), size, config)
    if grey and colour:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    elif not (grey or colour):
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return _resized(DecodedImage(np.ascontiguousarray(pixels), size, stored_from_upright(size, 1)), config.resize_max)


def stored_size(path: Path) -> tuple[int, int]:
    """Width and height of the file in pixels, from its header alone. Raises BadInputError."""
    try:
        with open_header(path) as header:
            return _size_in_file(header)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, TypeError, KeyError, struct.error):
        raise BadInputError(f"{path}: not an image that can be read") from None


def _size_in_file(header: Image.Image) -> tuple[int, int]:
    """Width and height as stored; Pillow swaps those of a TIFF that is to be turned (since 11.1)."""
    if header.format != "TIFF":
        return header.size
    tags = header.tag_v2  # type: ignore[attr-defined]
    return int(tags[IMAGE_WIDTH]), int(tags[IMAGE_LENGTH])


def open_header(source: Path | BytesIO) -> Image.Image:
    """Pillow's image, nothing decoded. Pillow's own limit of pixels, a global, is lifted meanwhile: ours counts."""
    with _PILLOW_LIMIT:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def read_file(path: Path) -> bytes:
    """The bytes of an image. Raises BadInputError when there are none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such image") from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    if not data:
        raise BadInputError(f"{path}: an empty file; remove or replace it")
    return data


class Header(NamedTuple):
    """size: width, height as stored. orientation: EXIF's, 0 when there is none. form: Pillow's name of the format."""

    size: tuple[int, int]
    orientation: int
    form: str | None
    has_alpha: bool


def read_header(path: Path, data: bytes, config: DecodeConfig) -> Header:
    """What an image file says of itself. Raises BadInputError, also for one that is cut off or too large."""
    try:
        with open_header(BytesIO(data)) as header:
            size, form = _size_in_file(header), header.format
            _refuse_large(path, size, config)
            has_alpha = header.mode in ALPHA_MODES or "transparency" in header.info
            # Pillow decodes a whole PNG in search of late metadata; only a late eXIf chunk is worth that.
            late = form != "PNG" or b"eXIf" in data
            exif = header.getexif() if late else Image.Image.getexif(header)
            tag = int(exif.get(EXIF_ORIENTATION) or 0)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, TypeError, KeyError, struct.error):
        raise BadInputError(f"{path}: not an image that can be read; remove or replace it") from None
    if (form in {"JPEG", "MPO"} and _jpeg_cut_off(data)) or (form == "PNG" and PNG_END not in data):
        raise BadInputError(f"{path}: the file is cut off; copy it again or remove it")
    return Header(size, tag, form, has_alpha)


def _refuse_large(path: Path, size: tuple[int, int], config: DecodeConfig) -> None:
    if size[0] * size[1] > config.max_megapixels * 1e6:
        raise BadInputError(
            f"{path}: {size[0]} x {size[1]} pixels, more than {config.max_megapixels:g} megapixels; scale it down"
        )


def _jpeg_cut_off(data: bytes) -> bool:
    """Whether a JPEG has no end-of-image marker after its scan began (a thumbnail's own marker does not count)."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:  # start of scan
            return data.rfind(b"\xff\xd9") < position
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        position += 2 + struct.unpack(">H", data[position + 2 : position + 4])[0]
    return position + 4 > len(data)


def _resized(image: DecodedImage, resize_max: int | None) -> DecodedImage:
    width, height = image.size
    if resize_max is None or max(width, height) <= resize_max:
        return image
    scale = resize_max / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = cv2.resize(image.pixels, size, interpolation=cv2.INTER_AREA)
    back = compose(image.stored_from_pixels, resize_affine(size, (width, height)))
    return replace(image, pixels=pixels, stored_from_pixels=back)
