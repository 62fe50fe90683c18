"""Reading photographs as arrays: decoding, upright orientation, masks."""

from __future__ import annotations

import logging
import struct
import threading
import zlib
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from PIL import Image, UnidentifiedImageError
from pydantic import Field, model_validator

from featkit.core.config import Config, Factor, Later, Number
from featkit.core.errors import BadInputError, refuse_pipe
from featkit.core.types import Features, turned
from featkit.geometry.pixels import COLMAP_ORIGIN, apply_affine, compose, resize_affine
from featkit.images import jpeg_2000

LOGGER = logging.getLogger(__name__)
# ----------------------------------------------------------------------------------------------------------------------
# Photograph -> upright 8-bit pixels, with the map back to the pixels of the file.
#
# Pillow reads the header (size, EXIF orientation) before decoding; OpenCV decodes and resizes.


EXIF_ORIENTATION = 0x0112
IMAGE_WIDTH, IMAGE_LENGTH = 0x0100, 0x0101  # TIFF tags
ALPHA_MODES = {"RGBA", "LA", "PA", "RGBa", "La"}  # Pillow's image modes
PNG_END = b"IEND\xaeB`\x82"  # name and checksum of the last chunk; some programs write more data after it
UNREADABLE = (
    OSError,
    UnidentifiedImageError,
    ValueError,
    SyntaxError,
    TypeError,
    KeyError,
    struct.error,
    EOFError,
    IndexError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    MemoryError,
    RuntimeError,
    zlib.error,
)
"""Errors that Pillow raises for files that it cannot read, or that have invalid metadata."""
BY_PILLOW = {"GIF", "AVIF", "HEIF", "JPEG2000"}
"""Formats decoded by Pillow, as not every build of OpenCV supports them."""
DEEP_MODE = "I"  # how Pillow's modes of 16-bit grey begin
WIDE_TIFF_MODES = {"I", "F"}
"""Pillow's modes of a TIFF of signed or 32-bit integers, or of floats; it reads no such file with several channels."""
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
HEIC_EXTRA = "a HEIC photograph; pip install 'featkit[heic]' to read it, or convert it to JPEG"
IDENTITY = np.eye(2, 3)
_PILLOW_LIMIT = threading.Lock()


class DecodeConfig(Config):
    """How image files are decoded."""

    resize_max: int | None = Field(None, ge=16, le=2**16)
    """Longer side after resizing, px; smaller images keep their size. None: no resizing."""
    max_megapixels: Factor = 250.0
    """Largest accepted image, megapixels; checked before decoding (which needs a byte per pixel and channel)."""
    min_alpha: int = Field(default=1, ge=0, le=255)
    """Pixels with less alpha than this, 0 to 255, are masked; 0: the alpha channel is ignored."""
    intensity_range: Later[tuple[Number, Number] | None] = None
    """Values mapped to 0 and 255 in files of more than 8 bits. None: determined for the folder if its files use less
    than half of 16 bits, or have signed or 32-bit values (extract, reconstruct), otherwise 0 and 65,535."""

    @model_validator(mode="after")
    def _check_order(self) -> DecodeConfig:
        if self.intensity_range is not None and not self.intensity_range[0] < self.intensity_range[1]:
            raise ValueError("intensity_range: the first value must be below the second")
        return self


PLAIN_DECODING = DecodeConfig()


