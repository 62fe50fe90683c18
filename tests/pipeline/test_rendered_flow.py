"""The complete pipeline on the command line with a rendered scene, compared with its exact truth."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pycolmap
import pytest

from featkit.core.types import Pair
from featkit.evaluation.metrics import pose_error
from featkit.geometry.poses import camera_centre, rotation_angle_deg, rotation_matrix
from featkit.io.lists import read_camera, read_pairs, read_poses
from featkit.mapping.align import transform_pose, truth_from_map
from featkit.mapping.cameras import to_pose
from featkit.mapping.model import read_model

Command = Callable[..., Any]
DOCUMENTED = {"features.h5", "pairs.txt", "matches.h5", "database.db", "sparse", "report.html", "metrics.json"}
STAMPS = {"pairs.json", "database.json", "sparse.json"}  # which configuration made the file beside it


def model_poses(sparse: Path) -> dict[str, Any]:
    model = read_model(sparse / "0")
    return {i.name: to_pose(i.cam_from_world()) for i in model.images.values() if i.has_pose}


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Hash and modification time of every file. Opening a store or database may change times and SQLite counters."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            changed = 0 if path.suffix in (".h5", ".db") else path.stat().st_mtime_ns
            digest = "" if path.suffix == ".db" else hashlib.sha256(path.read_bytes()).hexdigest()
            found[path.relative_to(folder).as_posix()] = (digest, changed)
    return found


def forget_map(output: Path) -> None:
    """Delete everything except features, pairs and matches."""
    shutil.rmtree(output / "sparse")
    for name in ("sparse.json", "database.db", "database.json", "metrics.json", "report.html"):
        (output / name).unlink()


def worst_errors(sparse: Path, truth: dict[str, Any]) -> tuple[float, float]:
    """Largest centre error (m) and rotation error (deg) after one similarity."""
    model = read_model(sparse / "0")
    similarity = truth_from_map(model, truth)
    errors = [pose_error(transform_pose(pose, similarity), truth[n]) for n, pose in model_poses(sparse).items()]
    return max(e[0] for e in errors), max(e[1] for e in errors)


def test_the_map_is_exact_and_complete(mapped_scene: Any) -> None:
    metrics = json.loads((mapped_scene.output / "metrics.json").read_text())
    assert metrics == mapped_scene.ran.json()
    assert metrics["registered"] == metrics["images"] == 6
    assert metrics["points"] > 400
    assert metrics["reprojection_px"] < 0.5
    assert metrics["truth"]["cameras"] == 6
    assert metrics["truth"]["centre_max"] < 0.005
    assert metrics["truth"]["rotation_deg_max"] < 0.15
    centre, rotation = worst_errors(mapped_scene.output / "sparse", mapped_scene.rendered.poses)
    assert centre == pytest.approx(metrics["truth"]["centre_max"], rel=1e-3)
    assert rotation == pytest.approx(metrics["truth"]["rotation_deg_max"], rel=1e-3)
    assert {path.name for path in mapped_scene.output.iterdir()} == DOCUMENTED | STAMPS
    assert {path.name for path in mapped_scene.folder.iterdir()} == {"images", "queries", "truth", "featkit"}


def test_separate_commands_equal_reconstruct(mapped_scene: Any, featkit_command: Command, tmp_path: Path) -> None:
    images = mapped_scene.folder / "images"
    features, pairs, matches = tmp_path / "new" / "f.h5", tmp_path / "p.txt", tmp_path / "m.h5"
    done = featkit_command("extract", images, "--out", features, "--max-keypoints", 1500, "--json")
    assert done.code == 0, done.err
    assert done.json()["images"] == 6
    assert featkit_command("pairs", features, "--method", "exhaustive", "--out", pairs).code == 0
    assert len(read_pairs(pairs)) == 15
    done = featkit_command("match", features, pairs, "-o", matches, "--json", "-q")
    assert done.code == 0, done.err
    assert done.err == ""
    import h5py

    for ours, theirs, dataset in (
        (features, mapped_scene.output / "features.h5", "descriptors"),
        (matches, mapped_scene.output / "matches.h5", "matches0"),
    ):
        with h5py.File(ours) as a, h5py.File(theirs) as b:
            names: list[str] = []
            b.visititems(lambda name, item, to=names, d=dataset: to.append(name) if name.endswith(d) else None)
            assert len(names) in (6, 15)
            assert all(np.array_equal(a[name][()], b[name][()]) for name in names)


def test_a_second_run_does_nothing_and_another_option_is_refused(mapped_copy: Any, featkit_command: Command) -> None:
    before = contents(mapped_copy.output)
    again = featkit_command("reconstruct", mapped_copy.folder, *mapped_copy.options)
    assert again.code == 0, again.err
    assert again.err.count("done already") >= 4  # extract, pair, database, map (and match)
    after = contents(mapped_copy.output)
    made = [name for name in before if name not in ("metrics.json", "report.html")]
    assert {name: after[name] for name in made} == {name: before[name] for name in made}
    assert after.keys() == before.keys()

    options = [*mapped_copy.options[:-1], "900"]
    refused = featkit_command("reconstruct", mapped_copy.folder, *options, "-q")
    assert refused.code == 3
    assert "max_keypoints: 1500 -> 900" in refused.err
    assert "--overwrite" in refused.err
    assert contents(mapped_copy.output) == after

    anew = featkit_command("reconstruct", mapped_copy.folder, *options, "--overwrite", "-q", "--json")
    assert anew.code == 0, anew.err
    assert anew.json()["registered"] == 6
    assert anew.json()["config"]["extract"]["extractor"]["max_keypoints"] == 900


def test_the_same_seed_gives_the_same_map(mapped_scene: Any, mapped_copy: Any, featkit_command: Command) -> None:
    forget_map(mapped_copy.output)
    assert featkit_command("reconstruct", mapped_copy.folder, *mapped_copy.options, "-q").code == 0
    first, second = model_poses(mapped_scene.output / "sparse"), model_poses(mapped_copy.output / "sparse")
    assert first.keys() == second.keys()
    for name, pose in first.items():
        np.testing.assert_array_equal(second[name].qvec, pose.qvec)
        np.testing.assert_array_equal(second[name].tvec, pose.tvec)
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        files = [scene.output / "sparse" / "0" / name for scene in (mapped_scene, mapped_copy)]
        assert files[0].read_bytes() == files[1].read_bytes(), name


@pytest.mark.parametrize("mapper", ["global", "hierarchical"])
def test_other_mappers(mapper: str, mapped_copy: Any, featkit_command: Command) -> None:
    done = featkit_command("reconstruct", mapped_copy.folder, *mapped_copy.options, "--mapper", mapper, "--json", "-q")
    assert done.code == 0, done.err
    assert done.json()["registered"] == 6
    centre, rotation = worst_errors(mapped_copy.output / "sparse", mapped_copy.rendered.poses)
    assert centre < 0.01
    assert rotation < 0.3


@pytest.mark.parametrize("method", ["sequential", "retrieval", "file"])
def test_other_pairs(method: str, mapped_copy: Any, featkit_command: Command, tmp_path: Path) -> None:
    names = sorted(mapped_copy.rendered.poses)
    if method == "file":
        listed = tmp_path / "mine.txt"
        listed.write_text("".join(f"{a} {b}\n" for i, a in enumerate(names) for b in names[i + 1 : i + 3]))
        method = str(listed)
    ran = featkit_command("reconstruct", mapped_copy.folder, *mapped_copy.options, "--pairs", method, "--json", "-q")
    assert ran.code == 0, ran.err
    assert ran.json()["registered"] == 6
    assert ran.json()["config"]["pairs"] == method
    if method.endswith("mine.txt"):
        assert ran.json()["verified_pairs"] <= 9
        assert listed.read_text().count("\n") == 9


def test_reference_poses_are_kept_and_queries_are_in_their_frame(
    mapped_copy: Any, featkit_command: Command, tmp_path: Path
) -> None:
    """--reference; then --truth of localize prints the recall, and a query named as a map image is no trouble."""
    truth = mapped_copy.folder / "truth"
    forget_map(mapped_copy.output)
    done = featkit_command(
        "reconstruct", mapped_copy.folder, "--max-keypoints", 1500, "--reference", truth / "poses.txt", "--json", "-q"
    )
    assert done.code == 0, done.err
    for name, pose in model_poses(mapped_copy.output / "sparse").items():
        true = mapped_copy.rendered.poses[name]
        np.testing.assert_allclose(camera_centre(pose), camera_centre(true), atol=1e-6)
        assert rotation_angle_deg(rotation_matrix(pose.qvec), rotation_matrix(true.qvec)) < 1e-5
    model = read_model(mapped_copy.output / "sparse" / "0")
    (camera,) = model.cameras.values()
    known = read_camera(truth / "camera.txt")
    assert (camera.model_name, tuple(camera.params)) == (known.model, known.params)

    queries, true_queries = tmp_path / "queries", tmp_path / "query_poses.txt"
    queries.mkdir()
    lines = (truth / "query_poses.txt").read_text()
    shutil.copy(mapped_copy.folder / "queries" / "query_0000.jpg", queries / "0003.jpg")  # also a map image's name
    shutil.copy(mapped_copy.folder / "queries" / "query_0001.jpg", queries)
    true_queries.write_text(lines.replace("query_0000.jpg", "0003.jpg"))
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    import cv2

    cv2.imwrite(str(queries / "elsewhere.png"), noise)
    located = featkit_command("localize", mapped_copy.folder, "--queries", queries, "--truth", true_queries)
    assert located.code == 0, located.err
    assert "0.25 m, 2 deg" in located.out
    assert "100.0 %" in located.out
    assert "not localized: elsewhere.png:" in located.out
    output = mapped_copy.output / "localize"
    poses, expected = read_poses(output / "poses.txt"), read_poses(true_queries)
    assert poses.keys() == {"0003.jpg", "query_0001.jpg"}
    for name, pose in poses.items():
        centre, rotation = pose_error(pose, expected[name])
        assert centre < 0.02
        assert rotation < 0.2
    described = {r["name"]: r for r in json.loads((output / "poses.json").read_text())["results"]}
    assert described["elsewhere.png"]["localized"] is False
    assert described["elsewhere.png"]["reason"]
    assert "qvec" not in described["elsewhere.png"]
    assert described["0003.jpg"]["reason"] is None
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["recall"]["0.25 m, 2 deg"] == 1.0
    assert metrics["judged"] == 2
    assert metrics["failed"].keys() == {"elsewhere.png"}


def test_queries_in_an_unaligned_map(mapped_scene: Any, featkit_command: Command, tmp_path: Path) -> None:
    """Localized in the map's frame, they are at their true poses after its alignment. Two runs give the same poses."""
    runs = []
    for out in (tmp_path / "a", tmp_path / "b"):
        ran = featkit_command(
            "localize", mapped_scene.output / "sparse" / "0", "--queries", mapped_scene.folder / "queries",
            "--out", out, "--json", "-q",
        )  # fmt: skip
        assert ran.code == 0, ran.err
        assert ran.json() == json.loads((out / "metrics.json").read_text())
        assert ran.json()["localized"] == 2
        runs.append((out / "poses.txt").read_bytes())
    assert runs[0] == runs[1]
    similarity = truth_from_map(read_model(mapped_scene.output / "sparse" / "0"), mapped_scene.rendered.poses)
    found = read_poses(tmp_path / "a" / "poses.txt")
    assert found.keys() == mapped_scene.rendered.query_poses.keys()
    for name, pose in found.items():
        centre, rotation = pose_error(transform_pose(pose, similarity), mapped_scene.rendered.query_poses[name])
        assert centre < 0.02
        assert rotation < 0.2
    names = {"poses.txt", "poses.json", "report.html", "metrics.json"}
    assert names < {path.name for path in (tmp_path / "a").iterdir()}


