"""Which pairs are measured: by overlap or viewing angle, evenly from all ranges, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from pose_worlds import make_world

from featkit.core.config import make
from featkit.core.errors import BadInputError, EmptyResultError, UsageError
from featkit.core.types import Pair
from featkit.evaluation.pose_pairs import (
    PosedScene,
    PosePairsConfig,
    choose_pairs,
    evenly,
    read_scene,
    write_chosen_pairs,
)
from featkit.geometry.poses import rotation_matrix
from featkit.io.lists import read_pairs
from featkit.mapping.model import point_ids, read_model


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> PosedScene:
    """A COLMAP model of 14 images whose points are seen by some 5 of them."""
    root = tmp_path_factory.mktemp("mapped")
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, 14, 400
    options.camera_model_id = pycolmap.CameraModelId.SIMPLE_RADIAL
    options.camera_params = [400.0, 160.0, 120.0, -0.05]
    options.camera_width, options.camera_height = 320, 240
    options.track_length = 5
    pycolmap.set_random_seed(1)
    model = pycolmap.synthesize_dataset(options)
    (root / "sparse" / "0").mkdir(parents=True)
    model.write(str(root / "sparse" / "0"))
    for image in model.images.values():
        path = root / "images" / image.name
        path.parent.mkdir(exist_ok=True, parents=True)
        assert cv2.imwrite(str(path), np.zeros((240, 320), np.uint8))
    return read_scene(root)


def slow_overlaps(scene: PosedScene) -> dict[Pair, float]:
    """Shared points over those of the image that has fewer, by sets."""
    assert scene.model is not None
    model = read_model(scene.model)
    points = {image.name: {int(i) for i in point_ids(image) if i >= 0} for image in model.images.values()}
    names = sorted(points)
    return {
        Pair(a, b): len(points[a] & points[b]) / min(len(points[a]), len(points[b]))
        for number, a in enumerate(names)
        for b in names[number + 1 :]
    }


def test_overlaps_are_those_of_the_model(mapped: PosedScene) -> None:
    overlaps = slow_overlaps(mapped)
    config = PosePairsConfig(overlap_edges=(0.25, 0.3, 0.36), min_shared=1, min_angle_deg=0)
    chosen = choose_pairs(mapped, config, 0)
    assert set(chosen.pairs) == {pair for pair, value in overlaps.items() if 0.25 <= value <= 0.36}
    assert chosen.drawn == chosen.found
    assert chosen.found["0.25 to 0.3"] == sum(0.25 <= value < 0.3 for value in overlaps.values())
    assert 0 < chosen.found["0.3 to 0.36"] < len(chosen.pairs)
    assert list(chosen.pairs) == sorted(chosen.pairs)


def test_pairs_under_a_small_angle_are_left_out(mapped: PosedScene) -> None:
    wide = PosePairsConfig(overlap_edges=(0.0, 1.0), min_shared=1, min_angle_deg=0)
    everything = choose_pairs(mapped, wide, 0).pairs
    fewer = choose_pairs(mapped, wide.model_copy(update={"min_angle_deg": 60.0}), 0).pairs
    assert 0 < len(fewer) < len(everything)
    assert mapped.model is not None
    model = read_model(mapped.model)
    images = {image.name: image for image in model.images.values()}
    for pair in everything:
        angles = []
        first, second = images[pair.name0], images[pair.name1]
        for i in set(point_ids(first).tolist()) & set(point_ids(second).tolist()) - {-1}:
            rays = [image.projection_center() - model.points3D[i].xyz for image in (first, second)]
            a, b = (ray / np.linalg.norm(ray) for ray in rays)
            angles.append(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))
        assert (pair in fewer) == (np.median(angles) >= 60.0)


def test_the_seed_decides_which_pairs(mapped: PosedScene) -> None:
    config = PosePairsConfig(overlap_edges=(0.0, 0.3, 1.0), min_shared=1, max_pairs=20)
    draws = [choose_pairs(mapped, config, seed) for seed in (0, 0, 1)]
    assert draws[0].pairs == draws[1].pairs
    assert draws[0].pairs != draws[2].pairs
    for draw in draws:
        assert list(draw.drawn.values()) == [10, 10]


def test_drawn_evenly() -> None:
    groups = np.array([0] * 50 + [1] * 3 + [3] * 20)
    taken = evenly(groups, 23, np.random.default_rng(0))
    assert len(set(taken.tolist())) == 23
    assert np.bincount(groups[taken]).tolist() == [10, 3, 0, 10]
    assert sorted(evenly(groups, 1000, np.random.default_rng(0))) == list(range(73))
    assert evenly(groups, 1, np.random.default_rng(0)).tolist() == evenly(groups, 1, np.random.default_rng(0)).tolist()
    firsts = {evenly(groups, 1, np.random.default_rng(seed)).item() for seed in range(20)}
    assert len(firsts) > 5
    assert len(evenly(groups[:0], 5, np.random.default_rng(0))) == 0


def test_without_a_model_by_viewing_angle(tmp_path: Path) -> None:
    world = make_world(cameras=8, step_deg=10)
    scene = world.write(tmp_path / "arc")
    config = PosePairsConfig(view_edges_deg=(5, 25, 45))
    chosen = choose_pairs(scene, config, 0)
    axes = {name: rotation_matrix(pose.qvec)[2] for name, pose in world.poses.items()}
    names = sorted(axes)
    angles = {Pair(a, b): np.degrees(np.arccos(axes[a] @ axes[b])) for i, a in enumerate(names) for b in names[i + 1 :]}
    assert set(chosen.pairs) == {pair for pair, angle in angles.items() if 5 <= angle <= 45}
    assert chosen.found["5 to 25 deg"] == sum(5 <= angle < 25 for angle in angles.values())
    assert "viewing directions" in chosen.rule


def test_cameras_at_one_place_are_no_pair(tmp_path: Path) -> None:
    world = make_world(cameras=3)
    world.poses["01.png"] = world.poses["00.png"]
    chosen = choose_pairs(world.write(tmp_path / "arc"), PosePairsConfig(), 0)
    assert Pair("00.png", "01.png") not in chosen.pairs
    assert len(chosen.pairs) == 2


def test_own_pairs(tmp_path: Path) -> None:
    scene = make_world().write(tmp_path / "arc")
    listed = tmp_path / "mine.txt"
    listed.write_text("03.png 00.png\n00.png 01.png\n")
    chosen = choose_pairs(scene, PosePairsConfig(max_pairs=1), 0, listed)
    assert chosen.pairs == (Pair("03.png", "00.png"), Pair("00.png", "01.png"))
    kept = write_chosen_pairs(chosen, PosePairsConfig(), 0, tmp_path / "out")
    assert read_pairs(kept) == list(chosen.pairs)
    listed.write_text("03.png 00.png\n00.png 99.png\n")
    with pytest.raises(BadInputError, match=r"mine\.txt: 99\.png: no such image in .*poses\.txt"):
        choose_pairs(scene, PosePairsConfig(), 0, listed)


def test_no_pair_within_the_limits(tmp_path: Path, mapped: PosedScene) -> None:
    scene = make_world(cameras=2, step_deg=80).write(tmp_path / "arc")
    with pytest.raises(EmptyResultError, match="view_edges_deg"):
        choose_pairs(scene, PosePairsConfig(), 0)
    with pytest.raises(EmptyResultError, match="overlap_edges"):
        choose_pairs(mapped, PosePairsConfig(min_shared=10_000), 0)
    with pytest.raises(UsageError, match="each above the one before"):
        make(PosePairsConfig, {"overlap_edges": [0.5, 0.1]})