@dataclass(frozen=True)
class DecodedImage:
    """pixels: (h, w) or (h, w, 3) RGB, uint8, upright. stored_size: width, height of the file.

    stored_from_pixels: affine map from these pixels to the file's pixels (centres at integers in both).
    usable: which of the file's pixels may have keypoints (neither masked nor transparent); None: all.
    orientation: EXIF orientation of the file.
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
        """Convert points from the file's pixels to these pixels."""
        linear, offset = self.stored_from_pixels[:, :2], self.stored_from_pixels[:, 2]
        return (points - offset) @ np.linalg.inv(linear).T

    def features_in_file(self, features: Features) -> Features:
        """Convert features to the pixels of the file: keypoints, scales, orientations and uncertainty.

        Keypoints in masked pixels are left out.
        """
        affine = self.stored_from_pixels
        linear = affine[:, :2]
        scale = float(np.sqrt(abs(np.linalg.det(linear))))
        mapped = replace(
            features,
            keypoints=apply_affine(affine, features.keypoints),
            image_size=self.stored_size,
            scales=None if features.scales is None else (features.scales * scale).astype(np.float32),
            oris=None if features.oris is None else turned(linear, features.oris),
            uncertainty_px=features.uncertainty_px * scale,
            from_seen=None if np.array_equal(affine, IDENTITY) else affine,
        )
        return mapped if self.usable is None else mapped.select(_usable_keypoints(self.usable, mapped.keypoints))

    def features_from_file(self, features: Features) -> tuple[Features, Features]:
        """Features in the pixels of the file: those inside the image and not masked, and the same in these pixels."""
        affine = self.stored_from_pixels
        selected = features.select(np.flatnonzero(are_inside(features.keypoints, self.stored_size)))
        if self.usable is not None:
            selected = selected.select(_usable_keypoints(self.usable, selected.keypoints))
        from_seen = None if np.array_equal(affine, IDENTITY) else affine
        selected = replace(selected, image_size=self.stored_size, from_seen=from_seen)
        return selected, selected.as_seen()


def are_inside(keypoints: Float[np.ndarray, "n 2"], size: tuple[int, int]) -> Bool[np.ndarray, " n"]:
    """Which keypoints lie on an image of that width and height; none that is not finite."""
    within = (keypoints >= -COLMAP_ORIGIN) & (keypoints <= np.asarray(size) - COLMAP_ORIGIN)
    return np.asarray(within.all(axis=1))


def _usable_keypoints(usable: Bool[np.ndarray, "h w"], keypoints: Float[np.ndarray, "n 2"]) -> Int[np.ndarray, " m"]:
    """Indices of the keypoints whose pixel is usable."""
    columns, rows = np.floor(keypoints + np.float32(COLMAP_ORIGIN)).astype(np.int64).T
    height, width = usable.shape
    return np.flatnonzero(usable[rows.clip(0, height - 1), columns.clip(0, width - 1)])


def decode(path: Path, config: DecodeConfig, colour: bool = False) -> DecodedImage:
    """Read one photograph.

    Raises BadInputError if it is missing, broken, truncated or too large, or if its values are neither of 8 nor of 16
    bits and `config` does not say which are black and white.
    """
    return decode_data(path, read_file(path), config, colour)


def decode_data(path: Path, data: bytes, config: DecodeConfig, colour: bool = False) -> DecodedImage:
    """As `decode`, from the content of a file; path: for messages."""
    header = read_header(path, data, config)
    stored_size, tag = header.size, header.orientation
    if header.form == "TIFF" and tag != 1:  # OpenCV's and Pillow's TIFF decoders rotate the pixels on their own
        data = with_tiff_tag_1(data)
    usable = _opaque_pixels(data, config.min_alpha) if header.has_alpha and config.min_alpha > 0 else None
    any_depth = header.is_wide or config.intensity_range is not None
    pixels = decoded(data, header.form, colour and not header.is_wide, any_depth)
    if pixels is None or (pixels.shape[1], pixels.shape[0]) != stored_size:
        remedy = "replace it, or convert it to PNG" if header.form == "JPEG2000" else "remove or replace it"
        raise BadInputError(f"{path}: cannot be decoded as an image; {remedy}")
    if pixels.dtype != np.uint8:
        pixels = _stretch_to_8_bits(path, pixels, config.intensity_range)
    if colour:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB)
    stored_from_pixels = stored_from_upright(stored_size, tag)
    pixels = upright(pixels, tag)
    return _resize(DecodedImage(pixels, stored_size, stored_from_pixels, usable, tag), config.resize_max)


