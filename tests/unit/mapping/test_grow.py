"""Photographs registered in an existing map, with exact keypoints and matches: cameras are at their true positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image
from synthetic_scene import PARAMS, SIZE, Exact, Written, write_scene

from featkit.core.errors import EmptyResultError
from featkit.core.types import Features
from featkit.io.features import append_features, open_features
from featkit.io.lists import read_pairs
from featkit.io.matches import open_matches
from featkit.mapping.align import compare_with_truth, truth_from_map
from featkit.mapping.cameras import CameraConfig
from featkit.mapping.grow import (
    GrowConfig,
    Grown,
    NewImages,
    grow,
    has_same_keypoints,
    original_config,
    remove_images,
    restore_frame,
    shared_camera,
)
from featkit.mapping.map_rigs import added_frames, prefixes_of
from featkit.mapping.model import read_model
from featkit.mapping.rigs import RigConfig, read_rigs
from featkit.mapping.stage import MapConfig, build_map, database_config
from featkit.mapping.verify import build_database

pytestmark = pytest.mark.slow
CONFIG = MapConfig(camera=CameraConfig(model="PINHOLE", params=PARAMS, mode="single", refine=False))
OLD = [f"{number}.png" for number in range(6)]
NEW = ["6.png", "7.png"]


@dataclass(frozen=True)
class Base:
    scene: Written
    sparse: Path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A map of six of eight photographs, aligned to the truth."""
    folder = tmp_path_factory.mktemp("base")
    scene = write_scene(folder)
    files = (scene.images, scene.features, scene.pairs, scene.matches)
    database = build_database(database_config(CONFIG), *files, folder / "featkit" / "database.db", names=OLD)
    sparse = build_map(CONFIG, scene.images, database, folder / "featkit" / "sparse") / "0"
    model = read_model(sparse)
    model.transform(pycolmap.Sim3d(truth_from_map(model, scene.poses)))
    model.write(str(sparse))
    return Base(scene, sparse)


def grown(base: Base, work: Path, model: pycolmap.Reconstruction, names: Sequence[str], **config: object) -> Grown:
    scene = base.scene
    pairs = [p for p in read_pairs(scene.pairs) if {p.name0, p.name1} & set(names) or not config.get("own", True)]
    new = NewImages(list(names), scene.images, CONFIG.camera, shared_camera(model, {SIZE}))
    work.mkdir(parents=True)
    with open_features(scene.features) as features, open_matches(scene.matches) as matches:
        settings = GrowConfig(fixed=bool(config.get("fixed")), whole_above=float(config.get("whole_above", 0.1)))
        return grow(settings, CONFIG, model, new, features, matches, pairs, work)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("whole_above", [0.0, 1.0])
def test_new_photographs_keep_frame_and_ids(base: Base, fixed: bool, whole_above: float, tmp_path: Path) -> None:
    old, model = read_model(base.sparse), read_model(base.sparse)
    done = grown(base, tmp_path / "work", model, NEW, fixed=fixed, whole_above=whole_above)
    assert done.registered == NEW
    assert done.left_out == {}
    errors = compare_with_truth(model, base.scene.poses, align=False)
    assert len(errors.names) == 8
    assert errors.centre.max() < 1e-4
    assert errors.rotation_deg.max() < 1e-3
    assert set(old.images) < set(model.images)
    assert set(model.cameras) == set(old.cameras)  # one camera took all
    kept = [point_id for point_id in old.points3D if point_id in model.points3D]
    assert len(kept) == len(old.points3D)
    for image_id, image in old.images.items():
        same = model.images[image_id]
        assert same.name == image.name
        moved = np.abs(same.cam_from_world().matrix() - image.cam_from_world().matrix()).max()
        assert moved < (1e-12 if fixed else 1e-4)
        own = {index for index, point in enumerate(image.points2D) if point.has_point3D()}
        assert own <= {index for index, point in enumerate(same.points2D) if point.has_point3D()}
    assert done.moved[1] < (1e-12 if fixed else 1e-4)
    assert model.compute_mean_track_length() > old.compute_mean_track_length() + 1
    model.write(str(tmp_path))
    assert read_model(tmp_path).num_reg_images() == 8


