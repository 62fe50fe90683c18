"""The files of a phone's folder: what is read, what is named, and metadata that are not what they should be."""

from __future__ import annotations

import logging
import os
import struct
import sys
import zlib
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


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("a.png", "P"), ("a.gif", "P"), ("a.tif", "P"), ("a.png", "1"), ("a.tif", "1"), ("a.png", "LA")),
        *(("a.tif", "LA"), ("a.tif", "CMYK"), ("a.jpg", "CMYK"), ("a.png", "RGBA"), ("a.tif", "RGBA")),
    ],
)
def test_ways_of_storing_a_pixel(name: str, mode: str, smooth: np.ndarray, tmp_path: Path) -> None:
    """As Pillow converts them to colours; transparent pixels are masked."""
    image = Image.fromarray(smooth).quantize(32) if mode == "P" else Image.fromarray(smooth).convert(mode)
    options: dict[str, int] = {"transparency": 3} if mode == "P" and not name.endswith(".tif") else {"quality": 100}
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(np.where(np.arange(64) < 20, 0, 255).astype(np.uint8)[None].repeat(48, 0)))
    image.save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as stored:
        assert stored.mode == mode
        expected, hidden = np.asarray(stored.convert("RGB")).astype(int), np.zeros((48, 64), bool)
        if mode in ("LA", "RGBA") or "transparency" in options:
            hidden = np.asarray(stored.convert("RGBA"))[..., 3] == 0
            assert hidden.any()
    found = decode(tmp_path / name, CONFIG, colour=True)
    assert np.abs(found.pixels - expected)[~hidden].max() <= 3
    assert (found.usable is None and not hidden.any()) or np.array_equal(found.usable, ~hidden)
    grey = cv2.cvtColor(found.pixels, cv2.COLOR_RGB2GRAY)
    assert np.abs(decode(tmp_path / name, CONFIG).pixels.astype(int) - grey)[~hidden].max() <= 2


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_with_colours_and_alpha(channels: int, smooth: np.ndarray, tmp_path: Path) -> None:
    """PNG files written byte by byte: the upper 8 bits of every channel."""
    values = smooth[..., : 1 if channels < 3 else 3].astype(np.uint16) * 257
    alpha = np.where(np.arange(64) < 20, 0, 65535).astype(np.uint16)[None, :, None].repeat(48, 0)
    if channels in (2, 4):
        values = np.concatenate([values, alpha], axis=2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 16, colour_type, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)
    expected = smooth[..., :1].repeat(3, 2) if channels < 3 else smooth
    for config in (CONFIG, DecodeConfig(intensity_range=(0, 65535))):
        found = decode(tmp_path / "a.png", config, colour=True)
        assert np.abs(found.pixels.astype(int) - expected).max() <= 1
        assert (found.usable is None) == (channels in (1, 3))
        assert found.usable is None or np.array_equal(found.usable, alpha[..., 0] > 0)


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
