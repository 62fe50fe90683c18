"""Exports of undistorted photographs: read as the other program's loader reads them, points are where dots were drawn.

The photographs are black but for a dot at the projection of each point, drawn by the map's own (distorted) camera.
"""

from __future__ import annotations

import json
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from featkit.core.errors import BadInputError, EmptyResultError, NotWritableError
from featkit.mapping.export import ExportConfig, export_model
from featkit.mapping.photographs import PictureConfig

pytestmark = pytest.mark.slow
SIZE = (640, 480)
LENSES = {
    "SIMPLE_RADIAL": [500.0, 320.0, 240.0, -0.12],
    "OPENCV": [500.0, 510.0, 325.0, 236.0, -0.1, 0.02, 0.004, -0.003],
    "OPENCV_FISHEYE": [420.0, 425.0, 320.0, 240.0, 0.03, -0.01, 0.004, -0.001],
    "FULL_OPENCV": [500.0, 510.0, 325.0, 236.0, -0.1, 0.02, 0.003, -0.002, 0.01, 0.02, 0.01, 0.0],
}
DOT_SIGMA_PX, APART_PX, MARGIN_PX = 1.5, 16, 10


def make_scene(folder: Path, lens: str = "OPENCV", nested: bool = False, cameras_per_rig: int = 1) -> Path:
    """A map of four photographs in folder/sparse, and photographs with a dot at each point in folder/images."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig = 1, cameras_per_rig
    options.num_frames_per_rig, options.num_points3D = 4 // cameras_per_rig, 30
    options.num_points2D_without_point3D = 2
    options.camera_width, options.camera_height = SIZE
    options.camera_model_id, options.camera_params = getattr(pycolmap.CameraModelId, lens), LENSES[lens]
    pycolmap.set_random_seed(0)
    model = pycolmap.synthesize_dataset(options)
    for number, image in enumerate(sorted(model.images.values(), key=lambda image: image.image_id)):
        image.name = f"{'east/' if nested and number else ''}{number}.png"
        path = folder / "images" / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dotted([p.xy for p in image.points2D if p.has_point3D()])).save(path)
    (folder / "sparse").mkdir()
    model.write(str(folder / "sparse"))
    return folder / "sparse"


def dotted(points: list[np.ndarray]) -> np.ndarray:
    """Draw dots at COLMAP pixels: the centre of the first pixel is at (0.5, 0.5)."""
    x, y = np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5
    picture = np.zeros((SIZE[1], SIZE[0]))
    for u, v in points:
        blob = np.exp(-((x - u) ** 2) / 2 / DOT_SIGMA_PX**2) * np.exp(-((y[:, None] - v) ** 2) / 2 / DOT_SIGMA_PX**2)
        picture = np.maximum(picture, blob)
    return np.round(255 * picture).astype(np.uint8)


# ---- 3DGS's own rules (its scene/colmap_loader.py and dataset_readers.py): its files, kinds and places ----


@dataclass
class Read:
    name: str
    size: tuple[int, int]
    focal: tuple[float, float]
    centre: tuple[float, float]
    qvec: np.ndarray
    tvec: np.ndarray


def read_as_gaussian_splatting(folder: Path) -> tuple[list[Read], np.ndarray]:
    """Cameras and points from sparse/0/*.bin, like 3DGS, which supports only SIMPLE_PINHOLE and PINHOLE."""
    cameras = {}
    data = (folder / "sparse" / "0" / "cameras.bin").read_bytes()
    at, (count,) = 8, struct.unpack_from("<Q", data)
    for _ in range(count):
        camera_id, model, width, height = struct.unpack_from("<iiQQ", data, at)
        assert model in (0, 1), "3DGS: only undistorted datasets (PINHOLE or SIMPLE_PINHOLE cameras) supported"
        params = struct.unpack_from("<4d" if model else "<3d", data, at + 24)
        at += 24 + 8 * len(params)
        fx, fy = (params[0], params[1]) if model else (params[0], params[0])
        cameras[camera_id] = (width, height, fx, fy, params[-2], params[-1])
    data = (folder / "sparse" / "0" / "images.bin").read_bytes()
    at, (count,) = 8, struct.unpack_from("<Q", data)
    images = []
    for _ in range(count):
        values = struct.unpack_from("<idddddddi", data, at)
        end = data.index(b"\0", at + 64)
        (keypoints,) = struct.unpack_from("<Q", data, end + 1)
        name = data[at + 64 : end].decode()
        at = end + 9 + 24 * keypoints
        width, height, fx, fy, cx, cy = cameras[values[8]]
        qvec, tvec = np.array(values[1:5]), np.array(values[5:8])
        images.append(Read(name, (width, height), (fx, fy), (cx, cy), qvec, tvec))
    data = (folder / "sparse" / "0" / "points3D.bin").read_bytes()
    at, (count,) = 8, struct.unpack_from("<Q", data)
    points = []
    for _ in range(count):
        points.append(struct.unpack_from("<QdddBBBd", data, at)[1:4])
        at += 51 + 8 * struct.unpack_from("<Q", data, at + 43)[0]
    return images, np.array(points)


def rotation(qvec: np.ndarray) -> np.ndarray:
    w, x, y, z = qvec
    return np.array(
        [
            [1 - 2 * y * y - 2 * z * z, 2 * x * y - 2 * w * z, 2 * z * x + 2 * w * y],
            [2 * x * y + 2 * w * z, 1 - 2 * x * x - 2 * z * z, 2 * y * z - 2 * w * x],
            [2 * z * x - 2 * w * y, 2 * y * z + 2 * w * x, 1 - 2 * x * x - 2 * y * y],
        ]
    )


def dot_errors(picture: np.ndarray, projected: np.ndarray) -> list[float]:
    """Distances of the dots' centroids from the projected points, except for dots near others or the border."""
    height, width = picture.shape
    errors = []
    for index, (u, v) in enumerate(projected):
        others = np.linalg.norm(np.delete(projected, index, axis=0) - (u, v), axis=1)
        if others.min() < APART_PX or not (MARGIN_PX < u < width - MARGIN_PX and MARGIN_PX < v < height - MARGIN_PX):
            continue
        x0, y0 = int(u) - 7, int(v) - 7
        window = picture[y0 : y0 + 15, x0 : x0 + 15].astype(float)
        assert window.sum() > 500, "no dot where a point projects"
        cx = (window.sum(axis=0) * (np.arange(15) + x0 + 0.5)).sum() / window.sum()
        cy = (window.sum(axis=1) * (np.arange(15) + y0 + 0.5)).sum() / window.sum()
        errors.append(float(np.hypot(cx - u, cy - v)))
    return errors


@pytest.mark.parametrize(("lens", "cameras_per_rig"), [*((lens, 1) for lens in LENSES), ("OPENCV", 2)])
def test_gaussian_splatting_projects_points_onto_the_photographs(
    lens: str, cameras_per_rig: int, tmp_path: Path
) -> None:
    """Of cameras alone, and of two on a rig: the loader knows no rigs, and takes the pose of each image."""
    model = pycolmap.Reconstruction(str(make_scene(tmp_path, lens, cameras_per_rig=cameras_per_rig)))
    assert {rig.num_sensors() for rig in model.rigs.values()} == {cameras_per_rig}
    done = export_model("gaussian-splatting", tmp_path / "sparse", tmp_path / "out")
    assert done.residual_px is not None
    assert done.residual_px < 1e-3
    images, points = read_as_gaussian_splatting(tmp_path / "out")
    assert sorted(image.name for image in images) == ["0.png", "1.png", "2.png", "3.png"]
    assert np.allclose(sorted(points.tolist()), sorted(p.xyz.tolist() for p in model.points3D.values()))  # the frame
    errors = []
    for image in images:
        with Image.open(tmp_path / "out" / "images" / Path(image.name).name) as opened:
            assert opened.size == image.size
            picture = np.asarray(opened.convert("L"))
        in_camera = points @ rotation(image.qvec).T + image.tvec
        in_camera = in_camera[in_camera[:, 2] > 0]
        projected = in_camera[:, :2] / in_camera[:, 2:] * image.focal + image.centre
        errors += dot_errors(picture, projected)
    assert len(errors) > 40
    assert max(errors) < 0.25
    assert np.mean(errors) < 0.08


def test_photographs_of_12_of_16_bits_are_not_black(tmp_path: Path) -> None:
    """Undistorted photographs have 8 bits, with one black and white for all files that have more."""
    model = make_scene(tmp_path)
    for number, path in enumerate(sorted((tmp_path / "images").iterdir())):
        values = np.asarray(Image.open(path)).astype(np.uint16)
        Image.fromarray(values * np.uint16(16 if number else 2)).save(path)
    export_model("gaussian-splatting", model, tmp_path / "out")
    brightest = [int(np.asarray(Image.open(path)).max()) for path in sorted((tmp_path / "out" / "images").iterdir())]
    assert len(brightest) == 4
    assert 20 < brightest[0] < 120
    assert min(brightest[1:]) > 200


def test_names_are_flat_and_sizes_are_bounded(tmp_path: Path) -> None:
    make_scene(tmp_path, nested=True)
    config = ExportConfig(pictures=PictureConfig(resize_max=320))
    done = export_model("gaussian-splatting", tmp_path / "sparse", tmp_path / "out", config=config)
    images, _ = read_as_gaussian_splatting(tmp_path / "out")
    assert sorted(image.name for image in images) == ["0.png", "east_1.png", "east_2.png", "east_3.png"]
    assert "'east/1.png' to 'east_1.png'" in done.notes[0]
    for image in images:
        assert max(image.size) <= 320
        assert Image.open(tmp_path / "out" / "images" / image.name).size == image.size


def test_dense_workspace_for_colmap(tmp_path: Path) -> None:
    make_scene(tmp_path, nested=True)
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 320, axis=1).repeat(480, axis=0)).save(
        masks / "0.png.png"
    )
    out = tmp_path / "dense"
    export_model("dense", tmp_path / "sparse", out, masks=masks)
    model = pycolmap.Reconstruction(str(out / "sparse"))
    names = ["0.png", "east/1.png", "east/2.png", "east/3.png"]
    assert sorted(image.name for image in model.images.values()) == names
    assert {camera.model_name for camera in model.cameras.values()} == {"PINHOLE"}
    assert (out / "stereo" / "fusion.cfg").read_text().split() == names
    lines = (out / "stereo" / "patch-match.cfg").read_text().splitlines()
    assert lines[::2] == names
    assert set(lines[1::2]) == {"__auto__, 20"}
    for name in names:
        camera = next(image.camera for image in model.images.values() if image.name == name)
        assert Image.open(out / "images" / name).size == (camera.width, camera.height)
        for kind in ("depth_maps", "normal_maps", "consistency_graphs"):
            assert (out / "stereo" / kind / name).parent.is_dir()
    assert [path.name for path in (out / "masks").rglob("*.*")] == ["0.png.png"]
    hidden = np.asarray(Image.open(out / "masks" / "0.png.png")) == 0
    width = hidden.shape[1]
    assert hidden[:, : width // 2 - 20].all()
    assert not hidden[:, width // 2 + 20 :].any()


def test_hidden_pixels_are_transparent_for_gaussian_splatting(tmp_path: Path) -> None:
    """One photograph has a mask, another is partly transparent itself."""
    make_scene(tmp_path)
    (tmp_path / "masks").mkdir()
    hidden = np.full((480, 640), 255, np.uint8)
    hidden[:, :300] = 0
    Image.fromarray(hidden).save(tmp_path / "masks" / "0.png.png")
    with Image.open(tmp_path / "images" / "1.png") as opened:
        picture = opened.convert("RGB")
    alpha = np.full((480, 640), 128, np.uint8)
    picture.putalpha(Image.fromarray(alpha))
    picture.save(tmp_path / "images" / "1.png")
    done = export_model("gaussian-splatting", tmp_path / "sparse", tmp_path / "out", masks=tmp_path / "masks")
    assert "2 photographs are transparent" in done.notes[0]
    read = [Image.open(tmp_path / "out" / "images" / f"{number}.png") for number in range(4)]
    assert [image.mode for image in read] == ["RGBA", "RGBA", "RGB", "RGB"]
    mask = np.asarray(read[0].getchannel("A"))
    middle = mask.shape[1] // 2
    assert (mask[:, : middle - 60] == 0).all()
    assert (mask[:, middle + 20 :] == 255).all()
    assert (np.asarray(read[1].getchannel("A")) == 128).all()


def test_nerfstudio_undistorted_with_masks(tmp_path: Path) -> None:
    """For FULL_OPENCV, which nerfstudio does not support; and masks of photographs that are not undistorted."""
    make_scene(tmp_path, "FULL_OPENCV")
    (tmp_path / "masks").mkdir()
    Image.new("L", SIZE, 255).save(tmp_path / "masks" / "3.png.png")
    half = np.full((480, 640), 255, np.uint8)
    half[100:200] = 0
    Image.fromarray(half).save(tmp_path / "masks" / "2.png.png")
    export_model(
        "nerfstudio", tmp_path / "sparse", tmp_path / "a", config=ExportConfig(undistort=True), masks=tmp_path / "masks"
    )
    content = json.loads((tmp_path / "a" / "transforms.json").read_text())
    assert content["camera_model"] == "OPENCV"
    assert [content[name] for name in ("k1", "k2", "p1", "p2")] == [0, 0, 0, 0]
    masked = {frame["file_path"]: frame.get("mask_path") for frame in content["frames"]}
    assert masked == {f"images/{n}.png": ("masks/2.png.png" if n == 2 else None) for n in range(4)}
    for path in ("images/2.png", "masks/2.png.png"):
        assert Image.open(tmp_path / "a" / path).size == (content["w"], content["h"])
    other = tmp_path / "other"
    make_scene(other)
    export_model("nerfstudio", other / "sparse", other / "b", masks=tmp_path / "masks")
    content = json.loads((other / "b" / "transforms.json").read_text())
    frame = content["frames"][2]
    assert frame["file_path"] == "../images/2.png"
    assert np.array_equal(np.asarray(Image.open(other / "b" / frame["mask_path"])), half)


def test_an_aligned_map_keeps_its_origin(tmp_path: Path) -> None:
    make_scene(tmp_path)
    (tmp_path / "sparse" / "alignment.json").write_text('{"featkit_version": "0", "origin": {"latitude": 47.0}}')
    for form in ("gaussian-splatting", "text"):
        export_model(form, tmp_path / "sparse", tmp_path / form)
        assert json.loads((tmp_path / form / "alignment.json").read_text())["origin"] == {"latitude": 47.0}


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Limit the size of files, which gives the same kind of error as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("form", ["gaussian-splatting", "dense", "nerfstudio"])
def test_existing_files_are_refused_before_the_work(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier export, and the scene's own folder: no photograph is undistorted first."""
    folder, config = make_scene(tmp_path), ExportConfig(undistort=form == "nerfstudio")
    export_model(form, folder, tmp_path / "out", config=config)
    monkeypatch.setattr("featkit.mapping.export.write_pictures", None)
    with pytest.raises(BadInputError, match="exists already; --overwrite replaces it"):
        export_model(form, folder, tmp_path / "out", config=config)
    with pytest.raises(BadInputError, match=r"(images/0\.png|sparse/cameras\.bin): was not made by featkit"):
        export_model(form, folder, tmp_path, config=config)


def test_failed_exports_keep_existing_files(tmp_path: Path) -> None:
    folder = make_scene(tmp_path)
    out = tmp_path / "out"
    for form in ("gaussian-splatting", "hloc"):  # the photographs do not fit, or the model
        with full_disk(1000), pytest.raises(NotWritableError, match="cannot be written"):
            export_model(form, folder, out)
        assert not list(tmp_path.glob("out*")) + list(tmp_path.glob(".out*"))
    (out / "images").mkdir(parents=True)
    (out / "images" / "2.png").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(BadInputError, match=r"2\.png: was not made by featkit"):
            export_model("gaussian-splatting", folder, out, overwrite=overwrite)
    assert [path.name for path in out.rglob("*.*")] == ["2.png"]
    assert (out / "images" / "2.png").read_text() == "mine"
    (tmp_path / "images" / "1.png").write_bytes((tmp_path / "images" / "1.png").read_bytes()[:-30])
    with pytest.raises(BadInputError, match=r"1\.png: the file is cut off"):
        export_model("dense", folder, tmp_path / "dense")
    assert not (tmp_path / "dense").exists()
    model = pycolmap.Reconstruction(str(folder))
    for point_id in list(model.points3D):
        model.delete_point3D(point_id)
    model.write(str(folder))
    with pytest.raises(EmptyResultError, match="Gaussian splatting starts from"):
        export_model("gaussian-splatting", folder, tmp_path / "empty")