@pytest.mark.parametrize("whole_above", [0.0, 1.0])
def test_fixed_keeps_old_cameras_even_if_wrong(base: Base, whole_above: float, tmp_path: Path) -> None:
    moved = {}
    for fixed in (False, True):
        model = read_model(base.sparse)
        frame = next(image.frame for image in model.images.values() if image.name == "2.png")
        rigid = frame.rig_from_world
        frame.rig_from_world = pycolmap.Rigid3d(rigid.rotation, rigid.translation + np.array([0.003, 0, 0]))
        before = {i: image.cam_from_world().matrix().copy() for i, image in model.images.items()}
        grown(base, tmp_path / f"work-{fixed}", model, NEW, fixed=fixed, whole_above=whole_above)
        moved[fixed] = max(np.abs(model.images[i].cam_from_world().matrix() - b).max() for i, b in before.items())
    assert moved[True] < 1e-12
    assert moved[False] > 1e-3


def test_keypoints_of_other_features_are_added(base: Base, tmp_path: Path) -> None:
    """For a model by COLMAP or hloc: its keypoints and tracks are kept, the features' keypoints follow them."""
    model, old = read_model(base.sparse), read_model(base.sparse)
    for image in model.images.values():  # the same points at other keypoints: every second one of the features
        for point in image.points2D:
            point.xy = point.xy + 0.5
    with open_features(base.scene.features) as features:
        assert has_same_keypoints(old, features)
        assert not has_same_keypoints(model, features)
    done = grown(base, tmp_path / "work", model, NEW, own=False, fixed=True)
    assert done.registered == NEW
    errors = compare_with_truth(model, base.scene.poses, align=False)
    assert errors.centre.max() < 1e-4
    for image_id, image in old.images.items():
        first = model.images[image_id].points2D[: len(image.points2D)]
        assert len(model.images[image_id].points2D) == 2 * len(image.points2D)
        assert [p.point3D_id for p in first if p.has_point3D()] == [
            p.point3D_id for p in image.points2D if p.has_point3D()
        ]
    assert set(old.points3D) < set(model.points3D)


def test_unregistered_photographs_have_a_reason(base: Base, tmp_path: Path) -> None:
    """One has no keypoints, one matches nothing; the others are registered."""
    scene = base.scene
    features = tmp_path / "features.h5"
    with open_features(scene.features) as stored, append_features(features, Exact()) as more:
        for name in stored.names():
            more.write(name, stored.read(name))
        nothing = np.zeros((0, 2), np.float32)
        more.write("empty.png", Features(nothing, np.zeros((0, 4), np.float16), np.zeros(0, np.float32), SIZE))
        more.write("stranger.png", stored.read("0.png"))
    images = tmp_path / "images"
    images.mkdir()
    names = ["6.png", "empty.png", "gone.png", "stranger.png"]
    for name in names:
        Image.new("L", SIZE).save(images / name)
    model = read_model(base.sparse)
    pairs = [pair for pair in read_pairs(scene.pairs) if "6.png" in (pair.name0, pair.name1)]
    with open_features(features) as store, open_matches(scene.matches) as matches:
        new = NewImages(names, images, CONFIG.camera, shared_camera(model, {SIZE}))
        done = grow(GrowConfig(), CONFIG, model, new, store, matches, pairs, tmp_path)
    assert done.registered == ["6.png"]
    assert done.left_out == {
        "empty.png": "no keypoint found in it",
        "gone.png": "it cannot be read",
        "stranger.png": "it matches no photograph of the map",
    }
    assert {image.name for image in model.images.values()} == {*OLD, "6.png"}


def test_removing_photographs(base: Base) -> None:
    model, old = read_model(base.sparse), read_model(base.sparse)
    assert remove_images(model, {"1.png", "4.png", "unknown.png"}, Path("map")) == ["1.png", "4.png"]
    assert {image.name for image in model.images.values()} == {"0.png", "2.png", "3.png", "5.png"}
    for point_id, point in model.points3D.items():
        assert point.track.length() >= 2
        assert np.array_equal(point.xyz, old.points3D[point_id].xyz)
    for image_id, image in model.images.items():
        assert np.array_equal(image.cam_from_world().matrix(), old.images[image_id].cam_from_world().matrix())
    with pytest.raises(EmptyResultError, match="would leave 1 photographs"):
        remove_images(model, {"0.png", "2.png", "3.png"}, Path("map"))


def test_restore_frame_aligns_to_old_cameras(base: Base) -> None:
    """A transformed map is moved back; a map with collinear cameras is not changed."""
    model, old = read_model(base.sparse), read_model(base.sparse)
    centres = {image_id: image.projection_center() for image_id, image in old.images.items()}
    turn = pycolmap.Rotation3d(np.array([0.01, 0.02, -0.01])).matrix()
    drift = pycolmap.Sim3d(np.column_stack([1.02 * turn, [0.1, 0.2, 0.3]]))
    model.transform(drift)
    restore_frame(model, centres)
    for image_id, image in old.images.items():
        same = model.images[image_id].cam_from_world().matrix()
        np.testing.assert_allclose(same, image.cam_from_world().matrix(), atol=1e-9)
    model.transform(drift)
    moved = {image_id: image.projection_center() for image_id, image in model.images.items()}
    two = dict(list(centres.items())[:2])
    restore_frame(model, two)
    assert all(np.array_equal(image.projection_center(), moved[i]) for i, image in model.images.items())


