"""Photographs: all orientations and kinds of files become the same pixels Pillow sees; broken ones are refused."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from featkit.core.errors import BadInputError
from featkit.core.types import Features
from featkit.geometry.pixels import apply_affine
from featkit.images import read as module
from featkit.images.read import DecodeConfig, decode, stored_from_upright, stored_size, upright

PLAIN = DecodeConfig()


def picture(width: int = 17, height: int = 11, seed: int = 0) -> np.ndarray:
    """Smooth colours, different in every corner."""
    small = np.random.default_rng(seed).integers(0, 255, (3, 4, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def tagged(path: Path, tag: int | None, pixels: np.ndarray, **more: object) -> Path:
    exif = Image.Exif()
    if tag is not None:
        exif[0x0112] = tag
    Image.fromarray(pixels).save(path, exif=exif, **more)
    return path


@pytest.mark.parametrize("tag", [None, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_all_orientations_are_as_pillow_turns_them(tmp_path: Path, tag: int | None, suffix: str) -> None:
    best = {"jpg": {"quality": 100}, "webp": {"lossless": True}}.get(suffix, {})
    path = tagged(tmp_path / f"a.{suffix}", tag, picture(), **best)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    found = decode(path, PLAIN, colour=True)
    assert found.pixels.shape == expected.shape
    assert found.pixels.flags.c_contiguous
    assert found.stored_size == stored_size(path) == (17, 11)
    if suffix != "jpg":
        assert np.array_equal(found.pixels, expected)
    else:  # OpenCV and Pillow may round chroma differently
        assert np.abs(found.pixels.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("tag", range(9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_a_pixel_finds_its_place_in_the_file(tmp_path: Path, tag: int, suffix: str) -> None:
    stored = np.zeros((11, 17), np.uint8)
    stored[3, 12] = 255
    best = {"lossless": True} if suffix == "webp" else {}
    image = decode(tagged(tmp_path / f"a.{suffix}", tag, stored, **best), PLAIN)
    y, x = np.argwhere(image.pixels == 255)[0]
    features = Features(
        keypoints=np.array([[x, y]], np.float32),
        descriptors=np.ones((1, 4), np.float16),
        scores=np.ones(1, np.float32),
        image_size=image.size,
        scales=np.array([2.0], np.float32),
        oris=np.array([0.3], np.float32),
        turns=4,
    )
    mapped = image.features_in_file(features)
    assert mapped.keypoints.tolist() == [[12, 3]]
    assert mapped.keypoints.dtype == np.float32
    assert mapped.image_size == (17, 11)
    assert mapped.turns == 4
    assert mapped.scales == pytest.approx([2.0])
    seen = mapped.as_seen()
    assert seen.keypoints == pytest.approx(features.keypoints, abs=1e-5)
    assert seen.image_size == image.size
    assert seen.scales == pytest.approx([2.0])
    assert seen.oris == pytest.approx([0.3], abs=1e-6)
    assert (mapped.from_seen is None) == (tag in (0, 1))
    assert image.pixels_from_file(np.array([[12.0, 3.0]])) == pytest.approx(np.array([[x, y]]))
    # a short step along the orientation in upright pixels is a step along the mapped orientation in the file
    step = np.array([[x + np.cos(0.3), y + np.sin(0.3)]])
    ahead = apply_affine(image.stored_from_pixels, step)[0] - [12, 3]
    assert mapped.oris is not None
    assert np.arctan2(ahead[1], ahead[0]) == pytest.approx(mapped.oris[0], abs=1e-6)


@pytest.mark.parametrize("more", [{"compression": "tiff_lzw"}, {"big_tiff": True}], ids=["lzw", "big"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("tag", [3, 6])
def test_other_kinds_of_tiff_are_turned_once(tmp_path: Path, tag: int, bits: int, more: dict[str, object]) -> None:
    stored = np.zeros((11, 17), np.uint8 if bits == 8 else np.uint16)
    stored[3, 12] = 2**bits - 1
    image = decode(tagged(tmp_path / "a.tif", tag, stored, **more), PLAIN)
    expected = upright(np.uint8(255) * (stored > 0), tag)
    assert np.array_equal(image.pixels, expected)


def test_a_big_endian_tiff(tmp_path: Path) -> None:
    """As some cameras write it; one strip, 8-bit grey."""
    entries = [(256, 4, 4), (257, 4, 3), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (274, 3, 6)]
    entries += [(277, 3, 1), (278, 4, 3), (279, 4, 12)]
    block = struct.pack(">H", len(entries))
    for tag, kind, value in entries:
        block += struct.pack(">HHI", tag, kind, 1)
        block += struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value)
    stored = np.arange(0, 240, 20, dtype=np.uint8)
    (tmp_path / "a.tif").write_bytes(b"MM\0*" + struct.pack(">I", 20) + stored.tobytes() + block + b"\0" * 4)
    image = decode(tmp_path / "a.tif", PLAIN)
    assert image.stored_size == (4, 3)
    assert np.array_equal(image.pixels, upright(stored.reshape(3, 4), 6))


@pytest.mark.parametrize("tag", range(1, 9))
def test_turning_is_undone_by_the_affine_map(tag: int) -> None:
    stored = np.arange(6 * 4).reshape(4, 6)
    turned = upright(stored, tag)
    back = stored_from_upright((6, 4), tag)
    for y, x in np.ndindex(*turned.shape):
        u, v = apply_affine(back, np.array([[x, y]], float))[0]
        assert stored[int(v), int(u)] == turned[y, x]


@pytest.mark.parametrize("tag", [1, 6, 7])
def test_resizing_maps_back(tmp_path: Path, tag: int) -> None:
    centre = np.array([331.3, 140.8])
    y, x = np.mgrid[:360, :500]
    blob = 255 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * 15.0**2))
    path = tagged(tmp_path / "a.png", tag, blob.astype(np.uint8))
    image = decode(path, DecodeConfig(resize_max=123))
    assert max(image.size) == 123
    weights = image.pixels.astype(float)
    v, u = np.mgrid[: image.size[1], : image.size[0]]
    found = np.array([[(weights * u).sum(), (weights * v).sum()]]) / weights.sum()
    assert apply_affine(image.stored_from_pixels, found)[0] == pytest.approx(centre, abs=0.05)
    features = Features(found, np.ones((1, 2)), np.ones(1), image.size, scales=np.ones(1), uncertainty_px=1.0)
    mapped = image.features_in_file(features)
    assert mapped.uncertainty_px == pytest.approx(500 / 123, rel=0.01)
    assert mapped.scales == pytest.approx([500 / 123], rel=0.01)


def test_small_images_keep_their_size(tmp_path: Path) -> None:
    path = tagged(tmp_path / "a.png", None, picture())
    assert decode(path, DecodeConfig(resize_max=17)).size == (17, 11)
    assert decode(path, DecodeConfig(resize_max=16)).size == (16, 10)
    line = tagged(tmp_path / "line.png", None, np.zeros((1, 400), np.uint8))
    assert decode(line, DecodeConfig(resize_max=16)).size == (16, 1)


def test_sixteen_bits(tmp_path: Path) -> None:
    """The high byte counts; nothing is clipped."""
    values = np.linspace(0, 65535, 12 * 9).astype(np.uint16).reshape(9, 12)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.abs(decode(tmp_path / "a.png", PLAIN).pixels.astype(int) - values / 257).max() <= 1
    assert decode(tmp_path / "a.png", PLAIN, colour=True).pixels.shape == (9, 12, 3)


def test_alpha_is_left_out(tmp_path: Path) -> None:
    rgba = np.dstack([picture(), np.full((11, 17), 3, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png", PLAIN, colour=True).pixels, picture())


def test_cmyk(tmp_path: Path) -> None:
    Image.fromarray(picture(64, 48)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.abs(decode(tmp_path / "a.jpg", PLAIN, colour=True).pixels.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(picture()).convert(mode)
    image.save(tmp_path / "a.png")
    found = decode(tmp_path / "a.png", PLAIN).pixels
    assert found.shape == (11, 17)
    assert np.abs(found.astype(int) - np.asarray(image.convert("L"))).max() <= 1
    assert decode(tmp_path / "a.png", PLAIN, colour=True).pixels.shape == (11, 17, 3)


def noisy(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (120, 160, 3)).astype(np.uint8)


def encoded(form: str, **more: object) -> bytes:
    data = io.BytesIO()
    Image.fromarray(noisy(0)).save(data, form, **more)
    return data.getvalue()


def with_thumbnail() -> bytes:
    """A JPEG whose EXIF block holds a whole small JPEG, end marker and all."""
    small = encoded("JPEG", quality=20)
    block = b"Exif\0\0" + b"MM\0*\0\0\0\x08\0\0\0\0\0\0" + small
    data = encoded("JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def multi_picture() -> bytes:
    """As phones write it: a second picture after the first."""
    data = io.BytesIO()
    Image.fromarray(noisy(0)).save(data, "MPO", save_all=True, append_images=[Image.fromarray(noisy(1))])
    return data.getvalue()


JPEGS = {
    "plain": lambda: encoded("JPEG"),
    "progressive": lambda: encoded("JPEG", progressive=True),
    "thumbnail": with_thumbnail,
    "multi_picture": multi_picture,
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("kept", [0.02, 0.2, 0.45])
def test_a_jpeg_cut_off(tmp_path: Path, kind: str, kept: float) -> None:
    data = JPEGS[kind]()
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    assert decode(path, PLAIN).size == (160, 120)
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(BadInputError, match=r"cut off|can be read|cannot be decoded"):
        decode(path, PLAIN)


def test_a_jpeg_without_its_last_bytes(tmp_path: Path) -> None:
    for data in (encoded("JPEG"), with_thumbnail()):
        (tmp_path / "a.jpg").write_bytes(data[:-2])
        with pytest.raises(BadInputError, match="cut off"):
            decode(tmp_path / "a.jpg", PLAIN)
        (tmp_path / "a.jpg").write_bytes(data + b"\0" * 100)
        assert decode(tmp_path / "a.jpg", PLAIN).size == (160, 120)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.05, 0.5, 0.99])
def test_a_png_cut_off(tmp_path: Path, kept: float) -> None:
    data = encoded("PNG")
    (tmp_path / "a.png").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(BadInputError, match=r"a\.png"):
        decode(tmp_path / "a.png", PLAIN)


def test_a_png_with_something_behind_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("PNG") + b"\0" * 500)
    assert decode(tmp_path / "a.png", PLAIN).size == (160, 120)


@pytest.mark.parametrize(
    "data", [b"", b"not an image", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n", b"\xff\xd8" + b"\xff" * 50]
)
def test_no_image(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(BadInputError, match=r"a\.jpg"):
        decode(path, PLAIN)
    with pytest.raises(BadInputError, match=r"a\.jpg"):
        stored_size(path)


def test_a_png_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own `getexif` decodes a whole PNG to look for metadata behind the pixels."""

    def never(*args: object) -> None:
        raise AssertionError("decoded by Pillow")

    monkeypatch.setattr(PngImageFile, "load", never)
    for tag in (None, 6):
        path = tagged(tmp_path / "a.png", tag, picture())
        assert decode(path, PLAIN).size == ((11, 17) if tag else (17, 11))


