"""Merging two maps of an exact scene: every camera is at its true position, in the frame of the first map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from synthetic_scene import PARAMS, Written, write_scene

from featkit.core.errors import EmptyResultError
from featkit.core.types import Pair
from featkit.io.features import open_features
from featkit.io.lists import read_pairs
from featkit.io.matches import open_matches
from featkit.mapping.align import compare_with_truth, truth_from_map
from featkit.mapping.cameras import CameraConfig
from featkit.mapping.merge import MergeConfig, SharedPoints, find_similarity, merge_maps, similarity_inliers
from featkit.mapping.model import read_model
from featkit.mapping.rigs import RigConfig, read_rigs
from featkit.mapping.stage import MapConfig, build_map, database_config
from featkit.mapping.verify import build_database

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


def merged(parts: Parts, second: str, work: Path, pairs: list[Pair] | None = None):
    first, other = read_model(parts.models["first"]), read_model(parts.models[second])
    in_first = {image.name for image in first.images.values()}
    in_second = {image.name for image in other.images.values()}
    if pairs is None:
        every = read_pairs(parts.scene.pairs)
        pairs = [p for p in every if p.name0 in in_first - in_second and p.name1 in in_second - in_first]
    work.mkdir(exist_ok=True)
    with open_features(parts.scene.features) as features, open_matches(parts.scene.matches) as matches:
        done = merge_maps(MergeConfig(), CONFIG, first, other, features, matches, pairs, work, ("A", "B"))
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


def test_maps_with_rigs_are_merged(tmp_path: Path) -> None:
    """The result has two rigs, the second in the first map's scale, and frames with both photographs."""
    scene = write_scene(tmp_path, cameras=2)
    files = (scene.images, scene.features, scene.pairs, scene.matches)
    models = []
    for number, wanted in enumerate((range(4), range(4, 8))):
        names = [f"cam{camera}/{frame}.png" for camera in (0, 1) for frame in wanted]
        folder = tmp_path / str(number)
        rigs = read_rigs("folders", names, RigConfig())
        database = build_database(database_config(CONFIG), *files, folder / "database.db", names=names, rigs=rigs)
        models.append(read_model(build_map(CONFIG, scene.images, database, folder / "sparse") / "0"))
        assert models[-1].num_reg_frames() == 4
    first, other = models
    first.transform(pycolmap.Sim3d(truth_from_map(first, scene.poses)))
    pairs = [pair for pair in read_pairs(scene.pairs) if int(pair.name0[5]) < 4 <= int(pair.name1[5])]
    with open_features(scene.features) as features, open_matches(scene.matches) as matches:
        merge_maps(MergeConfig(), CONFIG, first, other, features, matches, pairs, tmp_path)
    errors = compare_with_truth(first, scene.poses, align=False)
    assert len(errors.names) == 16
    assert errors.centre.max() < 1e-3
    assert first.num_reg_frames() == 8
    [relation, again] = [next(iter(rig.non_ref_sensors.values())).matrix() for rig in first.rigs.values()]
    assert relation == pytest.approx(again, abs=1e-3)
    first.write(str(tmp_path))
    assert read_model(tmp_path).num_reg_images() == 16


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