def decoded(data: bytes, form: str | None, colour: bool, any_depth: bool) -> Shaped[np.ndarray, "h w *c"] | None:
    """Pixels as stored, BGR or grey; None for a file that is damaged. form: Pillow's name of the format.

    any_depth: values of more than 8 bits as they are; otherwise their upper 8 bits.
    """
    if form in BY_PILLOW:
        return _decode_with_pillow(data, colour, any_depth)
    flags = (cv2.IMREAD_COLOR if colour else cv2.IMREAD_GRAYSCALE) | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags | (cv2.IMREAD_ANYDEPTH if any_depth else 0))
    except cv2.error:
        return None


def _stretch_to_8_bits(path: Path, pixels: np.ndarray, ends: tuple[float, float] | None) -> UInt8[np.ndarray, "h w *c"]:
    """Map the range `ends` of values of any type to 8 bits; NaN is black. Raises BadInputError without a range."""
    if ends is None:
        raise BadInputError(
            f"{path}: has values of {pixels.dtype.name}, with no common black and white; set decode.intensity_range"
            " if the command has it, or convert it to 16 bits"
        )
    low, high = ends
    scaled = (np.nan_to_num(pixels.astype(np.float32), nan=low) - np.float32(low)) * np.float32(255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _decode_with_pillow(data: bytes, colour: bool, any_depth: bool) -> Shaped[np.ndarray, "h w *c"] | None:
    """Pixels as OpenCV would return them (BGR, or grey with its weights); for an animation the first frame."""
    try:
        with open_header(BytesIO(data)) as image:
            depths = jpeg_2000.depths(data) if image.format == "JPEG2000" else ()
            if image.mode.startswith(DEEP_MODE):  # which Pillow would clip at 255
                values = np.asarray(image).astype(np.uint16)
                pixels = cv2.cvtColor(values if any_depth else (values >> 8).astype(np.uint8), cv2.COLOR_GRAY2BGR)
            elif max(depths, default=0) > 8:  # of which Pillow would keep the upper 8 bits
                return jpeg_2000.decode_deep(data, depths, colour, any_depth)
            else:
                pixels = cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGR)
    except UNREADABLE:
        return None
    return pixels if colour else cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)


def _opaque_pixels(data: bytes, min_alpha: int) -> Bool[np.ndarray, "h w"] | None:
    """Which pixels of a file with an alpha channel are opaque enough; None if all are, or Pillow cannot read it."""
    alpha = _read_alpha(data)
    opaque = None if alpha is None else alpha >= min_alpha
    return None if opaque is None or opaque.all() else opaque


def _read_alpha(data: bytes) -> UInt8[np.ndarray, "h w"] | None:
    try:
        with open_header(BytesIO(data)) as image:
            return np.asarray(image.convert("RGBA").getchannel("A"))
    except UNREADABLE:
        return None


def alpha_channel(path: Path) -> UInt8[np.ndarray, "h w"] | None:
    """The alpha channel of a file, 0 to 255; None if it has none. Raises BadInputError."""
    data = read_file(path)
    header = read_header(path, data, DecodeConfig())
    if not header.has_alpha:
        return None
    return _read_alpha(with_tiff_tag_1(data) if header.form == "TIFF" and header.orientation != 1 else data)


def from_pixels(pixels: UInt8[np.ndarray, "h w *c"], config: DecodeConfig, colour: bool = False) -> DecodedImage:
    """A photograph in memory, grey or RGB and upright, as `decode` returns one from a file. Raises BadInputError.

    Colours are converted to grey with OpenCV's weights; a JPEG decoder's result differs by rounding.
    """
    grey = pixels.ndim == 2
    if pixels.dtype != np.uint8 or pixels.size == 0 or not (grey or pixels.shape[2:] == (3,)):
        raise BadInputError(f"an image of shape {pixels.shape}, {pixels.dtype}: uint8 (h, w) or (h, w, 3) is needed")
    size = (pixels.shape[1], pixels.shape[0])
    _check_size(Path("image"), size, config)
    if grey and colour:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    elif not (grey or colour):
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return _resize(DecodedImage(np.ascontiguousarray(pixels), size, stored_from_upright(size, 1)), config.resize_max)


