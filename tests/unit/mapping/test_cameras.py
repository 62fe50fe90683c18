"""Cameras of photographs: EXIF, given parameters, and which images share one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featkit.core.errors import BadInputError, UsageError
from featkit.io.lists import Intrinsics
from featkit.mapping.cameras import (
    CameraConfig,
    cameras_of_images,
    check,
    check_sizes,
    infer_camera,
    to_camera,
    to_intrinsics,
)


def photo(folder: Path, name: str, size: tuple[int, int] = (600, 400), focal_35mm: int | None = None) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if focal_35mm is not None:
        exif.get_ifd(0x8769)[0xA405] = focal_35mm
    Image.new("RGB", size).save(path, exif=exif)
    return name


def test_the_focal_length_stands_in_exif(tmp_path: Path) -> None:
    """Equivalent to 35 mm film, whose diagonal is 43.27 mm."""
    photo(tmp_path, "a.jpg", focal_35mm=28)
    camera = infer_camera(tmp_path / "a.jpg", CameraConfig())
    assert camera.has_prior_focal_length
    assert camera.params[0] == pytest.approx(28 / np.hypot(36, 24) * np.hypot(600, 400), rel=0.01)
    assert (camera.width, camera.height, camera.model_name) == (600, 400, "SIMPLE_RADIAL")
    assert list(camera.params[1:3]) == [300, 200]


def test_without_exif_it_is_guessed(tmp_path: Path) -> None:
    photo(tmp_path, "a.jpg")
    camera = infer_camera(tmp_path / "a.jpg", CameraConfig(default_focal_factor=1.5))
    assert not camera.has_prior_focal_length
    assert camera.params[0] == pytest.approx(900)


def test_given_parameters(tmp_path: Path) -> None:
    photo(tmp_path, "a.jpg", focal_35mm=28)
    params = (512.123456789012, 511.0, 301.5, 199.25)
    camera = infer_camera(tmp_path / "a.jpg", CameraConfig(model="PINHOLE", params=params))
    assert tuple(camera.params) == params
    assert camera.has_prior_focal_length
    with pytest.raises(UsageError, match="PINHOLE takes 4 numbers, 3 are given"):
        check(CameraConfig(model="PINHOLE", params=(1, 2, 3)))
    with pytest.raises(UsageError, match="--camera-model PINHOL"):
        check(CameraConfig(model="PINHOL"))


def test_a_file_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(BadInputError, match=r"a\.jpg: no camera"):
        infer_camera(tmp_path / "a.jpg", CameraConfig())


@pytest.mark.parametrize(
    ("mode", "groups"),
    [("single", [0, 0, 0, 0]), ("per-folder", [0, 0, 1, 2]), ("per-image", [0, 1, 2, 3])],
)
def test_which_images_share_a_camera(tmp_path: Path, mode: str, groups: list[int]) -> None:
    names = [photo(tmp_path, name) for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "top.jpg")]
    cameras, ids = cameras_of_images(tmp_path, names, CameraConfig(mode=mode))
    assert [ids[name] for name in names] == [group + 1 for group in groups]
    assert sorted(cameras) == sorted({group + 1 for group in groups})
    assert all(camera.camera_id == number for number, camera in cameras.items())


def test_images_of_different_sizes_cannot_share_one(tmp_path: Path) -> None:
    names = [photo(tmp_path, "1.jpg", (600, 400)), photo(tmp_path, "2.jpg", (400, 600))]
    sizes = {"1.jpg": (600, 400), "2.jpg": (400, 600)}
    cameras, ids = cameras_of_images(tmp_path, names, CameraConfig(mode="single"))
    with pytest.raises(BadInputError, match=r"'2\.jpg' is 400 x 600, its camera 600 x 400"):
        check_sizes(cameras, ids, sizes)
    check_sizes(*cameras_of_images(tmp_path, names, CameraConfig()), sizes)
    check_sizes(cameras, ids, {"1.jpg": (600, 400), "2.jpg": (0, 0)})  # hloc's files do not say


def test_intrinsics_there_and_back() -> None:
    given = Intrinsics("OPENCV", 800, 600, (700.0, 690.0, 400.0, 300.0, -0.1, 0.01, 0.0, 0.001))
    camera = to_camera(given, 7)
    assert to_intrinsics(camera) == given
    assert (camera.camera_id, camera.has_prior_focal_length) == (7, True)


def test_listed_intrinsics_are_the_images_own(tmp_path: Path) -> None:
    names = [photo(tmp_path, name, focal_35mm=28) for name in ("1.jpg", "2.jpg", "3.jpg", "4.jpg")]
    one, other = (Intrinsics("PINHOLE", 600, 400, (focal, focal, 300.0, 200.0)) for focal in (500.0, 510.0))
    listed = {"1.jpg": one, "2.jpg": other, "3.jpg": one}
    cameras, ids = cameras_of_images(tmp_path, names, CameraConfig(mode="single"), listed)
    assert [to_intrinsics(cameras[ids[name]]) for name in names[:3]] == [one, other, one]
    assert ids["1.jpg"] == ids["3.jpg"] != ids["2.jpg"]
    assert cameras[ids["4.jpg"]].model_name == "SIMPLE_RADIAL"
    assert all(camera.has_prior_focal_length for camera in cameras.values())
    apart = cameras_of_images(tmp_path, names, CameraConfig(), listed)[1]
    assert len(set(apart.values())) == 4
    turned = {"2.jpg": Intrinsics("PINHOLE", 400, 600, (500.0, 500.0, 200.0, 300.0))}
    with pytest.raises(BadInputError, match=r"'2\.jpg' is 600 x 400 as stored, its intrinsics are for 400 x 600"):
        cameras_of_images(tmp_path, names, CameraConfig(), turned)
