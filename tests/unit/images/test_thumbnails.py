"""Small photographs: as Pillow turns and shrinks them, and a point of the file stays on what it marks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from featkit.core.errors import BadInputError
from featkit.images.thumbnails import jpeg, thumbnail


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize(("suffix", "size"), [("jpg", (800, 600)), ("png", (800, 600)), ("jpg", (90, 60))])
def test_as_pillow_does_it(tmp_path: Path, suffix: str, size: tuple[int, int], tag: int) -> None:
    small = np.random.default_rng(0).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    pixels = cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)
    marked = (int(0.7 * size[0]), int(0.2 * size[1]))
    cv2.circle(pixels, marked, size[0] // 40, (255, 0, 255), -1)
    exif = Image.Exif()
    exif[0x0112] = tag
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif, **({"quality": 98} if suffix == "jpg" else {}))
    found = thumbnail(path, 100)
    assert max(found.pixels.shape[:2]) == min(100, max(size))
    with Image.open(path) as stored:
        turned = ImageOps.exif_transpose(stored).convert("RGB")
    expected = np.asarray(turned.resize((found.size), Image.Resampling.BOX), int)
    assert np.abs(found.pixels.astype(int) - expected).mean() < 4
    x, y = found.pixels_from_file(np.array([marked], float))[0].round().astype(int)
    assert np.abs(found.pixels[y, x].astype(int) - [255, 0, 255]).max() < 60


def test_jpeg_and_broken_files(tmp_path: Path) -> None:
    pixels = np.full((20, 30, 3), (200, 30, 60), np.uint8)
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(pixels, 95))
    assert np.abs(thumbnail(path, 16).pixels.astype(int) - (200, 30, 60)).max() < 8
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInputError, match=r"not an image that can be read|cut off"):
        thumbnail(path, 16)
