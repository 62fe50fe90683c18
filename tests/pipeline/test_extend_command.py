"""`featkit extend` on the rendered scene, compared with its exact truth; and one-line errors."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import refused, results, run
from PIL import Image

from featkit.core.errors import BadInputError
from featkit.io.features import open_features
from featkit.io.lists import read_poses
from featkit.localization.localizer import Localizer
from featkit.mapping.align import compare_with_truth
from featkit.mapping.model import read_model


@pytest.fixture(scope="module")
def extended(mapped_scene: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The map of six photographs, and new ones: two queries, an unrelated photograph, and a broken one."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(mapped_scene.folder / "queries", folder / "new")
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "new" / "noise.png")
    (folder / "new" / "broken.jpg").write_bytes(b"no photograph")
    return folder, results("extend", mapped_scene.folder, folder / "new", "-o", folder / "out", "--workers", 1)


def true_poses(scene: Any) -> dict[str, Any]:
    poses = dict(read_poses(scene.folder / "truth" / "poses.txt"))
    return poses | dict(scene.rendered.query_poses)


def test_new_photographs_are_at_their_true_poses(mapped_scene: Any, extended: Any) -> None:
    folder, found = extended
    queries = sorted(path.name for path in (mapped_scene.folder / "queries").iterdir())
    assert found["registered"] == queries
    assert found["old"] == 6
    assert found["images"] == 8
    assert found["left_out"].keys() == {"broken.jpg", "noise.png"}
    assert found["left_out"]["broken.jpg"] == "it cannot be read"
    old, new = read_model(mapped_scene.output / "sparse" / "0"), read_model(folder / "out" / "sparse" / "0")
    errors = compare_with_truth(new, true_poses(mapped_scene))
    before = compare_with_truth(old, true_poses(mapped_scene))
    assert len(errors.names) == 8
    assert errors.centre.max() < 1.5 * before.centre.max() + 0.002  # metres
    extent = np.ptp([image.projection_center() for image in old.images.values()], axis=0).max()
    for image_id, image in old.images.items():
        assert new.images[image_id].name == image.name
        assert np.linalg.norm(new.images[image_id].projection_center() - image.projection_center()) < 0.01 * extent
    assert set(new.cameras) == set(old.cameras)
    assert new.cameras[1].params.tolist() == old.cameras[1].params.tolist()  # mapped with --fix-intrinsics
    assert all(point.color.any() for point in list(new.points3D.values())[:100])


def test_the_extended_map_works_like_any_map(mapped_scene: Any, extended: Any, tmp_path: Path) -> None:
    """It is up to date, localizes queries, is extended again without work, and exported from two photograph folders."""
    folder, found = extended
    command = ("extend", mapped_scene.folder, folder / "new", "-o", folder / "out", "--workers", 1)
    stamp = (folder / "out" / "sparse.json").stat().st_mtime_ns
    assert results(*command)["registered"] == found["registered"]
    assert (folder / "out" / "sparse.json").stat().st_mtime_ns == stamp
    localized = results(
        "localize", folder / "out", "--queries", mapped_scene.folder / "queries", "-o", tmp_path / "loc", "--workers", 1
    )
    assert localized["localized"] == 2
    again = run("extend", folder / "out", mapped_scene.folder / "queries", "-q", "-o", tmp_path / "again")
    refused(again, 3, "nothing to do: all of its 2 photographs are in the map already")
    images = ("--images", mapped_scene.folder / "images", "--images", folder / "new")
    done = results("export", folder / "out", "--format", "gaussian-splatting", "-o", tmp_path / "splats", *images)
    assert done["images"] == 8


def test_fixed_and_pruned(mapped_scene: Any, tmp_path: Path) -> None:
    """With the scene's own folder: one photograph is removed, one is new; old cameras do not change."""
    images = tmp_path / "images"
    shutil.copytree(mapped_scene.folder / "images", images)
    (images / "0001.jpg").unlink()
    new = sorted((mapped_scene.folder / "queries").iterdir())[0]
    shutil.copy(new, images / "new.jpg")
    out = tmp_path / "out"
    found = results("extend", mapped_scene.folder, images, "-o", out, "--fixed", "--prune", "--workers", 1)
    assert found["pruned"] == ["0001.jpg"]
    assert found["registered"] == ["new.jpg"]
    old, model = read_model(mapped_scene.output / "sparse" / "0"), read_model(out / "sparse" / "0")
    assert {image.name for image in model.images.values()} == {
        *(f"000{n}.jpg" for n in (0, 2, 3, 4, 5)), "new.jpg"
    }  # fmt: skip
    for image in model.images.values():
        if image.name != "new.jpg":
            same = old.images[image.image_id].cam_from_world().matrix()
            assert np.abs(same - image.cam_from_world().matrix()).max() < 1e-9
    (images / "new.jpg").unlink()
    found = results("extend", mapped_scene.folder, images, "-o", tmp_path / "pruned", "--prune", "--workers", 1)
    assert (found["images"], found["registered"]) == (5, [])