def stored_size(path: Path) -> tuple[int, int]:
    """Width and height of the file in pixels, from its header alone. Raises BadInputError."""
    try:
        with open_header(path) as header:
            return size_in_file(header)
    except UNREADABLE:
        raise BadInputError(f"{path}: not an image that can be read") from None


def size_in_file(header: Image.Image) -> tuple[int, int]:
    """Width and height as stored; Pillow (since 11.1) swaps them for a TIFF with a rotated orientation."""
    if header.format != "TIFF":
        return header.size
    tags = header.tag_v2  # type: ignore[attr-defined]
    return int(tags[IMAGE_WIDTH]), int(tags[IMAGE_LENGTH])


def open_header(source: Path | BytesIO) -> Image.Image:
    """Open an image with Pillow without decoding it. Pillow's global pixel limit is lifted; featkit has its own.

    Raises BadInputError for a pipe or a device, and Pillow's errors (UNREADABLE).
    """
    if _is_heif(source):
        reads_heif()
    if isinstance(source, Path):
        refuse_pipe(source)
    with _PILLOW_LIMIT:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _is_heif(source: Path | BytesIO) -> bool:
    if isinstance(source, BytesIO):
        return source.getbuffer()[8:12].tobytes() in HEIF_BRANDS
    return source.suffix.lower() in HEIF_SUFFIXES


