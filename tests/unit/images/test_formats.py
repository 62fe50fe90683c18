"""The files of a phone's folder: what is read, what is named, and metadata that are not what they should be."""

from __future__ import annotations

import logging
import os
import struct
import sys
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from featkit.core.errors import BadInputError
from featkit.images.listing import list_images
from featkit.images.read import DecodeConfig, decode, stored_size

CONFIG = DecodeConfig()


@pytest.fixture(scope="module")
def smooth() -> np.ndarray:
    """A picture that every codec keeps within a few grey values."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([4 * x, 5 * y, 255 - 4 * x], axis=2).astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    if path.suffix == ".heic":
        pillow_heif.from_pillow(image).save(path, quality=95)
    elif path.suffix == ".mpo":
        image.save(path, "MPO", save_all=True, append_images=[Image.fromarray(pixels[::-1])], quality=97)
    elif path.suffix in (".jfif", ".jpe"):
        image.save(path, "JPEG", quality=97)
    elif path.suffix == ".gif":
        image.save(path, save_all=True, append_images=[Image.fromarray(pixels[::-1])])
    else:
        image.save(path, **({"irreversible": False} if path.suffix == ".jp2" else {"quality": 97}))


@pytest.mark.parametrize("suffix", [".heic", ".avif", ".gif", ".jfif", ".jpe", ".jp2", ".mpo"])
def test_what_phones_and_cameras_write(suffix: str, smooth: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, smooth)
    assert list_images(tmp_path) == [path.name]
    assert stored_size(path) == (64, 48)
    found = decode(path, CONFIG, colour=True).pixels
    assert np.abs(found.astype(int) - smooth).mean() < 6
    grey = decode(path, CONFIG).pixels
    assert np.abs(grey.astype(int) - cv2.cvtColor(found, cv2.COLOR_RGB2GRAY)).mean() < 2


def test_heic_without_its_package(
    smooth: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.jpg", smooth)
    write(tmp_path / "b.heic", smooth)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)  # which other tests have registered
    with caplog.at_level(logging.WARNING, "featkit"):
        assert list_images(tmp_path) == ["a.jpg"]
    assert "1 passed over (HEIC; pip install 'featkit[heic]'): b.heic" in caplog.text
    with pytest.raises(BadInputError, match=r"b\.heic: a HEIC photograph; pip install 'featkit\[heic\]'"):
        decode(tmp_path / "b.heic", CONFIG)


def test_what_is_not_read_is_named(smooth: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.jpg", smooth)
    for name in ("b.NEF", "c.dng", "d.mov", "notes.txt", "e.cr2", "f.arw"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with caplog.at_level(logging.WARNING, "featkit"):
        assert list_images(tmp_path) == ["a.jpg"]
    assert "4 passed over (a camera's raw file): b.NEF, c.dng, e.cr2, f.arw" in caplog.text
    assert "1 passed over (a video" in caplog.text
    assert "1 passed over (a link to nothing): gone.jpg" in caplog.text
    assert "notes.txt" not in caplog.text


def test_linked_folders_are_followed_once(smooth: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere" / "a.jpg", smooth)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "images")
    assert list_images(tmp_path / "images") == ["linked/a.jpg"]


def orientation(kind: int, count: int, value: bytes) -> bytes:
    """EXIF with one tag. kind: 2 text, 3 and 4 whole numbers, 5 a fraction, 11 a float (TIFF 6.0)."""
    inline = value if len(value) <= 4 else struct.pack("<I", 26)
    entry = struct.pack("<HHI", 0x0112, kind, count) + inline.ljust(4, b"\0")
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4) + (value if len(value) > 4 else b"")


@pytest.mark.parametrize(
    "exif",
    [
        orientation(2, 4, b"up\0\0"),
        orientation(2, 12, b"upside down\0"),
        orientation(3, 1, struct.pack("<H", 9)),
        orientation(4, 1, struct.pack("<I", 1 << 31)),
        orientation(11, 1, struct.pack("<f", np.inf)),
        orientation(11, 1, struct.pack("<f", np.nan)),
        orientation(5, 1, struct.pack("<II", 6, 0)),
        b"Exif\0\0II*\0" + b"\xff" * 20,
    ],
    ids=["text", "long text", "9", "2^31", "infinity", "NaN", "6/0", "damaged"],
)
def test_an_odd_orientation_is_ignored(exif: bytes, smooth: np.ndarray, tmp_path: Path) -> None:
    image = Image.fromarray(smooth)
    image.save(tmp_path / "a.jpg", exif=exif, quality=97)
    image.save(tmp_path / "plain.jpg", quality=97)
    np.testing.assert_array_equal(
        decode(tmp_path / "a.jpg", CONFIG).pixels, decode(tmp_path / "plain.jpg", CONFIG).pixels
    )
    assert decode(tmp_path / "a.jpg", CONFIG).orientation == 0


def test_the_odd_orientations_are_read_as_such(smooth: np.ndarray, tmp_path: Path) -> None:
    """The bytes above are where a reader looks: with a sound value they turn the photograph."""
    Image.fromarray(smooth).save(tmp_path / "a.jpg", exif=orientation(3, 1, struct.pack("<H", 6)), quality=97)
    assert decode(tmp_path / "a.jpg", CONFIG).size == (48, 64)


def test_a_pipe_is_no_photograph(tmp_path: Path) -> None:
    """Nobody writes to it, and it would be waited for."""
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(BadInputError, match=r"a\.jpg: not a file but a pipe or a device"):
        decode(tmp_path / "a.jpg", DecodeConfig())