def test_failed_queries_are_tried_in_the_other_models(mapped_copy: Any, featkit_command: Command) -> None:
    """The first model has cameras but few points; the second is complete, in another frame."""
    sparse, queries = mapped_copy.output / "sparse", mapped_copy.folder / "queries"
    model = read_model(sparse / "0")
    model.transform(pycolmap.Sim3d(2.0, pycolmap.Rotation3d(np.array([0.0, 0.0, 0.6, 0.8])), np.array([5.0, 0.0, 1.0])))
    (sparse / "1").mkdir()
    model.write(sparse / "1")
    for point in sorted(model.point3D_ids())[3:]:
        model.delete_point3D(point)
    model.write(sparse / "0")
    ran = featkit_command("localize", mapped_copy.folder, "--queries", queries)
    assert ran.code == 0, ran.err
    assert "the largest of 2 models; choose another with --model (1)" in ran.err
    where = mapped_copy.output / "localize" / "model-1" / "poses.txt"
    names = sorted(mapped_copy.rendered.query_poses)
    assert [line for line in ran.out.splitlines() if "another model" in line] == [
        f"in another model: {name}: {where}" for name in names
    ]
    assert not (mapped_copy.output / "localize" / "poses.txt").read_text()
    metrics = json.loads((mapped_copy.output / "localize" / "metrics.json").read_text())
    assert metrics["in_other_models"] == dict.fromkeys(names, "model-1")
    similarity = truth_from_map(read_model(sparse / "1"), mapped_copy.rendered.poses)
    for name, pose in read_poses(where).items():
        centre, rotation = pose_error(transform_pose(pose, similarity), mapped_copy.rendered.query_poses[name])
        assert centre < 0.02
        assert rotation < 0.2


