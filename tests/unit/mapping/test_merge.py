"""Merging two maps of an exact scene: every camera is at its true position, in the frame of the first map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from synthetic_scene import PARAMS, Exact, Written, write_scene

from featkit.core.errors import EmptyResultError
from featkit.core.types import Features, Pair
from featkit.geometry.pixels import from_colmap
from featkit.io.features import append_features, open_features
from featkit.io.lists import read_pairs
from featkit.io.matches import append_matches, open_matches
from featkit.mapping.align import compare_with_truth, truth_from_map
from featkit.mapping.cameras import CameraConfig, to_pose
from featkit.mapping.map_rigs import SameRigConfig
from featkit.mapping.merge import MergeConfig, Merged, SharedPoints, find_similarity, merge_maps, similarity_inliers
from featkit.mapping.model import read_model
from featkit.mapping.rigs import RigConfig, read_rigs
from featkit.mapping.stage import MapConfig, build_map, database_config
from featkit.mapping.verify import build_database

pytestmark = pytest.mark.slow
CONFIG = MapConfig(camera=CameraConfig(model="PINHOLE", params=PARAMS, mode="single", refine=False))
PARTS = {"first": range(4), "second": range(4, 8), "overlapping": range(2, 8)}


@dataclass(frozen=True)
class Parts:
    scene: Written
    models: dict[str, Path]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Maps of photographs 0 to 3 (aligned to the truth), 4 to 7 and 2 to 7, each in its own frame."""
    folder = tmp_path_factory.mktemp("parts")
    scene = write_scene(folder)
    files = (scene.images, scene.features, scene.pairs, scene.matches)
    models = {}
    for name, numbers in PARTS.items():
        names = [f"{number}.png" for number in numbers]
        database = build_database(database_config(CONFIG), *files, folder / name / "database.db", names=names)
        models[name] = build_map(CONFIG, scene.images, database, folder / name / "sparse") / "0"
        model = read_model(models[name])
        assert model.num_reg_images() == len(names)
        if name == "first":
            model.transform(pycolmap.Sim3d(truth_from_map(model, scene.poses)))
            model.write(str(models[name]))
    return Parts(scene, models)


def merged(
    parts: Parts, second: str, work: Path, pairs: list[Pair] | None = None, config: MergeConfig | None = None
) -> tuple[pycolmap.Reconstruction, Merged]:
    first, other = read_model(parts.models["first"]), read_model(parts.models[second])
    in_first = {image.name for image in first.images.values()}
    in_second = {image.name for image in other.images.values()}
    if pairs is None:
        every = read_pairs(parts.scene.pairs)
        pairs = [p for p in every if p.name0 in in_first - in_second and p.name1 in in_second - in_first]
    work.mkdir(exist_ok=True)
    with open_features(parts.scene.features) as features, open_matches(parts.scene.matches) as matches:
        settings = config or MergeConfig()
        done = merge_maps(settings, CONFIG, first, other, features, matches, pairs, work, ("A", "B"))
    return first, done


@pytest.mark.parametrize("second", ["second", "overlapping"])
def test_two_maps_are_merged(parts: Parts, second: str, tmp_path: Path) -> None:
    """By matches between photographs only, and with common photographs too."""
    before = read_model(parts.models["first"])
    model, done = merged(parts, second, tmp_path)
    assert done.common == ([] if second == "second" else ["2.png", "3.png"])
    assert done.points == done.candidates > 100
    assert sorted(image.name for image in model.images.values()) == [f"{n}.png" for n in range(8)]
    errors = compare_with_truth(model, parts.scene.poses, align=False)
    assert len(errors.names) == 8
    assert errors.centre.max() < 1e-4
    assert errors.rotation_deg.max() < 1e-3
    assert len(model.cameras) == 1  # the same calibration
    assert model.num_points3D() == 200  # each once
    assert model.compute_mean_track_length() > 7.9
    for image_id, image in before.images.items():
        assert model.images[image_id].name == image.name
    assert len(set(before.points3D) - set(model.points3D)) == 0
    model.write(str(tmp_path))
    read = read_model(tmp_path)
    assert read.num_reg_images() == 8
    assert read.compute_mean_reprojection_error() < 0.01