def reads_heif() -> bool:
    """Whether pillow-heif is installed; if so, it is registered with Pillow."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def read_file(path: Path) -> bytes:
    """The content of an image file. Raises BadInputError if it is missing, unreadable or empty."""
    try:
        refuse_pipe(path)
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such image") from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    if not data:
        raise BadInputError(f"{path}: an empty file; remove or replace it")
    return data


class Header(NamedTuple):
    """size: width, height as stored. orientation: EXIF's, 0 if there is none. form: Pillow's name of the format.

    is_wide: a TIFF of signed or 32-bit integers, or of floats.
    """

    size: tuple[int, int]
    orientation: int
    form: str | None
    has_alpha: bool
    is_wide: bool


def read_header(path: Path, data: bytes, config: DecodeConfig) -> Header:
    """Read the header of an image file. Raises BadInputError, also if the file is truncated or the image too large."""
    try:
        with open_header(BytesIO(data)) as header:
            size, form = size_in_file(header), header.format
            _check_size(path, size, config)
            has_alpha = header.mode in ALPHA_MODES or "transparency" in header.info
            is_wide = form == "TIFF" and header.mode in WIDE_TIFF_MODES
            tag = _read_orientation(header, data)
    except UNREADABLE:
        if _is_heif(BytesIO(data)) and not reads_heif():
            raise BadInputError(f"{path}: {HEIC_EXTRA}") from None
        raise BadInputError(f"{path}: not an image that can be read; remove or replace it") from None
    if (form in {"JPEG", "MPO"} and _is_jpeg_truncated(data)) or (form == "PNG" and PNG_END not in data):
        raise BadInputError(f"{path}: the file is cut off; copy it again or remove it")
    return Header(size, tag, form, has_alpha, is_wide)


def _read_orientation(header: Image.Image, data: bytes) -> int:
    """EXIF orientation, 1 to 8; 0 if there is none, or an invalid one, which is no reason to refuse the file."""
    # Pillow decodes the entire PNG to search for late metadata, which is only useful for a late eXIf chunk.
    late = header.format != "PNG" or b"eXIf" in data
    try:
        exif = header.getexif() if late else Image.Image.getexif(header)
        tag = int(exif.get(EXIF_ORIENTATION) or 0)
    except (*UNREADABLE, ZeroDivisionError):
        return 0
    return tag if 0 <= tag <= 8 else 0


def _check_size(path: Path, size: tuple[int, int], config: DecodeConfig) -> None:
    if size[0] * size[1] > config.max_megapixels * 1e6:
        raise BadInputError(
            f"{path}: {size[0]} x {size[1]} pixels, more than {config.max_megapixels:g} megapixels; scale it down"
        )


def _is_jpeg_truncated(data: bytes) -> bool:
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


def _resize(image: DecodedImage, resize_max: int | None) -> DecodedImage:
    width, height = image.size
    if resize_max is None or max(width, height) <= resize_max:
        return image
    scale = resize_max / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = cv2.resize(image.pixels, size, interpolation=cv2.INTER_AREA)
    stored_from_resized = compose(image.stored_from_pixels, resize_affine(size, (width, height)))
    return replace(image, pixels=pixels, stored_from_pixels=stored_from_resized)


# ----------------------------------------------------------------------------------------------------------------------
# The eight EXIF orientations: rotate a photograph upright, and map upright pixels to stored pixels.
#
# Source: EXIF 2.32, tag 0x0112. 0 and unknown values are treated as 1 (stored upright).


TAG = 0x0112

# tag -> (swap x and y first, then flip x, then flip y), stored -> upright
_ORIENTATION_STEPS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


def upright(pixels: np.ndarray, tag: int) -> np.ndarray:
    """Rotate an image (h, w) or (h, w, 3) upright; contiguous."""
    swap, flip_x, flip_y = _ORIENTATION_STEPS.get(tag, _ORIENTATION_STEPS[1])
    pixels = pixels.swapaxes(0, 1) if swap else pixels
    return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def as_stored(pixels: np.ndarray, tag: int) -> np.ndarray:
    """Inverse of `upright`: an upright image as a file with this tag stores it; contiguous."""
    swap, flip_x, flip_y = _ORIENTATION_STEPS.get(tag, _ORIENTATION_STEPS[1])
    pixels = pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
    return np.ascontiguousarray(pixels.swapaxes(0, 1) if swap else pixels)


def stored_from_upright(stored_size: tuple[int, int], tag: int) -> Float[np.ndarray, "2 3"]:
    """Affine map from upright pixels to stored pixels. stored_size: width, height as stored."""
    swap, flip_x, flip_y = _ORIENTATION_STEPS.get(tag, _ORIENTATION_STEPS[1])
    width, height = stored_size
    upright_size = (height, width) if swap else (width, height)
    linear, offset = np.eye(2), np.zeros(2)
    for axis, flip in enumerate((flip_x, flip_y)):
        if flip:
            linear[axis, axis] = -1.0
            offset[axis] = upright_size[axis] - 1.0
    if swap:
        linear, offset = linear[::-1].copy(), offset[::-1].copy()
    return np.concatenate([linear, offset[:, None]], axis=1)


def with_tiff_tag_1(data: bytes) -> bytes:
    """A TIFF with the orientation in its first directory set to "stored upright"; unchanged if it has no such tag.

    Source: TIFF 6.0, section 2 (directories of 12-byte entries) and BigTIFF (magic 43, entries of 20 bytes).
    """
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    start_at, offset, count, entry = (8, "Q", "Q", 20) if big else (4, "I", "H", 12)
    try:
        (start,) = struct.unpack_from(order + offset, data, start_at)
        (entries,) = struct.unpack_from(order + count, data, start)
        first = start + struct.calcsize(order + count)
        for at in range(first, first + entry * min(entries, len(data) // entry), entry):
            tag, kind = struct.unpack_from(order + "HH", data, at)
            if tag == TAG:
                value = at + entry - (8 if big else 4)
                patched = bytearray(data)
                struct.pack_into(order + ("I" if kind == 4 else "H"), patched, value, 1)  # LONG or SHORT
                return bytes(patched)
    except struct.error:  # truncated: the decoder will report it
        pass
    return data
