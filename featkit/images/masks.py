"""Masks named as in COLMAP: `masks/a/b.jpg.png` for `a/b.jpg`; there are no keypoints where the mask is zero.

`a/b.png` is accepted too, as in COLMAP. A mask has the size of the image file, pixel by pixel. For a photograph that
EXIF rotates by 90 degrees it may also have the upright size, and is then upright; for orientations that keep the size
(180 degrees, mirrored) it masks the pixels as stored. A mask with its own EXIF orientation is rotated upright first.
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
AS_STORED = (0, 1)  # orientations without rotation


def find_masks(folder: Path, images: Path, names: Sequence[str]) -> dict[str, Path]:
    """The mask file of every image that has one; one warning reports images without a mask.

    Raises BadInputError if the folder is missing, is inside the image folder, or has no mask for any image.
    """
    if not folder.is_dir():
        raise BadInputError(f"{folder}: {'is a file, not a folder of masks' if folder.exists() else 'no such folder'}")
    if folder.resolve() == images.resolve() or images.resolve() in folder.resolve().parents:
        raise BadInputError(f"{folder}: is among the images, so its masks would be used as images; move it elsewhere")
    masks = masks_of(folder, names)
    if not masks:
        raise BadInputError(f"{folder}: no mask for any of {len(names)} images; expected as {names[0]}.png")
    without = [name for name in names if name not in masks]
    if without:
        LOGGER.warning(
            "%d of %d images have no mask (%s ...): they are used in full", len(without), len(names), without[0]
        )
    return masks


def masks_of(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The mask file of every image that has one."""
    return {name: path for name in names if (path := _find_mask(folder, name)) is not None}


def _find_mask(folder: Path, name: str) -> Path | None:
    stem, dot, _ = name.rpartition(".")
    for file_name in (f"{name}.png", f"{stem if dot else name}.png"):
        for candidate in dict.fromkeys(
            (file_name, *(unicodedata.normalize(form, file_name) for form in ("NFC", "NFD")))
        ):
            if (folder / candidate).is_file():
                return folder / candidate
    return None


def masked(image: DecodedImage, mask: Path, config: DecodeConfig) -> DecodedImage:
    """A photograph with its mask applied. Raises BadInputError for a mask that is broken or has another size."""
    unmasked = _usable_in_file(mask, image, config)
    return replace(image, usable=unmasked if image.usable is None else unmasked & image.usable)


def _usable_in_file(path: Path, image: DecodedImage, config: DecodeConfig) -> Bool[np.ndarray, "h w"]:
    """True where the mask is not zero, in the pixels of the photograph as stored."""
    usable, orientation = _read_mask(path, config)
    width, height = image.stored_size
    stored = (height, width)
    upright_shape = upright(np.empty(stored, bool), image.orientation).shape
    if orientation not in AS_STORED:
        usable = upright(usable, orientation)
    elif usable.shape == stored:
        return usable
    if usable.shape == upright_shape:
        return as_stored(usable, image.orientation)
    size = f"{usable.shape[1]} x {usable.shape[0]}"
    upright_note = "" if upright_shape == stored else f" (upright {height} x {width})"
    raise BadInputError(
        f"{path}: is {size}, its image {width} x {height}{upright_note}; a mask must have the image's size"
    )


def _read_mask(path: Path, config: DecodeConfig) -> tuple[Bool[np.ndarray, "h w"], int]:
    """Where a mask is not zero in some channel, and its EXIF orientation."""
    data = read_file(path)
    header = read_header(path, data, config)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise BadInputError(f"{path}: cannot be decoded as a mask; replace it")
    return (pixels if pixels.ndim == 2 else pixels[:, :, :3].any(axis=2)) != 0, header.orientation
