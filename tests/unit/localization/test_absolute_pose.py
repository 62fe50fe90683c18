"""Pose of one query: exact on exact data, and its stated uncertainty is the scatter one sees."""

import re

import numpy as np
import pycolmap
import pytest

from featkit.core.types import Pose
from featkit.geometry.poses import camera_centre, look_at, rotation_angle_deg, rotation_matrix
from featkit.localization.absolute_pose import MapPoints, PoseConfig, PoseEstimate, estimate_pose, squared_residuals
from featkit.mapping.cameras import to_rigid

CONFIG = PoseConfig()
UP = np.array([0.0, 0.0, 1.0])


def camera(focal: float = 700.0) -> pycolmap.Camera:
    return pycolmap.Camera(model="SIMPLE_PINHOLE", width=800, height=600, params=[focal, 400, 300])


def view(seed: int, count: int = 120) -> tuple[Pose, np.ndarray, np.ndarray]:
    """A camera turned and shifted at random, points in front of it, and their exact projections."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-3, -2, -2], [3, 2, 2], (count, 3)) + np.array([10, -20, 5])
    pose = look_at(np.array([10.0, -20, 5]) + rng.normal(size=3) * 2 + np.array([0, 9, 0]), points.mean(0), UP)
    seen = camera().img_from_cam(to_rigid(pose) * points)
    return pose, points, np.asarray(seen)


def solved(points2d: np.ndarray, points3d: np.ndarray, config: PoseConfig = CONFIG, **more: bool) -> PoseEstimate:
    estimate = estimate_pose(points2d, points3d, camera(), config, **more)
    assert estimate is not None
    return estimate


def errors(pose: Pose, truth: Pose) -> tuple[float, float]:
    centre = float(np.linalg.norm(camera_centre(pose) - camera_centre(truth)))
    return centre, rotation_angle_deg(rotation_matrix(pose.qvec), rotation_matrix(truth.qvec))


@pytest.mark.parametrize("seed", range(5))
def test_exact_data_gives_the_exact_pose(seed: int) -> None:
    truth, points, seen = view(seed)
    estimate = solved(seen, points)
    centre, angle = errors(estimate.pose, truth)
    assert centre < 1e-7
    assert angle < 1e-6
    assert estimate.inlier.all()
    assert estimate.residual_px < 1e-6
    assert estimate.centre_std < 1e-6


@pytest.mark.parametrize(("seed", "sigma_px"), [(0, 1.5), (1, 0.2), (2, 1.0)])
def test_the_stated_uncertainty_is_the_scatter(seed: int, sigma_px: float) -> None:
    """Monte Carlo: noise on the projections, the pose again and again, RMS errors beside the stated ones."""
    truth, points, seen = view(seed)
    rng = np.random.default_rng(100 + seed)
    table = []
    for _ in range(200):
        estimate = solved(seen + rng.normal(0, sigma_px, seen.shape), points, PoseConfig(max_trials=200))
        assert estimate.inlier.all()
        table.append(
            (*errors(estimate.pose, truth), estimate.centre_std, estimate.rotation_std_deg, estimate.residual_px)
        )
    centre, angle, centre_std, rotation_std, residual = np.sqrt(np.mean(np.square(table), axis=0))
    assert centre_std == pytest.approx(centre, rel=0.15)
    assert rotation_std == pytest.approx(angle, rel=0.15)
    assert residual == pytest.approx(sigma_px, rel=0.02)


def test_uncertainty_has_the_unit_of_the_map() -> None:
    """The same view of a world ten times as large: ten times the centre's deviation, the rotation's the same."""
    _, points, seen = view(1)
    noisy = seen + np.random.default_rng(0).normal(0, 1, seen.shape)
    one, ten = solved(noisy, points), solved(noisy, 10 * points)
    assert ten.centre_std == pytest.approx(10 * one.centre_std, rel=1e-3)
    assert ten.rotation_std_deg == pytest.approx(one.rotation_std_deg, rel=1e-3)
    moved = solved(noisy, points + np.array([1000.0, -500.0, 200.0]))
    assert moved.centre_std == pytest.approx(one.centre_std, rel=1e-3)


def test_outliers_are_rejected() -> None:
    truth, points, seen = view(3, 200)
    rng = np.random.default_rng(0)
    noisy = seen + rng.normal(0, 0.5, seen.shape)
    wrong = rng.permutation(200)[:100]
    noisy[wrong] = rng.uniform([0, 0], [800, 600], (100, 2))
    estimate = solved(noisy, points)
    centre, angle = errors(estimate.pose, truth)
    assert centre < 0.05
    assert angle < 0.3
    far = np.linalg.norm(noisy - seen, axis=1) > 2 * CONFIG.max_error_px
    assert not estimate.inlier[far].any()
    assert estimate.inlier[~np.isin(np.arange(200), wrong)].all()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_points(count: int) -> None:
    _, points, seen = view(0)
    assert estimate_pose(seen[:count], points[:count], camera(), CONFIG) is None


def test_the_same_seed_gives_the_same_pose() -> None:
    _, points, seen = view(4)
    noisy = seen + np.random.default_rng(0).normal(0, 3, seen.shape)
    a, b = solved(noisy, points), solved(noisy, points)
    assert a.pose.qvec.tobytes() == b.pose.qvec.tobytes()
    assert a.pose.tvec.tobytes() == b.pose.tvec.tobytes()


def test_the_edges_of_a_panorama_are_next_to_each_other() -> None:
    """Keypoints that noise moves over the left or right edge have the residual of the others, not the image's width."""
    width, height, sigma_px = 2000, 1000, 0.5
    panorama = pycolmap.Camera(model="EQUIRECTANGULAR", width=width, height=height, params=[width, height])
    rng = np.random.default_rng(4)
    points = np.column_stack([rng.normal(size=(2000, 2)) * [1e-3, 0.5], np.full(2000, -1.0)])  # behind: at the edges
    truth = np.asarray(panorama.img_from_cam(points))
    noise = rng.normal(size=truth.shape) * sigma_px
    seen = (truth + noise) % [width, np.inf]
    assert (np.abs(seen[:, 0] - truth[:, 0]) > width / 2).sum() > 100
    there = squared_residuals(pycolmap.Rigid3d(), panorama, seen, points)
    np.testing.assert_allclose(there, (noise**2).sum(axis=1), rtol=0, atol=1e-6)


