"""Exported cameras and points project like the map's, checked by simple readers of the other programs' formats."""

import json
import math
import struct
import unicodedata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pycolmap
import pytest
from PIL import Image

from featkit.core.errors import BadInputError, EmptyResultError
from featkit.io.lists import read_intrinsics_list, read_pairs, read_poses, write_ply
from featkit.mapping.covisibility import CovisibleConfig
from featkit.mapping.export import ExportConfig, export_model

CAMERAS = {
    "SIMPLE_PINHOLE": [900.0, 512.0, 390.0],
    "PINHOLE": [900.0, 910.0, 512.0, 390.0],
    "SIMPLE_RADIAL": [900.0, 512.0, 390.0, -0.08],
    "RADIAL": [900.0, 512.0, 390.0, -0.08, 0.02],
    "OPENCV": [900.0, 910.0, 512.0, 390.0, -0.08, 0.02, 0.003, -0.002],
    "OPENCV_FISHEYE": [700.0, 710.0, 512.0, 390.0, 0.03, -0.01, 0.004, -0.001],
    "SIMPLE_RADIAL_FISHEYE": [700.0, 512.0, 390.0, 0.03],
    "RADIAL_FISHEYE": [700.0, 512.0, 390.0, 0.03, -0.01],
}
UNKNOWN = {
    "FULL_OPENCV": [900.0, 910.0, 512.0, 390.0, -0.08, 0.02, 0.003, -0.002, 0.01, 0.02, 0.01, 0.0],
    "FOV": [900.0, 910.0, 512.0, 390.0, 0.5],
    "THIN_PRISM_FISHEYE": [700.0, 710.0, 512.0, 390.0, 0.03, -0.01, 0.0, 0.0, 0.004, -0.001, 0.0, 0.0],
}


def scene(model: str, params: list[float], rigs: int = 1) -> pycolmap.Reconstruction:
    """A synthetic model with one camera per rig, several images each, and coloured points."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = rigs, 3, 40
    options.num_points2D_without_point3D = 3
    options.camera_model_id, options.camera_params = getattr(pycolmap.CameraModelId, model), params
    pycolmap.set_random_seed(0)
    made = pycolmap.synthesize_dataset(options)
    for number, point in enumerate(made.points3D.values()):
        point.color = np.array([number, 2 * number, 255 - number], np.uint8)
    return made


def save_with_photographs(model: pycolmap.Reconstruction, folder: Path) -> Path:
    """Write the model, and blank photographs in images/ next to it."""
    folder.mkdir(parents=True)
    model.write(str(folder))
    for image in model.images.values():
        photograph(folder.parent / "images" / image.name)
    return folder


def photograph(path: Path, size: tuple[int, int] = (1024, 768)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size).save(path)


def ply_points(path: Path) -> list[tuple[float, float, float, int, int, int]]:
    """Vertices of a binary ply file of doubles and bytes."""
    head, _, data = path.read_bytes().partition(b"end_header\n")
    lines = [line for line in head.decode().splitlines() if not line.startswith("comment ")]
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    count = int(lines[2].removeprefix("element vertex "))
    assert lines[3:] == [f"property double {a}" for a in "xyz"] + [
        f"property uchar {c}" for c in ("red", "green", "blue")
    ]
    assert len(data) == 27 * count
    return [struct.unpack("<3d3B", data[27 * i : 27 * i + 27]) for i in range(count)]


def distorted(kind: str, lens: dict[str, Any], x: float, y: float) -> tuple[float, float]:
    """Distort a point of the plane at depth 1 (y down) with nerfstudio's coefficients, which are OpenCV's."""
    radius = math.hypot(x, y)
    if kind == "OPENCV_FISHEYE":
        angle = math.atan(radius)
        bent = angle * (1 + sum(lens[f"k{i}"] * angle ** (2 * i) for i in range(1, 5)))
        return x * bent / radius, y * bent / radius
    assert kind == "OPENCV"
    k1, k2, p1, p2 = (lens[name] for name in ("k1", "k2", "p1", "p2"))
    radial = 1 + k1 * radius**2 + k2 * radius**4
    return (
        x * radial + 2 * p1 * x * y + p2 * (radius**2 + 2 * x**2),
        y * radial + 2 * p2 * x * y + p1 * (radius**2 + 2 * y**2),
    )


def project_as_nerfstudio(content: dict[str, Any], frame: dict[str, Any], point: np.ndarray) -> tuple[float, float]:
    """Pixel of a point of the exported world: nerfstudio's cameras look along -z, y is up."""
    lens = {**content, **frame}
    x, y, z, one = np.linalg.solve(np.array(frame["transform_matrix"]), [*point, 1.0])
    assert one == 1
    assert z < 0
    u, v = distorted(content["camera_model"], lens, x / -z, -y / -z)
    return lens["fl_x"] * u + lens["cx"], lens["fl_y"] * v + lens["cy"]


