"""Masks as COLMAP names them: `masks/a/b.jpg.png` is that of `a/b.jpg`; where it is zero there are no keypoints.

`a/b.png` is taken too, as COLMAP does. A mask is of the size of the file it masks, pixel by pixel. Where the
photograph is turned by EXIF it may also be of the upright size, and is then taken to be upright; of a photograph that
keeps its size when it is turned (by 180 degrees, or mirrored) it masks the file's pixels. A mask with an EXIF
orientation of its own is upright once that is applied.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool

from featkit.core.errors import BadInputError
from featkit.images.read import DecodeConfig, DecodedImage, as_stored, read_file, read_header, upright

LOGGER = logging.getLogger(__name__)
AS_STORED = (0, 1)  # orientations that turn nothing


def find_masks(folder: Path, images: Path, names: Sequence[str]) -> dict[str, Path]:
    """The mask file of every image that has one; that others have none is said once.

    Raises BadInputError when the folder is missing, lies among the images, or has a mask for none of them.
    """
    if not folder.is_dir():
        raise BadInputError(f"{folder}: {'is a file, not a folder of masks' if folder.exists() else 'no such folder'}")
    if folder.resolve() == images.resolve() or images.resolve() in folder.resolve().parents:
        raise BadInputError(f"{folder}: lies among the images, and its masks would be taken for some; move it beside")
    found = masks_of(folder, names)
    if not found:
        raise BadInputError(f"{folder}: no mask for any of {len(names)} images; expected as {names[0]}.png")
    without = [name for name in names if name not in found]
    if without:
        LOGGER.warning(
            "%d of %d images have no mask (%s ...): all of each is used", len(without), len(names), without[0]
        )
    return found


def masks_of(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The mask file of every image that has one."""
    return {name: path for name in names if (path := _mask_of(folder, name)) is not None}


def _mask_of(folder: Path, name: str) -> Path | None:
    stem, dot, _ = name.rpartition(".")
    for own in (f"{name}.png", f"{stem if dot else name}.png"):
        for spelled in dict.fromkeys((own, *(unicodedata.normalize(form, own) for form in ("NFC", "NFD")))):
            if (folder / spelled).is_file():
                return folder / spelled
    return None


def masked(image: DecodedImage, mask: Path, config: DecodeConfig) -> DecodedImage:
    """A photograph without what its mask hides. Raises BadInputError for a mask that is broken or of another size."""
    kept = _in_file(mask, image, config)
    return replace(image, usable=kept if image.usable is None else kept & image.usable)


def _in_file(path: Path, image: DecodedImage, config: DecodeConfig) -> Bool[np.ndarray, "h w"]:
    """True where the mask is not zero, pixel by pixel of the photograph's file."""
    kept, orientation = _read(path, config)
    width, height = image.stored_size
    stored = (height, width)
    turned = upright(np.empty(stored, bool), image.orientation).shape
    if orientation not in AS_STORED:
        kept = upright(kept, orientation)
    elif kept.shape == stored:
        return kept
    if kept.shape == turned:
        return as_stored(kept, image.orientation)
    size = f"{kept.shape[1]} x {kept.shape[0]}"
    also = "" if turned == stored else f" (upright {height} x {width})"
    raise BadInputError(f"{path}: is {size}, its image {width} x {height}{also}; a mask has its image's size")


def _read(path: Path, config: DecodeConfig) -> tuple[Bool[np.ndarray, "h w"], int]:
    """Where a mask is not zero in any colour, and its own orientation."""
    data = read_file(path)
    header = read_header(path, data, config)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise BadInputError(f"{path}: cannot be decoded as a mask; replace it")
    return (pixels if pixels.ndim == 2 else pixels[:, :, :3].any(axis=2)) != 0, header.orientation
