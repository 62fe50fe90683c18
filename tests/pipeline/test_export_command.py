"""`featkit export` on a mapped scene: every format, and one-line errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from in_process import refused, results, run
from PIL import Image

from featkit.io.features import open_features
from featkit.mapping.model import read_model


def test_points_project_onto_keypoints_in_nerfstudio_cameras(mapped_scene: Any, tmp_path: Path) -> None:
    """Points projected by the exported cameras are at their keypoints in features.h5 (COLMAP's minus half a pixel)."""
    done = results("export", mapped_scene.folder, "--format", "nerfstudio", "-o", tmp_path / "nerf")
    assert done["images"] == 6
    assert done["notes"] == []
    content = json.loads((tmp_path / "nerf" / "transforms.json").read_text())
    model = read_model(mapped_scene.output / "sparse" / "0")
    errors = []
    with open_features(mapped_scene.output / "features.h5") as store:
        for frame in content["frames"]:
            with Image.open(tmp_path / "nerf" / frame["file_path"]) as photograph:
                assert photograph.size == (content["w"], content["h"])
            image = model.find_image_with_name(Path(frame["file_path"]).name)
            keypoints = store.keypoints(image.name)
            camera_from_world = np.linalg.inv(frame["transform_matrix"]) @ [*content["applied_transform"], [0, 0, 0, 1]]
            for index, point in enumerate(image.points2D):
                if point.has_point3D():
                    x, y, z, _ = camera_from_world @ [*model.points3D[point.point3D_id].xyz, 1]
                    u = content["fl_x"] * x / -z + content["cx"]
                    v = content["fl_y"] * -y / -z + content["cy"]
                    errors.append(np.hypot(*(np.array([u, v]) - 0.5 - keypoints[index])))
    assert len(errors) > 1000
    assert np.mean(errors) < 0.5
    assert max(errors) < 4.5


def test_every_format(mapped_scene: Any, tmp_path: Path) -> None:
    points = mapped_scene.ran.json()["points"]
    model = mapped_scene.output / "sparse" / "0"
    cloud = results("export", model, "--format", "ply", "-o", tmp_path / "points.ply")
    assert cloud == {
        "out": str(tmp_path / "points.ply"), "format": "ply", "images": 6, "points": points, "notes": [],
        "files": [str(tmp_path / "points.ply")],
    }  # fmt: skip
    text = results("export", mapped_scene.output, "--format", "text", "-o", tmp_path / "text")
    assert {"cameras.txt", "images.txt", "points3D.txt"} <= {Path(name).name for name in text["files"]}
    assert read_model(tmp_path / "text").num_points3D() == points
    results("export", model, "--format", "hloc", "-o", tmp_path / "hloc", "--num", 2)
    listed = {path.relative_to(tmp_path / "hloc").as_posix() for path in (tmp_path / "hloc").rglob("*.*")}
    assert {"sfm/images.bin", "poses.txt", "pairs-covisible.txt", "queries_with_intrinsics.txt"} <= listed
    assert not list(tmp_path.glob(".*"))
    # what hloc writes as a list of queries is what featkit takes as one
    queries, pairs = (tmp_path / "hloc" / name for name in ("queries_with_intrinsics.txt", "pairs-covisible.txt"))
    localized = results(
        "localize", mapped_scene.folder, "--queries", mapped_scene.folder / "images", "-o", tmp_path / "loc",
        "--intrinsics", queries, "--pairs", pairs, "--workers", 1,
    )  # fmt: skip
    assert localized["localized"] > 0


def test_second_export_needs_overwrite(mapped_scene: Any, tmp_path: Path) -> None:
    command = ("export", mapped_scene.folder, "-q", "--format")
    for form, out, first in (("text", "text", "cameras.txt"), ("ply", "a.ply", "a.ply")):
        assert run(*command, form, "-o", tmp_path / out).exit_code == 0
        refused(run(*command, form, "-o", tmp_path / out), 3, first, "--overwrite")
        assert run(*command, form, "-o", tmp_path / out, "--overwrite").exit_code == 0


def test_usage_errors(mapped_scene: Any, tmp_path: Path) -> None:
    scene, out = mapped_scene.folder, tmp_path / "out"
    command = ("export", scene, "-q", "-o", out, "--format")
    refused(run(*command, "colmap"), 2, "--format colmap", "gaussian-splatting, nerfstudio, dense, ply, text, hloc")
    refused(run(*command, "ply"), 2, ".ply")
    refused(run("export", scene, "-q", "-o", tmp_path / "a.ply", "--format", "text"), 2, "a folder")
    refused(run(*command, "text", "--num", 3), 2, "--num goes with --format hloc")
    refused(run(*command, "text", "--images", scene), 2, "--images goes with --format gaussian-splatting")
    refused(run(*command, "nerfstudio", "--resize-max", 300), 2, "--resize-max goes with")
    refused(run(*command, "dense", "--masks", tmp_path), 3, "no mask for any")
    refused(run(*command, "nerfstudio", "--images", tmp_path), 3, "6 of the map's 6 photographs are missing: 0000.jpg")
    refused(run("export", tmp_path / "nowhere", "-q", "-o", out, "--format", "text"), 3, "nowhere", "no such folder")
    refused(run("export", scene / "images", "-q", "-o", out, "--format", "text"), 3, "no COLMAP model")
    model = mapped_scene.output / "sparse" / "0"
    refused(run("export", model, "-q", "-o", model, "--format", "text"), 3, "binary model")
    (tmp_path / "file").write_text("")
    refused(run("export", scene, "-q", "-o", tmp_path / "file", "--format", "text"), 5, "is a file")
    refused(run("export", scene, "-q", "-o", tmp_path / "file" / "x", "--format", "hloc"), 5, "cannot be written")
    refused(run("export", scene, "-q", "-o", tmp_path / "file" / "x.ply", "--format", "ply"), 5, "cannot be written")
    assert not out.exists()
