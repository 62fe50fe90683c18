"""Tracks of a COLMAP model compared with pycolmap's model, with lens distortion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from featkit.core.errors import BadInputError, UsageError
from featkit.data.tracks import NO_LICENCE
from featkit.mapping.covisibility import CameraProjector, mapped_scenes, model_components, read_tracks


def synthetic(folder: Path, frames: int = 5, points: int = 60, radial: float = -0.08) -> pycolmap.Reconstruction:
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, frames, points
    options.num_points2D_without_point3D = 7
    options.camera_model_id = pycolmap.CameraModelId.SIMPLE_RADIAL
    options.camera_params = [1280.0, 512.0, 384.0, radial]
    options.track_length = 3
    pycolmap.set_random_seed(3)
    model = pycolmap.synthesize_dataset(options)
    folder.mkdir(parents=True)
    model.write(str(folder))
    return model


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    synthetic(tmp_path / "church" / "sparse")
    (tmp_path / "church" / "images").mkdir()
    return tmp_path / "church"


def test_observations_equal_those_of_the_model(scene: Path) -> None:
    model = pycolmap.Reconstruction(str(scene / "sparse"))
    tracks = read_tracks(scene / "sparse", "church")
    assert tracks.name == "church"
    assert tracks.image_names == tuple(sorted(image.name for image in model.images.values()))
    ids = sorted(model.points3D)
    np.testing.assert_allclose(tracks.points, [model.points3D[i].xyz for i in ids])
    wanted = set()
    for image in model.images.values():
        for point in image.points2D:
            if point.has_point3D():
                place = (ids.index(point.point3D_id), tracks.image_names.index(image.name))
                wanted.add((*place, *np.round(point.xy - 0.5, 6)))
    rows = zip(tracks.observed_points, tracks.observed_images, *np.round(tracks.observed_xy, 6).T, strict=True)
    assert set(rows) == wanted
    assert len(tracks.observed_points) == len(wanted) == 60 * 3
    assert (np.diff(tracks.observed_points) >= 0).all()


def test_projection_equals_pycolmaps_minus_half_a_pixel(scene: Path) -> None:
    model = pycolmap.Reconstruction(str(scene / "sparse"))
    tracks = read_tracks(scene / "sparse")
    for number, name in enumerate(tracks.image_names):
        image = next(image for image in model.images.values() if image.name == name)
        views = tracks.views(number, np.arange(len(tracks.points)))
        for point, xy, depth in zip(tracks.points, views.xy, views.depth, strict=True):
            wanted = image.project_point(point)
            if wanted is not None and np.isfinite(xy).all():
                np.testing.assert_allclose(xy, wanted - 0.5, atol=1e-9)
                assert depth == pytest.approx((image.cam_from_world() * point)[2])
        seen = tracks.observed_points[tracks.observed_images == number]
        assert np.isfinite(views.xy[seen]).all()
        np.testing.assert_array_equal(tracks.image_sizes[number], (1024, 768))


def test_rays_invert_projection(scene: Path) -> None:
    tracks = read_tracks(scene / "sparse")
    index = tracks.observed_points[tracks.observed_images == 2]
    views = tracks.views(2, index)
    np.testing.assert_allclose(tracks.back_projected(2, views.xy, views.depth), tracks.points[index], atol=1e-6)


def test_points_beyond_the_fold_of_a_distortion_are_nan() -> None:
    """r (1 - 0.3 r^2) increases up to r = 1.05, then decreases, so that points project into the image again."""
    camera = pycolmap.Camera(model="SIMPLE_RADIAL", width=1000, height=800, params=[500.0, 500, 400, -0.3])
    slope = np.array([0.2, 0.8, 1.6])
    points = np.stack([slope, 0 * slope, np.ones(3)], axis=1)
    folded = np.asarray(camera.img_from_cam(points))[2]
    assert 0 < folded[0] < 1000, "pycolmap alone sees the point"
    pixels = CameraProjector(camera).project(points)
    assert np.isfinite(pixels).all(axis=1).tolist() == [True, True, False]
    np.testing.assert_allclose(pixels[:2, 0], 499.5 + 500 * slope[:2] * (1 - 0.3 * slope[:2] ** 2))
    assert np.isnan(CameraProjector(camera).project(-points)).all()


def test_models_are_found_in_all_layouts(tmp_path: Path) -> None:
    for place in ("a/sparse", "b/sparse/0", "c/featkit/sparse/0", "d"):
        synthetic(tmp_path / place)
        assert model_components(tmp_path / place.split("/")[0]) == [tmp_path / place]
    (tmp_path / "e").mkdir()
    (tmp_path / "f").touch()
    for name, message in (("e", "no COLMAP model"), ("f", "is a file"), ("g", "no such folder")):
        with pytest.raises(BadInputError, match=message):
            model_components(tmp_path / name)


@pytest.mark.parametrize("form", ["binary", "text"])
def test_megadepth_layout(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    """0001/sparse/manhattan/0 and other components, and 0001/images; a component with one image is skipped."""
    scene = tmp_path / "MegaDepth_v1_SfM" / "0001"
    (scene / "images").mkdir(parents=True)
    models = {}
    for part, frames in (("0", 5), ("1", 4), ("2", 1)):
        folder = scene / "sparse" / "manhattan" / part
        models[part] = synthetic(folder, frames=max(frames, 3))
        if frames == 1:
            for image in list(models[part].reg_image_ids())[1:]:
                models[part].deregister_frame(models[part].images[image].frame_id)
        for file in folder.iterdir():
            file.unlink()
        getattr(models[part], f"write_{form}")(str(folder))
        for newer in ("rigs", "frames"):  # which COLMAP did not write then
            for suffix in (".bin", ".txt"):
                (folder / f"{newer}{suffix}").unlink(missing_ok=True)
    assert model_components(scene)[0] == scene / "sparse" / "manhattan" / "0"
    with caplog.at_level("WARNING", "featkit"):
        found = mapped_scenes([scene])
    assert [(one.tracks.name, one.images) for one in found] == [
        ("0001", scene / "images"),
        ("0001.1", scene / "images"),
    ]
    assert "passed over: " in caplog.text
    assert "manhattan/2: 1 images" in caplog.text
    for one, part in zip(found, "01", strict=True):
        images = {image.name: image for image in models[part].images.values()}
        assert one.tracks.image_names == tuple(sorted(images))
        for row, name in enumerate(one.tracks.image_names):
            pose = images[name].cam_from_world().matrix()
            np.testing.assert_allclose(one.tracks.rotations[row], pose[:, :3], atol=1e-9)
            np.testing.assert_allclose(one.tracks.translations[row], pose[:, 3], atol=1e-9)
        np.testing.assert_allclose(
            one.tracks.points, [models[part].points3D[i].xyz for i in sorted(models[part].points3D)], atol=1e-9
        )


def test_licence_file_of_a_scene_is_read(scene: Path) -> None:
    (found,) = mapped_scenes([scene])
    assert (found.tracks.name, found.images, found.licence) == ("church", scene / "images", NO_LICENCE)
    (scene / "LICENSE.md").write_text("CC0")
    assert mapped_scenes([scene])[0].licence == "CC0"
    assert mapped_scenes([scene], "mine")[0].licence == "mine"


def test_two_scenes_of_one_name_are_refused(scene: Path, tmp_path: Path) -> None:
    synthetic(tmp_path / "other" / "church" / "sparse")
    with pytest.raises(UsageError, match="two scenes are named 'church'"):
        mapped_scenes([scene, tmp_path / "other" / "church"])


def test_a_model_without_points_is_refused(tmp_path: Path) -> None:
    model = synthetic(tmp_path / "sparse")
    for point in list(model.points3D):
        model.delete_point3D(point)
    model.write(str(tmp_path / "sparse"))
    with pytest.raises(BadInputError, match="5 images and 0 points"):
        read_tracks(tmp_path / "sparse")
