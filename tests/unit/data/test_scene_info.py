"""Other trainings' indices of MegaDepth, each in its own layout: exact lines, sizes, what is not there, wrong files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from posed_scenes import MadeScene, make_scene

from featkit.core.errors import BadInputError
from featkit.data.posed_pairs import PosedConfig, PosedPairs, read_posed_pairs
from featkit.geometry.epipolar import epipolar_distances

IMAGES = 5
OVERLAPS = {(0, 1): 0.6, (0, 2): 0.3, (1, 2): 0.05, (1, 3): 0.5, (2, 3): 0.9, (3, 4): 0.2}
TAKEN = [(0, 1), (0, 2), (1, 3), (3, 4)]  # of 0.1 to 0.7
PHOENIX = "phoenix/S6/zl548/MegaDepth_v1"


@pytest.fixture
def scene(tmp_path: Path) -> MadeScene:
    return make_scene(tmp_path / "made", images=IMAGES)


def arrays_of(scene: MadeScene, name: str = "0001", images: int = IMAGES) -> dict[str, Any]:
    """As D2-Net writes them, one more image without photograph at the end."""
    table, more = scene.table, [None]
    poses = [
        np.vstack([np.column_stack([r, t]), [0, 0, 0, 1]]).ravel()
        for r, t in zip(table.rotations[:images], table.translations[:images], strict=True)
    ]
    stems = [Path(image).stem for image in table.names[:images]]
    return {
        "image_paths": np.array([f"Undistorted_SfM/{name}/images/{stem}.png" for stem in stems] + more, dtype=object),
        "depth_paths": np.array([f"{PHOENIX}/{name}/dense0/depths/{stem}.h5" for stem in stems] + more, dtype=object),
        "intrinsics": as_objects([*table.intrinsics[:images], None]),
        "poses": as_objects([*poses, None]),
        "points3D_id_to_2D": as_objects([{7: [1.0, 2.0]}] * images + more),
    }


def as_objects(values: list[Any]) -> np.ndarray:
    found = np.empty(len(values), object)
    for row, value in enumerate(values):
        found[row] = value
    return found


def matrix_of(overlaps: dict[tuple[int, int], float]) -> np.ndarray:
    matrix = np.full((IMAGES + 1, IMAGES + 1), -1.0)
    for (a, b), overlap in overlaps.items():
        matrix[a, b] = matrix[b, a] = overlap
    return matrix


def infos_of(overlaps: dict[tuple[int, int], float]) -> np.ndarray:
    return as_objects([((a, b), overlap, np.zeros(4)) for (a, b), overlap in overlaps.items()])


def put_photographs(scene: MadeScene, folder: Path) -> None:
    shutil.copytree(scene.folder / "images", folder)


def put_depths(scene: MadeScene, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, (width, height) in zip(scene.table.names, scene.table.sizes, strict=True):
        with h5py.File(folder / f"{Path(name).stem}.h5", "w") as file:
            file["depth"] = np.ones((height, width), np.float32)


def save(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def check_exact(pairs: PosedPairs, scene: MadeScene, expected: list[tuple[int, int]] = TAKEN) -> None:
    """The pairs that are expected, true matches on their lines, photographs of the cameras' sizes."""
    found = []
    for index, (number, *rows) in enumerate(pairs.pairs):
        names = [Path(pairs.scenes[number].image_names[row]).name for row in rows]
        first, second = (scene.table.names.index(name) for name in names)
        found.append((first, second))
        far = epipolar_distances(pairs.fundamental01(index), scene.seen(first), scene.seen(second))
        assert max(float(d.max()) for d in far) < 1e-6
        for row, image in ((rows[0], first), (rows[1], second)):
            width, height = scene.table.sizes[image]
            assert pairs.pixels(number, row).shape == (height, width, 3)
    assert found == expected


@pytest.mark.parametrize("start", ["", "scene_info", "scene_info/0001.npz"])
def test_glue_factory(scene: MadeScene, tmp_path: Path, start: str) -> None:
    root = tmp_path / "megadepth"
    put_photographs(scene, root / "Undistorted_SfM/0001/images")
    save(root / "scene_info/0001.npz", **arrays_of(scene), overlap_matrix=matrix_of(OVERLAPS))
    pairs = read_posed_pairs(root / start)
    check_exact(pairs, scene)
    assert pairs.names(0)[0] == "0001/Undistorted_SfM/0001/images/000.png"
    assert pairs.image_folders() == (root / "Undistorted_SfM/0001/images",)
    few = read_posed_pairs(root, PosedConfig(min_overlap=0.4, max_overlap=1.0))
    check_exact(few, scene, [(0, 1), (1, 3), (2, 3)])


