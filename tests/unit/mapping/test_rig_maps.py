"""Maps with rigs of pycolmap's synthetic scenes: relative poses are estimated, given and kept, or refined."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from featkit.core.errors import BadInputError, EmptyResultError
from featkit.core.types import Pose
from featkit.geometry.poses import camera_centre, rotation_angle_deg
from featkit.mapping.align import compare_with_truth
from featkit.mapping.cameras import CameraConfig, to_pose
from featkit.mapping.map_rigs import rig_metrics
from featkit.mapping.model import read_model
from featkit.mapping.relations import copy_with_relations, copy_without_rigs, split_by_known_relation
from featkit.mapping.rigs import RigConfig
from featkit.mapping.stage import MapConfig, build_map

FRAMES, CAMERAS = 6, 3
pytestmark = pytest.mark.slow
CONFIG = MapConfig(extract_colors=False, camera=CameraConfig(refine=False))


def scene(folder: Path, known: bool, noise_px: float = 0.3) -> tuple[Path, pycolmap.Reconstruction]:
    """A verified database of one rig, with or without relative poses, and the true map."""
    pycolmap.set_random_seed(1)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, CAMERAS, FRAMES
    options.num_points3D = 150
    options.sensor_from_rig_translation_stddev = 0.4
    options.camera_has_prior_focal_length = True
    noise = pycolmap.SyntheticNoiseOptions()
    noise.point2D_stddev = noise_px
    path = folder / "database.db"
    with pycolmap.Database.open(str(path)) as database:
        truth = pycolmap.synthesize_dataset(options, database)
        exact = pycolmap.Reconstruction(truth)
        pycolmap.synthesize_noise(noise, truth, database)
        if not known:
            forget(database)
    return path, exact


def forget(database: pycolmap.Database) -> None:
    [rig] = database.read_all_rigs()
    for sensor in rig.non_ref_sensors:
        rig.reset_sensor_from_rig(sensor)
    database.update_rig(rig)


def poses(model: pycolmap.Reconstruction) -> dict[str, Pose]:
    return {image.name: to_pose(image.cam_from_world()) for image in model.images.values()}


def relations(model: pycolmap.Reconstruction) -> dict[int, pycolmap.Rigid3d]:
    [rig] = [rig for rig in model.rigs.values() if rig.num_sensors() > 1]
    return {sensor.id: relation for sensor, relation in rig.non_ref_sensors.items()}


def relation_errors(model: pycolmap.Reconstruction, truth: pycolmap.Reconstruction) -> tuple[float, float]:
    """Largest rotation error, degrees, and largest position error after scaling, as a share of the longest baseline."""
    found, true = relations(model), relations(truth)
    turns = [rotation_angle_deg(found[i].rotation.matrix(), true[i].rotation.matrix()) for i in true]
    mine, exact = (np.array([r[i].inverse().translation for i in true]) for r in (found, true))
    scale = (mine * exact).sum() / (mine * mine).sum()
    return max(turns), float(np.abs(scale * mine - exact).max() / np.linalg.norm(exact, axis=1).max())


@pytest.mark.parametrize("mapper", ["incremental", "global", "hierarchical"])
def test_unknown_relative_poses_are_estimated(mapper: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database, truth = scene(tmp_path, known=False)
    config = CONFIG.model_copy(update={"mapper": mapper})
    with caplog.at_level(logging.INFO, "featkit"):
        model = read_model(build_map(config, tmp_path, database, tmp_path / "sparse") / "0")
    assert caplog.text.count(f"from {FRAMES} frames: rotation varies by") == CAMERAS - 1
    assert (tmp_path / "sparse" / "0" / "rigs.bin").is_file()
    assert (tmp_path / "sparse" / "0" / "frames.bin").is_file()
    assert model.num_reg_images() == FRAMES * CAMERAS
    assert model.num_reg_frames() == FRAMES
    turn, share = relation_errors(model, truth)
    assert turn < 0.05
    assert share < 0.005
    joined = compare_with_truth(model, poses(truth))
    alone = copy_without_rigs(database, split_by_known_relation(database)[1], tmp_path / "alone.db")
    apart = compare_with_truth(read_model(build_map(config, tmp_path, alone, tmp_path / "apart") / "0"), poses(truth))
    assert joined.centre.mean() <= apart.centre.mean()


def test_estimated_relative_poses_are_robust(tmp_path: Path) -> None:
    """Poses are exact, except for one photograph of the last camera that is rotated by 40 degrees and moved."""
    database, truth = scene(tmp_path, known=False)
    _, [rig] = split_by_known_relation(database)
    model, last = pycolmap.Reconstruction(), max(image.camera_id for image in truth.images.values())
    for camera in truth.cameras.values():
        model.add_camera_with_trivial_rig(camera)
    wrong = min(image_id for image_id, image in truth.images.items() if image.camera_id == last)
    for image_id, image in truth.images.items():
        pose = image.cam_from_world()
        if image_id == wrong:
            pose = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0, 0.7, 0])), np.array([2.0, 0, 1])) * pose
        alone = pycolmap.Image(name=image.name, camera_id=image.camera_id, image_id=image_id)
        model.add_image_with_trivial_frame(alone, pose)
    related = copy_with_relations(database, [rig], model, RigConfig(), tmp_path / "related.db")
    [[found], none] = split_by_known_relation(related)
    assert none == []
    for sensor, relation in found.non_ref_sensors.items():
        assert relation.matrix() == pytest.approx(relations(truth)[sensor.id].matrix(), abs=1e-6)


@pytest.mark.parametrize("mapper", ["incremental", "global"])
@pytest.mark.parametrize("refine", [False, True])
def test_given_relative_poses_are_kept_or_refined(mapper: str, refine: bool, tmp_path: Path) -> None:
    database, truth = scene(tmp_path, known=True)
    config = CONFIG.model_copy(update={"mapper": mapper, "rigs": RigConfig(refine=refine)})
    model = read_model(build_map(config, tmp_path, database, tmp_path / "sparse") / "0")
    assert model.num_reg_images() == FRAMES * CAMERAS
    differ = [np.abs(relations(model)[i].matrix() - r.matrix()).max() for i, r in relations(truth).items()]
    assert (max(differ) > 1e-6) == refine
    assert max(differ) < 0.02
    found, true = ([poses(m)[name] for name in sorted(poses(m))] for m in (model, truth))
    assert distance(found) == pytest.approx(distance(true), rel=0.02), "the rig gives the scale"


def distance(found: list[Pose]) -> float:
    centres = np.array([camera_centre(pose) for pose in found])
    return float(np.linalg.norm(centres - centres.mean(axis=0), axis=1).mean())


def test_cameras_that_are_not_rigid_are_refused(tmp_path: Path) -> None:
    """In every frame, one camera's photograph is that of the next frame."""
    database, truth = scene(tmp_path, known=False)
    _, [rig] = split_by_known_relation(database)
    with pycolmap.Database.open(str(database)) as opened:
        frames = opened.read_all_frames()
        sensor = next(iter(rig.non_ref_sensors))
        third = [next(d for d in frame.data_ids if d.sensor_id == sensor) for frame in frames]
        rest = [[d for d in frame.data_ids if d.sensor_id != sensor] for frame in frames]
        opened.clear_frames()
        for number, (own, data) in enumerate(zip(rest, [*third[1:], third[0]], strict=True), start=1):
            frame = pycolmap.Frame()
            frame.frame_id, frame.rig_id = number, rig.rig_id
            for one in (*own, data):
                frame.add_data_id(one)
            opened.write_frame(frame, use_frame_id=True)
    with pytest.raises(BadInputError, match=r"is not fixed to .* over 6 frames its rotation varies by"):
        copy_with_relations(database, [rig], truth, RigConfig(), tmp_path / "related.db")


def test_a_camera_without_common_frames_is_refused(tmp_path: Path) -> None:
    database, truth = scene(tmp_path, known=False)
    _, [rig] = split_by_known_relation(database)
    for frame in list(truth.frames.values()):
        truth.deregister_frame(frame.frame_id)
    with pytest.raises(EmptyResultError, match=r"no frame with both .* give it in a rig\.json"):
        copy_with_relations(database, [rig], truth, RigConfig(), tmp_path / "related.db")


def test_rig_metrics_are_a_valid_colmap_rig_file(tmp_path: Path) -> None:
    _, truth = scene(tmp_path, known=True)
    found = rig_metrics(truth, [])
    assert (found["rigs"], found["frames"]) == (1, FRAMES)
    (tmp_path / "rig.json").write_text(json.dumps(found["rig_config"]))
    [config] = pycolmap.read_rig_config(tmp_path / "rig.json")
    assert [camera.ref_sensor for camera in config.cameras] == [True, False, False]
    for camera, true in zip(config.cameras[1:], [relations(truth)[i] for i in sorted(relations(truth))], strict=True):
        assert camera.cam_from_rig.matrix() == pytest.approx(true.matrix(), abs=1e-9)
    assert rig_metrics(pycolmap.Reconstruction(), []) == {}
