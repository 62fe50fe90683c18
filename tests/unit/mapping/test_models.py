"""Alignment, statistics and reading of a synthetic model, compared with its known contents."""

import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from featkit.core.errors import BadInputError
from featkit.core.types import Pose
from featkit.geometry.poses import camera_centre, quaternion, rotation_angle_deg, rotation_matrix
from featkit.io.lists import write_poses
from featkit.mapping.align import compare_with_truth, transform_pose
from featkit.mapping.cameras import CameraConfig, to_pose, to_rigid
from featkit.mapping.model import (
    image_statistics,
    is_model,
    largest_first,
    map_statistics,
    point_ids,
    read_model,
    tracks_and_errors,
    write_models,
)
from featkit.mapping.reference import read_reference


def synthetic(frames: int = 6, points: int = 50, seed: int = 1) -> pycolmap.Reconstruction:
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, frames, points
    options.track_length = min(4, frames)
    pycolmap.set_random_seed(seed)
    return pycolmap.synthesize_dataset(options)


@pytest.fixture
def model() -> pycolmap.Reconstruction:
    return synthetic()


def poses_of(model: pycolmap.Reconstruction) -> dict[str, Pose]:
    return {image.name: to_pose(image.cam_from_world()) for image in model.images.values()}


def random_similarity(seed: int) -> pycolmap.Sim3d:
    rng = np.random.default_rng(seed)
    q = rng.normal(size=4)
    return pycolmap.Sim3d(
        float(rng.uniform(0.1, 10)), pycolmap.Rotation3d(q / np.linalg.norm(q)), rng.normal(size=3) * 9
    )


@pytest.mark.parametrize("seed", range(4))
def test_alignment_undoes_a_similarity(model: pycolmap.Reconstruction, seed: int) -> None:
    truth = poses_of(model)
    similarity = random_similarity(seed)
    model.transform(similarity)
    errors = compare_with_truth(model, truth)
    assert errors.names == sorted(truth)
    assert errors.centre.max() < 1e-9
    assert errors.rotation_deg.max() < 1e-9
    assert errors.truth_from_map == pytest.approx(np.asarray(similarity.inverse().matrix()), abs=1e-8)
    assert compare_with_truth(model, truth, align=False).centre.max() > 0.1
    for name, pose in poses_of(model).items():
        back = transform_pose(pose, errors.truth_from_map)
        assert camera_centre(back) == pytest.approx(camera_centre(truth[name]), abs=1e-9)
        assert rotation_angle_deg(rotation_matrix(back.qvec), rotation_matrix(truth[name].qvec)) < 1e-9


def test_errors_are_in_the_truths_units(model: pycolmap.Reconstruction) -> None:
    """One true camera is moved and rotated: without alignment only this one has errors, of exactly this size."""
    truth = poses_of(model)
    name = sorted(truth)[2]
    turn = pycolmap.Rotation3d(np.radians([0, 3.0, 0])).matrix()
    rotation = turn @ rotation_matrix(truth[name].qvec)
    centre = camera_centre(truth[name]) + np.array([0.3, 0, -0.4])
    truth[name] = Pose(quaternion(rotation), -rotation @ centre)
    errors = compare_with_truth(model, truth, align=False)
    assert errors.centre[2] == pytest.approx(0.5)
    assert errors.rotation_deg[2] == pytest.approx(3.0)
    assert np.delete(errors.centre, 2).max() < 1e-12


def test_too_few_or_collinear_cameras(model: pycolmap.Reconstruction) -> None:
    truth = poses_of(model)
    with pytest.raises(BadInputError, match="only 2 images"):
        compare_with_truth(model, dict(list(truth.items())[:2]))
    line = {n: Pose(np.array([1.0, 0, 0, 0]), np.array([float(i), 0, 0])) for i, n in enumerate(truth)}
    straight = synthetic()
    for image in straight.images.values():
        straight.frame(image.frame_id).set_cam_from_world(image.camera_id, to_rigid(line[image.name]))
    with pytest.raises(BadInputError, match="on one line"):
        compare_with_truth(straight, line)


def test_map_statistics_equal_slow_loops(model: pycolmap.Reconstruction) -> None:
    observations = sum(p.has_point3D() for image in model.images.values() for p in image.points2D)
    found = map_statistics(model, 9)
    assert (found.images, found.registered, found.points) == (9, 6, 50)
    assert found.observations == observations == 200
    assert found.track_length == pytest.approx(observations / 50)
    assert found.observations_per_image == pytest.approx(observations / 6)
    lengths, errors = tracks_and_errors(model)
    assert lengths.sum() == observations
    assert found.reprojection_px == pytest.approx(errors.mean())


def test_image_statistics_equal_slow_loops(model: pycolmap.Reconstruction) -> None:
    for number, point in enumerate(model.points3D.values()):
        point.error = 0.1 * number
    rows = image_statistics(model)
    assert [row.name for row in rows] == sorted(image.name for image in model.images.values())
    for row in rows:
        image = next(i for i in model.images.values() if i.name == row.name)
        seen = [model.points3D[p.point3D_id].error for p in image.points2D if p.has_point3D()]
        assert (row.keypoints, row.observations) == (len(image.points2D), len(seen))
        assert row.error_px == pytest.approx(np.mean(seen))
        assert row.focal_px == pytest.approx(1280)
        ids = point_ids(image)
        for place, point2d in enumerate(image.points2D):
            assert ids[place] == (point2d.point3D_id if point2d.has_point3D() else -1)


def test_largest_first() -> None:
    small, large, dense = synthetic(4, 60), synthetic(6, 20), synthetic(4, 80)
    assert [m.num_points3D() for m in largest_first([small, large, dense])] == [20, 80, 60]