def test_loftr(scene: MadeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links as its page makes them, an index for each range of overlaps; poses 4 x 4; a path from where one stands."""
    root = tmp_path / "data" / "megadepth"
    put_photographs(scene, tmp_path / "disk" / "Undistorted_SfM/0001/images")
    put_depths(scene, tmp_path / "disk" / PHOENIX / "0001/dense0/depths")
    (root / "train").mkdir(parents=True)
    for name in ("phoenix", "Undistorted_SfM"):
        (root / "train" / name).symlink_to(tmp_path / "disk" / name)
    arrays = arrays_of(scene)
    arrays["poses"] = as_objects([None if pose is None else pose.reshape(4, 4) for pose in arrays["poses"]])
    for low, high in ((0.1, 0.3), (0.3, 0.5), (0.5, 0.7)):
        some = {pair: overlap for pair, overlap in OVERLAPS.items() if low < overlap <= high}
        save(root / f"index/scene_info_0.1_0.7/0001_{low}_{high}.npz", **arrays, pair_infos=infos_of(some))
    monkeypatch.chdir(tmp_path)
    pairs = read_posed_pairs(Path("data/megadepth"))
    assert [one.name for one in pairs.scenes] == ["0001"], "one scene: images held out are held out of all its parts"
    check_exact(pairs, scene, [(0, 2), (3, 4), (1, 3), (0, 1)])


@pytest.mark.parametrize("place", [f"{PHOENIX}/0001/dense0/imgs", "0001/dense0/imgs"])
def test_xfeat(scene: MadeScene, tmp_path: Path, place: str) -> None:
    """LoFTR's index, the photographs where MegaDepth_v1 has them."""
    root = tmp_path / "MegaDepth"
    put_photographs(scene, root / place)
    save(root / "scene_info_0.1_0.7/0001_0.1_0.7.npz", **arrays_of(scene), pair_infos=infos_of(OVERLAPS))
    check_exact(read_posed_pairs(root), scene)


def test_d2_net_reduces_photographs_to_their_depth_maps(tmp_path: Path) -> None:
    """K is of the depth map; the photograph is larger. What is seen in it lies where the reduced camera sees it."""
    scene = make_scene(tmp_path / "made", images=2, size=(160, 120))
    root = tmp_path / "megadepth"
    put_depths(scene, root / PHOENIX / "0001/dense0/depths")
    folder = root / "Undistorted_SfM/0001/images"
    folder.mkdir(parents=True)
    spots = {}
    for image, (name, (width, height)) in enumerate(zip(scene.table.names, scene.table.sizes, strict=True)):
        large = np.array([width, height]) * 3 + [1, -1]  # as rounding leaves it
        inside = ((scene.seen(image) > 12) & (scene.seen(image) < [width - 13, height - 13])).all(axis=1)
        spots[image] = inside
        spot = (scene.seen(image)[np.flatnonzero(inside)[0]] + 0.5) * large / [width, height] - 0.5
        y, x = np.mgrid[: large[1], : large[0]]
        light = 250 * np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / (2 * 6.0**2))
        cv2.imwrite(str(folder / name), np.repeat(light[..., None], 3, axis=2).round().astype(np.uint8))
    arrays = arrays_of(scene, images=2)
    matrix = np.zeros((3, 3))
    matrix[0, 1] = 0.5  # one half only
    save(root / "scene_info/0001.0.npz", **arrays, overlap_matrix=matrix)
    pairs = read_posed_pairs(root)
    check_exact(pairs, scene, [(0, 1)])
    assert pairs.scenes[0].name == "0001/0"
    for image in (0, 1):
        pixels = pairs.pixels(0, image)[..., 0].astype(float)
        y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
        centre = [(x * pixels).sum() / pixels.sum(), (y * pixels).sum() / pixels.sum()]
        expected = scene.seen(image)[np.flatnonzero(spots[image])[0]]
        np.testing.assert_allclose(centre, expected, atol=0.02)


def write_disk(scene: MadeScene, root: Path, tuples: list[list[int]], absolute: bool = False) -> None:
    """As its own tools write it."""
    put_photographs(scene, root / "scenes/0001/images")
    calibrations = root / "scenes/0001/calibration"
    calibrations.mkdir()
    for image, name in enumerate(scene.table.names):
        with h5py.File(calibrations / f"calibration_{name}.h5", "w") as file:
            file["K"], file["R"] = scene.table.intrinsics[image], scene.table.rotations[image]
            file["T"] = scene.table.translations[image]
    base = root if absolute else Path()
    told = {
        "image_path": str(base / "scenes/0001/images"),
        "depth_path": str(base / "scenes/0001/depth_maps"),
        "calib_path": str(base / "scenes/0001/calibration"),
        "images": list(scene.table.names),
        "tuples": tuples,
    }
    (root / "dataset.json").write_text(json.dumps({"0001": told}))


