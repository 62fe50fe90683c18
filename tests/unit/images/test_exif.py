"""Focal lengths from EXIF: by hand from the sensor's size, whichever tags say it."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from featkit.images.exif import focal_length_px
from featkit.mapping.cameras import CameraConfig, infer_camera

SENSOR_MM = (36.0, 24.0)  # full frame: 24 mm before 600 pixels is 400 pixels
FOCAL, FILM, X_RESOLUTION, UNIT = 0x920A, 0xA405, 0xA20E, 0xA210
PER_MM = 600 / 36.0


def photo(folder: Path, tags: dict[int, Any], name: str = "a.jpg", orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769).update(tags)
    Image.new("RGB", (600, 400)).save(folder / name, exif=exif.tobytes())  # a TIFF loses the inner tags otherwise
    return folder / name


@pytest.mark.parametrize(
    ("tags", "focal_px"),
    [
        ({FILM: 24}, 400.0),
        ({FILM: 24, FOCAL: 5.0, X_RESOLUTION: 99.0}, 400.0),
        ({FOCAL: 24.0, X_RESOLUTION: PER_MM * 25.4, UNIT: 2}, 400.0),
        ({FOCAL: 24.0, X_RESOLUTION: PER_MM * 25.4}, 400.0),
        ({FOCAL: 24.0, X_RESOLUTION: PER_MM * 10, UNIT: 3}, 400.0),
        ({FOCAL: 24.0, X_RESOLUTION: PER_MM, UNIT: 4}, 400.0),
        ({FOCAL: 24.0, X_RESOLUTION: 10 * PER_MM * 25.4, UNIT: 2, 0xA002: 6000, 0xA003: 4000}, 400.0),  # scaled since
        ({FOCAL: 24.0}, None),
        ({FILM: 0, FOCAL: 24.0}, None),
        ({FOCAL: 24.0, X_RESOLUTION: 0.0}, None),
        ({FILM: 9000}, None),  # no lens: ten times the image's width
        ({}, None),
    ],
)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_focal_lengths(tags: dict[int, Any], focal_px: float | None, name: str, tmp_path: Path) -> None:
    path = photo(tmp_path, tags, name)
    assert focal_length_px(path, (600, 400)) == (None if focal_px is None else pytest.approx(focal_px, rel=1e-4))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("model", ["SIMPLE_RADIAL", "PINHOLE", "OPENCV_FISHEYE"])
def test_cameras_have_it(tmp_path: Path, orientation: int, model: str) -> None:
    path = photo(tmp_path, {FOCAL: 24.0, X_RESOLUTION: PER_MM * 25.4}, orientation=orientation)
    camera = infer_camera(path, CameraConfig(model=model))
    assert camera.has_prior_focal_length
    assert camera.mean_focal_length() == pytest.approx(400, rel=1e-4)
    assert (camera.width, camera.height) == (600, 400)  # of the file, however it is turned
    assert (camera.principal_point_x, camera.principal_point_y) == (300, 200)


def test_the_sensors_width(tmp_path: Path) -> None:
    path = photo(tmp_path, {FOCAL: 24.0})
    assert not infer_camera(path, CameraConfig()).has_prior_focal_length
    camera = infer_camera(path, CameraConfig(sensor_width_mm=SENSOR_MM[0]))
    assert camera.has_prior_focal_length
    assert camera.params[0] == pytest.approx(400, rel=1e-6)


def test_files_without_exif(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("text")
    Image.new("L", (6, 4)).save(tmp_path / "b.bmp")
    assert focal_length_px(tmp_path / "a.jpg", (6, 4)) is None
    assert focal_length_px(tmp_path / "b.bmp", (6, 4), 36.0) is None
