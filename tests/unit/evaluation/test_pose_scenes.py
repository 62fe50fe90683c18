"""Scenes with true cameras in every layout, lenses included, and what is said when something is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from pose_worlds import SIZE, World, make_world

from featkit.core.errors import BadInputError, UsageError
from featkit.core.types import Pair
from featkit.evaluation.metrics import pose_errors_deg
from featkit.evaluation.pose_pairs import PosedScene, PosePairsConfig, choose_pairs, read_scene, read_scenes
from featkit.geometry.poses import rotation_matrix

PAIRS = (Pair("00.png", "02.png"), Pair("01.png", "03.png"))


def row(*arrays: np.ndarray) -> str:
    return " ".join(repr(float(value)) for array in arrays for value in np.ravel(array))


def intrinsics(world: World) -> np.ndarray:
    return np.array([[world.focal, 0, world.centre[0]], [0, world.focal, world.centre[1]], [0, 0, 1]])


def write_images(folder: Path, world: World) -> None:
    folder.mkdir(parents=True)
    for name in world.poses:
        cv2.imwrite(str(folder / name), np.zeros((SIZE[1], SIZE[0]), np.uint8))


def write_calibrated(root: Path, world: World, layout: str = "R t") -> Path:
    """pairs_calibrated.txt in one of its three layouts."""
    write_images(root / "images", world)
    lines = []
    for pair in PAIRS:
        rotation, translation = world.true_pose(pair)
        whole = np.eye(4)
        whole[:3, :3], whole[:3, 3] = rotation, translation
        pose = row(rotation, translation) if layout == "R t" else row(whole)
        turns = "0 0 " if layout == "SuperGlue" else ""
        k = row(intrinsics(world))
        lines.append(f"{pair.name0} {pair.name1} {turns}{k} {k} {pose}\n")
    (root / "pairs_calibrated.txt").write_text("".join(lines))
    return root


def write_views(root: Path, world: World) -> Path:
    write_images(root / "images", world)
    lines = [
        f"{name} {row(rotation_matrix(pose.qvec), pose.tvec)} SIMPLE_RADIAL {SIZE[0]} {SIZE[1]}"
        f" {world.focal} {world.centre[0]} {world.centre[1]} {world.k1}\n"
        for name, pose in world.poses.items()
    ]
    (root / "views.txt").write_text("".join(lines))
    (root / "pairs.txt").write_text("".join(f"{pair.name0} {pair.name1}\n" for pair in PAIRS))
    return root


def check(scene: PosedScene, world: World, pairs: tuple[Pair, ...] = PAIRS) -> None:
    """Poses of the pairs, and rays of the keypoints, are the world's own."""
    for pair in pairs:
        rotation, translation = world.true_pose(pair)
        found = scene.relative(pair)
        np.testing.assert_allclose(found.rotation, rotation, atol=1e-7)
        np.testing.assert_allclose(
            found.translation / np.linalg.norm(found.translation), translation / np.linalg.norm(translation), atol=1e-7
        )
        for name in (pair.name0, pair.name1):
            local = world.points @ rotation_matrix(world.poses[name].qvec).T + world.poses[name].tvec
            rays = scene.calibrations[name].rays(world.seen(name))
            np.testing.assert_allclose(rays, local[:, :2] / local[:, 2:], atol=1e-7)
            assert scene.calibrations[name].focal_px == pytest.approx(world.focal)


@pytest.mark.parametrize("k1", [0.0, -0.12, 0.2])
def test_known_poses_and_lenses(tmp_path: Path, k1: float) -> None:
    world = make_world(k1=k1)
    scene = world.write(tmp_path / "arc")
    check(scene, world)
    check(scene, world, (Pair("03.png", "00.png"),))
    assert scene.images == tmp_path / "arc" / "images"
    assert scene.model is None


def test_poses_in_truth(tmp_path: Path) -> None:
    """As `featkit demo` lays a rendered scene out."""
    world, root = make_world(), tmp_path / "arc"
    world.write(root)
    (root / "truth").mkdir()
    for name in ("poses.txt", "camera.txt"):
        (root / name).rename(root / "truth" / name)
    check(read_scene(root), world)


@pytest.mark.parametrize("layout", ["R t", "T", "SuperGlue"])
def test_megadepth_1500_as_a_list_of_calibrated_pairs(tmp_path: Path, layout: str) -> None:
    world = make_world()
    scene = read_scene(write_calibrated(tmp_path / "megadepth1500", world, layout))
    check(scene, world)
    chosen = choose_pairs(scene, PosePairsConfig(max_pairs=1), 0)
    assert chosen.pairs == PAIRS  # a protocol's own list is measured whole
    turned = Pair("02.png", "00.png")
    assert max(pose_errors_deg(scene.relative(turned), scene.relative(PAIRS[0]).inverse(), signed=True)) < 1e-6
    check(scene, world, (turned,))
    listed = tmp_path / "mine.txt"
    listed.write_text("00.png 01.png\n")
    with pytest.raises(BadInputError, match="no pose of this pair"):
        choose_pairs(scene, PosePairsConfig(), 0, listed)


