import numpy as np
import pycolmap
import pytest

from featkit.core.types import Pose
from featkit.geometry.epipolar import epipolar_distances, epipolar_inliers, essential_matrix
from featkit.geometry.poses import rotation_matrix


def scene(seed: int) -> tuple[Pose, Pose, np.ndarray, np.ndarray]:
    """Two random cameras and normalised projections of points in front of both."""
    rng = np.random.default_rng(seed)
    poses = [
        Pose(np.array([1.0, *rng.uniform(-0.2, 0.2, 3)]), np.array([*rng.uniform(-1, 1, 2), rng.uniform(4, 5)]))
        for _ in range(2)
    ]
    points = rng.uniform(-1, 1, (50, 3))
    seen = [points @ rotation_matrix(pose.qvec).T + pose.tvec for pose in poses]
    return (*poses, *(s[:, :2] / s[:, 2:] for s in seen))  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(10))
def test_exact_matches_lie_on_their_lines(seed: int) -> None:
    pose0, pose1, x0, x1 = scene(seed)
    distance0, distance1 = epipolar_distances(essential_matrix(pose0, pose1), x0, x1)
    assert max(distance0.max(), distance1.max()) < 1e-9


def test_against_pycolmap() -> None:
    pose0, pose1, _, _ = scene(3)
    rigid = []
    for pose in (pose0, pose1):
        w, x, y, z = pose.qvec / np.linalg.norm(pose.qvec)
        rigid.append(pycolmap.Rigid3d(pycolmap.Rotation3d([x, y, z, w]), pose.tvec))
    theirs = np.asarray(pycolmap.essential_matrix_from_pose(rigid[1] * rigid[0].inverse()))
    ours = essential_matrix(pose0, pose1)
    assert ours / np.linalg.norm(ours) == pytest.approx(theirs / np.linalg.norm(theirs), abs=1e-12)


def test_distances_against_kornia() -> None:
    torch = pytest.importorskip("torch")
    epipolar = pytest.importorskip("kornia.geometry.epipolar")
    pose0, pose1, x0, x1 = scene(4)
    essential = essential_matrix(pose0, pose1)
    x1 = x1 + np.random.default_rng(0).normal(0, 0.01, x1.shape)
    t0, t1, e = (torch.from_numpy(v)[None] for v in (x0, x1, essential))
    theirs1 = epipolar.left_to_right_epipolar_distance(t0, t1, e)[0].numpy()
    theirs0 = epipolar.right_to_left_epipolar_distance(t0, t1, e)[0].numpy()
    distance0, distance1 = epipolar_distances(essential, x0, x1)
    assert distance1 == pytest.approx(theirs1, rel=1e-6)
    assert distance0 == pytest.approx(theirs0, rel=1e-6)


def test_distance_is_of_the_line_in_the_right_image() -> None:
    """Camera 1 stands beside camera 0: lines are rows, so a point one row off is that far away in both images."""
    still = Pose(np.array([1.0, 0, 0, 0]), np.zeros(3))
    beside = Pose(np.array([1.0, 0, 0, 0]), np.array([-1.0, 0, 0]))
    essential = essential_matrix(still, beside)
    distances = epipolar_distances(essential, np.array([[0.1, 0.2]]), np.array([[0.4, 0.25]]))
    assert [float(d[0]) for d in distances] == pytest.approx([0.05, 0.05])
    args = (essential, np.array([[0.1, 0.2]]), np.array([[0.4, 0.25]]))
    assert epipolar_inliers(*args, 0.051, 0.051).tolist() == [True]
    assert epipolar_inliers(*args, 0.049, 0.051).tolist() == [False]
    assert epipolar_inliers(*args, 0.051, 0.049).tolist() == [False]


def test_both_thresholds_count_in_their_own_image() -> None:
    """Camera 1 is further away and turned: the same miss is another distance in each image."""
    near = Pose(np.array([1.0, 0, 0, 0]), np.zeros(3))
    far = Pose(np.array([1.0, 0.3, -0.1, 0.05]), np.array([0.3, 0.1, 2.0]))
    essential = essential_matrix(near, far)
    x0, x1 = np.array([[0.4, 0.1]]), np.array([[0.2, 0.3]])
    distance0, distance1 = epipolar_distances(essential, x0, x1)
    assert abs(distance0[0] - distance1[0]) > 0.01
    line1 = essential @ [0.4, 0.1, 1]
    assert distance1[0] == pytest.approx(abs(line1 @ [0.2, 0.3, 1]) / np.hypot(*line1[:2]))


def test_no_points() -> None:
    empty = np.zeros((0, 2))
    pose0, pose1, _, _ = scene(0)
    assert epipolar_inliers(essential_matrix(pose0, pose1), empty, empty, 1, 1).shape == (0,)
