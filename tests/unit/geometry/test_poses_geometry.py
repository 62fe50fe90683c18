import numpy as np
import pycolmap
import pytest

from featkit.core.types import Pose
from featkit.geometry.poses import camera_centre, facing, look_at, quaternion, rotation_angle_deg, rotation_matrix


def random_rotations(count: int) -> list[pycolmap.Rotation3d]:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(count, 4))
    return [pycolmap.Rotation3d(row / np.linalg.norm(row)) for row in rows]


def axis_rotation(axis: np.ndarray, degrees: float) -> np.ndarray:
    unit = np.asarray(axis, float) / np.linalg.norm(axis)
    return pycolmap.Rotation3d(unit * np.radians(degrees)).matrix()


@pytest.mark.parametrize("rotation", random_rotations(30))
def test_against_pycolmap(rotation: pycolmap.Rotation3d) -> None:
    x, y, z, w = rotation.quat
    ours = rotation_matrix(np.array([w, x, y, z]))
    assert ours == pytest.approx(rotation.matrix(), abs=1e-14)
    assert rotation_matrix(-7 * np.array([w, x, y, z])) == pytest.approx(ours, abs=1e-14)
    assert quaternion(rotation.matrix()) == pytest.approx(np.array([w, x, y, z]) * (1 if w > 0 else -1), abs=1e-12)


@pytest.mark.parametrize("axis", [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, -2, 3]])
@pytest.mark.parametrize("degrees", [0.0, 1e-7, 90.0, 179.999999, 180.0])
def test_quaternion_of_hard_angles(axis: list[float], degrees: float) -> None:
    matrix = axis_rotation(np.array(axis), degrees)
    q = quaternion(matrix)
    assert np.linalg.norm(q) == pytest.approx(1, abs=1e-14)
    assert q[0] >= 0
    assert rotation_matrix(q) == pytest.approx(matrix, abs=1e-13)


@pytest.mark.parametrize("degrees", [0.0, 1e-12, 1e-9, 1e-6, 1e-3, 0.5, 10.0, 89.0, 91.0, 179.0, 179.9999, 180.0])
def test_angle_is_exact_for_small_and_large_angles(degrees: float) -> None:
    """arccos of the trace would lose everything below 1e-6 degrees."""
    base = random_rotations(1)[0].matrix()
    turned = base @ axis_rotation(np.array([1.0, -2.0, 0.5]), degrees)
    assert rotation_angle_deg(base, turned) == pytest.approx(degrees, rel=1e-6, abs=5e-14)
    assert rotation_angle_deg(turned, base) == pytest.approx(degrees, rel=1e-6, abs=5e-14)


def test_look_at() -> None:
    centre, target, up = np.array([3.0, -2.0, 1.0]), np.array([0.5, 4.0, 2.0]), np.array([0.0, 0.0, 1.0])
    pose = look_at(centre, target, up)
    rotation = rotation_matrix(pose.qvec)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert camera_centre(pose) == pytest.approx(centre)
    seen = rotation @ target + pose.tvec
    assert seen == pytest.approx([0, 0, np.linalg.norm(target - centre)], abs=1e-12)
    above = rotation @ (target + up) + pose.tvec
    assert above[1] < 0, "y points down in the image"
    assert above[0] == pytest.approx(0, abs=1e-12)


def test_centre_against_pycolmap() -> None:
    rotation = random_rotations(3)[2]
    x, y, z, w = rotation.quat
    rigid = pycolmap.Rigid3d(rotation, np.array([1.0, 2.0, 3.0]))
    assert camera_centre(Pose(np.array([w, x, y, z]), rigid.translation)) == pytest.approx(
        rigid.inverse().translation, abs=1e-12
    )


def test_directions_turned_to_the_z_axis() -> None:
    rays = np.concatenate([np.random.default_rng(0).normal(size=(50, 3)), np.eye(3), -np.eye(3)])
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    found = facing(rays)
    assert np.einsum("nij,nj->ni", found, rays) == pytest.approx(np.tile([0.0, 0.0, 1.0], (56, 1)), abs=1e-12)
    assert found @ found.transpose(0, 2, 1) == pytest.approx(np.tile(np.eye(3), (56, 1, 1)), abs=1e-12)
    assert np.linalg.det(found) == pytest.approx(np.ones(56))