def test_a_map_of_given_keypoints(mapped_scene: Any, tmp_path: Path) -> None:
    """Those of the new photographs are given too; one line each where they are missing, others, or not wanted."""
    scene, queries = tmp_path / "scene", tmp_path / "queries"
    shutil.copytree(mapped_scene.folder / "images", scene / "images")
    shutil.copytree(mapped_scene.folder / "queries", queries)
    names = sorted(path.name for path in queries.iterdir())
    points, new, other = (tmp_path / f"{name}.h5" for name in ("points", "new", "other"))
    for folder, file, number in ((scene / "images", points, 500), (queries, new, 500), (queries, other, 300)):
        results("extract", folder, "-o", file, "--max-keypoints", number, "--workers", 1)
    camera = [word for word in mapped_scene.options if word not in ("--max-keypoints", "1500")]
    results("reconstruct", scene, *camera, "--features", "dog+hynet", "--keypoints", points, "--device", "cpu")
    shutil.copy(queries / names[0], queries / "unknown.jpg")
    command = ("extend", scene, queries, "-o", tmp_path / "out", "--device", "cpu")
    found = results(*command, "--keypoints", new)
    assert found["registered"] == names
    assert found["left_out"] == {"unknown.jpg": f"{new} has no keypoints of it"}
    with open_features(tmp_path / "out" / "features.h5") as store, open_features(new) as given:
        assert all(np.array_equal(store.keypoints(name), given.keypoints(name)) for name in names)
    larger = read_model(tmp_path / "out" / "sparse" / "0")
    assert compare_with_truth(larger, true_poses(mapped_scene)).centre.max() < 0.05
    refused(run(*command, "-q", "--keypoints", other), 3, "has other keypoints than", "other.h5; add --overwrite")
    refused(
        run(*command, "-q"),
        3,
        "describes keypoints of another detector",
        "--keypoints FILE of `featkit localize` or `extend`",
    )
    detected = run("extend", mapped_scene.folder, queries, "-q", "-o", tmp_path / "no", "--keypoints", new)
    refused(detected, 2, "detect their own keypoints; leave it out")
    with pytest.raises(BadInputError, match="which photographs sent to a server do not bring along"):
        Localizer(scene)


def test_a_map_of_another_program(mapped_scene: Any, tmp_path: Path) -> None:
    """A COLMAP model only: its photographs are found, and featkit's features are added to its keypoints."""
    scene = tmp_path / "scene"
    shutil.copytree(mapped_scene.folder / "images", scene / "images")
    shutil.copytree(mapped_scene.output / "sparse" / "0", scene / "sparse" / "0")
    found = results(
        "extend", scene, mapped_scene.folder / "queries", "--set", "extract.extractor.max_keypoints=1000",
        "--workers", 1, "--fix-intrinsics",
    )  # fmt: skip
    assert len(found["registered"]) == 2
    old, model = read_model(scene / "sparse" / "0"), read_model(scene / "extended" / "sparse" / "0")
    assert compare_with_truth(model, true_poses(mapped_scene)).centre.max() < 0.02
    assert len(set(old.points3D) & set(model.points3D)) > 0.9 * len(old.points3D)
    (scene / "images" / "0002.jpg").unlink()
    refused(
        run("extend", scene, mapped_scene.folder / "queries", "-q", "-o", tmp_path / "b"), 3,
        "1 of the map's 6 photographs are missing: 0002.jpg",
    )  # fmt: skip