def test_merge_by_common_photographs_only(parts: Parts, tmp_path: Path) -> None:
    model, done = merged(parts, "overlapping", tmp_path, pairs=[])
    assert done.verified == 0
    assert compare_with_truth(model, parts.scene.poses, align=False).centre.max() < 1e-4


def test_disjoint_maps_are_refused(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(EmptyResultError, match=r"A and B have too little in common.*: 0 photographs, 0 verified pairs"):
        merged(parts, "second", tmp_path, pairs=[])


def test_maps_of_panoramas(tmp_path: Path) -> None:
    """Points all around, by three photographs that are in both maps: those behind the cameras agree too."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(120, 3))
    points = directions / np.linalg.norm(directions, axis=1, keepdims=True) * rng.uniform(3, 6, (120, 1))
    sphere = pycolmap.Camera(model="EQUIRECTANGULAR", width=800, height=400, params=[800, 400], camera_id=1)
    true = {}
    for number in range(5):
        turn = pycolmap.Rotation3d(rng.normal(0, 0.7, 3))
        true[f"{number}.jpg"] = pycolmap.Rigid3d(turn, rng.uniform(-1, 1, 3))

    def model(names: list[str]) -> pycolmap.Reconstruction:
        made = pycolmap.Reconstruction()
        made.add_camera_with_trivial_rig(sphere)
        for number, name in enumerate(names, start=1):
            xy = np.asarray(sphere.img_from_cam(true[name] * points))
            image = pycolmap.Image(name=name, keypoints=xy, camera_id=1, image_id=number)
            made.add_image_with_trivial_frame(image, true[name])
        for index, xyz in enumerate(points):
            track = pycolmap.Track()
            for image_id in made.images:
                track.add_element(image_id, index)
            made.add_point3D(xyz, track)
        return made

    first, second = model(["0.jpg", "1.jpg", "2.jpg", "3.jpg"]), model(["1.jpg", "2.jpg", "3.jpg", "4.jpg"])
    turn = pycolmap.Rotation3d(np.array([0.4, 1.0, -0.3])).matrix()
    second.transform(pycolmap.Sim3d(np.column_stack([0.5 * turn, [3.0, -2.0, 1.0]])))
    with append_features(tmp_path / "features.h5", Exact()) as store:
        for name, pose in true.items():
            xy = from_colmap(np.asarray(sphere.img_from_cam(pose * points))).astype(np.float32)
            store.write(name, Features(xy, np.zeros((120, 4), np.float16), np.ones(120, np.float32), (800, 400)))
    with append_matches(tmp_path / "matches.h5", Exact(), "exact"):
        pass
    config = MapConfig(camera=CameraConfig(model="EQUIRECTANGULAR"), extract_colors=False)
    with open_features(tmp_path / "features.h5") as features, open_matches(tmp_path / "matches.h5") as matches:
        done = merge_maps(MergeConfig(), config, first, second, features, matches, [], tmp_path)
    assert done.points == 120
    errors = compare_with_truth(first, {name: to_pose(pose) for name, pose in true.items()}, align=False)
    assert len(errors.names) == 5
    assert errors.centre.max() < 1e-4


SECOND = {  # images of the second map; the first has frames 0 to 3, and frame 4 of the first camera alone
    "other frames": [f"cam{camera}/{frame}.png" for camera in (0, 1) for frame in (5, 6, 7)],
    "frames of both": ["cam1/4.png", *(f"cam{camera}/{frame}.png" for camera in (0, 1) for frame in (3, 5, 6, 7))],
}


@pytest.fixture(scope="module")
def on_a_rig(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Maps of one rig; the first in the frame of the truth."""
    folder = tmp_path_factory.mktemp("rig")
    scene = write_scene(folder, cameras=2)
    files = (scene.images, scene.features, scene.pairs, scene.matches)
    first = [f"cam{camera}/{frame}.png" for camera in (0, 1) for frame in range(5) if (camera, frame) != (1, 4)]
    models = {}
    for number, (part, names) in enumerate({"first": first, **SECOND}.items()):
        made = folder / str(number)
        rigs = read_rigs("folders", names, RigConfig())
        database = build_database(database_config(CONFIG), *files, made / "database.db", names=names, rigs=rigs)
        models[part] = build_map(CONFIG, scene.images, database, made / "sparse") / "0"
        model = read_model(models[part])
        assert model.num_reg_images() == len(names)
        if part == "first":
            model.transform(pycolmap.Sim3d(truth_from_map(model, scene.poses)))
            model.write(str(models[part]))
    return Parts(scene, models)


@pytest.mark.parametrize("second", SECOND)
def test_maps_of_one_rig_have_one_rig(on_a_rig: Parts, second: str, tmp_path: Path) -> None:
    """With its two cameras, every time one frame, whichever map has its photographs."""
    first, other = read_model(on_a_rig.models["first"]), read_model(on_a_rig.models[second])
    every = {image.name for image in (*first.images.values(), *other.images.values())}
    times = {name.rpartition("/")[2] for name in every}
    model, _ = merged(on_a_rig, second, tmp_path)
    assert {image.name for image in model.images.values()} == every
    assert (len(model.rigs), len(model.cameras), model.num_reg_frames()) == (1, 2, len(times))
    for frame in model.frames.values():
        assert len({model.images[data.id].name.rpartition("/")[2] for data in frame.image_ids}) == 1
    errors = compare_with_truth(model, on_a_rig.scene.poses, align=False)
    assert errors.centre.max() < 1e-3
    model.write(str(tmp_path))
    assert read_model(tmp_path).num_reg_images() == len(every)


def test_rigs_that_differ_stay_two(on_a_rig: Parts, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each in the scale of the first map, each frame with both of its photographs; one line tells why."""
    strict = MergeConfig(same_rig=SameRigConfig(max_turn_deg=0, max_shift=0))
    with caplog.at_level("WARNING", "featkit"):
        model, _ = merged(on_a_rig, "other frames", tmp_path, config=strict)
    assert "the rig of cam0/, cam1/ is not the same in both maps: a camera is turned by" in caplog.text
    assert (len(model.rigs), len(model.cameras), model.num_reg_frames()) == (2, 4, 8)
    assert compare_with_truth(model, on_a_rig.scene.poses, align=False).centre.max() < 1e-3
    [relation, again] = [next(iter(rig.non_ref_sensors.values())).matrix() for rig in model.rigs.values()]
    assert relation == pytest.approx(again, abs=1e-3)


def test_outlier_points_are_rejected() -> None:
    """40 % of the point pairs are wrong; the similarity is that of the others."""
    generator = np.random.default_rng(3)
    number, wrong = 200, 80
    linear = 2.5 * pycolmap.Rotation3d(np.array([0.3, -0.8, 0.4])).matrix()
    offset = np.array([10.0, -4.0, 3.0])
    second = generator.uniform([-1, -1, 5], [1, 1, 7], (number, 3))
    first = second @ linear.T + offset
    first[:wrong] = generator.permutation(first[:wrong])
    poses, rays = np.zeros((2, number, 3, 4)), np.zeros((2, number, 2))
    poses[1] = np.eye(3, 4)
    poses[0, :, :, :3] = linear.T / 2.5  # the first camera stands where the second one does
    poses[0, :, :, 3] = -linear.T / 2.5 @ offset
    for side, points in enumerate((first, second)):
        in_camera = np.einsum("nij,nj->ni", poses[side][:, :, :3], points) + poses[side][:, :, 3]
        rays[side] = in_camera[:, :2] / in_camera[:, 2:]
    ids = np.stack([np.arange(number)] * 2, axis=1)
    same = SharedPoints(ids, np.stack([first, second]), poses, rays, np.full((2, number), 0.01))
    found = find_similarity(same, MergeConfig())
    assert found is not None
    similarity, inlier = found
    assert np.allclose(similarity[:, :3], linear, atol=1e-6)
    assert np.allclose(similarity[:, 3], offset, atol=1e-6)
    assert inlier[wrong:].all()
    assert inlier[:wrong].sum() < 10
    assert not similarity_inliers(same, np.column_stack([-linear, offset])).any()
    few = SharedPoints(ids[:2], *(part[:, :2] for part in (same.xyz, poses, rays, same.limits)))
    assert find_similarity(few, MergeConfig()) is None