def test_megadepth_1500_as_views_and_pairs(tmp_path: Path) -> None:
    world = make_world(k1=-0.1)
    root = write_views(tmp_path / "megadepth1500", world)
    scene = read_scene(root)
    check(scene, world, (*PAIRS, Pair("00.png", "03.png")))
    assert choose_pairs(scene, PosePairsConfig(), 0).pairs == PAIRS
    (root / "pairs.txt").unlink()
    assert len(choose_pairs(read_scene(root), PosePairsConfig(), 0).pairs) == 6


def test_names_relative_to_the_list(tmp_path: Path) -> None:
    """MegaDepth's own names begin with a folder, which lies beside the list as often as in images/."""
    world = make_world()
    root = write_calibrated(tmp_path / "megadepth1500", world)
    text = (root / "pairs_calibrated.txt").read_text()
    for name in world.poses:
        text = text.replace(name, f"images/{name}")
    (root / "pairs_calibrated.txt").write_text(text)
    scene = read_scene(root)
    assert scene.images == root
    choose_pairs(scene, PosePairsConfig(), 0)


def test_what_is_missing(tmp_path: Path) -> None:
    world = make_world()
    root = tmp_path / "arc"
    scene = world.write(root)
    (root / "images" / "02.png").unlink()
    with pytest.raises(BadInputError, match=r"1 of 4 images of poses\.txt are missing: 02\.png"):
        choose_pairs(scene, PosePairsConfig(), 0)
    cv2.imwrite(str(root / "images" / "02.png"), np.zeros((SIZE[1] // 2, SIZE[0] // 2), np.uint8))
    with pytest.raises(BadInputError, match=r"320 x 240, but 640 x 480"):
        choose_pairs(scene, PosePairsConfig(), 0)
    (root / "camera.txt").unlink()
    with pytest.raises(BadInputError, match=r"camera\.txt: no such file"):
        read_scene(root)
    (root / "poses.txt").unlink()
    with pytest.raises(
        BadInputError, match=r"no true cameras; a scene has sparse/ .*poses\.txt.*pairs_calibrated\.txt"
    ):
        read_scene(root)
    with pytest.raises(BadInputError, match="no such folder"):
        read_scene(tmp_path / "nowhere")
    listed = read_scene(write_calibrated(tmp_path / "megadepth1500", world))
    shutil.rmtree(tmp_path / "megadepth1500" / "images")
    with pytest.raises(
        BadInputError, match=r"4 of 4 images .* missing: 00\.png, 01\.png, 02\.png\.\.\..*megadepth1500\.zip"
    ):
        choose_pairs(listed, PosePairsConfig(), 0)


def test_two_scenes_of_one_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        make_world().write(tmp_path / folder / "arc", images=False)
    with pytest.raises(UsageError, match="two scenes are named 'arc'"):
        read_scenes([tmp_path / "a" / "arc", tmp_path / "b" / "arc"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("00.png 02.png", "00.png"), "9 \\+ 9 \\+ 9 \\+ 3"),
        (lambda text: text.replace("00.png 02.png", "00.png 00.png"), "paired with itself"),
        (lambda text: text.replace("600.0", "nan", 1), "not finite"),
        (lambda text: text.replace("600.0", "x", 1), "not all numbers"),
        (lambda text: text.replace("600.0 0.0", "600.0 3.0", 1), "without skew"),
        (lambda text: text.replace("01.png", "00.png").replace("600.0", "601.0", 1), "different intrinsics"),
        (lambda text: "", "no pairs"),
    ],
)
def test_broken_lists_of_calibrated_pairs(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    root = write_calibrated(tmp_path / "megadepth1500", make_world())
    path = root / "pairs_calibrated.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(BadInputError, match=message) as caught:
        read_scene(root)
    assert "pairs_calibrated.txt" in str(caught.value)


def test_a_matrix_that_is_no_rotation(tmp_path: Path) -> None:
    world = make_world()
    root = write_calibrated(tmp_path / "megadepth1500", world)
    k = row(intrinsics(world))
    path = root / "pairs_calibrated.txt"
    path.write_text(f"00.png 01.png {k} {k} {row(np.diag([1.0, 1.0, -1.0]), np.ones(3))}\n")
    with pytest.raises(BadInputError, match="not a rotation"):
        read_scene(root)
    views = write_views(tmp_path / "views", world)
    (views / "views.txt").write_text("00.png 1 2 3\n")
    with pytest.raises(BadInputError, match=r"views\.txt:1: '00\.png': expected"):
        read_scene(views)
