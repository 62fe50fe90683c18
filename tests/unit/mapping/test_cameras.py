"""Cameras of photographs: EXIF, given parameters, and which images share one."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featkit.core.errors import BadInputError, UsageError
from featkit.io.camera_models import camera_models
from featkit.io.lists import Intrinsics
from featkit.mapping.cameras import (
    CameraConfig,
    cameras_of_images,
    check_camera_config,
    check_photographs,
    check_sizes,
    infer_camera,
    to_camera,
    to_intrinsics,
)
from tests.geotagged import GPANO


def photo(
    folder: Path,
    name: str,
    size: tuple[int, int] = (600, 400),
    focal_35mm: int | None = None,
    lens: str = "",
    panorama: bool = False,
) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if focal_35mm is not None:
        exif.get_ifd(0x8769)[0xA405] = focal_35mm
    if lens:
        exif[0x0110] = "Camera"
        exif.get_ifd(0x8769)[0xA434] = lens
    more = {"xmp": GPANO} if panorama else {}
    Image.new("RGB", size).save(path, exif=exif, **more)
    return name


def test_focal_length_from_exif(tmp_path: Path) -> None:
    """35 mm equivalent: the diagonal of the film is 43.27 mm."""
    photo(tmp_path, "a.jpg", focal_35mm=28)
    camera = infer_camera(tmp_path / "a.jpg", CameraConfig())
    assert camera.has_prior_focal_length
    assert camera.params[0] == pytest.approx(28 / np.hypot(36, 24) * np.hypot(600, 400), rel=0.01)
    assert (camera.width, camera.height, camera.model_name) == (600, 400, "SIMPLE_RADIAL")
    assert list(camera.params[1:3]) == [300, 200]


def test_focal_length_is_guessed_without_exif(tmp_path: Path) -> None:
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
    without = infer_camera(tmp_path / "a.jpg", CameraConfig(params=params))
    assert (without.model_name, tuple(without.params)) == ("PINHOLE", params)


@pytest.mark.parametrize(
    ("model", "params", "message"),
    [
        ("PINHOLE", (1, 2, 3), r"PINHOLE takes 4 numbers \(fx,fy,cx,cy\), 3 are given"),
        ("PINHOL", None, "--camera-model PINHOL: there is .*OPENCV_FISHEYE"),
        (None, (500, 300, 200, 0.01), r"give the model \(.*SIMPLE_RADIAL"),
        (None, (500, 500, 300, 200, 0), r"give the model \(RADIAL, .*FOV"),
        ("SIMPLE_RADIAL", (500, 502, 300, 200), "k = 200 is not a plausible distortion"),
        ("PINHOLE", (500, -500, 300, 200), "fy = -500 must be positive"),
    ],
)
def test_invalid_parameters_are_refused(model: str | None, params: tuple[float, ...] | None, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        check_camera_config(CameraConfig(model=model, params=params))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ((3, 3, 300, 200), r"fx = 3 px is implausible for an image of 600 x 400, as 'a\.jpg' is"),
        ((500, 500, 700, 200), r"principal point cx,cy = 700,200 is outside an image of 600 x 400"),
    ],
)
def test_parameters_for_another_image_size_are_refused_early(
    params: tuple[float, ...], message: str, tmp_path: Path
) -> None:
    names = [photo(tmp_path, "a.jpg")]
    config = CameraConfig(params=params)
    check_camera_config(config)
    with pytest.raises(UsageError, match=message):
        check_photographs(config, tmp_path, names)
    with pytest.raises(BadInputError, match=r"a\.jpg: the given camera does not fit"):
        infer_camera(tmp_path / "a.jpg", config)


def test_parameters_for_several_image_sizes_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [photo(tmp_path, "a.jpg"), photo(tmp_path, "b.jpg"), photo(tmp_path, "c.jpg", (400, 600))]
    config = CameraConfig(params=(500, 500, 200, 200))
    check_photographs(config, tmp_path, names[:2])
    assert not caplog.records
    check_photographs(config, tmp_path, names)
    assert "500,500,200,200 are pixels of one size, but the photographs have 2" in caplog.text
    assert "(600 x 400: 'a.jpg', 400 x 600: 'c.jpg')" in caplog.text
    caplog.clear()
    listed = {"c.jpg": Intrinsics("PINHOLE", 400, 600, (500, 500, 200, 300))}
    check_photographs(config, tmp_path, names, listed)
    assert not caplog.records


def test_fingerprint_depends_on_the_effective_model() -> None:
    """So that maps made when the model had to be given stay up to date."""
    named = CameraConfig(model="SIMPLE_RADIAL")
    assert CameraConfig().fingerprint() == named.fingerprint()
    assert set(named.result_fields()) == {
        *("model", "params", "mode", "default_focal_factor", "sensor_width_mm", "refine")
    }
    fisheye = CameraConfig(model="OPENCV_FISHEYE")
    assert fisheye.fingerprint() != CameraConfig(model="OPENCV_FISHEYE", fisheye_focal_factor=0.5).fingerprint()


def test_a_file_that_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(BadInputError, match=r"a\.jpg: its camera cannot be read"):
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


def test_auto_groups_by_size_lens_and_folder(tmp_path: Path) -> None:
    photos = {
        "a/1.jpg": {"focal_35mm": 28, "lens": "zoom"},
        "a/2.jpg": {"focal_35mm": 28, "lens": "zoom"},
        "a/3.jpg": {"focal_35mm": 70, "lens": "zoom"},
        "a/4.jpg": {"focal_35mm": 28, "lens": "prime"},
        "a/5.jpg": {"focal_35mm": 28, "lens": "zoom", "size": (400, 600)},
        "a/6.jpg": {},
        "a/7.jpg": {},
        "b/1.jpg": {"focal_35mm": 28, "lens": "zoom"},
    }
    names = [photo(tmp_path, name, **printed) for name, printed in photos.items()]  # type: ignore[arg-type]
    cameras, ids = cameras_of_images(tmp_path, names, CameraConfig(mode="auto"))
    assert [ids[name] for name in names] == [1, 1, 2, 3, 4, 5, 5, 6]
    assert [round(cameras[number].params[0] / 600, 2) for number in (1, 2)] == [0.78, 1.94]
    check_photographs(CameraConfig(mode="auto"), tmp_path, names)


def test_warning_for_one_camera_with_different_lenses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wide = [photo(tmp_path, name, focal_35mm=28) for name in ("1.jpg", "2.jpg")]
    names = [*wide, photo(tmp_path, "3.jpg", focal_35mm=70)]
    with caplog.at_level(logging.WARNING, "featkit"):
        check_photographs(CameraConfig(mode="single"), tmp_path, wide)
        check_photographs(CameraConfig(), tmp_path, names)
        assert not caplog.text
        check_photographs(CameraConfig(mode="single"), tmp_path, names)
    assert "28 mm: 1.jpg and 1 more; 70 mm: 3.jpg and 0 more" in caplog.text


def test_portrait_and_landscape_with_one_camera_are_refused_early(tmp_path: Path) -> None:
    names = [photo(tmp_path, "a/1.jpg"), photo(tmp_path, "b/2.jpg", (400, 600))]
    with pytest.raises(BadInputError, match=r"'b/2\.jpg' is 400 x 600, 'a/1\.jpg' 600 x 400.*use auto or per-image"):
        check_photographs(CameraConfig(mode="single"), tmp_path, names)
    check_photographs(CameraConfig(mode="per-folder"), tmp_path, names)


def test_fisheye_camera_without_parameters(tmp_path: Path) -> None:
    """An equidistant lens of 180 degrees along the longer side; known, so that pairs are verified by rays."""
    names = [photo(tmp_path, "1.jpg"), photo(tmp_path, "2.jpg", focal_35mm=8)]
    config = CameraConfig(model="OPENCV_FISHEYE")
    cameras, ids = cameras_of_images(tmp_path, names, config)
    assert cameras[ids["1.jpg"]].params[0] == pytest.approx(600 / np.pi)
    assert cameras[ids["2.jpg"]].params[0] == pytest.approx(8 / np.hypot(36, 24) * np.hypot(600, 400), rel=0.01)
    assert all(camera.has_prior_focal_length for camera in cameras.values())
    assert not infer_camera(tmp_path / "1.jpg", config).has_prior_focal_length


def test_panoramas_are_recognised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [photo(tmp_path, "1.jpg", (800, 400), panorama=True), photo(tmp_path, "2.jpg", (800, 400))]
    with caplog.at_level(logging.INFO, "featkit"):
        check_photographs(CameraConfig(), tmp_path, names)
    assert "1 of 2 photographs are panoramas (GPano): EQUIRECTANGULAR" in caplog.text
    cameras, ids = cameras_of_images(tmp_path, names, CameraConfig())
    assert [cameras[ids[name]].model_name for name in names] == ["EQUIRECTANGULAR", "SIMPLE_RADIAL"]
    assert list(cameras[ids["1.jpg"]].params) == [800, 400]
    named = CameraConfig(model="EQUIRECTANGULAR")
    assert {c.model_name for c in cameras_of_images(tmp_path, names, named)[0].values()} == {"EQUIRECTANGULAR"}
    check_photographs(CameraConfig(model="OPENCV"), tmp_path, names)
    assert "360-degree panoramas according to their metadata, which OPENCV cannot describe: 1.jpg" in caplog.text
    names = [photo(tmp_path, "part.jpg", panorama=True)]
    with pytest.raises(BadInputError, match=r"'part\.jpg' is a partial panorama \(600 x 400\)"):
        check_photographs(CameraConfig(), tmp_path, names)
    with pytest.raises(BadInputError, match=r"'part\.jpg' is 600 x 400.*twice as wide as high"):
        check_photographs(named, tmp_path, names)
    sides = ' GPano:CroppedAreaImageWidthPixels="800" GPano:FullPanoWidthPixels="{}"'
    for full, is_part in ((4000, True), (800, False), (100, False)):  # the last contradicts itself
        more = GPANO.replace(b" GPano:", sides.format(full).encode() + b" GPano:", 1)
        Image.new("RGB", (800, 400)).save(tmp_path / "cut.jpg", xmp=more)
        if is_part:
            with pytest.raises(BadInputError, match=r"'cut\.jpg' is a partial panorama"):
                check_photographs(CameraConfig(), tmp_path, ["cut.jpg"])
        model = infer_camera(tmp_path / "cut.jpg", CameraConfig()).model_name
        assert model == ("SIMPLE_RADIAL" if is_part else "EQUIRECTANGULAR")


def test_panoramas_with_an_old_pycolmap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = {name: model for name, model in camera_models().items() if not model.is_spherical}
    monkeypatch.setattr("featkit.mapping.cameras.camera_models", lambda: without)
    names = [photo(tmp_path, "1.jpg", (800, 400), panorama=True)]
    with pytest.raises(BadInputError, match=r"pip install 'pycolmap>=4\.2'"):
        check_photographs(CameraConfig(), tmp_path, names)
    with pytest.raises(UsageError, match=r"EQUIRECTANGULAR: there is .*pycolmap>=4\.2"):
        check_camera_config(CameraConfig(model="EQUIRECTANGULAR"))


@pytest.mark.parametrize("suffix", [".gif", ".jp2", ".avif"])
def test_image_formats_colmap_cannot_read(suffix: str, tmp_path: Path) -> None:
    Image.new("RGB", (600, 400)).save(tmp_path / f"a{suffix}")
    camera = infer_camera(tmp_path / f"a{suffix}", CameraConfig())
    assert (camera.width, camera.height, camera.params[0]) == (600, 400, 720)


def test_images_of_different_sizes_cannot_share_a_camera(tmp_path: Path) -> None:
    names = [photo(tmp_path, "1.jpg", (600, 400)), photo(tmp_path, "2.jpg", (400, 600))]
    sizes = {"1.jpg": (600, 400), "2.jpg": (400, 600)}
    cameras, ids = cameras_of_images(tmp_path, names, CameraConfig(mode="single"))
    with pytest.raises(BadInputError, match=r"'2\.jpg' is 400 x 600, but its camera 600 x 400"):
        check_sizes(cameras, ids, sizes)
    check_sizes(*cameras_of_images(tmp_path, names, CameraConfig()), sizes)
    check_sizes(cameras, ids, {"1.jpg": (600, 400), "2.jpg": (0, 0)})  # hloc's files do not say


def test_intrinsics_round_trip() -> None:
    given = Intrinsics("OPENCV", 800, 600, (700.0, 690.0, 400.0, 300.0, -0.1, 0.01, 0.0, 0.001))
    camera = to_camera(given, 7)
    assert to_intrinsics(camera) == given
    assert (camera.camera_id, camera.has_prior_focal_length) == (7, True)


def test_listed_intrinsics_are_used(tmp_path: Path) -> None:
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
    with pytest.raises(BadInputError, match=r"'2\.jpg' is 600 x 400 as stored, but its intrinsics are for 400 x 600"):
        cameras_of_images(tmp_path, names, CameraConfig(), turned)