def test_only_listed_queries_are_localized(mapped_scene: Any, featkit_command: Command, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    params = " ".join(map(str, mapped_scene.rendered.intrinsics.params))
    listed.write_text(f"query_0001.jpg PINHOLE 400 300 {params}\n")
    ran = featkit_command(
        "localize", mapped_scene.folder, "--queries", mapped_scene.folder / "queries", "--intrinsics", listed,
        "--out", tmp_path / "out", "--json", "-q",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json()["queries"] == 1
    assert read_poses(tmp_path / "out" / "poses.txt").keys() == {"query_0001.jpg"}
    (result,) = json.loads((tmp_path / "out" / "poses.json").read_text())["results"]
    assert result["intrinsics_source"] == "list"
    assert result["camera"] == ["PINHOLE", 400, 300, *mapped_scene.rendered.intrinsics.params]


def test_queries_paired_by_given_global_descriptors(
    mapped_scene: Any, featkit_command: Command, tmp_path: Path
) -> None:
    """--retrieval: each query's images by the given vectors; other vectors or none at all choose other images."""
    queries, images = sorted(mapped_scene.rendered.query_poses), sorted(mapped_scene.rendered.poses)
    folder, out, described = mapped_scene.folder / "queries", tmp_path / "out", tmp_path / "global.h5"
    ask = ("localize", mapped_scene.folder, "--queries", folder, "--out", out, "--num", "3", "--json", "-q")
    for shift in (0, 2):
        with h5py.File(described, "w") as file:
            for index, name in enumerate(images):
                file[f"{name}/global_descriptor"] = np.eye(len(images))[index]
            for index, name in enumerate(queries):
                wanted = np.zeros(len(images))
                wanted[[index + shift, index + shift + 1, index + shift + 2]] = 3, 2, 1
                file[f"{name}/global_descriptor"] = wanted
        ran = featkit_command(*ask, "--retrieval", described)
        assert ran.code == 0, ran.err
        assert ran.json()["localized"] == 2
        expected = [Pair(name, images[index + shift + k]) for index, name in enumerate(queries) for k in range(3)]
        assert list(read_pairs(out / "pairs.txt")) == expected
    assert featkit_command(*ask).code == 0
    assert list(read_pairs(out / "pairs.txt")) != expected
    both = featkit_command(*ask, "--retrieval", described, "--pairs", out / "pairs.txt")
    assert both.code == 2
    assert "--pairs" in both.err.splitlines()[-1]


@pytest.mark.parametrize(("mode", "cameras"), [("single", 1), ("per-folder", 2), ("per-image", 6)])
def test_camera_modes_and_a_plain_folder_of_folders(
    mode: str, cameras: int, mapped_copy: Any, featkit_command: Command, tmp_path: Path
) -> None:
    """Without images/: the scene is the folder of the photographs itself, with two subfolders."""
    plain = tmp_path / "plain"
    for index, path in enumerate(sorted((mapped_copy.folder / "images").iterdir())):
        folder = plain / ("left" if index < 3 else "right")
        folder.mkdir(parents=True, exist_ok=True)
        os.link(path, folder / path.name)
    ran = featkit_command(
        "reconstruct", plain, "--max-keypoints", 800, "--camera-mode", mode, "--camera-model", "SIMPLE_PINHOLE",
        "--camera-params", "360,200,150", "--json", "-q",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json()["registered"] == 6
    model = read_model(plain / "featkit" / "sparse" / "0")
    assert model.num_cameras() == cameras
    assert {image.name for image in model.images.values()} == {
        f"{'left' if i < 3 else 'right'}/{i:04d}.jpg" for i in range(6)
    }
    for image in model.images.values():
        shared = {i.camera_id for i in model.images.values() if i.name.split("/")[0] == image.name.split("/")[0]}
        assert len(shared) == (3 if mode == "per-image" else 1)