def test_failed_runs_keep_existing_files(mapped_scene: Any, tmp_path: Path) -> None:
    scene, queries, out = mapped_scene.folder, mapped_scene.folder / "queries", tmp_path / "out"
    command = ("extend", scene, "-q", "-o", out)
    refused(run(*command, tmp_path / "nowhere"), 3, "nowhere", "no such folder")
    refused(run("extend", queries, queries, "-q", "-o", out), 3, "no COLMAP model")
    refused(run(*command, queries, "--prune"), 3, "none of the map's 6 photographs")
    one = tmp_path / "one"
    one.mkdir()
    for path in (scene / "images" / "0000.jpg", sorted(queries.iterdir())[0]):
        shutil.copy(path, one)
    refused(run(*command, one, "--prune"), 3, "has 1 of the map's 6 photographs")
    refused(run(*command, queries, "--images", tmp_path / "nowhere"), 3, "nowhere: no such folder")
    refused(run(*command, queries, "--camera-model", "PINHOL"), 2, "--camera-model PINHOL: there is")
    refused(run(*command, queries, "--camera-params", "1,2,3"), 2, "--camera-params")
    assert not out.exists()  # refused before any work
    refused(run("extend", scene, queries, "-q", "-o", mapped_scene.output), 3, "is the map itself")
    refused(run(*command, queries, "--features", "dog+hynet"), 2, "--features dog+hynet: the map's are rootsift")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(sorted(queries.iterdir())[0], other / "0003.jpg")
    refused(run(*command, other), 3, "0003.jpg: is another photograph than the map's of that name")
    noise = tmp_path / "noise"
    noise.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(noise / "a.png")
    refused(run(*command, noise, "--workers", 1), 4, "none of 1 new photographs could be registered (a.png)")
    assert not (out / "sparse").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "extend.json").write_text(json.dumps({"mine": 1}))
    refused(run("extend", scene, queries, "-q", "-o", foreign), 3, "extend.json: was not made by featkit")
    assert [path.name for path in foreign.iterdir()] == ["extend.json"]


def test_equal_names_of_other_photographs(mapped_scene: Any, tmp_path: Path) -> None:
    """The map's photographs are elsewhere; its features remember which they were."""
    shutil.copytree(mapped_scene.output, tmp_path / "map")
    new = tmp_path / "new"
    new.mkdir()
    one, other = sorted((mapped_scene.folder / "queries").iterdir())
    shutil.copy(one, new / "0000.jpg")
    command = ("extend", tmp_path / "map", new, "-o", tmp_path / "out", "--workers", 1)
    ran = run(*command)
    assert ran.exit_code == 3
    assert "nothing to do" in ran.stderr
    assert "left out, as the map has photographs of these names: 0000.jpg" in ran.stderr
    shutil.copy(mapped_scene.folder / "images" / "0001.jpg", new)
    shutil.copy(other, new / "more.jpg")
    refused(run(*command, "-q"), 3, "0000.jpg: is another photograph than the map's of that name; rename it")


def test_names_in_the_other_unicode_form(mapped_scene: Any, tmp_path: Path) -> None:
    """Photographs copied by a Mac have decomposed names; they are the same photographs."""
    (tmp_path / "scene" / "images").mkdir(parents=True)
    (tmp_path / "new").mkdir()
    for path in sorted((mapped_scene.folder / "images").iterdir()):
        shutil.copy(path, tmp_path / "scene" / "images" / unicodedata.normalize("NFC", f"é{path.name}"))
        shutil.copy(path, tmp_path / "new" / unicodedata.normalize("NFD", f"é{path.name}"))
    results("reconstruct", tmp_path / "scene", *mapped_scene.options, "--workers", 1)
    ran = run("extend", tmp_path / "scene", tmp_path / "new", "-q", "-o", tmp_path / "out", "--workers", 1)
    refused(ran, 3, "nothing to do: all of its 6 photographs are in the map already")
