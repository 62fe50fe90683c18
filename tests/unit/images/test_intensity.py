"""One stretch for a folder's 16-bit files, beside a slow formula; and that a features file keeps the one it has."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from featkit.core.config import make
from featkit.core.errors import BadInputError, UsageError
from featkit.data.homography_patches import HomographiesConfig
from featkit.data.make_patches import PatchSetConfig, write_patch_set
from featkit.data.posed_samples import photographs
from featkit.features import stage
from featkit.features.stage import ExtractConfig, extraction_method, with_intensity_range
from featkit.images.intensity import found_range, is_deep
from featkit.images.read import DecodeConfig, decode
from featkit.io.features import open_features
from featkit.mapping.covisibility import photograph_folders


def blots(seed: int, side: int = 160) -> np.ndarray:
    """A picture of values from 0 to 1 that SIFT finds points in."""
    rng = np.random.default_rng(seed)
    picture = sum(cv2.resize(rng.random((n, n)), (side, side), interpolation=cv2.INTER_CUBIC) for n in (8, 24, 60))
    return (picture - picture.min()) / (picture.max() - picture.min())


def folder(path: Path, low: float, high: float, names: tuple[str, ...] = ("a.png", "b.tif", "c.pgm")) -> Path:
    path.mkdir()
    for seed, name in enumerate(names):
        cv2.imwrite(str(path / name), (low + (high - low) * blots(seed)).round().astype(np.uint16))
    return path


@pytest.mark.parametrize(("low", "high"), [(0, 4095), (0, 16383), (7000, 7600)], ids=["12 bits", "14 bits", "thermal"])
def test_the_part_that_is_used_becomes_black_to_white(low: int, high: int, tmp_path: Path) -> None:
    images = folder(tmp_path / "images", low, high)
    assert [is_deep(images / name) for name in ("a.png", "b.tif", "c.pgm")] == [True, True, True]
    found = found_range([images / name for name in ("a.png", "b.tif", "c.pgm")])
    assert found is not None
    assert abs(found[0] - low) < 0.1 * (high - low) > abs(found[1] - high)
    config = DecodeConfig(intensity_range=found)
    for name in ("a.png", "b.tif", "c.pgm"):
        values = cv2.imread(str(images / name), cv2.IMREAD_UNCHANGED)
        assert values.max() > 255
        slow = [[min(max((int(v) - found[0]) / (found[1] - found[0]) * 255, 0), 255) for v in row] for row in values]
        assert np.abs(decode(images / name, config).pixels - np.array(slow)).max() <= 0.501
        assert decode(images / name, config, colour=True).pixels.shape == (160, 160, 3)
        assert decode(images / name, config).pixels.std() > 3 * decode(images / name, DecodeConfig()).pixels.std()


def test_what_uses_its_range_stays_as_it_is(tmp_path: Path) -> None:
    images = folder(tmp_path / "images", 0, 65535)
    assert found_range([images / name for name in ("a.png", "b.tif", "c.pgm")]) is None
    cv2.imwrite(str(images / "8.png"), (100 + 20 * blots(3)).astype(np.uint8))
    cv2.imwrite(str(images / "8.tif"), (100 + 20 * blots(3)).astype(np.uint8))
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(16) + b"\x10")
    assert not is_deep(images / "8.png")
    assert not is_deep(images / "8.tif")
    assert found_range([images / name for name in ("8.png", "8.tif", "broken.png")]) is None
    config = DecodeConfig(intensity_range=(0, 4095))
    assert np.array_equal(decode(images / "8.png", config).pixels, decode(images / "8.png", DecodeConfig()).pixels)


def test_jpeg_2000_of_16_bits(tmp_path: Path) -> None:
    """Pillow's own conversion would make every value above 255 white."""
    values = (65535 * blots(0)).round().astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.jp2")
    assert np.abs(decode(tmp_path / "a.jp2", DecodeConfig()).pixels.astype(int) - values // 256).max() <= 1


def test_jpeg_2000_that_uses_12_of_16_bits(tmp_path: Path) -> None:
    values = (4095 * blots(0)).round().astype(np.uint16)
    for name in ("a.jp2", "b.png"):
        Image.fromarray(values).save(tmp_path / name)
    Image.fromarray((255 * blots(0)).round().astype(np.uint8)).save(tmp_path / "8.jp2")
    assert [is_deep(tmp_path / name) for name in ("a.jp2", "8.jp2")] == [True, False]
    found = found_range([tmp_path / "a.jp2"])
    assert found == found_range([tmp_path / "b.png"])
    config = DecodeConfig(intensity_range=found)
    for colour in (False, True):
        one, other = (decode(tmp_path / name, config, colour).pixels for name in ("a.jp2", "b.png"))
        assert np.abs(one.astype(int) - other).max() <= 1
    assert found_range([tmp_path / "8.jp2"]) is None


def jpeg_2000(path: Path, colours: np.ndarray, declared_bits: int) -> Path:
    """Write colours (h, w, 3) of 16 bits as a file that says it has fewer: one with 4096 levels, around another zero.

    The zero of the numbers in the file is the middle of the range that its header declares.
    """
    shift = 2**15 - 2 ** (declared_bits - 1)
    cv2.imwrite(str(path), (colours.astype(np.int64) + shift).astype(np.uint16)[..., ::-1])
    data = bytearray(path.read_bytes())
    size = data.index(b"\xff\x4f\xff\x51") + 42
    for component in range(3):
        assert data[size + 3 * component] == 15
        data[size + 3 * component] = declared_bits - 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("top", "declared_bits"), [(65535, 16), (4095, 16), (4095, 12)])