def test_orientation_behind_the_pixels(tmp_path: Path) -> None:
    """A PNG may carry its EXIF block after the image data."""
    data = tagged(tmp_path / "a.png", 6, picture()).read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    tail = data.index(b"IEND") - 4
    (tmp_path / "b.png").write_bytes(data[:start] + data[end:tail] + data[start:end] + data[tail:])
    assert decode(tmp_path / "b.png", PLAIN).size == (11, 17)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such image"):
        decode(tmp_path / "none.jpg", PLAIN)
    with pytest.raises(BadInputError, match="cannot be read"):
        decode(tmp_path, PLAIN)


def huge_png(width: int, height: int) -> bytes:
    """A PNG that says it is large, with the data of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20000, 20000), (16000, 15700)])
def test_too_large_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(module.cv2, "imdecode", never)
    monkeypatch.setattr(PngImageFile, "load", never)
    (tmp_path / "a.png").write_bytes(huge_png(*size))
    with pytest.raises(BadInputError, match="250 megapixels"):
        decode(tmp_path / "a.png", PLAIN)
    (tmp_path / "b.png").write_bytes(encoded("PNG"))
    with pytest.raises(BadInputError, match=r"160 x 120 pixels, more than 0\.01 megapixels"):
        decode(tmp_path / "b.png", DecodeConfig(max_megapixels=0.01))


@pytest.mark.filterwarnings("error")
def test_the_limit_is_ours_and_not_pillows(tmp_path: Path) -> None:
    """A telephone takes 16320 x 12240; Pillow alone would refuse that, and warn from 89 megapixels on."""
    (tmp_path / "a.png").write_bytes(huge_png(16320, 12240))
    assert stored_size(tmp_path / "a.png") == (16320, 12240)
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(BadInputError, match="cannot be decoded"):  # its data is that of one pixel
        decode(tmp_path / "a.png", DecodeConfig())
    assert before == Image.MAX_IMAGE_PIXELS