@pytest.mark.parametrize("rigs", [1, 2])
@pytest.mark.parametrize("model", CAMERAS)
def test_points_project_correctly_in_nerfstudio_cameras(model: str, rigs: int, tmp_path: Path) -> None:
    made = scene(model, CAMERAS[model], rigs)
    out = tmp_path / "out"
    done = export_model("nerfstudio", save_with_photographs(made, tmp_path / "sparse"), out)
    assert done.files == [out / "sparse_pc.ply", out / "transforms.json"]
    content = json.loads((out / "transforms.json").read_text())
    assert ("fl_x" in content) == (rigs == 1)
    applied = np.array(content["applied_transform"])
    assert np.linalg.det(applied[:, :3]) == pytest.approx(1)
    assert np.array_equal(applied @ [1, 2, 3, 1], [1, 3, -2])
    vertices = ply_points(out / content["ply_file_path"])
    frames = {frame["file_path"]: frame for frame in content["frames"]}
    assert len(frames) == made.num_reg_images() == 3 * rigs
    checked = 0
    for image in made.images.values():
        frame = frames[f"../images/{image.name}"]
        assert (frame.get("w", content.get("w")), frame.get("h", content.get("h"))) == (1024, 768)
        turn = np.array(frame["transform_matrix"])[:3, :3]
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(turn) == pytest.approx(1)
        for vertex, point_id in zip(vertices, sorted(made.points3D), strict=True):
            point = made.points3D[point_id]
            np.testing.assert_allclose(vertex[:3], applied @ [*point.xyz, 1])
            assert vertex[3:] == tuple(point.color)
            expected = image.project_point(point.xyz)
            if expected is not None and 0 <= expected[0] <= 1024 and 0 <= expected[1] <= 768:
                np.testing.assert_allclose(
                    project_as_nerfstudio(content, frame, np.array(vertex[:3])), expected, atol=1e-6
                )
                checked += 1
    assert checked > 20 * len(frames)


@pytest.mark.parametrize("model", UNKNOWN)
def test_lenses_unsupported_by_nerfstudio_are_refused(model: str, tmp_path: Path) -> None:
    folder = save_with_photographs(scene(model, UNKNOWN[model]), tmp_path / "sparse")
    with pytest.raises(BadInputError, match=rf"has a {model} camera, which nerfstudio does not support.*--undistort"):
        export_model("nerfstudio", folder, tmp_path / "out")
    assert not list(tmp_path.glob("out*")) + list(tmp_path.glob(".out*"))
    assert export_model("ply", folder, tmp_path / "points.ply").points == 40  # a cloud has no lens


def test_mixed_lenses_are_refused_for_nerfstudio(tmp_path: Path) -> None:
    made = scene("OPENCV", CAMERAS["OPENCV"], 2)
    second = made.cameras[2]
    second.model, second.params = pycolmap.CameraModelId.OPENCV_FISHEYE, CAMERAS["OPENCV_FISHEYE"]
    with pytest.raises(BadInputError, match="one kind of lens"):
        export_model("nerfstudio", save_with_photographs(made, tmp_path / "sparse"), tmp_path / "out")


def test_photographs_are_found_near_the_map_or_by_option(tmp_path: Path) -> None:
    """Near the map, or in the folders of --images. Missing ones are reported, and nothing is written."""
    made = scene("PINHOLE", CAMERAS["PINHOLE"])
    folder = tmp_path / "scene" / "featkit" / "sparse" / "0"
    folder.mkdir(parents=True)
    made.write(str(folder))
    names = sorted(image.name for image in made.images.values())

    def paths(out: Path, *images: Path) -> set[Path]:
        export_model("nerfstudio", folder, out, images=images)
        content = json.loads((out / "transforms.json").read_text())
        return {(out / frame["file_path"]).resolve() for frame in content["frames"]}

    with pytest.raises(BadInputError, match=r"its 3 photographs, such as .* were not found near it; .*--images"):
        paths(tmp_path / "a")
    near, elsewhere = tmp_path / "scene" / "images", tmp_path / "elsewhere"
    for images in (near, elsewhere):
        for name in names:
            photograph(images / name)
    assert paths(tmp_path / "scene" / "nerf") == {near / name for name in names}
    assert paths(tmp_path / "b", elsewhere) == {elsewhere / name for name in names}
    (elsewhere / names[1]).unlink()
    (near / names[1]).unlink()
    for images in ((elsewhere,), ()):
        with pytest.raises(BadInputError, match=rf"1 of the map's 3 photographs are missing: {names[1]};"):
            paths(tmp_path / "c", *images)
    photograph(tmp_path / "third" / names[1])
    assert tmp_path / "third" / names[1] in paths(tmp_path / "d", elsewhere, tmp_path / "third")
    photograph(near / names[1], (768, 1024))
    with pytest.raises(BadInputError, match=rf"{names[1]}: is 768 x 1024, but 1024 x 768 in the map"):
        paths(tmp_path / "c")
    assert not list(tmp_path.glob("c*")) + list(tmp_path.glob(".c*"))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_that_macos_has_decomposed(form: Literal["NFC", "NFD"], tmp_path: Path) -> None:
    """On the disk in one Unicode form, in the model in the other."""
    made, other = scene("PINHOLE", CAMERAS["PINHOLE"]), {"NFC": "NFD", "NFD": "NFC"}[form]
    for number, image in enumerate(made.images.values()):
        image.name = unicodedata.normalize(form, f"\u00e9t\u00e9/{number}\u00fc.png")
    folder = save_with_photographs(made, tmp_path / "sparse")
    images = (tmp_path / "images").rename(tmp_path / "before")
    for path in images.rglob("*.png"):
        target = tmp_path / "images" / unicodedata.normalize(other, path.relative_to(images).as_posix())
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    export_model("nerfstudio", folder, tmp_path / "out")
    frames = json.loads((tmp_path / "out" / "transforms.json").read_text())["frames"]
    assert len(frames) == 3
    assert all((tmp_path / "out" / frame["file_path"]).is_file() for frame in frames)