def test_jpeg_2000_in_colour(top: int, declared_bits: int, tmp_path: Path) -> None:
    """As a PNG of the same values; 12 bits that are declared as such are the whole range, as in grey files."""
    colours = (top * np.stack([blots(seed) for seed in range(3)], axis=2)).round().astype(np.uint16)
    cv2.imwrite(str(tmp_path / "b.png"), (colours << (16 - declared_bits))[..., ::-1])
    jpeg_2000(tmp_path / "a.jp2", colours, declared_bits)
    assert is_deep(tmp_path / "a.jp2")
    one, other = (found_range([tmp_path / name]) for name in ("a.jp2", "b.png"))
    if top == 4095 and declared_bits == 16:
        assert one is not None
        assert other is not None
        assert np.abs(np.subtract(one, other)).max() < 0.02 * top
    else:
        assert one is None
        assert other is None
    for config in (DecodeConfig(), DecodeConfig(intensity_range=other)):
        for colour in (False, True):
            pixels = [decode(tmp_path / name, config, colour).pixels.astype(int) for name in ("a.jp2", "b.png")]
            assert pixels[0].shape == ((160, 160, 3) if colour else (160, 160))
            assert np.abs(pixels[0] - pixels[1]).max() <= 8  # the compression loses some
            assert np.abs(pixels[0] - pixels[1]).mean() < 1.5


