"""Models to keep, and the camera's motion from verified pairs, on exact synthetic geometry."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from scipy.spatial.transform import Rotation

from featkit.core.types import Pair
from featkit.mapping.model import read_model
from featkit.mapping.outcome import (
    CameraMotion,
    KeepConfig,
    camera_motion,
    map_warnings,
    models_to_keep,
    no_model_reason,
    parallax_deg,
    rig_warnings,
    share_in_points,
)
from featkit.mapping.stage import MapConfig, build_map, incremental_options
from featkit.mapping.verify import VerifyConfig, verify_by_ransac

WIDTH, HEIGHT, FOCAL = 640, 480, 700.0
K = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])


def plane_homography(rotation: Rotation, moved: np.ndarray) -> np.ndarray:
    """Homography between two images of a slightly tilted plane, 3 units in front of the first camera."""
    normal = np.array([0.3, 0.1, -1.0]) / np.linalg.norm([0.3, 0.1, -1.0])
    return K @ (rotation.as_matrix() - np.outer(moved, normal) / -3.0) @ np.linalg.inv(K)


def database(path: Path, homographies: list[np.ndarray], known_focal: bool, kind: str = "PLANAR_OR_PANORAMIC") -> Path:
    """A database with pairs of image 1 with every other image."""
    with pycolmap.Database.open(str(path)) as opened:
        camera = pycolmap.Camera.create_from_model_name(1, "PINHOLE", FOCAL if known_focal else 500.0, WIDTH, HEIGHT)
        camera.has_prior_focal_length = known_focal
        opened.write_camera(camera, use_camera_id=True)
        for number in range(len(homographies) + 1):
            image = pycolmap.Image(name=f"{number}.jpg", camera_id=1, image_id=number + 1)
            opened.write_image(image, use_image_id=True)
        for number, homography in enumerate(homographies, start=2):
            geometry = pycolmap.TwoViewGeometry()
            geometry.config = getattr(pycolmap.TwoViewGeometryConfiguration, kind)
            geometry.H = homography
            geometry.inlier_matches = np.stack([np.arange(20)] * 2, 1).astype(np.uint32)
            opened.write_two_view_geometry(1, number, geometry)
    return path


def turns(*degrees: float) -> list[np.ndarray]:
    return [plane_homography(Rotation.from_euler("y", angle, degrees=True), np.zeros(3)) for angle in degrees]


@pytest.mark.parametrize("known_focal", [True, False])
def test_rotating_camera_is_detected(known_focal: bool, tmp_path: Path) -> None:
    motion = camera_motion(database(tmp_path / "turns.db", turns(4, 9, -7, 15, 22), known_focal))
    assert (motion.pairs, motion.turned, motion.still) == (5, 5, 0)
    assert motion.only_turned
    assert "the camera only rotated: 5 of 5" in no_model_reason(motion)


def test_static_camera_is_detected(tmp_path: Path) -> None:
    motion = camera_motion(database(tmp_path / "still.db", [2.0 * np.eye(3)] * 4, known_focal=False))
    assert motion.did_not_move
    assert "the camera did not move: in 4 of 4" in no_model_reason(motion)


@pytest.mark.parametrize("known_focal", [True, False])
def test_moving_camera_in_front_of_a_plane_is_not_a_rotation(known_focal: bool, tmp_path: Path) -> None:
    steps = [(5, [0.6, 0, 0]), (-8, [0.9, 0.2, 0]), (12, [-1.2, 0, 0.3]), (3, [0, 0.8, 0.2])]
    views = [plane_homography(Rotation.from_euler("y", a, degrees=True), np.array(m)) for a, m in steps]
    motion = camera_motion(database(tmp_path / "plane.db", views, known_focal))
    assert (motion.pairs, motion.only_turned, motion.did_not_move) == (4, False, False)
    assert "too little in common" in no_model_reason(motion)


def test_flight_over_flat_ground_is_not_a_rotation(tmp_path: Path) -> None:
    """Small steps above flat ground look similar to a panning camera."""
    steps = [np.array([x, y, 0.0]) for x, y in ((0.2, 0), (0.4, 0.1), (0, 0.3), (-0.3, 0.2))]
    views = [K @ (np.eye(3) + np.outer(step, [0, 0, 1 / 3.0])) @ np.linalg.inv(K) for step in steps]
    for known_focal in (True, False):
        motion = camera_motion(database(tmp_path / f"{known_focal}.db", views, known_focal))
        assert (motion.pairs, motion.turned) == (4, 0)


def test_pairs_with_and_without_depth(tmp_path: Path) -> None:
    motion = camera_motion(database(tmp_path / "depth.db", turns(4, 9), known_focal=True, kind="CALIBRATED"))
    assert (motion.pairs, motion.turned) == (2, 0)
    assert "no pair of photographs was verified" in no_model_reason(
        camera_motion(database(tmp_path / "0.db", [], True))
    )


def test_parallax_and_models_to_keep() -> None:
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_name(1, "PINHOLE", FOCAL, WIDTH, HEIGHT)
    model.add_camera_with_trivial_rig(camera)
    for number, x in enumerate((-1.0, 0.0, 1.0), start=1):
        image = pycolmap.Image(name=f"{number}.jpg", keypoints=np.zeros((1, 2)), camera_id=1, image_id=number)
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([-x, 0, 0]))
        model.add_image_with_trivial_frame(image, pose)
    track = pycolmap.Track()
    for number in (1, 2, 3):
        track.add_element(number, 0)
    model.add_point3D(np.array([0, 0, 10.0]), track)
    assert parallax_deg(model) == pytest.approx(2 * np.degrees(np.arctan(0.1)))
    assert models_to_keep([model], KeepConfig(min_points_per_image=1, min_parallax_deg=11.0)) == [model]
    assert models_to_keep([model], KeepConfig(min_points_per_image=1, min_parallax_deg=12.0)) == []
    assert models_to_keep([model], KeepConfig(min_points_per_image=2, min_parallax_deg=1.0)) == []
    assert models_to_keep([model, model], KeepConfig(min_points_per_image=1)) == [model], (
        "the second is inside the first"
    )


def test_warnings() -> None:
    still = CameraMotion(10, 0, 0)
    assert map_warnings([{"a", "b"}], ["a", "b"], still) == []
    (one,) = map_warnings([{"a", "b"}], ["a", "b", "c"], still)
    assert one.startswith("1 of 3 photographs are not in the map: c; ")
    _, models = map_warnings([{"a", "b"}, {"c", "d", "e"}], list("abcde"), still)
    assert "2 models: the largest, and models of 3 images in sparse/1" in models
    split, pairs = [{"a", "b", "c"}, {"c", "d"}], [Pair("a", "b"), Pair("d", "a"), Pair("b", "d"), Pair("c", "d")]
    (models,) = map_warnings(split, list("abcd"), still, sparse=Path("scene/sparse"), pairs=pairs)[1:]
    assert "sparse/1 shares 1 photographs and 3 verified pairs with sparse/0" in models
    assert "`featkit merge scene/sparse/0 scene/sparse/1 --out scene/merged`" in models
    (turned,) = map_warnings([{"a"}], ["a"], CameraMotion(10, 9, 0))
    assert "in 9 of 10 verified pairs the camera only rotated" in turned


def drive(path: Path, step: float, images: int = 8, points: int = 600) -> Path:
    """A verified database of photographs taken while driving along the viewing direction, through a tube of points."""
    rng = np.random.default_rng(0)
    angle, depth, radius = rng.uniform(0, 2 * np.pi, points), rng.uniform(6, 40, points), rng.uniform(2, 6, points)
    world = np.stack([radius * np.cos(angle), radius * np.sin(angle), depth], 1)
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", 600.0, 800, 600)
    camera.has_prior_focal_length = True
    seen = []
    with pycolmap.Database.open(str(path)) as opened:
        opened.write_camera(camera, use_camera_id=True)
        rig = pycolmap.Rig(rig_id=1)
        rig.add_ref_sensor(camera.sensor_id)
        opened.write_rig(rig, use_rig_id=True)
        for number in range(images):
            local = world - [0, 0, number * step]
            pixels = 600.0 * local[:, :2] / local[:, 2:] + [400, 300] + rng.normal(0, 0.3, (points, 2))
            shown = (local[:, 2] > 1) & (pixels > 0).all(1) & (pixels < [800, 600]).all(1)
            seen.append(np.flatnonzero(shown))
            image = pycolmap.Image(name=f"{number}.jpg", camera_id=1, image_id=number + 1)
            opened.write_image(image, use_image_id=True)
            frame = pycolmap.Frame(frame_id=number + 1, rig_id=1)
            frame.add_data_id(image.data_id)
            opened.write_frame(frame, use_frame_id=True)
            opened.write_keypoints(number + 1, pixels[shown].astype(np.float32))
        for first in range(images):
            for second in range(first + 1, min(images, first + 4)):
                _, left, right = np.intersect1d(seen[first], seen[second], return_indices=True)
                opened.write_matches(first + 1, second + 1, np.stack([left, right], 1).astype(np.uint32))
    verify_by_ransac(path, VerifyConfig())
    return path


@pytest.mark.slow
def test_forward_motion_gets_a_second_attempt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If COLMAP's limits allow no initial pair, smaller angles and forward motion are allowed."""
    found = drive(tmp_path / "database.db", step=1.0)
    config = MapConfig(extract_colors=False)
    (tmp_path / "plain").mkdir()
    options = incremental_options(config, 8)
    plain = pycolmap.incremental_mapping(str(found), str(tmp_path), str(tmp_path / "plain"), options=options)
    assert not models_to_keep(list(plain.values()), config.keep, 3)
    with caplog.at_level(logging.INFO, "featkit"):
        sparse = build_map(config, tmp_path, found, tmp_path / "sparse")
    assert "initial pairs with a triangulation angle of 4 degrees" in caplog.text
    assert read_model(sparse / "0").num_reg_images() == 8