def test_text_export_is_the_same_model(tmp_path: Path) -> None:
    made = scene("OPENCV", CAMERAS["OPENCV"], 2)
    export_model("text", save_with_photographs(made, tmp_path / "sparse"), tmp_path / "text")
    read = pycolmap.Reconstruction(str(tmp_path / "text"))
    assert not list((tmp_path / "text").glob("*.bin"))
    assert (read.num_reg_images(), read.num_points3D()) == (made.num_reg_images(), made.num_points3D())
    for image_id, image in made.images.items():
        same = read.images[image_id]
        np.testing.assert_allclose(same.cam_from_world().matrix(), image.cam_from_world().matrix(), atol=1e-12)
        np.testing.assert_allclose(same.camera.params, image.camera.params)
        np.testing.assert_allclose([p.xy for p in same.points2D], [p.xy for p in image.points2D])
    for point_id, point in made.points3D.items():
        np.testing.assert_allclose(read.points3D[point_id].xyz, point.xyz)


def test_hloc_export_is_read_by_hloc(tmp_path: Path) -> None:
    made = scene("OPENCV", CAMERAS["OPENCV"], 2)
    out = tmp_path / "hloc"
    export_model(
        "hloc",
        save_with_photographs(made, tmp_path / "sparse"),
        out,
        config=ExportConfig(pairs=CovisibleConfig(num_matched=2)),
    )
    assert pycolmap.Reconstruction(str(out / "sfm")).num_points3D() == made.num_points3D()
    images = {image.name: image for image in made.images.values()}
    cameras = read_intrinsics_list(out / "queries_with_intrinsics.txt")
    poses = read_poses(out / "poses.txt")
    assert cameras.keys() == poses.keys() == images.keys()
    for name, image in images.items():
        assert cameras[name].params == tuple(CAMERAS["OPENCV"])
        rigid = image.cam_from_world()
        np.testing.assert_allclose(poses[name].tvec, rigid.translation, atol=1e-8)
        x, y, z, w = rigid.rotation.quat
        assert abs(poses[name].qvec @ [w, x, y, z]) == pytest.approx(1)
    shared = {name: {p.point3D_id for p in image.points2D if p.has_point3D()} for name, image in images.items()}
    pairs = {pair.key() for pair in read_pairs(out / "pairs-covisible.txt")}
    for name in images:
        most = sorted((len(shared[name] & shared[other]) for other in images if other != name), reverse=True)[:2]
        own = [len(shared[a] & shared[b]) for a, b in pairs if name in (a, b)]
        assert sorted(own, reverse=True)[:2] == most


def test_a_name_with_spaces_is_refused_for_hloc(tmp_path: Path) -> None:
    made = scene("PINHOLE", CAMERAS["PINHOLE"])
    next(iter(made.images.values())).name = "a photograph.jpg"
    with pytest.raises(BadInputError, match=r"'a photograph\.jpg': hloc cannot read names with spaces"):
        export_model("hloc", save_with_photographs(made, tmp_path / "sparse"), tmp_path / "out")


def test_empty_maps_are_refused(tmp_path: Path) -> None:
    made = scene("PINHOLE", CAMERAS["PINHOLE"])
    for point_id in list(made.points3D):
        made.delete_point3D(point_id)
    folder = save_with_photographs(made, tmp_path / "no points")
    with pytest.raises(EmptyResultError, match="no point"):
        export_model("ply", folder, tmp_path / "a.ply")
    with pytest.raises(EmptyResultError, match="by which stereo pairs images"):
        export_model("dense", folder, tmp_path / "dense")
    export_model("nerfstudio", folder, tmp_path / "nerf")
    assert "ply_file_path" not in json.loads((tmp_path / "nerf" / "transforms.json").read_text())
    assert "no pairs-covisible.txt" in export_model("hloc", folder, tmp_path / "hloc").notes[0]
    with pytest.raises(EmptyResultError, match="no image of this model has a pose"):
        export_model("text", save_with_photographs(pycolmap.Reconstruction(), tmp_path / "empty"), tmp_path / "text")


def test_point_coordinates_far_from_the_origin_are_exact(tmp_path: Path) -> None:
    points = np.array([[4.5e6 + 0.001, -1.0, 2.0]])
    (vertex,) = ply_points(write_ply(tmp_path / "a.ply", points, np.array([[1, 2, 3]], np.uint8)))
    assert vertex == (4.5e6 + 0.001, -1.0, 2.0, 1, 2, 3)