def test_write_and_read_models(tmp_path: Path, model: pycolmap.Reconstruction) -> None:
    write_models([model, synthetic(4)], tmp_path / "sparse")
    with pytest.raises(BadInputError, match="was not made by featkit"):
        write_models([model], tmp_path / "sparse")
    (tmp_path / "sparse.json").write_text(json.dumps({"featkit_version": "0", "kind": "map"}))
    write_models([model], tmp_path / "sparse")
    assert [p.name for p in (tmp_path / "sparse").iterdir()] == ["0"], "a model that was there before is gone"
    assert is_model(tmp_path / "sparse" / "0")
    assert read_model(tmp_path / "sparse" / "0").num_points3D() == 50
    assert not is_model(tmp_path)
    with pytest.raises(BadInputError, match="no COLMAP model"):
        read_model(tmp_path)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D", "rigs", "frames"])
def test_truncated_models_are_refused(tmp_path: Path, model: pycolmap.Reconstruction, name: str) -> None:
    """Truncated at any byte; pycolmap alone hangs or crashes on some of them."""
    folder = write_models([model], tmp_path / "sparse") / "0"
    assert read_model(folder).num_points3D() == 50
    file = folder / f"{name}.bin"
    whole = file.read_bytes()
    cuts = {*range(12), *np.random.default_rng(0).integers(0, len(whole), 60).tolist(), len(whole) - 1}
    for kept in sorted(cuts):
        file.write_bytes(whole[:kept])
        with pytest.raises(BadInputError, match=f"{name}.bin: cut off"):
            read_model(folder)
    for size in (8, 64, 5000):
        file.write_bytes(b"\xff" * size)
        with pytest.raises(BadInputError, match=f"{name}.bin: cut off"):
            read_model(folder)


def test_truncated_text_models_are_refused(tmp_path: Path, model: pycolmap.Reconstruction) -> None:
    """pycolmap alone accepts it, with fewer points."""
    model.write_text(str(tmp_path))
    assert read_model(tmp_path).num_points3D() == 50
    lines = (tmp_path / "points3D.txt").read_text().splitlines(keepends=True)
    (tmp_path / "points3D.txt").write_text("".join(lines[:-7]))
    assert pycolmap.Reconstruction(str(tmp_path)).num_points3D() == 43
    with pytest.raises(BadInputError, match=r"points3D.txt: cut off: 43 of the 50"):
        read_model(tmp_path)


def test_rigid_round_trip(model: pycolmap.Reconstruction) -> None:
    for image in model.images.values():
        rigid = image.cam_from_world()
        assert to_rigid(to_pose(rigid)).matrix() == pytest.approx(rigid.matrix(), abs=1e-12)


def test_reading_references(tmp_path: Path, model: pycolmap.Reconstruction) -> None:
    write_models([model], tmp_path / "sparse")
    known = read_reference(tmp_path / "sparse" / "0", CameraConfig())
    truth = poses_of(model)
    assert known.cameras is not None
    assert set(known.poses) == set(truth)
    assert set(known.camera_ids or {}) == set(truth)
    path = write_poses(tmp_path / "poses.txt", truth)
    assert read_reference(path, CameraConfig()).cameras is None
    (tmp_path / "camera.txt").write_text("PINHOLE 800 600 700 701 400 300\n")
    known = read_reference(path, CameraConfig())
    assert known.cameras is not None
    assert tuple(known.cameras[1].params) == (700, 701, 400, 300)
    assert known.camera_ids == dict.fromkeys(truth, 1)
    given = CameraConfig(model="PINHOLE", params=(1, 1, 1, 1))
    assert read_reference(path, given).cameras is None, "given parameters count"


BROKEN = (
    ("camera", "focal", float("nan")),
    ("camera", "focal", float("inf")),
    ("camera", "focal", 0.0),
    ("pose", "quaternion", 0.0),
    ("pose", "quaternion", float("nan")),
    ("pose", "translation", float("inf")),
    ("point", "xyz", float("nan")),
    ("point", "xyz", float("inf")),
    ("point", "error", float("nan")),
    ("keypoint", "xy", float("inf")),
)


def break_one(model: pycolmap.Reconstruction, what: str, field: str, value: float) -> None:
    image = model.images[min(model.images)]
    point = model.points3D[min(model.points3D)]
    if what == "camera":
        camera = model.cameras[min(model.cameras)]
        camera.params = [value, *camera.params[1:]]
    elif what == "pose":
        pose = image.frame.rig_from_world
        if field == "quaternion":
            pose.rotation.quat = np.full(4, value)
        else:
            pose.translation = np.array([value, 0, 0])
        image.frame.rig_from_world = pose
    elif what == "keypoint":
        image.points2D[0].xy = np.array([value, 1.0])
    elif field == "error":
        point.error = value
    else:
        point.xyz = np.array([0.0, value, 0.0])


@pytest.mark.parametrize(("what", "field", "value"), BROKEN)
@pytest.mark.parametrize("form", ["binary", "text"])
def test_nan_infinity_and_zero_are_refused(
    model: pycolmap.Reconstruction, tmp_path: Path, form: str, what: str, field: str, value: float
) -> None:
    """They would spread to poses, and to json, which has no such numbers."""
    write = model.write_binary if form == "binary" else model.write_text
    write(str(tmp_path))
    assert read_model(tmp_path).num_reg_images() == 6
    break_one(model, what, field, value)
    write(str(tmp_path))
    with pytest.raises(BadInputError, match=r"^[^\n]*$"):
        read_model(tmp_path)