def test_jpeg_2000_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed values, and builds of OpenCV without JPEG 2000: refused, never misread."""
    colours = (65535 * np.stack([blots(seed) for seed in range(3)], axis=2)).astype(np.uint16)
    data = bytearray(jpeg_2000(tmp_path / "a.jp2", colours, 16).read_bytes())
    data[data.index(b"\xff\x4f\xff\x51") + 42] |= 0x80
    (tmp_path / "signed.jp2").write_bytes(data)
    with pytest.raises(BadInputError, match=r"signed.jp2: cannot be decoded .* convert it to PNG"):
        decode(tmp_path / "signed.jp2", DecodeConfig())
    decode(tmp_path / "a.jp2", DecodeConfig())
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    with pytest.raises(BadInputError, match=r"a.jp2: cannot be decoded .* convert it to PNG"):
        decode(tmp_path / "a.jp2", DecodeConfig())


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [(np.float32, 0.2, 0.4), (np.int16, -1000, 3000), (np.int32, 0, 10**6), (np.int32, 100, 900)],
)
def test_floats_and_other_integers(kind: type, low: float, high: float, tmp_path: Path) -> None:
    """Their range is always that of the folder; without one they are refused, in grey and in colour."""
    values = (low + (high - low) * blots(0)).astype(kind)
    Image.fromarray(values).save(tmp_path / "a.tif") if kind is not np.int16 else cv2.imwrite(
        str(tmp_path / "a.tif"), values
    )
    found = found_range([tmp_path / "a.tif"])
    assert found is not None
    assert low - 1e-3 <= found[0] < low + 0.1 * (high - low)
    assert high + 1e-3 >= found[1] > high - 0.1 * (high - low)
    expected = np.clip((values - found[0]) / (found[1] - found[0]) * 255, 0, 255)
    for colour in (False, True):
        pixels = decode(tmp_path / "a.tif", DecodeConfig(intensity_range=found), colour).pixels
        assert np.abs(pixels - (expected[..., None] if colour else expected)).max() <= 0.51
        with pytest.raises(BadInputError, match=r"a.tif: has values of .* set decode.intensity_range"):
            decode(tmp_path / "a.tif", DecodeConfig(), colour)


def test_integers_and_floats_have_no_common_range(tmp_path: Path) -> None:
    images = folder(tmp_path / "images", 0, 4095, ("a.png",))
    Image.fromarray(blots(1).astype(np.float32)).save(images / "b.tif")
    with pytest.raises(BadInputError, match=r"b.tif: has floats, .*a.png integers"):
        with_intensity_range(extraction_method(ExtractConfig(workers=1)), images, tmp_path / "f.h5")


def test_a_features_file_keeps_its_range(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Photographs that are added later, and queries, are stretched as the first ones were."""
    images, out = folder(tmp_path / "images", 0, 4095), tmp_path / "f.h5"
    eight = tmp_path / "eight"
    eight.mkdir()
    cv2.imwrite(str(eight / "a.png"), (255 * blots(0)).round().astype(np.uint8))
    plain = extraction_method(ExtractConfig(workers=1))
    stage.run(plain, eight, tmp_path / "8.h5")
    stage.run(plain, images, tmp_path / "blind.h5")
    with caplog.at_level(logging.INFO, "featkit"):
        method = with_intensity_range(plain, images, out)
    assert "3 photographs of more than 8 bits use" in caplog.text
    stage.run(method, images, out)
    with (
        open_features(out) as store,
        open_features(tmp_path / "8.h5") as like,
        open_features(tmp_path / "blind.h5") as no,
    ):
        assert store.intensity_range == method.config.decode.intensity_range
        assert like.intensity_range is None
        assert store.count("a.png") == pytest.approx(like.count("a.png"), rel=0.1)
        assert no.count("a.png") < 0.5 * like.count("a.png")
    cv2.imwrite(str(images / "d.png"), (65535 * blots(4)).astype(np.uint16))
    again = with_intensity_range(plain, images, out)
    assert again.fingerprint == method.fingerprint
    stage.run(again, images, out)
    assert stage.config_of_features(out).decode == method.config.decode
    assert with_intensity_range(plain, images, out, overwrite=True).fingerprint == plain.fingerprint


def test_files_made_before_keep_their_fingerprint() -> None:
    assert set(DecodeConfig().result_fields()) == {"resize_max", "max_megapixels", "min_alpha"}
    assert DecodeConfig(intensity_range=(0, 4095)).fingerprint() != DecodeConfig().fingerprint()
    assert ExtractConfig().result_fields()["decode"] == DecodeConfig().result_fields()


@pytest.mark.parametrize("ends", [[5, 5], [9, 1], [0, float("nan")], [0]])
def test_ranges_that_are_none(ends: list[float]) -> None:
    with pytest.raises(UsageError, match="intensity_range"):
        make(DecodeConfig, {"intensity_range": ends}, "here")


def test_training_data_see_what_extraction_sees(tmp_path: Path) -> None:
    """Photographs of 12 bits in 16 become patches and pairs as those of 8 bits do."""
    for folder, dtype, factor in (("eight", np.uint8, 1), ("twelve", np.uint16, 16)):
        (tmp_path / folder).mkdir()
        for number in range(2):
            rng = np.random.default_rng(number)
            coarse = rng.integers(0, 256, (30, 40)).astype(np.uint8)
            coarse[0, :2], coarse[1, :2] = 0, 255  # the same ends in both
            pixels = cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(str(tmp_path / folder / f"{number}.png"), pixels.astype(dtype) * factor)
    found = {}
    config = PatchSetConfig(
        source="homographies", workers=1, test_pairs=10, homographies=HomographiesConfig(min_patches=2, keypoints=20)
    )
    for name in ("eight", "twelve"):
        (folder,) = photograph_folders([tmp_path / name], "ours")
        summary = write_patch_set(config, [folder], tmp_path / f"{name}-patches")
        trees = photographs(tmp_path / name)
        found[name] = summary["patches"], [tree.upright_pixels(file) for tree, file in trees]
    assert found["eight"][0] == found["twelve"][0] > 20
    for one, other in zip(found["eight"][1], found["twelve"][1], strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1