def test_a_map_that_few_matches_are_of_is_doubted(tmp_path: Path) -> None:
    """As with a false relation of a rig's cameras. Beside a loop over all matches of a synthetic scene."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig, options.num_points3D = 1, 2, 4, 60
    with pycolmap.Database.open(str(tmp_path / "a.db")) as database:
        model = pycolmap.synthesize_dataset(options, database)
    assert share_in_points(tmp_path / "a.db", model) > 0.95
    for share in (0.5, 0.1):
        for point_id in sorted(model.points3D)[round(60 * share) :]:
            model.delete_point3D(point_id)
        joined = total = 0
        with pycolmap.Database.open(str(tmp_path / "a.db")) as database:
            for pair_id, geometry in zip(*database.read_two_view_geometries(), strict=True):
                first, second = (model.images[i].points2D for i in pycolmap.pair_id_to_image_pair(pair_id))
                for index0, index1 in geometry.inlier_matches:
                    total += 1
                    joined += first[index0].has_point3D() and first[index0].point3D_id == second[index1].point3D_id
        assert share_in_points(tmp_path / "a.db", model) == pytest.approx(joined / total)
    (tmp_path / "sparse" / "0").mkdir(parents=True)
    model.write(str(tmp_path / "sparse" / "0"))
    (warning,) = rig_warnings(tmp_path / "a.db", tmp_path / "sparse")
    assert "its rigs do not fit the photographs" in warning
