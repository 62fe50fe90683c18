"""The rendered scene: files, truth, determinism, and what a feature detector finds in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from featkit.core.errors import BadInputError
from featkit.core.types import Pose
from featkit.demo.render import render
from featkit.demo.scene import (
    RenderedConfig,
    RenderedScene,
    distance_to_surface,
    intrinsics,
    map_poses,
    query_poses,
    render_scene,
    surface_point,
    surfaces,
)
from featkit.geometry.poses import camera_centre, rotation_matrix
from featkit.io.lists import read_camera, read_poses

pytestmark = pytest.mark.slow
SMALL = RenderedConfig(width=160, height=120, num_map=3, num_queries=1, texel_m=0.04, workers=1)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RenderedScene]:
    root = tmp_path_factory.mktemp("scene")
    return root, render_scene(SMALL, root)


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def projected(config: RenderedConfig, pose: Pose, points: np.ndarray) -> np.ndarray:
    camera = intrinsics(config)
    model = pycolmap.Camera(model=camera.model, width=camera.width, height=camera.height, params=list(camera.params))
    return model.img_from_cam(points @ rotation_matrix(pose.qvec).T + pose.tvec) - 0.5


def test_files_and_truth(scene: tuple[Path, RenderedScene]) -> None:
    root, made = scene
    assert sorted(contents(root)) == [
        "images/0000.jpg",
        "images/0001.jpg",
        "images/0002.jpg",
        "queries/query_0000.jpg",
        "truth/camera.txt",
        "truth/poses.txt",
        "truth/query_poses.txt",
        "truth/scene.json",
    ]
    assert cv2.imread(str(made.images / "0000.jpg")).shape == (120, 160, 3)
    camera = read_camera(made.camera)
    assert camera == made.intrinsics
    assert camera.params[2:] == (80.0, 60.0)  # the true centre, in COLMAP pixels
    for path, poses in ((made.poses_file, made.poses), (made.query_poses_file, made.query_poses)):
        stored = read_poses(path)
        assert list(stored) == list(poses)
        for name, pose in poses.items():
            np.testing.assert_allclose(camera_centre(stored[name]), camera_centre(pose), atol=1e-7)


def test_the_same_seed_gives_the_same_bytes(scene: tuple[Path, RenderedScene], tmp_path: Path) -> None:
    render_scene(SMALL.model_copy(update={"workers": 3}), tmp_path)
    assert contents(tmp_path) == contents(scene[0])


def test_another_seed_gives_other_pictures(scene: tuple[Path, RenderedScene], tmp_path: Path) -> None:
    render_scene(SMALL.model_copy(update={"seed": 1}), tmp_path)
    assert contents(tmp_path)["images/0000.jpg"] != contents(scene[0])["images/0000.jpg"]


def test_skips_what_is_whole_and_repeats_what_is_not(scene: tuple[Path, RenderedScene], tmp_path: Path) -> None:
    shutil.copytree(scene[0], tmp_path, dirs_exist_ok=True)
    made = render_scene(SMALL, tmp_path)
    picture = made.images / "0001.jpg"
    before = contents(tmp_path)
    stamp = picture.stat().st_mtime_ns
    render_scene(SMALL, tmp_path)
    assert picture.stat().st_mtime_ns == stamp
    picture.write_bytes(before["images/0001.jpg"][:100])  # cut off
    render_scene(SMALL, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["[]", '{"bytes": []}', "not json"])
def test_a_broken_record_is_neither_believed_nor_replaced(tmp_path: Path, text: str) -> None:
    record = tmp_path / "truth" / "scene.json"
    record.parent.mkdir()
    record.write_text(text)
    tiny = SMALL.model_copy(update={"width": 40, "height": 32, "num_map": 1, "texel_m": 0.05})
    with pytest.raises(BadInputError, match=r"scene\.json: was not made by featkit"):
        render_scene(tiny, tmp_path)
    assert contents(tmp_path) == {"truth/scene.json": text.encode()}
    record.unlink()
    render_scene(tiny, tmp_path)
    assert json.loads(record.read_text())["fingerprint"] == tiny.fingerprint()


def test_goes_on_after_a_kill(
    scene: tuple[Path, RenderedScene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed run left is known by the record that it wrote first; what was there before is not featkit's."""
    from featkit.demo import scene as rendered

    plain, done = rendered.write_bytes, []

    def killed(path: Path, data: bytes, **options: bool) -> Path:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(path)
        return plain(path, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(rendered, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            render_scene(SMALL, tmp_path)
    assert len(list((tmp_path / "images").iterdir())) > 0
    (tmp_path / "queries" / "mine.jpg").write_bytes(b"of the user")
    render_scene(SMALL, tmp_path)
    (tmp_path / "queries" / "mine.jpg").unlink()
    assert contents(tmp_path) == contents(scene[0])
    mine = tmp_path / "fresh" / "images" / next(iter(scene[1].poses))
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"of the user")
    with pytest.raises(BadInputError, match="not made by featkit"):
        render_scene(SMALL, tmp_path / "fresh")
    assert contents(tmp_path / "fresh") == {f"images/{mine.name}": b"of the user"}


def test_a_smaller_scene_leaves_no_photographs_of_the_larger_one(
    scene: tuple[Path, RenderedScene], tmp_path: Path
) -> None:
    shutil.copytree(scene[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "images" / "mine.jpg").write_bytes(b"of the user")
    render_scene(SMALL.model_copy(update={"num_map": 2, "num_queries": 0}), tmp_path)
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["0000.jpg", "0001.jpg", "mine.jpg"]
    assert not list((tmp_path / "queries").iterdir())


def test_surface_points_project_back_to_their_pixels() -> None:
    config = RenderedConfig()
    pixels = np.random.default_rng(0).uniform((0, 0), (799, 599), (4000, 2))
    for pose in (*map_poses(config).values(), *query_poses(config).values()):
        points = surface_point(config, pose, pixels)
        seen = np.isfinite(points).all(axis=1)
        assert seen.mean() > 0.85
        np.testing.assert_allclose(projected(config, pose, points[seen]), pixels[seen], atol=1e-6)
        assert distance_to_surface(config, points[seen]).max() < 1e-9


def test_distance_to_surface_grows_with_the_distance_from_the_ground() -> None:
    places = np.array([[4.0, 6.0, 0.0], [4.0, 6.0, 0.013], [4.0, 6.0, -0.3]])
    np.testing.assert_allclose(distance_to_surface(SMALL, places), [0.0, 0.013, 0.3], atol=1e-12)


def test_surface_points_agree_with_what_is_drawn() -> None:
    """Sky where surface_point says NaN, something else where it does not (clear of the edges)."""
    config = SMALL.model_copy(update={"noise_std": 0.0})
    pose = query_poses(config)["query_0000.jpg"]
    columns, rows = np.meshgrid(np.arange(160.0), np.arange(120.0))
    points = surface_point(config, pose, np.stack([columns.ravel(), rows.ravel()], axis=1))
    sky = np.isnan(points[:, 0]).reshape(120, 160).astype(np.uint8)
    assert 0 < sky.sum() < 6000
    without = render((), intrinsics(config), pose, 2)  # nothing but sky
    drawn = np.abs(render(surfaces(config), intrinsics(config), pose, 2) - without).max(axis=2)
    kernel = np.ones((3, 3), np.uint8)
    assert drawn[cv2.erode(sky, kernel) > 0].max() < 1e-3
    assert np.mean(drawn[cv2.erode(1 - sky, kernel) > 0] > 5.0) > 0.98


@pytest.mark.parametrize("count", [1, 12, 300])
def test_cameras_stand_apart_in_the_open(count: int) -> None:
    config = RenderedConfig(num_map=count, num_queries=4)
    poses = [*map_poses(config).values(), *query_poses(config).values()]
    centres = np.array([camera_centre(pose) for pose in poses])
    assert distance_to_surface(config, centres).min() > 0.4
    gaps = np.linalg.norm(centres[:, None] - centres[None], axis=2) + 9.0 * np.eye(len(centres))
    assert gaps.min() > (0.3 if count <= 12 else 0.01)


def test_sift_finds_plenty() -> None:
    config = RenderedConfig()
    world = surfaces(config)
    poses = map_poses(config)
    for name in ("0000.jpg", "0006.jpg", "0011.jpg"):
        image = render(world, intrinsics(config), poses[name], config.supersampling)
        gray = cv2.cvtColor(np.clip(image, 0, 255).astype(np.uint8), cv2.COLOR_BGR2GRAY)
        assert len(cv2.SIFT_create().detect(gray)) > 1500
        assert np.mean((gray < 5) | (gray > 250)) < 0.02  # neither black nor burnt out