def test_the_focal_length_is_refined_on_request() -> None:
    truth, points, seen = view(2, 200)
    given = camera(840.0)
    kept = estimate_pose(seen, points, given, PoseConfig(max_error_px=50))
    refined = estimate_pose(seen, points, given, CONFIG, refine_focal=True)
    assert kept is not None
    assert refined is not None
    assert kept.camera.params[0] == 840.0
    assert refined.camera.params[0] == pytest.approx(700, rel=1e-4)
    assert errors(refined.pose, truth)[0] < 1e-3
    assert errors(kept.pose, truth)[0] > 0.1
    assert given.params[0] == 840.0, "the caller's camera is left alone"


def test_distortion_is_modelled() -> None:
    """Points are seen through the camera's own distortion, and residuals are in its pixels."""
    truth, points, _ = view(6)
    lens = pycolmap.Camera(model="OPENCV", width=800, height=600, params=[700, 690, 400, 300, -0.2, 0.05, 0.001, 0.002])
    seen = np.asarray(lens.img_from_cam(to_rigid(truth) * points))
    estimate = estimate_pose(seen, points, lens, CONFIG)
    assert estimate is not None
    assert errors(estimate.pose, truth)[0] < 1e-6
    assert estimate.residual_px < 1e-6


class KeypointsOf:
    """The features of a model's images, as far as a map is compared with them."""

    path = "features.h5"

    def __init__(self, model: pycolmap.Reconstruction):
        self.images = {image.name: image for image in model.images.values()}

    def keypoints(self, name: str) -> np.ndarray:
        return np.array([point.xy for point in self.images[name].points2D]) - 0.5


@pytest.fixture(scope="module")
def noisy_map() -> MapPoints:
    """Five images of 300 points, keypoints with half a pixel of noise; their projections are known."""
    pycolmap.set_random_seed(3)
    options = pycolmap.SyntheticDatasetOptions(num_rigs=1, num_frames_per_rig=5, num_points3D=300)
    options.camera_model_id = pycolmap.CameraModelId.PINHOLE
    options.camera_params = [1280.0, 1280.0, 512.0, 384.0]
    model = pycolmap.synthesize_dataset(options)
    pycolmap.synthesize_noise(pycolmap.SyntheticNoiseOptions(point2D_stddev=0.5), model)
    return MapPoints(model, KeypointsOf(model))  # type: ignore[arg-type]


def test_the_maps_own_residual(noisy_map: MapPoints) -> None:
    distances = []
    for image in noisy_map.model.images.values():
        pose, (fx, fy, cx, cy) = image.cam_from_world().matrix(), noisy_map.model.cameras[image.camera_id].params
        for point in image.points2D:
            if point.has_point3D():
                x, y, z = pose[:, :3] @ noisy_map.model.points3D[point.point3D_id].xyz + pose[:, 3]
                distances.append(np.hypot(fx * x / z + cx - point.xy[0], fy * y / z + cy - point.xy[1]))
    median_px, longer = noisy_map.reprojection
    assert median_px == pytest.approx(np.median(distances), rel=1e-6)
    assert median_px == pytest.approx(0.5 * np.sqrt(2 * np.log(2)), rel=0.1)  # Rayleigh's median
    assert longer == 1024


def test_a_pose_by_a_wrong_camera_is_uncertain(noisy_map: MapPoints) -> None:
    """A wrong focal length by what it becomes when it is free, also a little wrong; anything else by the map."""
    image = next(iter(noisy_map.model.images.values()))
    seen = [point for point in image.points2D if point.has_point3D()]
    points2d = np.array([point.xy for point in seen])
    points3d = noisy_map.xyz(np.array([point.point3D_id for point in seen]))
    blurred = points2d + np.random.default_rng(0).normal(0, 4, points2d.shape)

    def reason(points: np.ndarray, focal: float = 1280, side: int = 1024, config: PoseConfig = CONFIG) -> str:
        own = pycolmap.Camera(model="SIMPLE_PINHOLE", width=side, height=side, params=[focal, 512, 384])
        estimate = estimate_pose(points, points3d, own, config)
        assert estimate is not None
        assert estimate.inlier.sum() >= config.min_inliers
        return noisy_map.uncertain(estimate, config)

    assert reason(points2d) == ""
    assert re.search(r"length of 12[6-9]\d px instead of 1000 px", reason(points2d, 1000))
    assert "px instead of 1200 px" in reason(points2d, 1200)
    assert reason(points2d, 1200, config=CONFIG.model_copy(update={"focal_ratio": 1e6})) == "", "the map would not do"
    assert "px, those of the map 0." in reason(blurred)
    assert reason(blurred, side=102400) == "", "a hundred times as large, keypoints may be as much coarser"