def test_original_configuration_is_used(base: Base, tmp_path: Path) -> None:
    model = read_model(base.sparse)
    assert original_config(base.sparse, model, {}) == CONFIG
    assert original_config(base.sparse, model, {"camera": {"refine": True}}).camera.refine
    assert original_config(tmp_path, model, {}) == MapConfig(camera=CameraConfig(model="PINHOLE"))
    assert shared_camera(model, {SIZE, (10, 10)}) is None


# ----------------------------------------------------------------------------------------------------------------------
# A map of two cameras on one rig.


ON_RIG = [*(f"cam{camera}/{frame}.png" for frame in range(5) for camera in (0, 1)), "cam0/5.png"]
ADDED = ["cam0/6.png", "cam0/7.png", "cam1/5.png", "cam1/6.png"]


@pytest.fixture(scope="module")
def rig_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A map of five frames of both cameras and one of the first alone, in the frame of the truth."""
    folder = tmp_path_factory.mktemp("rig")
    scene = write_scene(folder, cameras=2)
    files = (scene.images, scene.features, scene.pairs, scene.matches)
    rigs = read_rigs("folders", ON_RIG, RigConfig())
    made = folder / "featkit"
    database = build_database(database_config(CONFIG), *files, made / "database.db", names=ON_RIG, rigs=rigs)
    sparse = build_map(CONFIG, scene.images, database, made / "sparse") / "0"
    model = read_model(sparse)
    model.transform(pycolmap.Sim3d(truth_from_map(model, scene.poses)))
    model.write(str(sparse))
    return Base(scene, sparse)


def relation(model: pycolmap.Reconstruction) -> np.ndarray:
    [rig] = model.rigs.values()
    [found] = rig.non_ref_sensors.values()
    return np.asarray(found.matrix())


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("whole_above", [0.0, 1.0])
def test_new_frames_of_the_maps_rig(rig_base: Base, fixed: bool, whole_above: float, tmp_path: Path) -> None:
    """A whole frame, one of a single camera, and the photograph that a frame of the map lacked."""
    scene, old, model = rig_base.scene, read_model(rig_base.sparse), read_model(rig_base.sparse)
    frames = added_frames(model, prefixes_of(model), ADDED, RigConfig())
    new = NewImages(ADDED, scene.images, CONFIG.camera, None, frames)
    pairs = [pair for pair in read_pairs(scene.pairs) if {pair.name0, pair.name1} & set(ADDED)]
    pairs = [pair for pair in pairs if {pair.name0, pair.name1} <= {*ON_RIG, *ADDED}]
    with open_features(scene.features) as features, open_matches(scene.matches) as matches:
        config = GrowConfig(fixed=fixed, whole_above=whole_above)
        done = grow(config, CONFIG, model, new, features, matches, pairs, tmp_path)
    assert (done.registered, done.left_out) == (ADDED, {})
    assert (set(model.cameras), set(model.rigs)) == (set(old.cameras), set(old.rigs))
    assert np.array_equal(relation(model), relation(old))
    together = [sorted(model.images[data.id].name for data in frame.image_ids) for frame in model.frames.values()]
    assert sorted(together) == [
        *([f"cam0/{number}.png", f"cam1/{number}.png"] for number in range(7)), ["cam0/7.png"]
    ]  # fmt: skip
    for frame_id, frame in old.frames.items():
        assert {data.id for data in frame.image_ids} <= {data.id for data in model.frames[frame_id].image_ids}
    errors, before = (compare_with_truth(one, scene.poses, align=False) for one in (model, old))
    assert len(errors.names) == 15
    assert errors.centre.max() < max(1.5 * before.centre.max(), 1e-3)
    for image_id, image in old.images.items():
        moved = np.abs(model.images[image_id].cam_from_world().matrix() - image.cam_from_world().matrix()).max()
        assert moved < (1e-12 if fixed else 1e-3)
    assert all(image.num_points3D > 100 for image in model.images.values())
    model.write(str(tmp_path))
    assert read_model(tmp_path).num_reg_frames() == 8