@pytest.mark.parametrize("absolute", [False, True])
def test_disk(scene: MadeScene, tmp_path: Path, absolute: bool) -> None:
    root = tmp_path / "disk-data" / "megadepth"
    write_disk(scene, root, [[0, 1, 2], [2, 1, 4]], absolute)
    expected = [(0, 1), (0, 2), (1, 2), (1, 4), (2, 4)]
    for start in (root, root / "dataset.json", root.parent):
        check_exact(read_posed_pairs(start), scene, expected)
    assert len(read_posed_pairs(root, PosedConfig(scenes=("0001",)))) == 5
    with pytest.raises(BadInputError, match="none of the 1 listed scenes exists, such as '0002'"):
        read_posed_pairs(root, PosedConfig(scenes=("0002",)))
    os.remove(root / "scenes/0001/images/002.png")
    check_exact(read_posed_pairs(root), scene, [(0, 1), (1, 4)])


def test_what_is_not_there_is_left_out_with_a_line(
    scene: MadeScene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "megadepth"
    put_photographs(scene, root / "Undistorted_SfM/0001/images")
    os.remove(root / "Undistorted_SfM/0001/images/003.png")
    arrays = arrays_of(scene)
    arrays["image_paths"][4] = "../made/a/dense0/aligned/images/004.png"  # there, but outside of the folder
    assert (root / arrays["image_paths"][4]).is_file()
    save(root / "scene_info/0001.npz", **arrays, overlap_matrix=matrix_of(OVERLAPS))
    save(root / "scene_info/0002.npz", **arrays_of(scene, "0002"), overlap_matrix=matrix_of(OVERLAPS))
    save(root / "scene_info/0003.npz", **arrays_of(scene, "0003"), overlap_matrix=matrix_of({(0, 1): 0.05}))
    with caplog.at_level("WARNING", "featkit"):
        pairs = read_posed_pairs(root)
    check_exact(pairs, scene, [(0, 1), (0, 2)])
    assert "0001.npz: 2 of 5 photographs are missing and left out, such as Undistorted_SfM/0001/images/003" in (
        caplog.text
    )
    assert "passed over: " in caplog.text
    assert "0002.npz: no pair whose photographs both exist" in caplog.text
    assert "0003.npz: no pairs with an overlap of 0.1 to 0.7" in caplog.text


def test_a_camera_with_a_fault_is_left_out_with_a_line(
    scene: MadeScene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "megadepth"
    put_photographs(scene, root / "Undistorted_SfM/0001/images")
    arrays = arrays_of(scene)
    arrays["intrinsics"][0] = 3 * arrays["intrinsics"][0]
    save(root / "scene_info/0001.npz", **arrays, overlap_matrix=matrix_of(OVERLAPS))
    check_exact(read_posed_pairs(root), scene, [(1, 3), (3, 4)])
    assert "1 photographs are left out, such as " in caplog.text
    assert "000.png: its principal point is far" in caplog.text


def test_wrong_files(scene: MadeScene, tmp_path: Path) -> None:
    root = tmp_path / "megadepth"
    put_photographs(scene, root / "Undistorted_SfM/0001/images")
    good = {**arrays_of(scene), "overlap_matrix": matrix_of(OVERLAPS)}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"poses": None}, "no poses in it, so it is not a scene_info file"),
        ({"overlap_matrix": None}, "no pair_infos or overlap_matrix in it"),
        ({"overlap_matrix": np.zeros((2, 2))}, r"overlap_matrix of shape \(2, 2\) for 6 images"),
        ({"poses": good["poses"][:3]}, "3 matrices for 6 images"),
        ({"poses": as_objects([np.eye(2)] * 6)}, "a matrix of 4 numbers"),
        ({"pair_infos": as_objects([((0, 9), 0.5, None)])}, "out of range for 6 images"),
        ({"pair_infos": as_objects([3])}, "not a valid scene_info file"),
        ({"image_paths": np.zeros((2, 2))}, "paths of shape"),
    ]
    for changes, says in wrong:
        arrays = {name: values for name, values in {**good, **changes}.items() if values is not None}
        save(root / "scene_info/0001.npz", **arrays)
        with pytest.raises(BadInputError, match=rf"0001.npz: .*{says}"):
            read_posed_pairs(root)
    write_disk(scene, tmp_path / "disk", [[0, 1, 9]])
    with pytest.raises(BadInputError, match=r"dataset\.json: '0001': not in DISK's format .*out of range for 5"):
        read_posed_pairs(tmp_path / "disk")
    shutil.make_archive(str(tmp_path / "packed"), "zip", root)
    with pytest.raises(BadInputError, match="unpack it"):
        read_posed_pairs(tmp_path / "packed.zip")
